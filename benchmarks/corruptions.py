"""Does the proof notice a wrong weight? Each weight that was cut from 30 compact models, spoiled in seven ways.

    python benchmarks/corruptions.py [ONLY]

A corruption counts as seen where the proof fails, and as announced where the proof of the right model names the weight
among those that it could not see. What is neither is a miss, and is printed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx

from onnxprune.data import load_data
from onnxprune.errors import VerificationError
from onnxprune.graph import Graph
from onnxprune.probes import find_probes, index_ranges
from onnxprune.proof import prove
from onnxprune.records import Plan
from onnxprune.runtime import Session
from onnxprune.surgery import remove
from results import publish, table
from zoo.endings import networks
from zoo.halving import analysed, halves

Way = Callable[[np.ndarray, int, np.ndarray, tuple[int, ...]], np.ndarray]
"""`(the weight as it is, the axis that was cut, the weight as it was, kept positions) -> the weight gone wrong`."""


def shifted(array: np.ndarray, axis: int, whole: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """The neighbours of the kept positions."""
    return np.take(whole, [(i + 1) % whole.shape[axis] for i in kept], axis)


def swapped(array: np.ndarray, axis: int, whole: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """The first and the last position change places."""
    order = np.arange(array.shape[axis])
    order[[0, -1]] = order[[-1, 0]]
    return np.take(array, order, axis)


WAYS: dict[str, Way] = {
    "times -3": lambda array, *_: (array * -3).astype(array.dtype),
    "reversed": lambda array, axis, *_: np.flip(array, axis),
    "moved by one": lambda array, axis, *_: np.roll(array, 1, axis),
    "zero": lambda array, *_: np.zeros_like(array),
    "a tenth more": lambda array, *_: (array * 1.1).astype(array.dtype),
    "two swapped": swapped,
    "others kept": shifted,
}


def cases(graph: Graph, plan: Plan, compact: Graph) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each weight that was cut, each way in which it goes wrong, and what comes of it, unless it is the same."""
    for name, axes in plan.initializers.items():
        array = compact.constants.get(name)
        if array is None or array.dtype.kind not in "iuf" or array.dtype == np.int64:
            continue
        axis, kept = next(iter(axes.items()))
        whole = graph.constants[name]
        for other, indices in axes.items():
            if other != axis:
                whole = np.take(whole, indices, other)
        for way, change in WAYS.items():
            wrong = np.ascontiguousarray(change(array, axis, whole, kept))
            if wrong.shape == array.shape and not np.array_equal(wrong, array):
                yield name, way, wrong


def check(model: onnx.ModelProto) -> tuple[Counter[str], list[str]]:
    """How many corruptions of one model are seen and announced, and which are neither."""
    units = analysed(model.SerializeToString())
    plan = units.plan(halves(units))
    compact = remove(units.graph, plan)
    session = Session(units.graph.message(), device="cpu")
    shapes = {name: tuple(a.size for a in units.structure.axes[name]) for name in units.graph.inputs}
    ranges = index_ranges(units.graph)
    data = load_data(None, session, shapes=shapes, ranges=ranges)
    probes = list(find_probes(session, data, shapes, ranges))
    unseen = prove(units, plan, compact, probes).unseen
    count: Counter[str] = Counter(weights=len({name for name, *_ in cases(units.graph, plan, compact)}))
    missed = []
    for name, way, wrong in cases(units.graph, plan, compact):
        try:
            prove(units, plan, compact.with_constants({name: wrong}), probes)
        except VerificationError:
            count["seen"] += 1
        else:
            count["announced" if name in unseen else "missed"] += 1
            if name not in unseen:
                missed.append(f"{name}, {way}")
    return count, missed


def main() -> None:
    """Checks every network and publishes the table."""
    only = sys.argv[1] if len(sys.argv) > 1 else "*"
    rows: list[list[object]] = [["network", "weights cut", "corruptions", "seen", "announced", "missed"]]
    total: Counter[str] = Counter()
    for name, make in networks().items():
        if fnmatch.fnmatch(name, only):
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                count, missed = check(make())
            made = count["seen"] + count["announced"] + count["missed"]
            rows.append([name, count["weights"], made, count["seen"], count["announced"], count["missed"]])
            total.update(count)
            print(*rows[-1], sep=" | ", flush=True)
            for miss in missed:
                print("   missed:", miss, flush=True)
    made = total["seen"] + total["announced"] + total["missed"]
    rows.append(["all", total["weights"], made, total["seen"], total["announced"], total["missed"]])
    about = (
        "Half of every group removed at random, then each weight that was cut is made wrong in each of these ways: "
        f"{', '.join(WAYS)}; the proof runs on made-up inputs. Announced: the proof of the right model says that it "
        "cannot see this weight, and why."
    )
    if only == "*":
        publish("corruptions.py", "## Wrong weights that the proof notices", about, table(rows))


if __name__ == "__main__":
    main()
