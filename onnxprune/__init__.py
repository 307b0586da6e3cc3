"""Structured pruning of ONNX models: tensors get smaller, not masked.

    import onnxprune
    pruned = onnxprune.prune("model.onnx", onnxprune.Budget("params", 0.4), "calibration.npz")
    pruned.graph.save("compact.onnx")

Every command has a function of the same name. Names are loaded when they are first used, so that importing the package
and asking the command line for help stay fast.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Budget": "selection",
    "Execution": "recovery",
    "Feeding": "run",
    "Graph": "graph",
    "Limits": "selection",
    "Method": "pipeline",
    "Moments": "records",
    "OnnxPruneError": "errors",
    "Plan": "records",
    "Pruned": "pipeline",
    "Ranking": "run",
    "Report": "findings",
    "Scored": "pipeline",
    "Scores": "records",
    "SpectralOptions": "spectral",
    "Training": "recovery",
    "Units": "units",
    "Watch": "recovery",
    "compare": "pipeline",
    "evaluate": "pipeline",
    "find_units": "grouping",
    "inspect": "pipeline",
    "load": "graph",
    "mask": "masking",
    "prune": "pipeline",
    "recover": "recovery",
    "remove": "surgery",
    "score": "pipeline",
    "study": "trials",
    "supported_operators": "rules",
    "verify": "proof",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute '{name}'")
    return getattr(importlib.import_module(f"onnxprune.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
