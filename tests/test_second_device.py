"""Recovery on a device that is not the CPU, of which there is one on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
FILES = ("onnx_cases", *(f"recovery_{part}" for part in ("objectives", "padding", "stopping", "teacher", "unfold")))
LEFT_OUT = "understood or compilation or take_no_part_in_attention"
"""What runs on the CPU alone; what autocast and torch.compile do, which know real devices; what takes long."""


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no devices written in Python",
)
def test_what_recovery_does_on_the_cpu_it_does_elsewhere() -> None:
    """Every operator of the bridge, teacher, losses, optimizer, averages, measurements, with tensors kept apart."""
    files = ["torch_bridge", *(f"test_{name}.py" for name in FILES)]
    command = [sys.executable, "-m", "pytest", "-p", "second_device", "--tb=short", "-k", f"not ({LEFT_OUT})", *files]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 500
