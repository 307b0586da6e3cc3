"""Positions that the attention mask hides, or whose label is -100, have no part in losses and metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import onnxprune
from builders import Net
from onnxprune.errors import DataError
from onnxprune.graph import Graph, from_proto
from onnxprune.padding import Places
from onnxprune.recovery import Execution, Training, Watch, recover
from onnxprune.recovery.losses import Known, Objective, shape_of, shown_positions
from test_recovery_objectives import language_model, outputs
from zoo.base import TORCHSCRIPT, feeds, member, zoo

GENERATOR = np.random.default_rng(0)
TOKENS, REAL = GENERATOR.integers(0, 7, (24, 10)), GENERATOR.integers(0, 11, (24, 1))
REAL[0] = 0  # a sample of nothing but padding
SHOWN = np.arange(10) < REAL
MASKED = {"input_ids": TOKENS, "attention_mask": SHOWN.astype(np.int64)}
OTHER = MASKED | {"input_ids": np.where(SHOWN, TOKENS, 6 - TOKENS)}


def encoder(seed: int, *, flat: bool = False) -> Graph:
    """Five features for each token, of hidden positions as well; `flat` has the tokens of all samples in a row."""
    net = Net(seed=seed)
    tokens, mask = (net.input("N", "T", kind=TensorProto.INT64) for _ in range(2))
    unused = net.op("Mul", net.op("Unsqueeze", net.op("Cast", mask, to=1), net.ints(2)), net.constant(np.zeros(1, "f")))
    h = net.op("Add", net.op("Gather", net.weight(7, 12), tokens), unused)
    if flat:
        h = net.op("Reshape", h, net.ints(-1, 12))
    h = net.op("Relu", net.op("MatMul", h, net.weight(12, 16)))
    y = net.op("MatMul", h, net.weight(16, 5))
    net.output(net.op("Reshape", y, net.op("Concat", net.op("Shape", tokens), net.ints(5), axis=0)) if flat else y)
    for put, name in zip(net.inputs, MASKED, strict=True):
        for node in net.nodes:
            node.input[:] = [name if read == put.name else read for read in node.input]
        put.name = name
    return net.graph()


def padded(name: str) -> tuple[onnxprune.Graph, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A network, and two sets of texts that differ where the mask hides them."""
    graph = from_proto(onnx.load_from_string(member(name, TORCHSCRIPT, next(iter(zoo()[name].attention), ""))))
    tokens = np.random.default_rng(0).integers(1, 50, (16, 12))
    shown = np.arange(12) < np.random.default_rng(1).integers(3, 12, (16, 1))
    data = {name: np.zeros((16, 12), np.int64) for name in feeds(zoo()[name])}
    data |= {"input_ids": tokens, "attention_mask": shown.astype(np.int64)}
    return graph, data, data | {"input_ids": np.where(shown, tokens, 50 - tokens)}


def entries(path: Path, key: str) -> list[float]:
    return [entry[key] for line in path.read_text().splitlines() if key in (entry := json.loads(line))]


@pytest.mark.parametrize("label_weight", [0.0, 0.5, 1.0])
def test_labels_that_do_not_count_take_no_part(label_weight: float, tmp_path: Path) -> None:
    """Steps in parts give the loss of whole ones, wherever the padding lies, and it may hold anything."""
    shown = {"attention_mask": np.ones_like(TOKENS), "labels": np.where(SHOWN, TOKENS, -100)}  # to both models
    found = []
    for samples, accumulate in ((MASKED, 1), (MASKED, 8), (OTHER, 1)):
        training = Training(
            epochs=3, batch=8, rate=1e-2, label_weight=label_weight, task="next-token", accumulate=accumulate
        )
        execution = Execution(losses=tmp_path / "losses.jsonl", force=True)
        teacher = language_model(0) if label_weight < 1 else None
        recover(language_model(1), samples | shown, teacher=teacher, training=training, execution=execution)
        found.append(entries(tmp_path / "losses.jsonl", "loss"))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)
    assert found[0][-1] < found[0][0]


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize(("hidden", "flat"), [(0.0, False), (1.0, False), (1.0, True)])
def test_hidden_positions_take_no_part(loss: str, hidden: float, flat: bool, tmp_path: Path) -> None:
    """Steps in parts give the loss of whole ones, wherever the padding lies, and it may hold anything."""
    found = []
    for samples, accumulate in ((MASKED, 1), (MASKED, 8), (OTHER, 1)):
        training = Training(epochs=3, batch=8, rate=1e-2, loss=loss, match_hidden=hidden, accumulate=accumulate)
        execution = Execution(losses=tmp_path / "losses.jsonl", force=True)
        models = (encoder(seed, flat=flat) for seed in (1, 0))
        recover(next(models), samples, teacher=next(models), training=training, execution=execution)
        found.append(entries(tmp_path / "losses.jsonl", "loss"))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5)
    assert found[0][-1] < found[0][0]


