"""Keeps RESULTS.md: each benchmark owns the section between two marks and replaces it whole."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def publish(section: str, *paragraphs: str) -> None:
    """Prints a section and puts it into RESULTS.md, followed by when and on what it was measured.

    Args:
        section: the name of the script.
        paragraphs: Markdown.
    """
    text = "\n\n".join([*paragraphs, conditions()])
    print(text)
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    old = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    block = f"{start}\n{text}\n{end}"
    if start in old:
        before, rest = old.split(start, 1)
        old = before + block + rest.split(end, 1)[1]
    else:
        old = old.rstrip() + f"\n\n{block}\n"
    RESULTS.write_text(old)


def table(rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the first row its heading."""
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def conditions() -> str:
    """Date, versions and machine in one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxprune", "onnxruntime-gpu", "torch", "numpy"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"Python {platform.python_version()}, {platform.machine()}, {cores} core{'s' * (cores != 1)}"
    return f"_{datetime.date.today()}; {packages}; {machine}._"
