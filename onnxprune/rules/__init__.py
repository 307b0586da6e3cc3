"""How each operator ties the axes of its tensors; pure, touches no weight. Importing this registers all rules."""

from onnxprune.rules import (
    attention,
    elementwise,
    indexing,
    layout,
    linear,
    normalize,
    pool,
    quantize,
    recurrent,
    reduce,
)
from onnxprune.rules.base import find_rule, supported_operators

__all__ = [
    "attention",
    "elementwise",
    "find_rule",
    "indexing",
    "layout",
    "linear",
    "normalize",
    "pool",
    "quantize",
    "recurrent",
    "reduce",
    "supported_operators",
]