@pytest.mark.parametrize("name", ["bert", "deberta", "gpt2"])
def test_hidden_tokens_take_no_part_in_attention(name: str, tmp_path: Path) -> None:
    """Heads are on an axis of their own, or on that of the samples; scores of queries and keys are of pairs."""
    graph, *sets = padded(name)
    method = onnxprune.Method(refit=True, latency=False)
    pruned = onnxprune.prune(graph, onnxprune.Budget("units", 0.5), sets[0], method=method)
    found = []
    for samples, accumulate in ((sets[0], 1), (sets[0], 4), (sets[1], 1)):
        training = Training(epochs=3, batch=16, rate=1e-4, match_hidden=1, accumulate=accumulate)
        execution = Execution(losses=tmp_path / "losses.jsonl", force=True)
        options = {"plan": pruned.plan, "training": training, "execution": execution}
        recover(pruned.graph, samples, teacher=graph, watch=Watch(samples, "loss"), **options)
        found.append(entries(tmp_path / "losses.jsonl", "loss"))
        measured = entries(tmp_path / "losses.jsonl", "value")  # after a step is before the next one
        np.testing.assert_allclose(measured[:-1], found[-1][1:], rtol=1e-4)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4)
    assert found[0][-1] < found[0][0]


def measured(caplog: pytest.LogCaptureFixture, data: dict[str, np.ndarray], metric: str, **options: str) -> float:
    """What a metric says before the first step."""
    caplog.clear()
    training = Training(epochs=1, batch=24, rate=1e-9, **options)
    with caplog.at_level(logging.INFO, logger="onnxprune"):
        recover(encoder(1), MASKED, teacher=encoder(0), training=training, watch=Watch(data, metric))
    (said,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("before: "))
    return float(said.split()[-1])


def test_metrics_leave_out_what_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = (outputs(encoder(seed), MASKED)[0].argmax(-1) for seed in (1, 0))
    assert abs(measured(caplog, MASKED, "agreement") - (ours == theirs)[SHOWN].mean()) < 1e-4
    assert measured(caplog, OTHER, "agreement") == measured(caplog, MASKED, "agreement")
    labels = np.where(SHOWN, theirs, -100)
    assert abs(measured(caplog, MASKED | {"labels": labels}, "top1") - (ours == labels)[SHOWN].mean()) < 1e-4
    hits = ours[:, :-1] == labels[:, 1:]
    right = hits[SHOWN[:, 1:]].mean()
    assert abs(measured(caplog, MASKED | {"labels": labels}, "top1", task="next-token") - right) < 1e-4
    with pytest.raises(DataError, match=r"nothing in .* counts: it is masked, or its labels are all -100"):
        measured(caplog, MASKED | {"labels": np.full_like(labels, -100)}, "top1")


def test_classes_are_no_positions() -> None:
    """Where an answer starts is one of the positions, which are the classes then."""
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(24, 10, generator=generator) for _ in range(2))
    places = Places((("samples",), ("tokens",)))
    objective = Objective(Training(), shape_of([target.numpy()], (), SHOWN, [places]), learns=True)
    assert objective([output], [target], Known(shown=torch.tensor(SHOWN))) == objective([output], [target], Known())


def test_which_positions_are_shown() -> None:
    shown = shown_positions(MASKED)
    assert shown is not None and (shown == SHOWN).all()
    assert shown_positions({"attention_mask": SHOWN[:, None]}) is shown_positions({"x": TOKENS}) is None
    assert shown_positions(MASKED | {"decoder_input_ids": TOKENS}) is None
