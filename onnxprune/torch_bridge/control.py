"""Operators that contain graphs of their own, which are modules here: they run in Python, one node after the other.

`captured` is what a graph reads from outside: the first input of the model, which says where the data are, the module's
flags, and tensors. Its own inputs follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onnxprune.errors import BridgeError
from onnxprune.torch_bridge.base import Number, Tensor, number, operator


@operator("If")
def if_(
    condition: Number,
    *,
    captured: Sequence[Any],
    then_branch: torch.nn.Module,
    else_branch: torch.nn.Module,
    outputs: int,
) -> tuple[Any, ...]:
    """The results of one of two graphs, which read the same tensors from outside."""
    return tuple((then_branch if bool(number(condition)) else else_branch)(*captured))


@operator("Loop")
def loop(
    trips: Number | None = None,
    condition: Number | None = None,
    *carried: Tensor,
    captured: Sequence[Any],
    body: torch.nn.Module,
    outputs: int,
) -> tuple[Tensor, ...]:
    """What a graph makes of its own results, again and again, and what else it gives out, stacked."""
    device, states = captured[0].device, carried
    goes_on = condition is None or bool(number(condition))
    rows: list[tuple[Tensor, ...]] = []
    while goes_on and (trips is None or len(rows) < int(number(trips))):
        step, flag = torch.tensor(len(rows), device=device), torch.tensor(goes_on, device=device)
        last, *results = body(*captured, step, flag, *states)
        goes_on, states = bool(last), tuple(results[: len(carried)])
        rows.append(tuple(results[len(carried) :]))
    return *states, *_stacked(rows, outputs - len(carried))


@operator("Scan", since=9)
def scan(
    *inputs: Tensor,
    captured: Sequence[Any],
    body: torch.nn.Module,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    outputs: int,
) -> tuple[Tensor, ...]:
    """What a graph makes of its own results and the next slice of sequences, and what else it gives out, stacked."""
    carried = len(inputs) - num_scan_inputs
    states, sequences = inputs[:carried], []
    for i, x in enumerate(inputs[carried:]):
        x = x.movedim(scan_input_axes[i] if scan_input_axes else 0, 0)
        sequences.append(x.flip(0) if scan_input_directions and scan_input_directions[i] else x)
    rows: list[tuple[Tensor, ...]] = []
    for slices in zip(*sequences, strict=True):
        results = body(*captured, *states, *slices)
        states = tuple(results[:carried])
        rows.append(tuple(results[carried:]))
    made = []
    for i, y in enumerate(_stacked(rows, outputs - carried)):
        y = y.flip(0) if scan_output_directions and scan_output_directions[i] else y
        made.append(y.movedim(0, scan_output_axes[i] if scan_output_axes else 0))
    return *states, *made


def _stacked(rows: Sequence[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """What a graph gives out in each pass, along a new first axis."""
    if count and not rows:
        raise BridgeError("the graph inside a node ran not once, so its results have no shape; give other data.")
    return [torch.stack(column) for column in zip(*rows, strict=True)]
