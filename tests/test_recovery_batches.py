"""Models that fix how many samples a run has."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from builders import Net
from onnxprune.errors import DataError, GoalMissed
from onnxprune.graph import Graph
from onnxprune.recovery import Training, Watch, recover
from onnxprune.runtime import Session

IMAGES = {"x0": np.random.default_rng(0).standard_normal((48, 2, 4, 4)).astype("f")}
QUICK = Training(epochs=3, batch=16, rate=1e-2, loss="mse")


def network(batch: int | str, *targets: list[int], seed: int = 0, rows: int = 0) -> Graph:
    """A normalized convolution and a dense layer, reshapes between them, and biases for each of `rows` samples."""
    net = Net(18, seed=seed)
    h = net.conv(net.input(batch, 2, 4, 4), 2, 3, kernel=3)
    h = net.op("BatchNormalization", h, *(net.weight(3) for _ in range(3)), net.constant(np.full(3, 2, "f")))
    h = net.op("Relu", h)
    for target in targets:
        h = net.op("Reshape", h, net.ints(*target))
    y = net.op("MatMul", net.op("Flatten", h), net.weight(12, 5))
    return net.output(net.op("Add", y, net.weight(rows, 5)) if rows else y).graph()


def with_class_token(batch: int | str, seed: int = 0) -> Graph:
    """A token of the model's own around those of the data, and a dense layer on all of them."""
    net = Net(18, seed=seed)
    x = net.op("Reshape", net.input(batch, 2, 4, 4), net.ints(-1 if batch == "N" else 1, 2, 16))
    token = net.weight(1, 1, 16, name="token")
    if batch == "N":
        size = net.op("Gather", net.op("Shape", x), net.ints(0))
        token = net.op("Expand", token, net.op("Concat", size, net.ints(1, 1), axis=0))
    else:
        token = net.op("Expand", token, net.ints(1, 1, 1))
    last = net.op("Mul", token, net.constant(np.full(1, 2, "f")))
    h = net.op("Relu", net.op("MatMul", net.op("Concat", token, x, last, axis=1), net.weight(16, 8)))
    return net.output(net.op("MatMul", net.op("ReduceMean", h, net.ints(1)), net.weight(8, 5))).graph()


def with_computed_sizes(batch: int, seed: int = 0) -> Graph:
    """Patches of an image, whose number is computed, and that of the samples not, as in MobileViT."""
    net = Net(18, seed=seed)
    h = net.conv(net.input(batch, 2, 4, 4), 2, 3, kernel=3)
    h = net.op("BatchNormalization", h, *(net.weight(3) for _ in range(3)), net.constant(np.full(3, 2, "f")))
    wide = net.op("Mul", net.op("Slice", net.op("Shape", h), net.ints(2), net.ints(3)), net.ints(1))
    rows = net.op("Reshape", h, net.op("Concat", net.ints(batch * 6), wide, net.ints(-1), axis=0))
    h = net.op("Reshape", net.op("Relu", rows), net.op("Concat", net.ints(batch, 12), net.ints(1), axis=0))
    return net.output(net.op("MatMul", net.op("Flatten", h), net.weight(12, 5))).graph()


def result(graph: Graph, count: int) -> np.ndarray:
    return Session(graph.message(), device="cpu").run({"x0": IMAGES["x0"][:count]})[0]


@pytest.mark.parametrize(
    ("batch", "targets", "free"),
    [
        (1, [], []),
        (1, [[1, 12]], [[0, 12]]),
        (1, [[1, -1]], [[0, -1]]),
        (1, [[3, 4], [1, 3, 4]], [[-1, 4], [-1, 3, 4]]),
        (4, [[12, 4], [4, 12]], [[-1, 4], [-1, 12]]),
    ],
)
def test_they_are_trained_as_any_other(batch: int, targets: list[list[int]], free: list[list[int]]) -> None:
    found = []
    for size, shapes in ((batch, targets), ("N", free)):
        models = (network(size, *shapes, seed=seed) for seed in (1, 0))
        found.append(recover(next(models), IMAGES, teacher=next(models), training=QUICK))
    assert result(found[0], batch).shape == (batch, 5)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        result(found[0], 2 * batch)
    np.testing.assert_allclose(result(found[0], batch), result(found[1], batch), rtol=1e-5, atol=1e-6)
    assert not np.allclose(result(found[0], batch), result(network(batch, *targets, seed=1), batch), rtol=1e-2)


def test_class_tokens_are_there_for_each_sample() -> None:
    fixed, free = (
        recover(with_class_token(batch, 1), IMAGES, teacher=with_class_token(batch), training=QUICK)
        for batch in (1, "N")
    )
    np.testing.assert_allclose(fixed.constants["token"], free.constants["token"], rtol=1e-5)
    assert not np.allclose(fixed.constants["token"], with_class_token(1, 1).constants["token"], rtol=1e-3)
    assert [node.op for node in fixed.nodes] == [node.op for node in with_class_token(1).nodes]
    assert result(fixed, 1).shape == (1, 1, 5)


def test_sizes_that_reshapes_compute() -> None:
    open_batch = recover(network("N", seed=1), IMAGES, teacher=network("N"), training=QUICK)
    frozen = replace(QUICK, freeze_batchnorm=True)  # what a model gets that cannot be opened
    ours, apart = (
        recover(with_computed_sizes(1, seed=1), IMAGES, teacher=with_computed_sizes(1), training=training)
        for training in (QUICK, frozen)
    )
    same, other = (abs(result(graph, 1) - result(open_batch, 1)).max() for graph in (ours, apart))
    assert same < 1e-4 < 1e-2 < other


def test_what_a_goal_missed_is_kept_as_it_was() -> None:
    with pytest.raises(GoalMissed) as missed:
        recover(network(1, seed=1), IMAGES, teacher=network(1), training=QUICK, watch=Watch(IMAGES, "loss", goal=0.0))
    assert result(missed.value.graph, 1).shape == (1, 5)


def test_those_that_cannot_do_otherwise_keep_their_statistics(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = (network(4, seed=seed, rows=4) for seed in (1, 0))
    with caplog.at_level(logging.INFO, logger="onnxprune"):
        watch = Watch({"x0": IMAGES["x0"][:6]}, "loss")
        final = recover(student, IMAGES, teacher=teacher, training=QUICK, watch=watch)
    assert "the model takes 4 samples a run, so normalizations keep to their statistics" in caplog.text
    changed = {n for n, array in final.constants.items() if not np.array_equal(array, student.constants[n])}
    (normalization,) = (node for node in student.nodes if node.op == "BatchNormalization")
    scale, bias, *statistics = (tensor.name for tensor in normalization.inputs[1:])
    assert {scale, bias} < changed and not changed & set(statistics)
    with pytest.raises(DataError, match="takes 4 samples a run, a step takes 16 and there are 10; give more samples"):
        recover(student, {"x0": IMAGES["x0"][:10]}, teacher=teacher, training=QUICK)
