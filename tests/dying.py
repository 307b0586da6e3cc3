"""Writers that die at any point: each in a process of its own, which ends before a given line of the code that writes.

    python tests/dying.py FOLDER

saves `new.onnx` over `model.onnx` in a copy of FOLDER/start, again and again, and each time dies one
line later, until it lives; the copies are FOLDER/0, FOLDER/1 and so on. A line makes one change to the folder at most,
so that a killed process cannot leave anything else than one of these does.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import onnxprune.graph
from onnxprune import checksums, files, journal, writing

PLACES = {module.__file__ for module in (checksums, files, journal, onnxprune.graph, writing)}


def tracer(lines: int, end: Callable[[], None]) -> Callable[..., Any]:
    """A function for sys.settrace that does something once, after so many lines of the code that writes."""
    left = [lines]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in PLACES:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == -1:
                end()
        return trace

    return trace


def main() -> None:
    """Dies at every line."""
    folder = Path(sys.argv[1])
    os.fsync = lambda descriptor: None  # the system lives on, and its disk need not be waited for
    onnxprune.graph.EXTERNAL_MINIMUM = 64
    graph = onnxprune.graph.load(folder / "new.onnx")
    for lines in range(10_000):
        scene = shutil.copytree(folder / "start", folder / str(lines))
        child = os.fork()
        if not child:
            sys.settrace(tracer(lines, lambda: os._exit(9)))
            graph.save(scene / "model.onnx")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


if __name__ == "__main__":
    main()
