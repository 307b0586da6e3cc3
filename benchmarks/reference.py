"""The reference data: the folder of $ONNXPRUNE_DATA, or ../shared/data beside the project.

The README there says what its files hold, how they are packed and where they come from.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("ONNXPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def file(name: str) -> Path:
    """A file of the reference data, such as "sst2_dev.tsv"; ends the program where it is missing."""
    path = FOLDER / name
    if not path.is_file():
        sys.exit(f"{path} is not here; set ONNXPRUNE_DATA to the folder of the reference data")
    return path
