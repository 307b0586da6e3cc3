"""Which files a run reads and which it writes, checked before any work: none is in the way of another.

Why files that are the same are refused even with --force: that says that an old result may go, not that one result of
the run may replace another one or what the run itself reads.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from onnxprune.errors import ModelError, OutputError
from onnxprune.files import check_kind, is_same, meet
from onnxprune.journal import Journal
from onnxprune.references import data_of


@dataclass(frozen=True, slots=True)
class Output:
    """A file that a run writes.

    Attributes:
        role: the option that names it.
        path: where.
        model: whether it is a model, whose weights may come to lie beside it.
        free: whether nothing may be there yet.
    """

    role: str
    path: Path
    model: bool = False
    free: bool = True


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads.

    Attributes:
        models: files of models by the role they have, such as "--teacher"; None where they are in memory.
        others: the same for samples and scripts, as options take them; what is no path counts for nothing.
    """

    models: Mapping[str, Path | str | None]
    others: Mapping[str, object]

    def files(self) -> Iterator[tuple[str, Path]]:
        """All files, with the words for what they are."""
        for role, model in self.models.items():
            if model is not None:
                yield role, Path(model)
                yield from ((f"the external data of {role}", data) for data in data_of(Path(model)))
        for role, source in self.others.items():
            yield from ((role, path) for path in _files(source))

    def takes(self, path: Path) -> str | None:
        """The role whose samples a file would be one of, if it were there: that of a folder or of a pattern."""
        for role, source in self.others.items():
            pattern = _pattern(source)
            folders = {Path(name).parent for name in glob.glob(pattern)} if pattern else set()  # noqa: PTH207
            if fnmatch.fnmatch(path.name, Path(pattern).name) and any(is_same(path.parent, f) for f in folders):
                return role
        return None


def check_paths(outputs: Sequence[Output], inputs: Inputs, *, force: bool = False) -> None:
    """Finds out before any work whether all results of a run can be written, without harm to any other file.

    Args:
        outputs: what the run writes.
        inputs: what it reads.
        force: whether files that exist may be replaced.

    Raises:
        OutputError: two of the files are the same, one exists, or one cannot be written.
    """
    for output in outputs:
        check_kind(output.path)
    for a, b in combinations(outputs, 2):
        if is_same(a.path, b.path):
            raise OutputError(f"{a.role} and {b.role} are the same file {b.path}; give another one.")
        for model, other in ((a, b), (b, a)):
            if model.model and meet(model.path, other.path):
                what = f"{other.role} {other.path} has a name that the weights of {model.role} may get"
                raise OutputError(f"{what}; give another one.")
    if any(os.path.lexists(output.path) for output in outputs):
        for role, path in inputs.files():
            for output in outputs:
                if is_same(output.path, path):
                    raise OutputError(f"{output.role} and {role} are the same file {output.path}; give another one.")
    for output in outputs:
        if (taker := inputs.takes(output.path)) is not None:
            raise OutputError(f"{output.role} {output.path} would be among the files of {taker}; give another one.")
        check_kind(output.path, free=output.free and not force)
        _check_writable(output.path)


def beside(model: Path, ending: str) -> Path:
    """The name that a result gets when none is given: `model.onnx` becomes `model.<ending>.onnx`.

    Raises:
        ModelError: the model is a folder without a name, such as `.`.
    """
    if model.name in ("", ".."):
        raise ModelError(f"{model} is a folder; give the file of a model.")
    return model.with_name(f"{model.stem}.{ending}.onnx")


def _check_writable(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it or give another output path.")
    journal = Journal(path)
    try:
        with journal.folder.alone():
            journal.start()
            journal.end()
    except OSError as error:
        raise OutputError(f"{folder} is not writable ({error.strerror}); give another output path.") from error


def _pattern(source: object) -> str:
    """The pattern whose matches are samples; "" for scripts, arrays and what is no path."""
    if not isinstance(source, str | Path) or str(source).endswith(".py") or ".py:" in str(source):
        return ""
    return f"{glob.escape(str(source))}/*.npz" if Path(source).is_dir() else str(source)


def _files(source: object) -> Iterator[Path]:
    """The files that an option may mean."""
    if isinstance(source, str | Path):
        script, _, function = str(source).partition(".py:")
        yield Path(script + ".py") if function else Path(source)
        yield from map(Path, glob.glob(_pattern(source)) if _pattern(source) else ())  # noqa: PTH207
