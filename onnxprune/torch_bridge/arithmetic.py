"""Size arithmetic: what is made of sizes alone is Python's integers, in lists nested as deep as the tensor has axes.

torch.compile and torch.export follow integers, also those that stand for any size, and lose sight of them among the
elements of a tensor: a module that reads sizes out of tensors is compiled in pieces, and cannot be exported with
symbolic axes. So each operator that exports use between Shape and Reshape has a second form here, for integers and
truth values (int64 and bool); with anything else the operator itself works, on tensors on the CPU.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import torch

from onnxprune.torch_bridge import creation, elementwise, indexing, layout, reduce
from onnxprune.torch_bridge.base import Numbers, Tensor, ints, product, tensor

INT64, BOOL = 7, 9
"""ONNX's numbers for the element types that numbers have."""

LIMIT = 64
"""Elements up to which a constant that meets sizes is written into the code; larger ones are data."""


class Kind(IntEnum):
    """What a value is made of; what is made of several kinds is of the highest."""

    COUNTS = 0
    """Numbers that are the same in every run: constants, and the sizes of numbers."""
    NUMBERS = 1
    """Sizes, and what is made of them."""
    LOCAL = 2
    """A tensor that is made of sizes and stays on the CPU."""
    DATA = 3
    """A tensor that is made of inputs or weights."""


@dataclass(frozen=True, slots=True)
class Form:
    """What computes an operator on numbers.

    Attributes:
        function: takes numbers where the operator takes tensors.
        kind: the least kind of the result.
        fits: says from the attributes of a node and the kinds of its inputs whether it can be used. How many numbers
            come out must not depend on a size, which would be settled by that.
    """

    function: Callable[..., Any]
    kind: Kind
    fits: Callable[[Mapping[str, Any], Sequence[Kind]], bool]


FORMS: dict[Callable[..., Any], Form] = {}
"""The second form of an operator by its function."""

F = TypeVar("F", bound=Callable[..., Any])


def on_numbers(
    function: Callable[..., Any],
    kind: Kind = Kind.COUNTS,
    fits: Callable[[Mapping[str, Any], Sequence[Kind]], bool] = lambda attrs, kinds: True,
) -> Callable[[F], F]:
    """Registers the second form of an operator."""

    def register(form: F) -> F:
        FORMS[function] = Form(form, kind, fits)
        return form

    return register


def _steered(attrs: Mapping[str, Any], kinds: Sequence[Kind]) -> bool:
    """Whether all inputs but the first are the same in every run."""
    return all(kind is Kind.COUNTS for kind in kinds[1:])


def depth(value: Numbers) -> int:
    """How many axes numbers have."""
    return len(shape(value))


def flat(value: Numbers) -> list[Any]:
    """All numbers in order."""
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


def each(function: Callable[..., Any], *values: Numbers) -> Numbers:
    """A function of each number, with broadcasting."""
    deepest = max(map(depth, values))
    if not deepest:
        return function(*values)
    sizes = [len(value) for value in values if depth(value) == deepest]
    return [
        each(function, *(v if depth(v) < deepest else v[i if len(v) > 1 else 0] for v in values))
        for i in range(0 if 0 in sizes else max(sizes))
    ]


def _quotient(a: int, b: int) -> int:
    """Cut off, as in C."""
    if b < 0:
        a, b = -a, -b
    return a // b if a >= 0 else -(-a // b)


def _elementwise(name: str, function: Callable[..., Any], form: Callable[..., Any]) -> Callable[..., Any]:
    """Registers the second form of an operator that computes each number by itself; `name` is that of the result."""

    def elements(*values: Numbers) -> Numbers:
        return each(form, *values)

    elements.__name__ = elements.__qualname__ = name
    return on_numbers(function)(elements)


