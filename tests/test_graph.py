"""Reading and writing: what surgery did not touch is written as it was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import Net
from onnxprune.errors import ModelError, OutputError
from onnxprune.graph import Graph, from_proto, load
from onnxprune.grouping import find_units
from onnxprune.surgery import remove


def annotated() -> onnx.ModelProto:
    """A model with everything that tools forget: metadata, doc strings, symbols, denotations, value infos."""
    net = Net(17)
    h = net.op("Relu", net.dense(net.input("batch", 4), 4, 8))
    model = net.output(net.dense(h, 8, 2)).model()
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "org.example", 7
    model.doc_string = "a model"
    model.metadata_props.add(key="author", value="someone")
    model.graph.doc_string = "a graph"
    model.graph.input[0].doc_string = "the input"
    model.graph.input[0].type.denotation = "TENSOR"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.node[1].doc_string = "a node"
    model.graph.node[1].metadata_props.add(key="scope", value="layer1")
    model.graph.initializer[0].doc_string = "a weight"
    model.graph.metadata_props.add(key="k", value="v")
    info = helper.make_tensor_value_info(model.graph.node[0].output[0], TensorProto.FLOAT, ["batch", 8])
    model.graph.value_info.append(info)
    return model


def clone(model: onnx.ModelProto) -> onnx.ModelProto:
    out = onnx.ModelProto()
    out.CopyFrom(model)
    return out


def halved(graph: Graph) -> Graph:
    units = find_units(graph)
    return remove(graph, units.plan({n: np.arange(g.size) % 2 == 0 for n, g in units.groups.items()}))


def test_unchanged_models_are_written_as_they_were_read() -> None:
    model = annotated()
    assert from_proto(clone(model)).proto() == model


def test_pruned_models_keep_all_annotations() -> None:
    model = annotated()
    out = halved(from_proto(clone(model))).proto()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(out, field) == getattr(model, field)
    assert out.metadata_props == model.metadata_props and out.opset_import == model.opset_import
    assert out.graph.input == model.graph.input and out.graph.output == model.graph.output
    assert out.graph.node == model.graph.node
    assert out.graph.doc_string == "a graph" and out.graph.metadata_props == model.graph.metadata_props
    assert out.graph.initializer[0].doc_string == "a weight"
    assert [d.dim_param or d.dim_value for d in out.graph.value_info[0].type.tensor_type.shape.dim] == ["batch", 4]
    onnx.checker.check_model(out, full_check=True)


def test_shared_biases_do_not_tie_layers_and_are_merged_again() -> None:
    """One all-zero bias for two layers: each is pruned by itself; what is still equal is stored once."""
    net = Net()
    zero = net.constant(np.zeros(8, np.float32), "zero")
    h = net.input("N", 4)
    for inputs in (4, 8):
        h = net.op("Relu", net.op("Gemm", h, net.weight(inputs, 8), zero))
    graph = net.output(net.dense(h, 8, 2)).graph()
    assert graph.copies == {"zero.2": "zero"}
    assert [t.name for t in graph.proto().graph.initializer].count("zero") == 1
    assert "zero.2" not in [t.name for t in graph.proto().graph.initializer]
    units = find_units(graph)
    assert sorted(group.size for group in units.groups.values()) == [8, 8]
    first, second = units.groups
    uneven = remove(graph, units.plan({first: np.arange(8) < 3, second: np.arange(8) < 5})).proto()
    assert {t.name: t.dims[0] for t in uneven.graph.initializer if "zero" in t.name} == {"zero": 3, "zero.2": 5}
    even = remove(graph, units.plan({first: np.arange(8) < 3, second: np.arange(8) > 4})).proto()
    assert {t.name: t.dims[0] for t in even.graph.initializer if "zero" in t.name} == {"zero": 3}


def test_tied_weights_stay_tied() -> None:
    net = Net()
    tied = net.weight(6, 6, name="tied")
    h = net.op("Relu", net.op("MatMul", net.input("N", 6), tied))
    h = net.op("Relu", net.op("MatMul", h, tied))
    graph = net.output(net.op("MatMul", h, net.weight(6, 2))).graph()
    assert not graph.copies
    units = find_units(graph)
    assert not units.groups  # the input is an axis of the tied weight, so that both its axes stay
    assert units.kept[0].kept.because == "it is an input of the model"


def test_constant_nodes_stay_constant_nodes() -> None:
    net = Net()
    h = net.dense(net.input("N", 4), 4, 8)
    scale = net.op("Constant", value=numpy_helper.from_array(np.arange(1, 9, dtype=np.float32)))
    factor = net.op("Constant", value_float=2.0)
    h = net.op("Mul", net.op("Mul", h, scale), factor)
    out = halved(net.output(net.dense(h, 8, 2)).graph()).proto()
    constants = [node for node in out.graph.node if node.op_type == "Constant"]
    assert numpy_helper.to_array(constants[0].attribute[0].t).tolist() == [1, 3, 5, 7]
    assert constants[1].attribute[0].f == 2.0
    assert [node.op_type for node in out.graph.node] == ["Gemm", "Constant", "Constant", "Mul", "Mul", "Gemm"]


def test_initializers_may_be_inputs() -> None:
    """As in files of old IR versions, where all of them were."""
    net = Net(9, ir_version=3)
    model = net.output(net.dense(net.op("Relu", net.dense(net.input("N", 4), 4, 8)), 8, 2)).model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph = from_proto(clone(model))
    assert graph.inputs == ["x0"]
    assert graph.proto() == model
    out = halved(graph).proto()
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in out.graph.input}
    assert shapes["c0"] == [4, 4] and [i.name for i in out.graph.input] == [i.name for i in model.graph.input]


def test_subgraphs_stay_whole_and_what_they_read_stays() -> None:
    """A body reads a weight and an activation from outside: both keep all their positions."""
    net = Net()
    x = net.input("N", 4)
    h = net.op("Relu", net.dense(x, 4, 6))
    g = net.op("Relu", net.dense(h, 6, 5))
    outer = net.weight(5, name="outer")
    body = helper.make_graph(
        [helper.make_node("Add", [g, outer], ["inside"])],
        "body",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    chosen = net.op("If", net.constant(np.array(True)), then_branch=body, else_branch=body)
    graph = net.output(net.dense(net.op("Mul", chosen, net.op("Add", g, outer)), 5, 2)).graph()
    units = find_units(graph)
    assert [group.size for group in units.groups.values()] == [6]
    assert any(axis.kept.because == "a subgraph reads it" for axis in units.kept)
    out = halved(graph).proto()
    assert out.graph.node[4].attribute[0].g == body
    onnx.checker.check_model(out)


def test_operators_of_unknown_domains_are_kept_with_a_reason() -> None:
    """What ONNX Runtime can run is run; what has no rule keeps its axes."""
    net = Net(microsoft=True)
    h = net.op("Relu", net.dense(net.input("N", 4), 4, 6))
    h = net.op("Trilu", net.dense(h, 6, 5), domain="com.microsoft", upper=1)
    units = find_units(net.output(net.dense(h, 5, 2)).graph())
    assert [group.size for group in units.groups.values()] == [6]
    assert "Trilu of domain com.microsoft has no rule (opset 1)" in {axis.kept.because for axis in units.kept}


def external(tmp_path: Path) -> Path:
    net = Net()
    h = net.op("Relu", net.dense(net.input("N", 64), 64, 32))
    path = tmp_path / "model.onnx"
    onnx.save(
        net.output(net.dense(h, 32, 2)).model(), path, save_as_external_data=True, location="weights.bin",
        size_threshold=100,
    )  # fmt: skip
    return path


def test_external_data_stay_external(tmp_path: Path) -> None:
    graph = load(external(tmp_path))
    assert graph.external
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    halved(graph).save(out)
    assert {p.name for p in out.parent.iterdir()} == {"small.onnx", "small.onnx.data"}
    written = onnx.load(out, load_external_data=False)
    outside = {t.name for t in written.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert outside == {"c0"}
    again = load(out)
    np.testing.assert_array_equal(again.constants["c0"], graph.constants["c0"][:, ::2])
    assert again.constants["c0"].nbytes <= (out.parent / "small.onnx.data").stat().st_size < 2 * 64 * 16 * 4
    onnx.checker.check_model(str(out))


def test_broken_external_data_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(
        ModelError, match=r"external data of the initializer 'c0' are truncated: .*weights.bin has 100 of 8192 bytes"
    ):
        load(path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"external data of the initializer 'c0' are missing: no file .*weights.bin"):
        load(path)


def test_external_data_outside_the_folder_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../elsewhere.bin"
    (tmp_path.parent / "elsewhere.bin").write_bytes(bytes(9000))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="lie outside the model's folder"):
        load(path)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load(path)
    path.write_text("not a model at all")
    with pytest.raises(ModelError, match="is no ONNX model"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is no ONNX model: it declares no graph with outputs"):
        load(path)
    whole = annotated().SerializeToString()
    for part in (len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:part])
        with pytest.raises(ModelError, match="is no ONNX model"):
            load(path)


def test_nothing_is_left_of_an_interrupted_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    graph = from_proto(annotated())

    def interrupted(self: Graph) -> onnx.ModelProto:
        raise KeyboardInterrupt

    monkeypatch.setattr(Graph, "proto", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graph.save(path)
    assert path.read_bytes() == b"the old file" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        from_proto(annotated()).save(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_bfloat16_and_float16_survive() -> None:
    import ml_dtypes

    model = annotated()
    for dtype in (ml_dtypes.bfloat16, np.float16):
        wide = numpy_helper.to_array(model.graph.initializer[0])
        extra = numpy_helper.from_array(wide.astype(dtype), f"unused.{np.dtype(dtype).name}")
        model.graph.initializer.append(extra)
    assert from_proto(clone(model)).proto() == model
