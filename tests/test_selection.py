"""Budgets, floors, rounding, allocation and filters."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from builders import Net
from onnxprune.errors import NothingToPrune, PlanError
from onnxprune.grouping import find_units
from onnxprune.proof import verify
from onnxprune.records import Scores
from onnxprune.selection import Budget, Limits, select
from onnxprune.surgery import remove
from onnxprune.units import Units
from test_heads import block


@cache
def dense() -> Units:
    """Two hidden layers of 40 and 20 neurons."""
    net = Net()
    h = net.op("Relu", net.dense(net.input("N", 10), 10, 40))
    h = net.op("Relu", net.dense(h, 40, 20))
    return find_units(net.output(net.dense(h, 20, 5)).graph())


@cache
def residual() -> Units:
    """An option-A shortcut: a stream of 16, widened to 32 by 8 zero channels on each side, hidden 24 in between."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 16))
    wide = net.op("Pad", h, net.ints(0, 8, 0, 0, 0, 8, 0, 0))
    branch = net.conv(net.op("Relu", net.conv(h, 16, 24)), 24, 32)
    return find_units(net.output(net.conv(net.op("Add", wide, branch), 32, 4)).graph())


def by_index(units: Units) -> Scores:
    """Later units are better."""
    return Scores("index", {name: np.arange(1.0, group.size + 1) for name, group in units.groups.items()})


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.62, 0.9])
def test_the_ratio_is_met_and_not_much_more(allocation: str, ratio: float) -> None:
    units = dense()
    keep = select(units, by_index(units), Budget("params", ratio), Limits(allocation, floor=0))
    removed = 1 - units.cost(keep)[0] / units.cost({})[0]
    assert ratio <= removed < ratio + 0.06
    for mask in keep.values():
        assert mask[-mask.sum() :].all()  # the worst went first


@pytest.mark.parametrize("share", [0.7, 0.25])
def test_macs_is_the_share_that_remains(share: float) -> None:
    units = dense()
    keep = select(units, by_index(units), Budget("macs", share), Limits())
    left = units.cost(keep)[1] / units.cost({})[1]
    assert share - 0.06 < left <= share


def test_units_takes_the_same_share_of_every_group() -> None:
    units = residual()
    keep = select(units, by_index(units), Budget("units", 0.5), Limits(round_to=1))
    assert {name: (len(m), int(m.sum())) for name, m in keep.items()} == {
        "c0": (16, 8),
        "c3": (24, 12),
        "c5[0:8]": (8, 4),
        "c5[24:32]": (8, 4),
    }


def test_widths_of_axes_are_multiples() -> None:
    """The two borders of the shortcut are rounded together, with the stream between them."""
    units = residual()
    for budget in (Budget("params", 0.3), Budget("macs", 0.6), Budget("units", 0.4)):
        keep = select(units, by_index(units), budget, Limits())
        counts = {name: int(m.sum()) for name, m in keep.items()}
        assert counts["c0"] % 8 == counts["c3"] % 8 == (counts["c5[0:8]"] + counts["c5[24:32]"]) % 8 == 0
        plan = units.plan(keep)
        assert all(len(kept) % 8 == 0 for axes in plan.activations.values() for kept in axes.values())


def test_narrow_axes_are_rounded_to_halves() -> None:
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 6))
    units = find_units(net.output(net.conv(h, 6, 4)).graph())
    keep = select(units, by_index(units), Budget("units", 0.5), Limits())
    assert [int(m.sum()) for m in keep.values()] == [4]


def test_floors_hold() -> None:
    units = dense()
    keep = select(units, by_index(units), Budget("params", 0.6), Limits(floor=0.4))
    assert all(m.sum() >= 0.4 * len(m) for m in keep.values())


def test_cheap_scores_go_first() -> None:
    """Scores count relative to their group's mean, and per parameter saved."""
    units = dense()
    first, second = units.groups
    scores = Scores("", {first: np.full(40, 1e6), second: np.array([1e-9] * 10 + [2.0] * 10)})
    keep = select(units, scores, Budget("params", 0.15), Limits())
    assert keep[first].all() and not keep[second][:5].any() and keep[second][10:].all()


def test_a_head_is_worth_its_features() -> None:
    """It costs as much as many feed-forward units: counted as one of them it would go before the worst."""
    units = find_units(block())
    head, inner = (next(n for n, g in units.groups.items() if g.kind == k) for k in ("head", "feed-forward unit"))
    scores = Scores("", {n: np.ones(group.size) for n, group in units.groups.items()})
    scores.by_group[inner][:2] = 0.2
    keep = select(units, scores, Budget("params", 0.05), Limits())
    assert keep[head].all() and list(np.flatnonzero(~keep[inner])) == [0, 1]