add = _elementwise("add", elementwise.add, operator.add)
sub = _elementwise("sub", elementwise.sub, operator.sub)
mul = _elementwise("mul", elementwise.mul, operator.mul)
div = _elementwise("div", elementwise.div, _quotient)
max_ = _elementwise("max_", elementwise.max_, lambda *values: max(values))
min_ = _elementwise("min_", elementwise.min_, lambda *values: min(values))
abs_ = _elementwise("abs_", torch.abs, abs)
neg = _elementwise("neg", torch.neg, operator.neg)
equal = _elementwise("equal", torch.eq, operator.eq)
greater = _elementwise("greater", torch.gt, operator.gt)
greater_or_equal = _elementwise("greater_or_equal", torch.ge, operator.ge)
less = _elementwise("less", torch.lt, operator.lt)
less_or_equal = _elementwise("less_or_equal", torch.le, operator.le)
and_ = _elementwise("and_", torch.logical_and, lambda a, b: a and b)
or_ = _elementwise("or_", torch.logical_or, lambda a, b: a or b)
not_ = _elementwise("not_", torch.logical_not, operator.not_)
where = _elementwise("where", torch.where, lambda condition, a, b: a if condition else b)


@on_numbers(elementwise.mod)
def mod(a: Numbers, b: Numbers, *, fmod: int = 0) -> Numbers:
    """The rest of A / B, with the sign of B, or of A when fmod."""
    return each(lambda a, b: a - _quotient(a, b) * b if fmod else a % b, a, b)


@on_numbers(elementwise.identity)
def identity(x: Numbers) -> Numbers:
    """Y = X."""
    return x


@on_numbers(elementwise.cast, fits=lambda attrs, kinds: attrs["to"] in (INT64, BOOL))
def cast(x: Numbers, *, to: int, saturate: int = 1, round_mode: str = "up") -> Numbers:
    """Y = X as integers or as truth values."""
    if to == BOOL:
        return each(lambda a: a != 0, x)
    return each(lambda a: int(a) if isinstance(a, bool) else a, x)  # int() would settle a symbolic size


@on_numbers(creation.shape)
def shape(x: Numbers, *, start: int = 0, end: int | None = None) -> Numbers:
    """The sizes of some axes of numbers."""
    sizes = []
    while isinstance(x, list):
        sizes.append(len(x))
        x = x[0] if x else 0
    return sizes[start:end]


@on_numbers(creation.size)
def size(x: Numbers) -> Numbers:
    """How many numbers there are."""
    return len(flat(x))


def is_small(value: Tensor) -> bool:
    """Whether a constant can be written into the code, where the list of an empty one does not say its shape."""
    return 0 < value.numel() <= LIMIT or value.shape == (0,)


def is_whole(value: Tensor) -> bool:
    """Whether a constant can be numbers."""
    return is_small(value) and value.dtype in (torch.int64, torch.bool)


@on_numbers(
    creation.constant_of_shape,
    fits=lambda attrs, kinds: kinds[0] is Kind.COUNTS and "value" in attrs and is_whole(attrs["value"]),
)
def constant_of_shape(sizes: Numbers, *, value: Numbers) -> Numbers:
    """One value everywhere; numbers only where they are as many in every run."""
    return shaped(flat(value) * product(ints(sizes)), ints(sizes))


@on_numbers(creation.range_, kind=Kind.LOCAL)
def range_(start: int, limit: int, delta: int, *, stash_type: int = 1) -> Tensor:
    """start, start + delta, ... before limit."""
    return torch.arange(start, limit if (limit - start) * delta > 0 else start, delta)


@on_numbers(indexing.gather, fits=_steered)
def gather(x: Numbers, indices: Numbers, *, axis: int = 0) -> Numbers:
    """X taken at indices along one axis, whose place the axes of the indices take."""
    if axis % depth(x):
        return [gather(part, indices, axis=axis % depth(x) - 1) for part in x]
    return each(lambda i: x[i], indices)


