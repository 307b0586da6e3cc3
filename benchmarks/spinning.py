"""Why idle threads wait passively in recovery, and why processes share the cores: a step of training with its teacher.

    python benchmarks/spinning.py

times the same steps in processes that differ in how threads of OpenMP and ONNX Runtime wait, in whether glibc keeps
freed memory, as docs/recovery.md advises, and in how many threads the teacher has. About six minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

import cifar10
from results import publish, table

STEPS = 16
CORES = os.cpu_count() or 1
KEPT = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_TOP_PAD_": "268435456"}


def measure(spin: bool, threads: int) -> None:
    """Prints the median seconds of a step: the teacher's outputs, then forward, backward and update."""
    import torch

    import onnxprune
    from onnxprune.runtime import Session
    from onnxprune.torch_bridge import to_torch

    graph = onnxprune.load(cifar10.model("resnet20_cifar10_bn"))
    module, teacher = to_torch(graph).train(), Session(graph.message(), device="cpu", spin=spin, threads=threads)
    optimizer = torch.optim.AdamW(module.parameters())
    images = np.random.default_rng(0).standard_normal((128, 3, 32, 32)).astype("f")
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        target = torch.from_numpy(teacher.run({"image": images})[0])
        loss = (module(torch.from_numpy(images))[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(np.median(times[1:]))


def seconds(wait: str, tied: bool, environment: dict[str, str], count: int) -> float:
    """Seconds of a step in processes that share the cores, on average; the better of two runs."""
    share = max(1, CORES // count)
    variables = {**os.environ, **environment, "OMP_NUM_THREADS": str(share)}
    command = [sys.executable, __file__, wait, "0" if tied else str(share)]
    runs = []
    for _ in range(2):
        started = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) for _ in range(count)]
        runs.append(float(np.mean([float(process.communicate()[0]) for process in started])))
    return min(runs)


def main() -> None:
    """Runs each setting in processes of its own and writes the table."""
    rows = [["threads wait", "freed memory", "the teacher's threads", "alone", "beside a busy process", "two at once"]]
    settings = (("wait", {}, True), ("spin", {}, True), ("wait", {}, False), ("wait", KEPT, False))
    for wait, kept, tied in settings:
        environment = {"OMP_WAIT_POLICY": "PASSIVE" if wait == "wait" else "ACTIVE", **kept}
        cells = []
        for busy, count in ((False, 1), (True, 1), (False, 2)):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            cells.append(f"{seconds(wait, tied, environment, count):.2f} s")
            if other:
                other.kill()
        policy = environment["OMP_WAIT_POLICY"].lower() + "ly"
        rows.append([policy, "kept" if kept else "given back", "tied to all cores" if tied else "free", *cells])
    publish(
        "spinning.py",
        "## Threads that wait, in training",
        "One step of ResNet-20 on 128 images with its teacher in ONNX Runtime, median of 15 steps, the better of two "
        "runs; of two processes at once each has half of the cores.",
        table(rows),
    )


if __name__ == "__main__":
    measure(sys.argv[1] == "spin", int(sys.argv[2])) if len(sys.argv) > 1 else main()
