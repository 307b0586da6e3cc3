"""The law on whole networks, as both PyTorch exporters write them."""

from __future__ import annotations

import io
import logging
import warnings
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from networks import make, networks

from onnxprune.graph import from_proto
from onnxprune.surgery import remove, verify
from onnxprune.units import Units, find_units

EXPORTS = {
    "torchscript, opset 11": {"dynamo": False, "opset_version": 11, "do_constant_folding": False},
    "torchscript, opset 17": {"dynamo": False, "opset_version": 17},
    "dynamo": {"dynamo": True},
}


@cache
def exported(name: str, export: str) -> bytes:
    net, x = make(name)
    options = EXPORTS[export]
    axes = {"dynamic_shapes": ({0: "batch"},)} if options["dynamo"] else {"dynamic_axes": {"x": {0: "batch"}}}
    file = io.BytesIO()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, input_names=["x"], verbose=False, **axes, **options)
    logging.disable(logging.NOTSET)
    return file.getvalue()


def units_of(name: str, export: str) -> Units:
    return find_units(from_proto(onnx.load_from_string(exported(name, export))))


def half(units: Units) -> dict[str, np.ndarray]:
    """Random halves of all groups that are pruned by default."""
    generator = np.random.default_rng(0)
    chosen = {name: group.size for name, group in units.groups.items() if not group.instead_of}
    return {name: generator.permutation(n) < n - n // 2 for name, n in chosen.items()}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("name", networks())
def test_half_of_every_group(name: str, export: str) -> None:
    units = units_of(name, export)
    keep = half(units)
    removed = 1 - units.cost(keep)[0] / units.cost({})[0]
    assert removed >= networks()[name][2]
    plan = units.plan(keep)
    shape = networks()[name][1]
    feeds = {"x": np.random.default_rng(1).standard_normal((3, *shape[1:])).astype("f")}
    verify(units, plan, remove(units.graph, plan), feeds)


@pytest.mark.parametrize("name", networks())
def test_exporters_agree(name: str) -> None:
    """The same network gives the same groups, whoever exported it."""
    found = [units_of(name, export) for export in EXPORTS]
    shapes = [[(g.size, g.kind, bool(g.instead_of)) for g in units.groups.values()] for units in found]
    assert shapes[0] == shapes[1] == shapes[2]
    assert found[1].cost({})[1] == found[2].cost({})[1] > 0
