"""The nouns that pass from step to step: frozen, checked, with JSON or NPZ on disk."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from onnxprune.errors import DataError, PlanError
from onnxprune.files import Results, write, write_arrays
from onnxprune.validation import COUNT, NATURAL, NumberType, Rising, Within, validate

MASK = "attention_mask"
"""The input that is 0 at tokens that do not count, (samples, tokens)."""

Repeats = tuple[int, int, int]
"""How often states repeat each entry of `MASK`: in front of its samples, between samples and tokens, behind these.

One of the three may be -1, so that it follows from the others: heads become fewer, and other sizes depend on data.
"""

NOT_EXACT = "not exact: normalizations run over it"
"""What a reader is told of a group that is not exact."""


def reference(*, exact: bool) -> str:
    """What a compact model must equal, in a reader's words: where not all is exact, a mask alone would not do."""
    return "the masked original" + ("" if exact else " whose normalizations run over what is kept")


KeptIndices = Mapping[int, Annotated[tuple[int, ...], Rising()]]


@dataclass(frozen=True, slots=True)
class Kept:
    """Why something stays whole.

    Attributes:
        because: the reason in a reader's words.
        node: the node that gave it, or the tensor where no node did.
    """

    because: str
    node: str


@dataclass(frozen=True, slots=True)
class KeptAxis:
    """An axis of a constant that loses nothing, or only a part of it, and why."""

    constant: str
    axis: int
    size: int
    kept: Kept


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor axis where states are recorded.

    Attributes:
        tensor: the tensor.
        axis: the axis that holds the features.
        rank: how many axes the tensor has.
        features: how many features that axis has; with `outer` and `inner` they make up its size.
        outer: positions in front of the features that count as samples, the pixels of a map flattened channels last.
        inner: positions behind them, the pixels of a map flattened channels first.
        repeats: how often the samples repeat each token of `MASK`; None where they do not hold its tokens.
    """

    tensor: str
    axis: int
    rank: int
    features: int
    outer: int = 1
    inner: int = 1
    repeats: Repeats | None = None

    @property
    def key(self) -> str:
        """The name under which moments are kept."""
        return f"{self.tensor}:{self.axis}"


@dataclass(frozen=True, slots=True)
class States:
    """Where a group is found at a site.

    Attributes:
        site: the site.
        unit_of: (features,) int, the unit that each feature belongs to, -1 for features of other groups.
        rows: (features, repeats) int, for units of several features the positions of the first reader's axis that each
            feature comes to; units are compared in what that reader makes of them. None where they are compared here.
    """

    site: Site
    unit_of: np.ndarray
    rows: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Weight:
    """Where a group is found on an axis of a weight.

    Attributes:
        node: the node that uses the weight.
        op: its operator.
        tensor: the weight.
        axis: its axis.
        unit_of: (size of the axis,) int, the unit of each position, -1 where it is of another group.
        site: for a weight that reads: where it reads.
    """

    node: str
    op: str
    tensor: str
    axis: int
    unit_of: np.ndarray
    site: Site


@dataclass(frozen=True, slots=True)
class Group:
    """Units that the graph ties together: they are scored against each other, and each may go by itself.

    Attributes:
        name: the first weight that writes them, with a range where it writes others too.
        kind: what a unit is, in the reader's words.
        size: number of units.
        writers: weights that make the units.
        readers: weights that contract them; none where two activations contract each other's, as queries and keys do.
        pre: states before the first nonlinearity.
        post: states that the readers contract; without readers, for each product its two sides in turn.
        instead_of: the group that is pruned by default where both cut the same positions, or "".
        exact: whether the model without some of the units is the masked one; not so where statistics run over them.
    """

    name: str
    kind: str
    size: int
    writers: tuple[Weight, ...]
    readers: tuple[Weight, ...]
    pre: tuple[States, ...]
    post: tuple[States, ...]
    instead_of: str = ""
    exact: bool = True

    @property
    def linear(self) -> bool:
        """Whether nothing nonlinear lies between the two kinds of states, so that they are the same."""
        return {s.site.key for s in self.pre} == {s.site.key for s in self.post}


_TABLES = ("total", "second", "low", "high")


@dataclass(frozen=True, slots=True)
class Moments:
    """First and second moments of the states at sites; they add over batches, processes and machines.

    Attributes:
        count: samples T, by site.
        total: (features,) float64, the sum of the samples.
        second: (features, features) float64, X^T X.
        low: (features,) float64, the smallest value of each feature.
        high: (features,) float64, the largest.
        source: what the states were computed from, for the report.
    """

    count: Mapping[str, float]
    total: Mapping[str, np.ndarray]
    second: Mapping[str, np.ndarray]
    low: Mapping[str, np.ndarray]
    high: Mapping[str, np.ndarray]
    source: str = ""

    def save(self, path: Path, results: Results | None = None) -> None:
        """Writes an .npz file, together with other `results` where these are given."""
        sites = sorted(self.count)
        arrays: dict[str, Any] = {f"{k}/{key}": getattr(self, k)[key] for k in _TABLES for key in sites}
        arrays |= {"sites": sites, "count": [self.count[key] for key in sites], "source": self.source}
        write_arrays(Path(path), arrays, results)

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Reads what `save` wrote.

        Raises:
            DataError: the file holds no moments.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                sites = file["sites"].tolist()
                count = dict(zip(sites, file["count"].tolist(), strict=True))
                tables = {kind: {key: file[f"{kind}/{key}"] for key in sites} for kind in _TABLES}
                return cls(count, **tables, source=str(file["source"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} holds no moments; make it with `onnxprune score --moments`.") from error


@dataclass(frozen=True, slots=True)
class Scores:
    """A score for each unit; higher means keep.

    Attributes:
        criterion: what was computed.
        by_group: (units,) float64 for each group.
        notes: what the reader should know of a group's scores, such as that another criterion stood in.
    """

    criterion: str
    by_group: Mapping[str, np.ndarray]
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path, results: Results | None = None) -> None:
        """Writes an .npz file: `scores/<group>` for each group, the criterion and the notes.

        Args:
            path: where to.
            results: others that are written together with it.
        """
        arrays: dict[str, Any] = {f"scores/{name}": array for name, array in sorted(self.by_group.items())}
        arrays |= {"criterion": self.criterion, "notes": json.dumps(dict(sorted(self.notes.items())))}
        write_arrays(Path(path), arrays, results)


@dataclass(frozen=True, slots=True)
class Written:
    """A number of the model that surgery brings up to date.

    Attributes:
        node: the first output of the node that it steers.
        attribute: the attribute that holds it, or "".
        input: the index of the input that holds it, or -1.
        constant: the tensor whose element it is, or "" where an attribute holds it or an input has to be added.
        index: its place in the attribute, or the flat index in the constant.
        value: the new value, or the one that was implied so far.
        part: where the number is a product that varies, such as batch x 4, the factor that the value takes the place
            of; 0 where the value is the whole number.
    """

    node: str
    attribute: str
    input: Annotated[int, Within("-1 or more", -1)]
    constant: str
    index: Annotated[int, NATURAL]
    value: Annotated[float, Within("a finite number", open="both")]
    part: Annotated[int, NATURAL] = 0

    def __post_init__(self) -> None:
        validate(self, **{field: f"the {field} of a number of the plan" for field in self.__slots__})


@dataclass(frozen=True, slots=True)
class Frozen:
    """The value of a tensor that a plan states in full.

    Attributes:
        dtype: its numpy type.
        shape: its shape.
        values: its elements, row by row.
    """

    dtype: NumberType
    shape: list[Annotated[int, NATURAL]]
    values: list[float | bool]

    def __post_init__(self) -> None:
        validate(self, **{field: f"the {field} of a frozen tensor of the plan" for field in self.__slots__})
        if math.prod(self.shape) != len(self.values):
            raise PlanError(f"a frozen tensor of the plan has the shape {self.shape} and {len(self.values)} numbers.")

    @classmethod
    def of(cls, array: np.ndarray) -> Frozen:
        """The record of an array."""
        return cls(array.dtype.name, list(array.shape), array.ravel().tolist())  # type: ignore[arg-type]

    def array(self) -> np.ndarray:
        """The value as an array."""
        return np.array(self.values, self.dtype).reshape(self.shape)


TABLES = ("initializers", "activations", "periods", "merged", "constant", "joined", "spared")
"""Tables of a plan whose inner keys are numbers, which in JSON are texts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to remove: everything surgery needs, and everything an outsider needs to check the result with a mask.

    Attributes:
        model: SHA-256 of the model file.
        groups: kept units of each group, and how many it had.
        initializers: kept indices by constant and axis; Constant nodes go by the name of their output.
        activations: the same for intermediate tensors.
        numbers: integers that follow the sizes.
        frozen: tensors computed from sizes that become constants, with the shape and the values they had.
        copies: constants that the file shares between uses, and which the compact model holds apart.
        periods: sizes of the activation axes on which the kept indices repeat, such as the heads of batch x heads.
        omitted: optional inputs of zeros that are left out, as indices, by the first output of the node.
        merged: units that went without a trace because another unit is equal to them, by group: {unit: its equal}.
        constant: units that went without a trace because they are one number for every input, by group: {unit: number}.
        joined: by constant and axis the pairs (from, into) of positions that are added up before the constant is cut.
        biases: by first output of a node the bias that it has instead of its own, cut already.
        spared: positions that go but are not masked in the original that the compact model equals, since nothing is
            lost with them, by tensor and axis.
        inexact: first outputs of the nodes whose statistics run over the kept positions alone.
        settings: how the plan was made.
    """

    model: str
    groups: Mapping[str, tuple[Annotated[int, COUNT], Annotated[tuple[int, ...], Rising(1)]]]
    initializers: Mapping[str, KeptIndices]
    activations: Mapping[str, KeptIndices]
    numbers: tuple[Written, ...]
    frozen: Mapping[str, Frozen]
    copies: Mapping[str, str]
    periods: Mapping[str, Mapping[int, Annotated[int, COUNT]]] = field(default_factory=dict)
    omitted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    merged: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    constant: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    joined: Mapping[str, Mapping[int, tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    biases: Mapping[str, Frozen] = field(default_factory=dict)
    spared: Mapping[str, KeptIndices] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate(self, **{field: f"the plan's {field}" for field in self.__slots__})
        for name, (size, kept) in self.groups.items():
            if kept[-1] >= size:
                raise PlanError(f"the plan keeps unit {kept[-1]} of group '{name}', which has {size}; make a new plan.")

    def to_json(self) -> str:
        """The plan as JSON, schema onnxprune.plan/1; the same plan gives the same bytes."""

        def axes(table: Mapping[str, KeptIndices]) -> dict[str, dict[str, list[int]]]:
            return {name: {str(axis): list(kept) for axis, kept in by.items()} for name, by in table.items()}

        return json.dumps(
            {
                "schema": "onnxprune.plan/1",
                "model": self.model,
                "groups": {name: {"units": n, "kept": list(kept)} for name, (n, kept) in self.groups.items()},
                "initializers": axes(self.initializers),
                "activations": axes(self.activations),
                "numbers": [asdict(number) for number in self.numbers],
                "frozen": {name: asdict(frozen) for name, frozen in self.frozen.items()},
                "copies": dict(self.copies),
                "periods": {name: {str(axis): n for axis, n in by.items()} for name, by in self.periods.items()},
                "omitted": {node: list(inputs) for node, inputs in self.omitted.items()},
                "merged": {g: {str(a): b for a, b in units.items()} for g, units in self.merged.items()},
                "constant": {g: {str(a): x for a, x in units.items()} for g, units in self.constant.items()},
                "joined": {
                    name: {str(axis): [list(pair) for pair in pairs] for axis, pairs in by.items()}
                    for name, by in self.joined.items()
                },
                "biases": {name: asdict(bias) for name, bias in self.biases.items()},
                "spared": axes(self.spared),
                "inexact": list(self.inexact),
                "settings": dict(self.settings),
            },
            indent=1,
            sort_keys=True,
        )

    def save(self, path: Path, results: Results | None = None) -> None:
        """Writes the plan as JSON, together with other `results` where these are given."""
        write(Path(path), self.to_json() + "\n", results)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Reads a plan.

        Raises:
            PlanError: the file holds none.
        """
        try:
            data = json.loads(Path(path).read_text())
            if data.pop("schema") != "onnxprune.plan/1":
                raise KeyError("schema")
            for table in TABLES:
                data[table] = {name: {int(key): x for key, x in by.items()} for name, by in data[table].items()}
            data["groups"] = {name: (group["units"], group["kept"]) for name, group in data["groups"].items()}
            data["numbers"] = [Written(**number) for number in data["numbers"]]
            for arrays in ("frozen", "biases"):
                data[arrays] = {name: Frozen(**frozen) for name, frozen in data[arrays].items()}
            return cls(**data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PlanError(f"{path} is no plan of onnxprune; make one with `onnxprune prune --plan`.") from error


def rows_of(feeds: Mapping[str, np.ndarray]) -> int:
    """How many samples arrays hold: axis 0 is the samples, and a number without axes is the same for all of them."""
    return next((len(array) for array in feeds.values() if array.ndim), min(len(feeds), 1))


def take(feeds: Mapping[str, np.ndarray], rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Some of the samples."""
    return {name: array[rows] if array.ndim else array for name, array in feeds.items()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples for one run.

    Attributes:
        feeds: an array for each input, axis 0 the samples.
        labels: (real,), where the data have labels.
        real: how many of the samples are real; those after them repeat the first, to fill a fixed batch size.
    """

    feeds: dict[str, np.ndarray]
    labels: np.ndarray | None
    real: int

    @property
    def rows(self) -> int:
        """How many samples there are, those that fill a fixed batch size included."""
        return rows_of(self.feeds)
