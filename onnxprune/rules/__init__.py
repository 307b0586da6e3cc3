"""How each operator ties the axes of its tensors; pure, touches no weight. Importing this registers all rules."""

from onnxprune.rules import attention, elementwise, layout, linear, normalize, pool, recurrent, reduce
from onnxprune.rules.base import find_rule, supported_operators

__all__ = [
    "attention",
    "elementwise",
    "find_rule",
    "layout",
    "linear",
    "normalize",
    "pool",
    "recurrent",
    "reduce",
    "supported_operators",
]
