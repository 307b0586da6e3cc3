"""Structured pruning of ONNX models."""
