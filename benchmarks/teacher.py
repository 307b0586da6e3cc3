"""A step of recovery with the teacher in ONNX Runtime and in PyTorch, in float32 and in bfloat16.

    python benchmarks/teacher.py

takes about two minutes on two cores. Each network learns from itself, since what it learns does not matter here, and
nothing that the teacher says is kept. Settings take turns, so that all see the same machine.
"""

from __future__ import annotations

import time

import numpy as np
import torch

import cifar10
import onnxprune
import stories
from onnxprune.recovery.options import Arrays
from results import publish, table

STEPS, TURNS = 8, 2
RUNTIMES = ("onnxruntime", "torch")


def same(arrays: Arrays, generator: np.random.Generator) -> Arrays:
    """An augmentation that changes nothing, so that outputs are not kept."""
    return arrays


def steps(graph: onnxprune.Graph, data: Arrays, task: str, execution: onnxprune.Execution) -> list[float]:
    """Seconds of each step but the first."""
    ends: list[float] = []

    def stamp(stage: str, done: int, total: int, note: str) -> None:
        if stage == "recovery":
            ends.append(time.perf_counter())

    training = onnxprune.Training(epochs=1, batch=len(next(iter(data.values()))) // STEPS, rate=1e-5, task=task)
    onnxprune.recover(graph, data, teacher=graph, training=training, augment=same, execution=execution, progress=stamp)
    return np.diff(ends).tolist()


def main() -> None:
    """Times every setting and writes the table."""
    generator = np.random.default_rng(0)
    images = {"image": generator.standard_normal((128 * STEPS, 3, 32, 32)).astype("f")}
    tokens = {"tokens": generator.integers(0, 512, (16 * STEPS, 256))}
    stories.CACHE.mkdir(parents=True, exist_ok=True)
    llama = stories.exported(stories.network(), dynamo=True)
    cases = {
        "ResNet-56, 128 images": (onnxprune.load(cifar10.model("resnet56_cifar10_bn")), images, "cross-entropy"),
        "Llama of 260 thousand parameters, 16 texts of 256 tokens": (llama, tokens, "next-token"),
    }
    rows = [["network", "computed in", *(f"teacher in {name}" for name in ("ONNX Runtime", "PyTorch")), "ratio"]]
    for name, (graph, data, task) in cases.items():
        for precision in ("float32", "bfloat16"):
            spans: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
            for runtime in RUNTIMES * TURNS:
                execution = onnxprune.Execution(precision=precision, teacher_runtime=runtime)
                spans[runtime] += steps(graph, data, task, execution)
            theirs, ours = (float(np.median(spans[runtime])) for runtime in RUNTIMES)
            rows.append([name, precision, f"{theirs:.2f} s", f"{ours:.2f} s", f"x {ours / theirs:.2f}"])
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    publish(
        "teacher.py",
        "## A step of recovery, by what runs the teacher",
        f"`recover`, {TURNS} runs of {STEPS} steps for each setting in turns, median of their steps but the first; "
        f"AdamW; {place}.",
        table(rows),
    )


if __name__ == "__main__":
    main()
