"""What `make demo` runs: the whole path on a small network, by the commands that a user would type."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

MODELS = Path(__file__).parent
OUT = MODELS.parent / "demo-out"


def run(command: str) -> None:
    """Shows a command and runs it."""
    print(f"\n$ onnxprune {command}", flush=True)
    subprocess.run([sys.executable, "-m", "onnxprune", *shlex.split(command)], check=True)


def main() -> None:
    """Inspects, scores, prunes, recovers and compares."""
    started = time.monotonic()
    OUT.mkdir(exist_ok=True)
    model, train, test = (MODELS / f"digits_{name}" for name in ("conv.onnx", "train.npz", "test.npz"))
    compact, final = OUT / "compact.onnx", OUT / "final.onnx"
    run(f"inspect {model}")
    run(f"score {model} --data {train} -o {OUT / 'scores.npz'} --force")
    run(f"prune {model} --ratio 0.4 --data {train} -o {compact} --plan {OUT / 'plan.json'} --force")
    run(f"recover {compact} --teacher {model} --data {train} --epochs 20 --batch 64 -o {final} --force")
    run(f"compare {model} {final} --data {test}")
    print(f"\nThe models are in {OUT.name}/. This took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
