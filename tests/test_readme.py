"""The README's examples run, and its tables are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from onnxprune.cli import main
from onnxprune.rules import supported_operators

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", README))))
def test_examples_run(number: int, tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    (tmp_path / "models").symlink_to(ROOT / "models")
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_the_operator_table_is_true() -> None:
    table = supported_operators()
    for domain, ops in table.items():
        row = f"| {'`' + domain + '`' if domain else 'ONNX'} | {', '.join(ops)} |"
        assert row in README, row


def test_every_command_is_listed() -> None:
    assert set(re.findall(r"^\| `(\w+) ", README, re.MULTILINE)) == set(main.commands)


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
