"""What an operator of the bridge is, and the registry of operators.

An operator is a function named like its ONNX operator that computes it in PyTorch: the ONNX inputs are its positional
parameters, the ONNX attributes its keyword parameters, with ONNX's names and defaults. How an input is bound is said
by its annotation:

- `Tensor`: a tensor; a constant there is a buffer of the module;
- `Weight`: a constant there is a parameter of the module;
- `Summand`, `Piece`, `Factor`, `Matrix`, `Table`: a constant there is a parameter if it looks like one, see `weights`;
- `Statistic`: a running statistic of BatchNormalization, a buffer that training changes;
- `Ints`, `Floats`, `Number`: numbers that steer the operator; constants are bound as Python numbers at build time;
- `Index`: as `Tensor`, but a constant without axes is bound as a Python number.

Five keywords are no attributes: `training` and `dropout` are the module's flags, `outputs` is how many results the
node wants, and the function then returns a tuple of that many; `opset` is the version of the operator set; `captured`
is what graphs inside the node read from outside.

Why functions and annotations instead of a converter per operator: what differs between operators is arithmetic, and
what converters repeat (defaults, attribute or input, constant or computed, parameter or buffer, CPU or GPU) is said
once, in `assembly`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from operator import mul
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor as Tensor

from onnxprune.errors import BridgeError


class Role(Enum):
    """How an input of an operator is bound."""

    TENSOR = "tensor"
    WEIGHT = "weight"
    SUMMAND = "summand"
    PIECE = "piece"
    FACTOR = "factor"
    MATRIX = "matrix"
    TABLE = "table"
    STATISTIC = "statistic"
    NUMBERS = "numbers"
    NUMBER = "number"
    INDEX = "index"


Weight = Annotated[Tensor, Role.WEIGHT]
Summand = Annotated[Tensor, Role.SUMMAND]
Piece = Annotated[Tensor, Role.PIECE]
Factor = Annotated[Tensor, Role.FACTOR]
Matrix = Annotated[Tensor, Role.MATRIX]
Table = Annotated[Tensor, Role.TABLE]
Statistic = Annotated[Tensor, Role.STATISTIC]
Ints = Annotated[list[int] | Tensor, Role.NUMBERS]
Floats = Annotated[list[float] | Tensor, Role.NUMBERS]
Number = Annotated[float | Tensor, Role.NUMBER]
Index = Annotated[int | Tensor, Role.INDEX]

Numbers = Any
"""Whole numbers or truth values: one, or a list of them, or a list of such lists, as deep as a tensor has axes."""

MICROSOFT = "com.microsoft"

SWITCHES = frozenset({"training", "dropout"})
"""Keywords of operators that are attributes of the module."""

FLAGS = SWITCHES | {"outputs", "opset", "captured"}
"""Keywords of operators that are no attributes of the node."""


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator from one opset up to the next registered one.

    Attributes:
        function: computes it.
        since: the first opset it holds for.
        roles: how each input is bound; the last one holds for all that follow.
        most: the most inputs it takes, None where any number will do.
        keywords: the attributes and flags it knows.
        several: whether the function returns a tuple.
        sizes: whether the result is made of the sizes of its input, and therefore numbers instead of a tensor.
        lacks: says which attributes it cannot serve, None where it can.
    """

    function: Callable[..., Any]
    since: int
    roles: tuple[Role, ...]
    most: int | None
    keywords: frozenset[str]
    several: bool
    sizes: bool
    lacks: Callable[[dict[str, Any]], str | None] | None

    def role(self, index: int) -> Role:
        """How an input is bound."""
        return self.roles[min(index, len(self.roles) - 1)]


_REGISTRY: dict[tuple[str, str], list[Operator]] = {}

F = TypeVar("F", bound=Callable[..., Any])


