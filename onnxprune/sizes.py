"""Where the integers come from that steer shapes: literals, sizes of axes, and what is computed from them.

Exporters compute Reshape targets, Resize sizes or Pad widths by chains of Shape, Gather, Concat and arithmetic. Here
such chains are followed element by element, so that surgery knows which literal to overwrite, and which entries adjust
by themselves. An element is a `Term`; integer tensors are numpy object arrays of terms, and most operators are then
numpy's own. What cannot be followed is `UNKNOWN`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

LIMIT = 4096
"""Elements above which a tensor holds data rather than sizes."""

FLOAT_LIMIT = 64
"""The same for floating-point numbers, of which only scales and what sizes are divided by steer shapes."""

LARGEST = 1 << 63
"""The largest magnitude of an integer that a tensor holds; what is larger here is another number there."""

MOST_FACTORS = 64
"""Factors of a product that are looked at: no integer has more but for factors of 1."""

Place = tuple[str, int]
"""Where a term stands first: a tensor and a flat index in it."""


@dataclass(frozen=True, slots=True)
class Literal:
    """An element of a constant, or a number that an operator made up."""

    value: float
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """The size of an axis, read by Shape."""

    tensor: str
    axis: int
    value: int
    varying: bool


@dataclass(frozen=True, slots=True)
class Computed:
    """Arithmetic on other terms; `varying` is noted once, since chains of a thousand steps are asked for it often."""

    op: str
    args: tuple[Term, ...]
    value: float
    place: Place | None = None
    varying: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "varying", not all(map(is_fixed, self.args)))


@dataclass(frozen=True, slots=True)
class Unknown:
    """An element about which nothing is known."""


Term = Literal | Size | Computed | Unknown
UNKNOWN = Unknown()


def value_of(term: Term) -> float | None:
    """What a term is in the observed run."""
    return None if isinstance(term, Unknown) else term.value


def inside(term: Term) -> Iterator[Term]:
    """A term and all that it is computed from, each once, arguments first.

    A loop, since chains are deep, and each once, since what is used twice at every step is used very often.
    """
    done: set[int] = set()
    waiting = [term]
    while waiting:
        top = waiting[-1]
        args = [arg for arg in top.args if id(arg) not in done] if isinstance(top, Computed) else []
        if args and id(top) not in done:
            waiting += args[::-1]
            continue
        waiting.pop()
        if id(top) not in done:
            done.add(id(top))
            yield top


def sizes_in(term: Term) -> Iterator[Size]:
    """The axis sizes that a term depends on."""
    return (other for other in inside(term) if isinstance(other, Size))


def factors(term: Term) -> list[Term]:
    """What a term is the product of: itself where it is none, or of more than any integer has."""
    found: list[Term] = []
    waiting = [term]
    while waiting and len(found) < MOST_FACTORS:
        factor = waiting.pop()
        if isinstance(factor, Computed) and factor.op == "Mul":
            waiting += factor.args[::-1]
        else:
            found.append(factor)
    return found if not waiting else [term]


def is_fixed(term: Term) -> bool:
    """Whether a term is the same for all inputs of the model."""
    return isinstance(term, Literal) or (not isinstance(term, Unknown) and not term.varying)


def literals(name: str, array: np.ndarray) -> np.ndarray | None:
    """The terms of a constant; None when it holds data rather than sizes."""
    if array.size > (FLOAT_LIMIT if array.dtype.kind == "f" else LIMIT) or array.dtype.kind not in "iubf":
        return None
    values = enumerate(array.ravel().tolist())
    flat = [Literal(value, (name, i)) if abs(value) <= LARGEST else UNKNOWN for i, value in values]
    return _array(flat, array.shape)


def follow(
    op: str,
    attrs: Mapping[str, Any],
    inputs: list[np.ndarray | None],
    shapes: list[tuple[str, tuple[int, ...], frozenset[int]]],
) -> list[np.ndarray] | None:
    """The terms of a node's outputs.

    Args:
        op: the operator.
        attrs: its attributes.
        inputs: the terms of each input, None where they are not known.
        shapes: for each input its name, its shape, and which of its axes vary with the inputs of the model.

    Returns:
        An array of terms for each output, or None when nothing is known.
    """
    if op in ("Shape", "Size"):
        sizes = _shape(*shapes[0], attrs if op == "Shape" else {})
        return [sizes if op == "Shape" else _reduce("Mul", operator.mul)({"keepdims": 0}, sizes)]
    rule = _RULES.get(op)
    if rule is None or not inputs or inputs[0] is None:
        return None
    try:
        outputs = rule(attrs, *inputs)
    except (ArithmeticError, ValueError, IndexError, TypeError, KeyError):  # an operand is unknown, or out of reach
        return None
    return [
        x if isinstance(x, np.ndarray) else _array([x], ())  # numpy turns arrays without axes into their element
        for x in (outputs if isinstance(outputs, list) else [outputs])
    ]


def placed(name: str, terms: np.ndarray) -> np.ndarray:
    """Notes where terms stand first, in a tensor that is the same for all inputs and could be a constant instead."""
    if not all(is_fixed(term) for term in terms.ravel()):
        return terms
    flat = [
        replace(term, place=(name, i)) if isinstance(term, Literal | Computed) and term.place is None else term
        for i, term in enumerate(terms.ravel())
    ]
    return _array(flat, terms.shape)


def _array(terms: Iterable[Term], shape: tuple[int, ...]) -> np.ndarray:
    terms = list(terms)
    out = np.empty(len(terms), object)
    out[:] = terms
    return out.reshape(shape)


def _shape(name: str, shape: tuple[int, ...], varying: frozenset[int], attrs: Mapping[str, Any]) -> np.ndarray:
    entries = [Size(name, axis, size, axis in varying) for axis, size in enumerate(shape)]
    entries = entries[attrs.get("start", 0) : attrs.get("end")]
    return _array(entries, (len(entries),))


def ints(terms: np.ndarray | None) -> list[int]:
    """The values of terms that are the same for all inputs.

    Raises:
        ValueError: one is unknown or varies.
    """
    if terms is None or not all(is_fixed(term) for term in terms.ravel()):
        raise ValueError("not the same for all inputs")
    return [int(value_of(term)) for term in terms.ravel()]  # type: ignore[arg-type]


def _arithmetic(op: str, function: Callable[..., float]) -> Callable[..., np.ndarray]:
    def apply(*args: Term) -> Term:
        values = [value_of(arg) for arg in args]
        if any(value is None for value in values):
            return UNKNOWN
        value = function(*values)
        if isinstance(value, complex) or not abs(value) <= LARGEST:
            return UNKNOWN
        return Literal(value) if all(isinstance(arg, Literal) for arg in args) else Computed(op, args, value)

    def rule(attrs: Mapping[str, Any], *inputs: np.ndarray | None) -> np.ndarray:
        if any(x is None for x in inputs):
            raise TypeError("an operand is unknown")
        broadcast = np.broadcast_arrays(*(np.asarray(x) for x in inputs))
        return _array(map(apply, *(x.ravel() for x in broadcast)), broadcast[0].shape)

    return rule


def _comparison(op: str, function: Callable[[float, float], bool]) -> Callable[..., np.ndarray]:
    """A comparison; that of a size with a negative number, as in "is it -1?", is the same for all inputs."""
    compared = _arithmetic(op, function)

    def settled(term: Term) -> Term:
        if isinstance(term, Computed) and any(isinstance(arg, Literal) and arg.value < 0 for arg in term.args):
            return Literal(term.value) if any(map(_never_negative, term.args)) else term
        return term

    def rule(attrs: Mapping[str, Any], *inputs: np.ndarray | None) -> np.ndarray:
        terms = compared(attrs, *inputs)
        return _array(map(settled, terms.ravel()), terms.shape)

    return rule


def _never_negative(term: Term) -> bool:
    """Whether a term is a size, or made of sizes in a way that cannot fall below zero."""
    return all(
        other.op in ("Add", "Mul", "Max", "Min")
        if isinstance(other, Computed)
        else isinstance(other, Size) or (isinstance(other, Literal) and other.value >= 0)
        for other in inside(term)
    )


def _divide(a: float, b: float) -> float:
    return int(a / b) if isinstance(a, int) and isinstance(b, int) else a / b


def _power(a: float, b: float) -> float:
    return a**b if abs(b) < 64 else math.pow(a, b)  # Python would compute all digits of it


def _where(attrs: Mapping[str, Any], condition: np.ndarray, x: np.ndarray | None, y: np.ndarray | None) -> np.ndarray:
    if x is None or y is None:
        raise TypeError("an operand is unknown")
    picks = zip(*(terms.ravel() for terms in np.broadcast_arrays(condition, x, y)), strict=True)
    chosen = [(a if value_of(c) else b) if is_fixed(c) else UNKNOWN for c, a, b in picks]
    return _array(chosen, np.broadcast_shapes(condition.shape, x.shape, y.shape))


def _cast(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    to_integer = attrs["to"] in (2, 3, 4, 5, 6, 7, 12, 13)
    if attrs["to"] == 9:
        return _arithmetic("Bool", bool)(attrs, x)
    return x if not to_integer else np.vectorize(_truncated, otypes=[object])(x)


def _truncated(term: Term) -> Term:
    value = value_of(term)
    if value is None or value == int(value):
        return term
    return Literal(int(value)) if isinstance(term, Literal) else Computed("Trunc", (term,), int(value))


def _slice(attrs: Mapping[str, Any], x: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
    given: list[Any] = [attrs.get("starts"), attrs.get("ends"), attrs.get("axes"), None]
    if bounds:
        given = [*(ints(b) if b is not None else None for b in bounds), None, None]
    starts, ends, axes, steps = given[:4]
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        range(len(starts)) if axes is None else axes, starts, ends, steps or [1] * len(starts), strict=True
    ):
        size = x.shape[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        low = -1 if step < 0 else 0
        start, end = (min(max(v, low), size if step > 0 else size - 1) for v in (start, end))
        index[axis] = slice(start, None if end < 0 else end, step)
    return x[tuple(index)]


def _reshape(attrs: Mapping[str, Any], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    shape = [x.shape[i] if n == 0 and not attrs.get("allowzero") else n for i, n in enumerate(ints(target))]
    return x.reshape(shape)


def _squeeze(attrs: Mapping[str, Any], x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    given = attrs.get("axes") if axes is None else ints(axes)
    return np.squeeze(x, None if given is None else tuple(given))


def _unsqueeze(attrs: Mapping[str, Any], x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return np.expand_dims(x, tuple(attrs["axes"] if axes is None else ints(axes)))


def _split(attrs: Mapping[str, Any], x: np.ndarray, sizes: np.ndarray | None = None) -> list[np.ndarray]:
    axis = attrs.get("axis", 0)
    given = attrs.get("split") if sizes is None else ints(sizes)
    if given is None:
        count = attrs.get("num_outputs", x.shape[axis])
        given = [-(-x.shape[axis] // count)] * count
    return np.split(x, np.cumsum(given)[:-1], axis)


def _one_hot(attrs: Mapping[str, Any], index: np.ndarray, depth: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    if values is None or attrs.get("axis", -1) not in (-1, index.ndim):
        raise ValueError("not the numbers of a vector")
    (size,) = ints(depth)
    hot = np.equal.outer(np.reshape(ints(index), index.shape) % size, np.arange(size))
    return np.where(hot, values[1], values[0])


def _constant_of_shape(attrs: Mapping[str, Any], shape: np.ndarray) -> np.ndarray:
    value = attrs["value"].values.ravel()[0].item() if "value" in attrs else 0.0
    dims = ints(shape)
    if np.prod(dims, dtype=np.int64) > LIMIT:
        raise ValueError("too many elements to be sizes")
    return _array([Literal(value)] * int(np.prod(dims, dtype=np.int64)), tuple(dims))


def _range(attrs: Mapping[str, Any], start: np.ndarray, limit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    values = range(*(ints(x)[0] for x in (start, limit, delta)))
    if len(values) > LIMIT:
        raise ValueError("too many elements to be sizes")
    bounds = tuple(x.ravel()[0] for x in (start, limit, delta))
    if all(isinstance(bound, Literal) for bound in bounds):
        return _array(map(Literal, values), (len(values),))
    return _array((Computed("Range", bounds, value) for value in values), (len(values),))


def _reduce(op: str, function: Callable[[Any, Any], float]) -> Callable[..., np.ndarray]:
    step = _arithmetic(op, function)

    def rule(attrs: Mapping[str, Any], x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
        given = attrs.get("axes") if axes is None else ints(axes)
        if x.ndim != 1 or given not in (None, [0], [-1]):
            raise ValueError("only vectors hold sizes")
        total = reduce(lambda a, b: step({}, a, b), (x[i : i + 1] for i in range(len(x))))
        return total if attrs.get("keepdims", 1) else total.reshape(())

    return rule


_RULES: dict[str, Callable[..., np.ndarray | list[np.ndarray]]] = {
    "Identity": lambda attrs, x: x,
    "Cast": _cast,
    "Gather": lambda attrs, x, index: x.take(np.reshape(ints(index), np.shape(index)), attrs.get("axis", 0)),
    "Concat": lambda attrs, *xs: np.concatenate(xs, attrs["axis"]),
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda attrs, x: x.transpose(attrs.get("perm")),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
    "Flatten": lambda attrs, x: x.reshape(int(np.prod(x.shape[: attrs.get("axis", 1)])), -1),
    "Expand": lambda attrs, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape)))),
    "Tile": lambda attrs, x, repeats: np.tile(x, ints(repeats)),
    "ConstantOfShape": _constant_of_shape,
    "OneHot": _one_hot,
    "Range": _range,
    "Where": _where,
    "Add": _arithmetic("Add", operator.add),
    "Sub": _arithmetic("Sub", operator.sub),
    "Mul": _arithmetic("Mul", operator.mul),
    "Div": _arithmetic("Div", _divide),
    "Mod": _arithmetic("Mod", operator.mod),
    "Pow": _arithmetic("Pow", _power),
    "Neg": _arithmetic("Neg", operator.neg),
    "Abs": _arithmetic("Abs", abs),
    "Sqrt": _arithmetic("Sqrt", lambda x: x**0.5),
    "Floor": _arithmetic("Floor", np.floor),
    "Ceil": _arithmetic("Ceil", np.ceil),
    "Round": _arithmetic("Round", np.round),
    "Max": _arithmetic("Max", max),
    "Min": _arithmetic("Min", min),
    "Equal": _comparison("Equal", operator.eq),
    "Less": _comparison("Less", operator.lt),
    "LessOrEqual": _comparison("LessOrEqual", operator.le),
    "Greater": _comparison("Greater", operator.gt),
    "GreaterOrEqual": _comparison("GreaterOrEqual", operator.ge),
    "And": _arithmetic("And", lambda a, b: a and b),
    "Or": _arithmetic("Or", lambda a, b: a or b),
    "Not": _arithmetic("Not", operator.not_),
    "ReduceProd": _reduce("Mul", operator.mul),
    "ReduceSum": _reduce("Add", operator.add),
    "ReduceMax": _reduce("Max", max),
    "ReduceMin": _reduce("Min", min),
}
