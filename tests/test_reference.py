"""The trained CIFAR-10 ResNets of the reference data, each in three exports."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import cifar10
from onnxprune.graph import load
from onnxprune.grouping import find_units
from onnxprune.pipeline import Method, Ranking, evaluate, prune
from onnxprune.proof import verify
from onnxprune.selection import Budget, Limits
from onnxprune.surgery import remove

EXPORTS = ("bn", "folded", "dynamo")


@cache
def images() -> dict[str, np.ndarray]:
    """The first test images and their labels."""
    return cifar10.images("test", count=256)


def test_half_of_all_units_is_three_quarters_of_the_parameters(data_folder: Path) -> None:
    """The same widths in all three exports, and equal to the masked original on real images."""
    data = images()
    widths = []
    for export in EXPORTS:
        path = data_folder / "models" / f"resnet20_cifar10_{export}.onnx"
        method = Method(rounds=1, limits=Limits(round_to=1), latency=False)
        pruned = prune(path, Budget("units", 0.5), data, method=method)
        report = pruned.report
        assert 1 - report.after.parameters / report.before.parameters >= 0.74
        assert report.verified is not None and report.verified <= 1e-4
        units = find_units(load(path))
        assert verify(units, pruned.plan, remove(units.graph, pruned.plan), {"image": data["image"]}) <= 1e-4
        widths.append([(row.units, row.kept) for row in report.groups])
    assert widths[0] == widths[1] == widths[2]
    assert widths[0][0] == (16, 8)


def test_accuracy_survives_a_little_pruning_with_refit(data_folder: Path) -> None:
    data = images()
    path = data_folder / "models" / "resnet20_cifar10_bn.onnx"
    assert evaluate(path, data)[0] > 0.88
    accuracies = []
    for refit in (False, True):
        method = Method(rounds=2, refit=refit, latency=False)
        pruned = prune(path, Budget("params", 0.2), data, ranking=Ranking("variance"), method=method)
        accuracies.append(evaluate(pruned.graph, data)[0])
    assert accuracies[1] > 0.8
    assert accuracies[1] > accuracies[0]


@pytest.mark.parametrize("size", [20, 56])
def test_exports_have_the_same_groups(data_folder: Path, size: int) -> None:
    found = []
    for export in EXPORTS:
        units = find_units(load(data_folder / "models" / f"resnet{size}_cifar10_{export}.onnx"))
        found.append([(group.size, group.kind, group.linear) for group in units.groups.values()])
        assert len(units.groups) == {20: 14, 56: 32}[size]
    assert found[0] == found[1] == found[2]
