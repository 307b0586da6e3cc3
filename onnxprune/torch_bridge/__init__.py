"""ONNX graphs as PyTorch modules and back. Importing this registers all operators, and imports torch."""

from onnxprune.torch_bridge import (
    attention,
    control,
    creation,
    elementwise,
    indexing,
    interpolation,
    layout,
    linear,
    normalize,
    pool,
    quantize,
    recurrent,
    reduce,
    regions,
    spectra,
)
from onnxprune.torch_bridge.arrays import inputs_of
from onnxprune.torch_bridge.bridge import missing_operators, to_torch, untouched_parameters
from onnxprune.torch_bridge.export import to_onnx

__all__ = [
    "attention",
    "control",
    "creation",
    "elementwise",
    "indexing",
    "inputs_of",
    "interpolation",
    "layout",
    "linear",
    "missing_operators",
    "normalize",
    "pool",
    "quantize",
    "recurrent",
    "reduce",
    "regions",
    "spectra",
    "to_onnx",
    "to_torch",
    "untouched_parameters",
]
