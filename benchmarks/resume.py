"""Kills a recovery at random steps and resumes it, many times: never a broken file, always the same end.

    python benchmarks/resume.py [KILLS]

takes about ten minutes with 20 kills. The end is compared byte by byte with that of a run that was left alone.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from results import publish, table

MODELS = Path(__file__).parents[1] / "models"
STEPS = 3 * 20
AUGMENT = """
import time
def augment(arrays, generator):
    time.sleep(0.05)
    return {n: a + 0.1 * generator.standard_normal(a.shape, "float32") for n, a in arrays.items()}
"""


def recovery(folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    """Starts one."""
    model, data = str(MODELS / "digits_mlp.onnx"), str(MODELS / "digits_train.npz")
    command = [sys.executable, "-m", "onnxprune", "-q", "recover", model, "--teacher", model, "--data", data]
    command += ["--batch", "72", "--epochs", "3", "--save-every", "3", "--ema", "0.9", "--device", "cpu"]
    command += ["--augment", str(folder / "augment.py"), "-o", str(folder / f"{name}.onnx")]
    return subprocess.Popen([*command, "--losses", str(folder / f"{name}.jsonl"), *more])


def steps(path: Path) -> int:
    """How many steps a log holds."""
    return path.read_text().count('"loss"') if path.exists() else 0


def main() -> None:
    """Runs, kills, resumes, compares."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "augment.py").write_text(AUGMENT)
        assert recovery(folder, "whole").wait() == 0
        expected = (folder / "whole.onnx").read_bytes()
        same = broken = 0
        for _ in range(kills):
            log, out = folder / "cut.jsonl", folder / "cut.onnx"
            checkpoint = folder / "cut.onnx.ckpt"
            for path in (log, out, checkpoint):
                path.unlink(missing_ok=True)
            process, kill = recovery(folder, "cut"), generator.randint(1, STEPS - 1)
            while steps(log) < kill and process.poll() is None:
                time.sleep(0.001)
            time.sleep(generator.random() * 0.06)  # anywhere in a step
            process.kill()
            process.wait()
            broken += out.exists()
            again = ["--resume"] if checkpoint.exists() else []
            assert recovery(folder, "cut", *again).wait() == 0
            onnx.checker.check_model(onnx.load(out))
            same += out.read_bytes() == expected
            print(f"killed after step {kill}: {'the same end' if out.read_bytes() == expected else 'ANOTHER END'}")
    publish(
        "resume.py",
        "## Killed and resumed",
        f"Recovery of `digits_mlp.onnx` in {STEPS} steps, killed (SIGKILL) at a random moment, then resumed.",
        table([["kills", "the same bytes in the end", "unfinished files"], [str(kills), str(same), str(broken)]]),
    )


if __name__ == "__main__":
    main()