@on_numbers(
    indexing.scatter_elements,
    fits=lambda attrs, kinds: kinds[1] is Kind.COUNTS and attrs.get("reduction", "none") == "none",
)
def scatter_elements(
    x: Numbers, indices: Numbers, updates: Numbers, *, axis: int = 0, reduction: str = "none"
) -> Numbers:
    """Y = X with Y[indices[i]] = updates[i]."""
    if depth(x) > 1:
        return indexing.scatter_elements(tensor(x), tensor(indices), tensor(updates), axis=axis).tolist()
    written = list(x)
    for index, update in zip(indices, updates, strict=True):
        written[index] = update
    return written


@on_numbers(layout.concat)
def concat(*operands: Numbers, axis: int = 0) -> Numbers:
    """The operands laid end to end along one axis."""
    if axis % depth(operands[0]):
        return [concat(*parts, axis=axis % depth(operands[0]) - 1) for parts in zip(*operands, strict=True)]
    return [part for operand in operands for part in operand]


@on_numbers(layout.reshape, fits=_steered)
def reshape(x: Numbers, target: Numbers, *, allowzero: int = 0) -> Numbers:
    """The same numbers in another shape; -1 is what is left over, 0 the size that was there."""
    numbers, old = flat(x), shape(x)
    sizes = [old[i] if n == 0 and not allowzero else n for i, n in enumerate(ints(target))]
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(numbers) // product(n for n in sizes if n != -1)
    return shaped(numbers, sizes)


def shaped(numbers: list[Any], sizes: Sequence[int]) -> Numbers:
    """Numbers in a shape."""
    if not sizes:
        return numbers[0]
    step = product(sizes[1:])
    return [shaped(numbers[i * step : (i + 1) * step], sizes[1:]) for i in range(sizes[0])]


@on_numbers(layout.transpose)
def transpose(x: Numbers, *, perm: Sequence[int] | None = None) -> Numbers:
    """Axis i of Y is axis perm[i] of X; all axes reversed when None."""
    if depth(x) == 2 and (perm is None or list(perm) == [1, 0]):
        return [list(column) for column in zip(*x, strict=True)]
    return layout.transpose(tensor(x), perm=perm).tolist()


@on_numbers(layout.squeeze, fits=_steered)
def squeeze(x: Numbers, given: Numbers | None = None, *, axes: Sequence[int] | None = None) -> Numbers:
    """Y lacks axes of size 1: those that are listed, or all."""
    sizes = shape(x)
    chosen = ints(given) if given is not None else axes
    gone = [i for i, n in enumerate(sizes) if n == 1] if chosen is None else [axis % len(sizes) for axis in chosen]
    return shaped(flat(x), [n for i, n in enumerate(sizes) if i not in gone])


@on_numbers(layout.unsqueeze, fits=_steered)
def unsqueeze(x: Numbers, given: Numbers | None = None, *, axes: Sequence[int] = ()) -> Numbers:
    """Y has further axes of size 1."""
    sizes = shape(x)
    chosen = ints(given) if given is not None else axes
    rank = len(sizes) + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        sizes.insert(axis, 1)
    return shaped(flat(x), sizes)


@on_numbers(layout.slice_, fits=_steered)
def slice_(
    x: Numbers, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Numbers:
    """Y[i] = X[start + i * step] along each listed axis, bounds cut off at the ends of the axis."""
    first, last = ints(starts), ints(ends)
    places = ints(axes) if axes is not None else list(range(len(first)))
    strides = ints(steps) if steps is not None else [1] * len(first)
    for axis, start, end, step in zip(places, first, last, strides, strict=True):
        x = _cut(x, axis % depth(x), slice(start, None if step < 0 and end in layout.FAR else end, step))
    return x


def _cut(x: Numbers, axis: int, part: slice) -> Numbers:
    return [_cut(row, axis - 1, part) for row in x] if axis else x[part]


@on_numbers(reduce.reduce_prod, fits=_steered)
def reduce_prod(x: Numbers, given: Numbers | None = None, **options: Any) -> Numbers:
    """The product of all numbers of a list."""
    if depth(x) != 1 or options.get("noop_with_empty_axes"):
        return reduce.reduce_prod(tensor(x), given, **options).tolist()
    return [product(x)] if options.get("keepdims", 1) else product(x)
