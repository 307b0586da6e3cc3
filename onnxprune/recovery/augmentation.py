"""Samples as a function of the user changes them, anew in every step.

What comes back is held to what went in, since ONNX Runtime and PyTorch would name neither the function nor the option,
and too few samples would even be trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np

from onnxprune.errors import DataError, blames
from onnxprune.records import rows_of
from onnxprune.recovery.options import Arrays, Augment, from_script


class Augmentation:
    """A function of the user.

    Attributes:
        labelled: whether it takes the labels too.
    """

    def __init__(self, function: Augment | str) -> None:
        """Finds the function.

        Args:
            function: as in `recover`.

        Raises:
            DataError: a script has no such function, or fails.
        """
        self._function = from_script(function, "augment") if isinstance(function, str) else function
        self.labelled = "labels" in inspect.signature(self._function).parameters

    def __call__(
        self, arrays: Arrays, labels: np.ndarray | None, generator: np.random.Generator
    ) -> tuple[Arrays, np.ndarray | None]:
        """Some samples and their labels, changed; numbers come back in the types of the inputs.

        Raises:
            DataError: the function fails, or gives what does not fit.
        """
        with blames("--augment"):
            changed = self._function(dict(arrays), generator, **({"labels": labels} if self.labelled else {}))
        if self.labelled and isinstance(changed, tuple) and len(changed) == 2:
            changed, labels = changed[0], _as_many((rows_of(arrays),), "labels", np.asarray(changed[1]))
        if not isinstance(changed, Mapping):
            wanted = "arrays by input" + (", or (arrays, labels)" if self.labelled else "")
            raise DataError(f"--augment gives a {type(changed).__name__}; let it return {wanted}.")
        return {name: _input(name, array, changed) for name, array in arrays.items()}, labels


def _input(name: str, old: np.ndarray, changed: Mapping[str, np.ndarray]) -> np.ndarray:
    """A changed input, in its type."""
    if name not in changed:
        raise DataError(f"--augment gives no array for the input '{name}'; let it return all inputs.")
    new = _as_many(old.shape[:1], f"'{name}'", np.asarray(changed[name]))
    if not np.can_cast(new.dtype, old.dtype, "same_kind"):
        raise DataError(f"--augment gives '{name}' as {new.dtype}, the model wants {old.dtype}; convert it.")
    return new.astype(old.dtype, copy=False)


def _as_many(rows: tuple[int, ...], what: str, array: np.ndarray) -> np.ndarray:
    """An array of so many samples, or of a number that all of them share, in one piece."""
    if array.shape[:1] != rows:
        had = f"{rows[0]} samples; keep their number." if rows else "a number that all samples share; keep it one."
        raise DataError(f"--augment gives {what} of shape {array.shape} for {had}")
    return np.asarray(array, order="C")
