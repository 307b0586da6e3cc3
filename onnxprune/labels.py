"""Labels: what a sample is, as a class or as numbers, held against what a model says of it."""

from __future__ import annotations

import numpy as np

from onnxprune.errors import DataError

IGNORED = -100
"""The label of what does not count, as in PyTorch."""


def numbers(labels: object, source: str) -> np.ndarray:
    """Labels as an array of numbers, axis 0 the samples.

    Args:
        labels: what was given.
        source: where they come from, in words.

    Raises:
        DataError: they are no numbers, not finite, or one for all samples.
    """
    array = np.asarray(labels)
    if not array.ndim:
        raise DataError(f"{source}: the labels are one value for all samples; give one for each sample.")
    if array.dtype.kind not in "iubf":
        raise DataError(f"{source}: the labels are {array.dtype}; give numbers, such as that of the class, from 0.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{source}: the labels have NaN or infinite values; remove those samples.")
    return array.astype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array


def classes(labels: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Labels as classes.

    Args:
        labels: (n, ...), or with one more axis of one position.
        shape: of what was chosen, (n, ...).
        count: classes that there are to choose from.

    Returns:
        int64 of that shape; `IGNORED` where a label does not count.

    Raises:
        DataError: there are more or fewer than was chosen, or one is no class.
    """
    if labels.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"labels of shape {labels.shape} do not fit classes of shape {shape}; give one for each of them."
        )
    flat = labels.reshape(shape)
    whole = flat.astype(np.int64)
    wrong = (flat != whole) | ((whole != IGNORED) & ((whole < 0) | (whole >= count)))
    if wrong.any():
        raise no_class(flat[wrong][0].item(), count)
    return whole


def no_class(label: float, count: int) -> DataError:
    """What to say of a label that is no class."""
    return DataError(
        f"the label {label:g} is none of the {count} classes of the output; give whole numbers from 0 to {count - 1}, "
        f"and {IGNORED} for what does not count."
    )
