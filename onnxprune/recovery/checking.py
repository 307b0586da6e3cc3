"""What would train, what would not and why, and what the bridge to PyTorch lacks; nothing is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.data import load_data
from onnxprune.graph import Graph, load
from onnxprune.report import table
from onnxprune.runtime import Session

STATISTIC = "a running statistic, which follows the batches instead"
UNTOUCHED = "no gradient of an output reaches it"
NUMBER = "one number, such as an epsilon or a scale"
TABLE = "not combined with an activation as a weight is: a mask, a table or a grid"


@dataclass(frozen=True, slots=True)
class Trainable:
    """What training would do to a model.

    Attributes:
        trained: shapes of the constants that would train.
        fixed: for each other floating constant its shape and why it would not.
        whole_numbers: how many constants are no floating-point numbers.
        unfolded: convolutions that a normalization can be put behind.
        unfolds: whether that is done unless it is forbidden.
        lacks: operators that the bridge lacks, and the nodes that need them; nothing trains while there is one.
    """

    trained: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, tuple[tuple[int, ...], str]]
    whole_numbers: int
    unfolded: int
    unfolds: bool
    lacks: Mapping[str, list[str]]

    def in_words(self) -> str:
        """A table for people."""
        rows = [["constant", "shape", "trains"]]
        rows += [[name, _size(shape), "yes"] for name, shape in self.trained.items()]
        rows += [[name, _size(shape), f"no: {why}"] for name, (shape, why) in self.fixed.items()]
        numbers = sum(math.prod(shape) for shape in self.trained.values())
        lines = [table(rows), "", f"Constants that train: {len(self.trained)}, {numbers:,} numbers."]
        if self.whole_numbers:
            lines.append(f"Constants of whole numbers, which do not: {self.whole_numbers}.")
        if self.unfolded:
            how = "is put" if self.unfolds else "can be put (--unfold-batchnorm)"
            lines.append(f"A normalization {how} behind convolutions ({self.unfolded}) for training, and folded back.")
        for op, nodes in self.lacks.items():
            lines.append(f"The bridge to PyTorch lacks {op}; nodes that need it: {len(nodes)}, the first '{nodes[0]}'.")
        lines += ["Nothing trains while the bridge lacks an operator; refit needs no PyTorch."] if self.lacks else []
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object, schema onnxprune.trainable/1."""
        fixed = {name: {"shape": list(shape), "because": why} for name, (shape, why) in self.fixed.items()}
        return json.dumps(
            {
                "schema": "onnxprune.trainable/1",
                "trained": {name: list(shape) for name, shape in self.trained.items()},
                "fixed": fixed,
                "whole_numbers": self.whole_numbers,
                "foldable": self.unfolded,
                "unfolds": self.unfolds,
                "lacks": {op: list(nodes) for op, nodes in self.lacks.items()},
            },
            indent=1,
            sort_keys=True,
        )


def check(model: Graph | Path | str, data: object = None) -> Trainable:
    """Finds out what would train.

    Args:
        model: the model.
        data: samples, where synthetic ones will not do.

    Raises:
        BridgeError: the module differs from ONNX Runtime.
    """
    from onnxprune.torch_bridge import missing_operators, to_torch, untouched_parameters
    from onnxprune.torch_bridge.weights import find_weights

    graph = model if isinstance(model, Graph) else load(model)
    lacks = missing_operators(graph)
    weights = find_weights(graph)
    called = weights.called()
    untouched: set[str] = set()
    unfolded, unfolds = 0, False
    if not lacks:
        from onnxprune.recovery.unfold import foldable, is_folded
        from onnxprune.torch_bridge.export import META

        feeds = load_data(data, Session(graph.message(), device="cpu")).first(2).feeds
        module = to_torch(graph, feeds)
        names = module.meta[META]["names"]
        untouched = {name for path in untouched_parameters(module, feeds) for name in names[path]}
        unfolded, unfolds = len(foldable(module)), is_folded(module)
    statistics = set(weights.statistics.values())
    trained, fixed, whole_numbers = {}, {}, 0
    for name, array in graph.constants.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            whole_numbers += 1
        elif name in called and name not in untouched:
            trained[name] = array.shape
        else:
            fixed[name] = (array.shape, _reason(array, name in untouched, name in statistics))
    return Trainable(trained, fixed, whole_numbers, unfolded, unfolds, lacks)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _reason(array: np.ndarray, untouched: bool, statistic: bool) -> str:
    """Why a constant would not train."""
    if untouched:
        return UNTOUCHED
    if statistic:
        return STATISTIC
    return NUMBER if array.size <= 1 else TABLE
