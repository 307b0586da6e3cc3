"""Options given from Python: what would mean something else in silence is refused, what means the same is taken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from builders import Net
from onnxprune import Budget, Execution, Feeding, Limits, Method, Ranking, SpectralOptions, Training, Watch
from onnxprune.errors import PlanError

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a kind of budget": (lambda: Budget("latency", 0.5), "'latency' is unknown; use params, macs or units"),
    "no text": (lambda: Budget(["params"], 0.5), r"kind of a budget \['params'\] is unknown"),
    "a text for a share": (lambda: Budget("params", "0.5"), "--ratio '0.5' does not do; give a number"),
    "NaN": (lambda: Budget("macs", math.nan), "--macs nan does not do; give a number"),
    "True for 1": (lambda: Budget("units", True), "--units True does not do; give a number"),
    "a share of nothing": (lambda: Budget("params", 0), "--ratio 0 is out of range; give a share between"),
    "all of it": (lambda: Budget("macs", np.float32(1)), "--macs 1 is out of range; give a share between 0 and 1"),
    "an allocation": (lambda: Limits("foo"), "--allocation 'foo' is unknown; use global or uniform"),
    "a glob alone": (lambda: Limits(only="conv*"), r"--only 'conv\*' is no tuple; give a tuple, such as"),
    "None for no globs": (lambda: Limits(skip=None), "--skip None is no tuple; give a tuple"),
    "a number for a glob": (lambda: Limits(skip=(3,)), "--skip 3 does not do; give a text"),
    "half a unit": (lambda: Limits(round_to=2.5), "--round-to 2.5 does not do; give a whole number or None"),
    "a floor below": (lambda: Limits(floor=-0.1), "--floor -0.1 is out of range; give a share from 0 up to below 1"),
    "a floor of all": (lambda: Limits(floor=1), "--floor 1 is out of range"),
    "fewer than no samples": (lambda: Feeding(samples=-1), "--samples -1 is out of range; give 0 or more"),
    "an empty batch": (lambda: Feeding(batch=0), "--batch 0 is out of range; give 1 or more"),
    "a float for a batch": (lambda: Feeding(batch=2.0), "--batch 2.0 does not do; give a whole number"),
    "no stride": (lambda: Feeding(stride=0), "--stride 0 is out of range; give 1 or more"),
    "a number for a device": (lambda: Feeding(device=0), "--device 0 does not do; give a text"),
    "a criterion": (lambda: Ranking("foo"), "there is no criterion 'foo'; use one of spectral, random"),
    "another record": (lambda: Ranking(spectral={"k": 3}), r"give SpectralOptions\(...\)"),
    "a word for a flag": (lambda: Ranking(reverse="no"), "--reverse 'no' does not do; give True or False"),
    "a negative seed": (lambda: Ranking(seed=-1), "--seed -1 is out of range; give a number from 0 up to 2"),
    "no neighbours": (lambda: SpectralOptions(k=0), "--k 0 is out of range; give 1 or more"),
    "a number of eigenpairs": (lambda: SpectralOptions(s="many"), "'many' does not do; give a whole number or all"),
    "no eigenpairs": (lambda: SpectralOptions(s=0), "--eigenpairs 0 is out of range; give 1 or more"),
    "weights of edges": (lambda: SpectralOptions(weights="x"), "--edges 'x' is unknown; use unit or inverse"),
    "a distance": (lambda: SpectralOptions(metric="x"), "--metric 'x' is unknown; use euclidean or correlation"),
    "no ridge": (lambda: SpectralOptions(ridge=0), "--ridge 0 is out of range; give more than 0"),
    "no rounds": (lambda: Method(rounds=0), "--rounds 0 is out of range; give 1 or more"),
    "limits of another kind": (lambda: Method(limits=()), r"the limits: \(\) does not do; give Limits\(...\)"),
    "1 for True": (lambda: Method(refit=1), "--refit 1 does not do; give True or False"),
    "what may shrink": (lambda: Method(allow_io=("heads",)), "--allow-io 'heads' is unknown; use head"),
    "an optimizer": (lambda: Training(optimizer="lion"), "--optimizer 'lion' is unknown; use adamw or sgd"),
    "a distillation": (lambda: Training(loss="l1"), "--loss 'l1' is unknown; use auto, kl or mse"),
    "a rate without bounds": (lambda: Training(rate=math.inf), "--rate inf is out of range; give more than 0"),
    "a negative decay": (lambda: Training(decay=-1), "--decay -1 is out of range; give 0 or more"),
    "half an epoch": (lambda: Training(epochs=1.5), "--epochs 1.5 does not do; give a whole number"),
    "yes": (lambda: Training(unfold_batchnorm="yes"), "'yes' does not do; give True or False or None"),
    "a metric that is no text": (lambda: Watch({}, metric=3), "--metric 3 does not do; give a text or None"),
    "half the patience": (lambda: Watch({}, patience=0.5), "--patience 0.5 does not do; give a whole number"),
    "a goal of NaN": (lambda: Watch({}, goal=math.nan), "--goal nan does not do; give a number or None"),
    "a precision": (lambda: Execution(precision="float8"), "'float8' is unknown; use auto, float32 or bfloat16"),
    "a runtime": (lambda: Execution(teacher_runtime="tf"), "--teacher-runtime 'tf' is unknown; use auto, onnx"),
    "True for a backend": (lambda: Execution(compile=True), "--compile True does not do; give a text or None"),
    "a number for a path": (lambda: Execution(cache=3), "--cache 3 does not do; give a path or None"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_option_is_said(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(PlanError, match=message):
        make()


def test_what_means_the_same_is_taken_and_made_plain() -> None:
    limits = Limits(only=["a*"], round_to=np.int64(4), floor=np.float32(0.25))
    assert limits == Limits(only=("a*",), round_to=4, floor=0.25)
    assert type(limits.round_to) is int and type(limits.floor) is float
    assert type(Method(refit=np.True_).refit) is bool
    assert Execution(checkpoint="run.ckpt").checkpoint == Path("run.ckpt")
    assert Training(clip=math.inf).clip == math.inf  # never clipped
    assert SpectralOptions(s="all").s == "all" and SpectralOptions(s=3).s == 3
    assert Feeding(samples=0).samples == 0  # all


@pytest.mark.parametrize(
    "record", [Budget, Execution, Feeding, Limits, Method, Ranking, SpectralOptions, Training, Watch]
)
def test_every_field_of_every_record_is_looked_at(record: type) -> None:
    """No field takes an object of a class that nobody knows, but for data, which may be anything."""
    usual = {"kind": "params", "share": 0.5, "data": {}}
    given = {f.name: usual[f.name] for f in dataclasses.fields(record) if f.name in usual}
    for field in dataclasses.fields(record):
        if field.name != "data":
            with pytest.raises(PlanError):
                record(**{**given, field.name: object()})


@pytest.mark.parametrize("given", ["heads", ("heads",), {"heads"}, "head"])
def test_functions_check_what_no_record_holds(given: object) -> None:
    net = Net(20)
    graph = net.output(net.dense(net.input("N", 3), 3, 2)).graph()
    with pytest.raises(PlanError, match=r"--allow-io 'heads?' is (unknown; use head|no tuple; give a tuple, such as)"):
        onnxprune.find_units(graph, allow_io=given)
    with pytest.raises(PlanError, match="--residual 'yes' does not do; give True or False"):
        onnxprune.inspect(graph, residual="yes")
