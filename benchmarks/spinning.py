"""Why recovery lets idle threads wait passively: a step of training beside its teacher, and beside other work.

    python benchmarks/spinning.py

times the same steps in processes that differ in how threads of OpenMP and ONNX Runtime wait, and in whether glibc keeps
freed memory, as docs/recovery.md advises. About two minutes.
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
KEPT = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_TOP_PAD_": "268435456"}


def measure(spin: bool) -> None:
    """Prints the median seconds of a step: the teacher's outputs, then forward, backward and update."""
    import torch

    import onnxprune
    from onnxprune.runtime import Session
    from onnxprune.torch_bridge import to_torch

    graph = onnxprune.load(cifar10.model("resnet20_cifar10_bn"))
    module, teacher = to_torch(graph).train(), Session(graph.message(), device="cpu", spin=spin)
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


def main() -> None:
    """Runs each setting in a process of its own and writes the table."""
    rows = [["threads wait", "freed memory", "alone", "beside a busy process"]]
    for wait, policy, kept in (("wait", "PASSIVE", {}), ("spin", "ACTIVE", {}), ("wait", "PASSIVE", KEPT)):
        cells = []
        for busy in (False, True):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            environment = {**os.environ, "OMP_WAIT_POLICY": policy, **kept}
            command = [sys.executable, __file__, wait]
            seconds = float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
            cells.append(f"{seconds:.2f} s")
            if other:
                other.kill()
        rows.append([policy.lower() + "ly", "kept" if kept else "given back", *cells])
    publish(
        "spinning.py",
        "## Threads that wait, in training",
        "One step of ResNet-20 on 128 images with its teacher in ONNX Runtime, median of 15 steps.",
        table(rows),
    )


if __name__ == "__main__":
    measure(sys.argv[1] == "spin") if len(sys.argv) > 1 else main()
