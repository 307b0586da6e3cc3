"""What the proof costs: its share of the time that `prune` takes with its defaults, in one run.

python benchmarks/proof_cost.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from cifar10 import images, model
from halves import WIDE, sized
from onnxprune import run
from onnxprune.graph import from_proto
from results import publish, table
from zoo.base import TORCHSCRIPT, exported, feeds, zoo

SPENT: dict[str, float] = {}
"""Seconds in each function that is watched."""


def watched(owner: Any, name: str) -> None:
    """Adds up the time that a function takes."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, name, timed)


def cost(network: Path | onnxprune.Graph, data: Mapping[str, np.ndarray]) -> list[object]:
    """Seconds of a run, of what finds exact units in it, and of the proof, and the share of both."""
    SPENT.clear()
    start = time.perf_counter()
    pruned = onnxprune.prune(network, onnxprune.Budget("params", 0.3), data)
    total = time.perf_counter() - start
    parts = SPENT["find_exact"], SPENT["prove"]
    found = pruned.report.proof
    assert found is not None
    shares = [f"{total:.1f} s", *(f"{part:.2f} s" for part in parts), f"{100 * sum(parts) / total:.1f} %"]
    return [*shares, found.tensors, found.weights, found.samples]


def main() -> None:
    """Measures both networks."""
    watched(run, "find_exact")
    watched(run.Run, "prove")
    rows: list[list[object]] = [
        ["network", "prune", "exact units", "proof", "share", "tensors compared", "weights spoiled", "samples"]
    ]
    resnet = images("train_0", count=1024)
    rows.append(["ResNet-56, 1,024 images", *cost(model("resnet56_cifar10_bn"), {"image": resnet["image"]})])
    with sized(WIDE):
        content = exported(zoo()["bert"], TORCHSCRIPT, "eager")
        texts = feeds(zoo()["bert"], {"batch": 256, "tokens": 16})
    rows.append(["BERT, 4 x 256, 256 texts of 16 tokens", *cost(from_proto(onnx.load_from_string(content)), texts)])
    about = "`prune --ratio 0.3` with its defaults, latency included; the share is that of exact units and proof."
    publish("proof_cost.py", "## What the proof costs", about, table(rows))


if __name__ == "__main__":
    main()
