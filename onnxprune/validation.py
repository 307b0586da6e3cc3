"""Options are what their records say: types and words from the annotations, ranges from `Within` beside them.

A record calls `validate` once it is made. What would be taken for something else in silence is refused in one line that
names the option as the command line does: a text for a tuple of texts, NaN, True for a number, a word nobody knows.
What means the same is taken: numpy's numbers, lists for tuples, texts for paths.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from onnxprune.errors import PlanError


@dataclass(frozen=True, slots=True)
class Within:
    """The range of a number.

    Attributes:
        words: the range in a reader's words, as they follow "give".
        low: the smallest value.
        high: the largest.
        open: which of the two are excluded: "", "low", "high" or "both".
    """

    words: str
    low: float = -math.inf
    high: float = math.inf
    open: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open in ("low", "both") else self.low <= value
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return above and below


COUNT = Within("1 or more", 1)
NATURAL = Within("0 or more", 0)
POSITIVE = Within("more than 0", 0, open="low")
FINITE = Within("more than 0", 0, open="both")
NOT_NEGATIVE = Within("0 or more", 0, open="high")
SEED = Within("a number from 0 up to 2**63", 0, (1 << 63) - 1)
SHARE = Within("a share from 0 to 1", 0, 1)


NumberType = Literal[
    "bool", "bfloat16", "float16", "float32", "float64",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
"""Types of the numbers in a plan, as numpy calls them."""


@dataclass(frozen=True, slots=True)
class Rising:
    """The range of indices that are kept: each larger than the one before it.

    Attributes:
        least: how many there are at least.
    """

    least: int = 0

    @property
    def words(self) -> str:
        """The range in a reader's words."""
        return "indices from 0 that rise" + (f", at least {self.least}" if self.least else "")

    def __contains__(self, value: tuple[int, ...]) -> bool:
        return len(value) >= self.least and min(value, default=0) >= 0 and all(map(operator.lt, value, value[1:]))


class _Refused(Exception):
    """A value is not what its annotation says: what was found, what is wanted, and where in a table it is."""

    def __init__(self, found: str, wanted: str, where: str = "") -> None:
        super().__init__(found)
        self.found, self.wanted, self.where = found, wanted, where


def validate(record: Any, **named: str) -> None:
    """Checks every field of a frozen record, and puts plain values in the place of what means the same.

    Args:
        record: the record, as it was made.
        named: what a user calls a field, where that is not "--" and its name.

    Raises:
        PlanError: a field is not what its annotation says.
    """
    for field, hint in _hints(record.__class__).items():
        option = named.get(field, f"--{field.replace('_', '-')}")
        object.__setattr__(record, field, checked(option, getattr(record, field), hint))


def checked(option: str, value: Any, hint: Any) -> Any:
    """A value that is what an annotation says.

    Args:
        option: what a user calls it.
        value: what was given.
        hint: a type, perhaps with a `Within` in an `Annotated`.

    Raises:
        PlanError: it is not.
    """
    try:
        return _accepted(value, hint)
    except _Refused as refused:
        raise PlanError(f"{option}{refused.where} {refused.found}; {refused.wanted}.") from None


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    known = get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in fields(kind)}


def _accepted(value: Any, hint: Any) -> Any:
    """The value, plain; raises `_Refused` where it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        plain = _accepted(value, args[0])
        if plain not in args[1]:
            shown = f"{plain:g}" if isinstance(plain, int | float) else _shown(plain)
            raise _Refused(f"{shown} is out of range", f"give {args[1].words}")
        return plain
    if origin in (Union, types.UnionType):
        return _one_of(value, args)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
        raise _Refused(f"{_shown(value)} is unknown", f"use {_words(hint)}")
    if origin in (tuple, list):
        return origin(_entries(value, args if origin is tuple and args[-1] is not Ellipsis else args[0]))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _Refused(f"{_shown(value)} is no table", "give a dict")
        return {_accepted(key, args[0]): _inside(key, entry, args[1]) for key, entry in value.items()}
    return _plain(value, hint)


def _entries(value: Any, hints: Any) -> Iterator[Any]:
    """The same for the entries of a list, all of one kind or each of its own."""
    if not isinstance(value, list | tuple):
        example = f", such as ({value!r},)" if isinstance(value, str) else ""
        raise _Refused(f"{_shown(value)} is no tuple", f"give a tuple{example}")
    if hints is int and all(type(entry) is int for entry in value):  # as the many indices of a plan are
        return iter(value)
    if not isinstance(hints, tuple):
        return (_accepted(entry, hints) for entry in value)
    if len(value) != len(hints):
        raise _Refused(f"{_shown(value)} has {len(value)} entries", f"give {len(hints)}")
    return map(_accepted, value, hints)


def _inside(key: Any, value: Any, hint: Any) -> Any:
    """The same for an entry of a table, whose place is told."""
    try:
        return _accepted(value, hint)
    except _Refused as refused:
        raise _Refused(refused.found, refused.wanted, f"[{key!r}]{refused.where}") from None


def _plain(value: Any, kind: Any) -> Any:
    """The same for a type that has no parts."""
    number = not isinstance(value, bool)  # which Python counts among them
    if kind in (Any, object):
        return value
    if kind is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind is int and isinstance(value, int | np.integer) and number:
        return int(value)
    if kind is float and isinstance(value, int | float | np.integer | np.floating) and number:
        if not math.isnan(value):
            return value if isinstance(value, int | float) else float(value)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    elif kind not in (bool, int, float, Path) and isinstance(value, kind):
        return value
    raise _Refused(f"{_shown(value)} does not do", f"give {_words(kind)}")


def _one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    """The same for several annotations, of which one must fit."""
    refusals = []
    for hint in hints:
        try:
            return _accepted(value, hint)
        except _Refused as refused:
            refusals.append(refused)
    for refusal in refusals:
        if "out of range" in refusal.found:
            raise refusal
    raise _Refused(f"{_shown(value)} does not do", f"give {' or '.join(map(_words, hints))}")


def _words(hint: Any) -> str:
    """What an annotation asks for."""
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    return names.get(hint) or ("None" if hint is types.NoneType else f"{hint.__name__}(...)")


def _shown(value: Any) -> str:
    """A value as it is quoted, not at length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."