def operator(
    *ops: str,
    since: int = 1,
    domain: str = "",
    sizes: bool = False,
    lacks: Callable[[dict[str, Any]], str | None] | None = None,
) -> Callable[[F], F]:
    """Registers a function as the PyTorch form of operators, from an opset up to the next registered one.

    Args:
        ops: operators that share the function.
        since: the first opset it holds for.
        domain: the operator set.
        sizes: whether the result is made of the sizes of the input.
        lacks: takes the attributes of a node and says what of them the function cannot serve, None where it can.

    Raises:
        ValueError: the operator has a function for this opset already.
    """

    def register(function: F) -> F:
        roles, most, keywords, several = _signature(function)
        for op in ops:
            entries = _REGISTRY.setdefault((domain, op), [])
            if any(entry.since == since for entry in entries):
                raise ValueError(f"{op} has two PyTorch forms for opset {since}")
            entries.append(Operator(function, since, roles, most, keywords, several, sizes, lacks))
            entries.sort(key=lambda entry: -entry.since)
        return function

    return register


def find_operator(domain: str, op: str, version: int) -> Operator | None:
    """The PyTorch form of an operator at an opset: the newest that is not newer than it."""
    domain = "" if domain in ("", "ai.onnx") else domain
    return next((entry for entry in _REGISTRY.get((domain, op), ()) if entry.since <= version), None)


def registered() -> Iterator[tuple[str, str, int]]:
    """Domain, operator and first opset of every form, sorted."""
    yield from sorted((domain, op, entry.since) for (domain, op), entries in _REGISTRY.items() for entry in entries)


def _signature(function: Callable[..., Any]) -> tuple[tuple[Role, ...], int | None, frozenset[str], bool]:
    """Roles of the inputs, how many there may be, names of the keywords, and whether the function returns a tuple."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except ValueError:  # torch's own functions have no signature: tensors in, a tensor out
        return (Role.TENSOR,), None, frozenset(), False
    parameters = signature.parameters.values()
    keywords = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    inputs = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    roles = [_role(parameter.annotation) for parameter in inputs]
    most = None if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in inputs) else len(inputs)
    several = get_origin(signature.return_annotation) is tuple
    return tuple(roles) or (Role.TENSOR,), most, frozenset(keywords), several


def _role(annotation: Any) -> Role:
    if get_origin(annotation) in (Union, UnionType):
        return next((role for part in get_args(annotation) if (role := _role(part)) is not Role.TENSOR), Role.TENSOR)
    metadata = getattr(annotation, "__metadata__", ())
    return next((entry for entry in metadata if isinstance(entry, Role)), Role.TENSOR)


def tensor(value: Numbers | Tensor, like: Tensor | None = None) -> Tensor:
    """Numbers as a tensor, on the device of another one if given."""
    if isinstance(value, Tensor):
        return value if like is None else value.to(like.device)
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    dtype = torch.bool if isinstance(first, bool) else torch.int64
    return torch.tensor(value, dtype=dtype, device=None if like is None else like.device)


def number(value: Numbers | Tensor) -> Any:
    """The only one of some numbers; a tensor is left alone."""
    while isinstance(value, list):
        (value,) = value
    return value


def product(numbers: Iterable[int]) -> int:
    """The product of numbers; symbolic sizes stay so, which `numel` of a shape and `math.prod` would settle."""
    return functools.reduce(mul, list(numbers), 1)


def ints(values: list[int] | int | Tensor) -> list[int]:
    """Numbers that steer an operator, as Python integers; one without axes counts as a list of one."""
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return list(numbers) if isinstance(numbers, list | tuple) else [numbers]


def floats(values: list[float] | Tensor | None) -> list[float] | None:
    """The same for other numbers; None where there are none, since opset 11 has empty inputs for those left out."""
    if values is None or not len(values):
        return None
    return [float(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def integer(value: Numbers | Tensor) -> int:
    """One number that steers an operator, as a Python integer; a symbolic size stays so, which `int` would settle."""
    only = number(value)
    return int(only) if isinstance(only, float | Tensor) else only


DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    14: torch.complex64,
    15: torch.complex128,
    16: torch.bfloat16,
    17: torch.float8_e4m3fn,
    18: torch.float8_e4m3fnuz,
    19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz,
}
"""PyTorch's element types by ONNX's number for them."""


def dtype_of(number: int) -> torch.dtype:
    """PyTorch's name of an ONNX element type.

    Raises:
        BridgeError: PyTorch has no such type.
    """
    if number not in DTYPES:
        raise BridgeError(f"PyTorch has no element type for ONNX's number {number}; cast to another type")
    return DTYPES[number]
