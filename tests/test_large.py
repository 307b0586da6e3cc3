"""What happens to large models, on small ones that count as large."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import onnxprune
from builders import Net
from onnxprune import graph as graph_module
from onnxprune import run as run_module
from onnxprune.errors import VerificationError
from onnxprune.graph import Graph, from_proto, load
from onnxprune.grouping import find_units
from onnxprune.proof import verify
from onnxprune.runtime import Session
from onnxprune.surgery import remove

DATA = {"x0": np.random.default_rng(0).standard_normal((32, 12)).astype(np.float32)}


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight of 256 bytes or more is shared with sessions, every group is calibrated by itself."""
    monkeypatch.setattr(graph_module, "LARGE", 0)
    monkeypatch.setattr(graph_module, "SHARED_MINIMUM", 256)
    monkeypatch.setattr(graph_module, "EXTERNAL_MINIMUM", 256)
    monkeypatch.setattr(run_module, "MOMENTS_LIMIT", 1)


def network() -> onnx.ModelProto:
    net = Net(20)
    h = net.op("Relu", net.dense(net.input("N", 12), 12, 16))
    h = net.op("Gelu", net.dense(h, 16, 20))
    return net.output(net.dense(h, 20, 8)).model()


def pruned(graph: Graph | Path, **options: object) -> onnxprune.pipeline.Pruned:
    method = onnxprune.Method(rounds=2, latency=False, **options)
    return onnxprune.prune(graph, onnxprune.Budget("units", 0.5), DATA, method=method)


def test_a_session_shares_weights_and_gives_the_same() -> None:
    graph = from_proto(network())
    message = graph.message()
    assert {name: array.shape for name, array in message.arrays.items()} == {
        "c0": (12, 16),
        "c2": (16, 20),
        "c4": (20, 8),
    }
    assert all(message.arrays[name] is graph.constants[name] for name in message.arrays)
    assert len(message) < len(graph.proto().SerializeToString())
    shared, whole = Session(message, device="cpu"), Session(graph.proto().SerializeToString(), device="cpu")
    assert shared.inputs == whole.inputs
    np.testing.assert_array_equal(shared.run(DATA)[0], whole.run(DATA)[0])


def test_the_whole_message_is_as_ever() -> None:
    model = network()
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    assert from_proto(model).proto() == expected


def test_weights_in_bfloat16_are_shared_as_float32() -> None:
    model = network()
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    message = from_proto(model).message()
    assert {array.dtype for array in message.arrays.values()} == {np.dtype(np.float32)}
    assert Session(message, device="cpu").run(DATA)[0].shape == (32, 8)


def test_the_law_holds_and_a_broken_model_is_found() -> None:
    graph = from_proto(network())
    units = find_units(graph)
    plan = units.plan({name: np.arange(group.size) % 2 == 0 for name, group in units.groups.items()})
    compact = remove(graph, plan)
    assert verify(units, plan, compact, DATA) < 1e-4
    broken = compact.with_constants({"c2": compact.constants["c2"] + 1})
    with pytest.raises(VerificationError, match="first in tensor 'gemm2'"):
        verify(units, plan, broken, DATA)


@pytest.mark.parametrize("refit", [False, True])
def test_parts_give_what_the_whole_gives(refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pruned(from_proto(network()), refit=refit)
    monkeypatch.undo()
    whole = pruned(from_proto(network()), refit=refit)
    assert parts.plan == whole.plan
    for name, scores in whole.scores.by_group.items():
        np.testing.assert_allclose(parts.scores.by_group[name], scores, rtol=1e-4)
    assert [np.allclose(parts.graph.constants[n], a, atol=1e-3) for n, a in whole.graph.constants.items()] == [True] * 6


def test_external_data_go_from_file_to_file(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="large.data", size_threshold=256)
    result = pruned(path)
    result.graph.save(tmp_path / "compact.onnx")
    again = load(tmp_path / "compact.onnx")
    assert again.external
    np.testing.assert_array_equal(again.constants["c2"], result.graph.constants["c2"])
    size = sum((tmp_path / name).stat().st_size for name in ("compact.onnx", "compact.onnx.data"))
    assert abs(result.report.after.bytes - size) < 3 * 4096 + 512  # weights begin on pages of their own
