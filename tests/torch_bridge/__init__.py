"""Tests of the bridge to PyTorch."""