def test_equal_scores_break_by_index() -> None:
    units = dense()
    scores = Scores("", {name: np.ones(group.size) for name, group in units.groups.items()})
    for mask in select(units, scores, Budget("units", 0.25), Limits()).values():
        assert not mask[: len(mask) // 4].any() and mask[len(mask) // 4 :].all()


def test_rounds_go_on_from_what_is_left() -> None:
    units = dense()
    scores = by_index(units)
    once = select(units, scores, Budget("params", 0.2), Limits())
    gone = Scores("", {n: np.where(once[n], scores.by_group[n], np.nan) for n in once})
    twice = select(units, gone, Budget("params", 0.5), Limits(), start=once)
    assert all(not (twice[n] & ~once[n]).any() for n in once)
    assert units.cost(twice)[0] <= 0.5 * units.cost({})[0]


def test_only_and_skip() -> None:
    units = dense()
    first, second = units.groups
    assert select(units, by_index(units), Budget("units", 0.5), Limits(only=(first,))).keys() == {first}
    assert select(units, by_index(units), Budget("units", 0.5), Limits(skip=(f"{first}*",))).keys() == {second}
    with pytest.raises(NothingToPrune, match="--only and --skip leave no group; `onnxprune inspect` lists their names"):
        select(units, by_index(units), Budget("units", 0.5), Limits(only=("nothing*",)))


def test_overlapping_groups_are_pruned_one_or_the_other() -> None:
    """Whole groups of a grouped convolution, or channels of each of its groups."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 3, 4, 4), 3, 24))
    h = net.op("Relu", net.conv(h, 24, 24, group=3))
    units = find_units(net.output(net.conv(h, 24, 2)).graph())
    other = next(name for name, group in units.groups.items() if group.instead_of)
    assert units.groups[other].size == 3
    assert other not in select(units, by_index(units), Budget("units", 0.5), Limits(round_to=1))
    keep = select(units, by_index(units), Budget("units", 0.4), Limits(round_to=1, only=(other,)))
    assert [int(m.sum()) for m in keep.values()] == [2]
    attributes = {n.attribute: n.value for n in units.plan(keep).numbers}
    assert attributes == {"group": 2}


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("params", 0.99), r"--ratio 0.99 cannot be reached: at most 0\.\d+ is prunable; lower --floor"),
        (Budget("macs", 0.001), r"--macs 0.001 cannot be reached: at least 0\.\d+ must remain; lower --floor"),
    ],
)
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_unreachable_budgets_say_what_can_be_reached(budget: Budget, message: str, allocation: str) -> None:
    units = dense()
    limits = Limits(allocation)
    with pytest.raises(PlanError, match=message) as error:
        select(units, by_index(units), budget, limits)
    if budget.kind == "params":
        reachable = float(str(error.value).split("at most ")[1].split()[0])
        select(units, by_index(units), Budget("params", reachable), limits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget("params", 0), r"--ratio 0 is out of range; give a share between 0 and 1, such as 0.4"),
        (lambda: Budget("macs", 1.5), r"--macs 1.5 is out of range"),
        (lambda: Budget("units", -1), r"--units -1 is out of range"),
        (lambda: Limits(round_to=0), r"--round-to 0 is out of range; give 1 or more"),
        (lambda: Limits(floor=1), r"--floor 1 is out of range"),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()


def test_nothing_prunable_says_why() -> None:
    net = Net()
    units = find_units(net.output(net.dense(net.input("N", 3), 3, 2)).graph())
    with pytest.raises(
        NothingToPrune, match=r"nothing in this model can be pruned: it is an input of the model \(x0\)"
    ):
        select(units, by_index(units), Budget("units", 0.5), Limits())


def cut_at_an_odd_place() -> Units:
    """Six channels, two copies of each, of which the first three and the other nine go different ways."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 2, 4, 4), 2, 6))
    h = net.op("Relu", net.conv(h, 6, 12, group=6))
    first, rest = net.ops("Split", h, net.ints(3, 9), outputs=2, axis=1)
    y = net.op("Add", net.conv(net.op("GlobalAveragePool", first), 3, 3), net.conv(rest, 9, 3))
    return find_units(net.output(y).graph())


def test_a_part_that_goes_its_own_way_keeps_a_unit() -> None:
    """Else a tensor would have no channels at all, which few operators take."""
    units = cut_at_an_odd_place()
    (name,) = units.groups
    assert units.groups[name].size == 6
    assert [{unit for _, unit in places} for places in units.vital()] == [{0, 1}, {1, 2, 3, 4, 5}]
    for allocation in ("global", "uniform"):
        limits = Limits(allocation, round_to=1, floor=0.0)
        keep = select(units, Scores("", {name: np.arange(6.0)}), Budget("units", 0.8), limits)
        assert np.flatnonzero(keep[name]).tolist() == [1, 5]
        plan = units.plan(keep)
        feeds = {"x0": np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype("f")}
        verify(units, plan, remove(units.graph, plan), feeds)
    with pytest.raises(PlanError, match=r"leaves tensor 'split\S+' without positions; keep one of its units at least"):
        units.plan({name: np.arange(6) > 1})
