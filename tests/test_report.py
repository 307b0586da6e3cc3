"""Measures and reports of one tiny model, against golden files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builders import Net
from onnxprune import measure, report
from onnxprune.errors import DataError
from onnxprune.findings import Cost, Latency, Proof, Quality, Report
from onnxprune.pipeline import Method, prune
from onnxprune.records import Batch
from onnxprune.runtime import Session
from onnxprune.selection import Budget

GOLDEN = Path(__file__).parent / "golden"


def tiny() -> Net:
    net = Net()
    h = net.op("Relu", net.dense(net.input("N", 3), 3, 6))
    return net.output(net.dense(h, 6, 2))


def pruned():
    x = np.random.default_rng(0).standard_normal((20, 3)).astype("f")
    return prune(tiny().graph(), Budget("params", 0.4), {"x0": x}, method=Method(latency=False))


def golden(name: str, text: str) -> None:
    """Compares with a file; to make it anew, delete it and run the test twice."""
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} did not exist and was written; look at it")
    assert text == path.read_text()


def test_the_plan_of_a_tiny_model() -> None:
    plan = json.loads(pruned().plan.to_json())
    plan.pop("model")  # the hash depends on the version of onnx that wrote the message
    golden("plan.json", json.dumps(plan, indent=1, sort_keys=True) + "\n")


def test_the_report_of_a_tiny_model() -> None:
    found = json.loads(pruned().report.to_json())
    for row in found["groups"]:
        row["scores"] = [round(score, 4) for score in row["scores"]]
    found["quality"]["difference"] = round(found["quality"]["difference"], 3)
    assert found.pop("verified") == found["proof"].pop("difference") < 1e-5
    golden("report.json", json.dumps(found, indent=1, sort_keys=True) + "\n")


def test_the_summary_reads_well() -> None:
    latency = Latency("CPUExecutionProvider", 1, 1, 100, (9e-3, 1e-2, 11e-3), (5e-3, 6e-3, 7e-3), 0.6)
    quality = Quality(1000, "test.npz", (0.93, 0.925), 0.97, 1.25)
    before, after = Cost(857_082, 125_485_696, 3_486_520), Cost(430_000, 59_000_000, 1_760_000)
    text = report.summary(Report(before, after, latency, quality, proof=Proof(2e-6, 16, 212, 55), notes=("A note.",)))
    golden("summary.txt", text + "\n")


def test_costs_are_counted() -> None:
    """Parameters and multiply-accumulates of convolutions and dense layers, for one sample."""
    net = Net()
    h = net.op("Relu", net.conv(net.input("N", 3, 8, 8), 3, 6, kernel=3))
    h = net.op("Relu", net.conv(h, 6, 12, kernel=3, group=3, strides=[2, 2]))
    cost = measure.cost(net.output(net.dense(net.op("Flatten", h), 48, 5)).graph())
    assert cost.parameters == (6 * 27 + 6) + (12 * 18 + 12) + (48 * 5 + 5)
    assert cost.macs == 36 * 6 * 27 + 4 * 12 * 18 + 48 * 5
    assert cost.bytes == len(net.graph().message())


def test_costs_of_what_is_left_are_those_of_the_compact_model() -> None:
    result = pruned()
    measured = measure.cost(result.graph)
    assert measured == result.report.after


def test_latency_in_turns() -> None:
    session = Session(tiny().model().SerializeToString(), device="cpu", threads=1)
    found = measure.latency(session, session, {"x0": np.zeros((4, 3), "f")}, threads=1, seconds=0.05)
    assert found.runs >= 10 and found.batch == 4 and 0 < found.before[0] <= found.before[1] <= found.before[2]


def test_accuracy_and_agreement() -> None:
    sessions = [Session(tiny().model().SerializeToString(), device="cpu") for _ in range(2)]
    x = np.random.default_rng(0).standard_normal((10, 3)).astype("f")
    labels = sessions[0].run({"x0": x})[0].argmax(1)
    labels[:3] = 1 - labels[:3]
    padded = Batch({"x0": np.concatenate([x, x[:2]])}, labels, 10)
    assert measure.top1(sessions[0], [padded]) == (0.7, 10)
    assert measure.quality(*sessions, [padded], source="x") == Quality(10, "x", (0.7, 0.7), 1.0, 0.0)
    with pytest.raises(DataError, match="top-1 accuracy needs labels"):
        measure.top1(sessions[0], [Batch({"x0": x}, None, 10)])


def test_rows_of_tokens_are_no_classes_of_samples() -> None:
    net = Net()
    x = net.op("Reshape", net.input("N", 5, 3), net.ints(-1, 3))
    net.output(net.op("MatMul", x, net.weight(3, 4)))
    session = Session(net.model().SerializeToString(), device="cpu")
    batch = Batch({"x0": np.ones((2, 5, 3), "f")}, np.zeros(2, int), 2)
    with pytest.raises(DataError, match="one row of classes a sample; this model has none"):
        measure.top1(session, [batch])
    assert measure.quality(session, session, [batch]) == Quality(2, "", None, None, 0.0)


def test_a_model_that_is_not_faster_is_said_so() -> None:
    from onnxprune.pipeline import _slow

    same = Latency("CPUExecutionProvider", 0, 1, 10, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1.02)
    assert "not faster here (x 1.02); a likely cause: widths are not rounded to multiples of 8" in _slow(same, 1)[0]
    assert "fixed costs of each operator prevail" in _slow(same)[0]
