"""Every operator that has a rule has a case."""

from __future__ import annotations

import importlib
from pathlib import Path

from onnxprune.rules import supported_operators
from rules.cases import CASES, SINGLE


def test_every_operator_has_a_case() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"rules.{path.stem}")
    cases = {name for cases in CASES.values() for name in cases}
    known = {f"{domain}:{op}" if domain else op for domain, ops in supported_operators().items() for op in ops}
    assert {name.split("/")[0] for name in cases} == known
    assert set(SINGLE) <= cases
