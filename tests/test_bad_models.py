"""Models that are not what they say, kind by kind: one line that names the part and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from builders import Net
from commands import refused
from laws import sizes
from onnxprune.errors import LONGEST, ModelError, Overrun
from onnxprune.graph import from_proto, load
from onnxprune.grouping import find_units

Change = Callable[[onnx.ModelProto], None]


def model() -> onnx.ModelProto:
    net = Net(20)
    h = net.op("Relu", net.dense(net.input("N", 4), 4, 6))
    h = net.op("Mul", h, net.op("Constant", value=numpy_helper.from_array(np.arange(1, 7, dtype=np.float32), "v")))
    h = net.op("Softmax", net.dense(h, 6, 3), axis=-1)
    return net.output(h).model()


def weight(**fields: object) -> Change:
    """Sets fields of the first initializer; None clears one."""

    def change(broken: onnx.ModelProto) -> None:
        tensor = broken.graph.initializer[0]
        for name, value in fields.items():
            if value is None:
                tensor.ClearField(name)
            elif isinstance(value, list):
                getattr(tensor, name)[:] = value
            else:
                setattr(tensor, name, value)

    return change


def outside(location: str = "w.bin", offset: object = 0, length: object = 96) -> Change:
    """Moves the first initializer, of 96 bytes, out."""

    def change(broken: onnx.ModelProto) -> None:
        tensor = broken.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def constant(**fields: object) -> Change:
    """Sets fields of the attribute of the `Constant` node."""

    def change(broken: onnx.ModelProto) -> None:
        attribute = next(node for node in broken.graph.node if node.op_type == "Constant").attribute[0]
        for name, value in fields.items():
            setattr(attribute, name, value)

    return change


def edited(statement: str) -> Change:
    """A change in one line of Python, of `graph` and `model`."""

    def change(broken: onnx.ModelProto) -> None:
        exec(statement, {"graph": broken.graph, "model": broken, "onnx": onnx})

    return change


READ_AGAIN = "export the model again"
BAD: dict[str, tuple[Change, str]] = {
    "fewer bytes than the shape takes": (
        weight(raw_data=bytes(40)),
        r"the initializer 'c0' holds 40 bytes, its shape \[4, 6\] takes 96; " + READ_AGAIN,
    ),
    "no bytes": (weight(raw_data=None), r"the initializer 'c0' cannot be read \(cannot reshape array of size 0"),
    "a shape of terabytes": (weight(dims=[1 << 40, 6]), r"holds 96 bytes, its shape \[1099511627776, 6\] takes"),
    "a negative size": (weight(dims=[-4, 6]), r"the tensor 'c0' has a negative size \(\[-4, 6\]\)"),
    "an element type that does not exist": (weight(data_type=99), "the tensor 'c0' has the element type 99"),
    "no element type": (weight(data_type=0), "the initializer 'c0' has no element type"),
    "a segment": (edited("graph.initializer[0].segment.begin = 1"), "the initializer 'c0' cannot be read .*segments"),
    "an initializer without a name": (weight(name=""), r"an initializer \(number 0\) has no name"),
    "texts that are not UTF-8": (
        weight(data_type=8, raw_data=None, dims=[1], string_data=[b"\xff\xfe"]),
        "the initializer 'c0' cannot be read .*utf-8",
    ),
    "an input of an element type that does not exist": (
        edited("graph.input[0].type.tensor_type.elem_type = 77"), "the declaration of 'x0' has the element type 77",
    ),
    "no outputs": (edited("del graph.output[:]"), "is no ONNX model: it declares no graph with outputs"),
    "a node without outputs": (
        edited("del graph.node[1].output[:]"), r"the node 'relu1_node' \(Relu\) has no output, .* take it out",
    ),
    "a Constant without outputs": (
        edited("del graph.node[2].output[:]"), r"the node 'constant2_node' \(Constant\) has no output",
    ),
    "a Constant of another kind": (
        constant(type=2), r"'constant2_node' \(Constant\) has a 'value' of kind INT instead of TENSOR",
    ),
    "a Constant of integers that holds a tensor": (constant(name="value_ints"), "of kind TENSOR instead of INTS"),
    "a Constant that is too short": (
        edited("graph.node[2].attribute[0].t.raw_data = b'1234'"),
        r"the node 'constant2_node' \(Constant\) holds 4 bytes, its shape \[6\] takes 24",
    ),
    "a Constant of no element type": (
        edited("graph.node[2].attribute[0].t.data_type = 0"), r"\(Constant\) has no element type",
    ),
    "an attribute that refers to a parameter": (
        edited("graph.node[5].attribute[0].ref_attr_name = 'alpha'"),
        r"the attribute 'axis' of the node 'softmax5_node' \(Softmax\) refers to a parameter, which only functions",
    ),
    "an attribute that is no text": (
        edited("graph.node[5].attribute.add(name='mode', type=3, s=bytes([255, 254]))"),
        "the attribute 'mode' of the node 'softmax5_node' .* cannot be read .*utf-8",
    ),
    "external data that are not there": (outside("none.bin"), "external data of the initializer 'c0' are missing"),
    "external data in a folder": (outside("."), "external data of the initializer 'c0' are missing: no file"),
    "external data that end too early": (outside(offset=50), "are truncated: .*w.bin has 50 of 96 bytes there"),
    "external data behind the end": (outside(offset=10**20), "are truncated: .*w.bin has 0 of 96 bytes there"),
    "an offset that is no number": (outside(offset="ten"), r"have the offset or length \['ten', '96'\]"),
    "a negative offset": (outside(offset=-8), r"have the offset or length \['-8', '96'\], which are no sizes"),
    "another length than the shape takes": (outside(length=8), "are 8 bytes, its shape takes 96"),
    "external data elsewhere": (outside("../w.bin"), "lie outside the model's folder"),
    "external data by an absolute path": (outside("/etc/passwd"), "lie outside the model's folder"),
    "a null in the name of a file": (outside("w\0.bin"), "external data of the initializer 'c0' are missing"),
    "an input that no machine holds": (
        edited("graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40"),
        r"the shapes x0 \(1099511627776, 4\) the inputs alone take more than .* GB; .* give --data",
    ),
}  # fmt: skip


def written(tmp_path: Path, change: Change) -> Path:
    broken = model()
    change(broken)
    path = tmp_path / "model.onnx"
    path.write_bytes(broken.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(100))
    return path


@pytest.mark.parametrize("kind", BAD)
def test_one_line_names_what_is_wrong(tmp_path: Path, kind: str) -> None:
    change, message = BAD[kind]
    path = written(tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        find_units(load(path))
    assert "\n" not in str(caught.value)


def test_the_command_line_says_the_same_and_which_file(tmp_path: Path) -> None:
    path = written(tmp_path, weight(raw_data=bytes(40)))
    for command in (("inspect", path), ("compare", path, path), ("prune", path, "--ratio", 0.2)):
        assert refused(*command).startswith(f"error: {path}: the initializer 'c0' holds 40 bytes")


@pytest.mark.parametrize("field", ["graph.node[1].name", "graph.node[1].op_type", "graph.initializer[0].name"])
def test_names_that_are_not_utf_8(tmp_path: Path, field: str) -> None:
    """Protobuf gives such a text as bytes, or raises when it is read."""
    path = written(tmp_path, edited(f"model.{field} = 'broken'"))
    path.write_bytes(path.read_bytes().replace(b"broken", b"\xff\xfebrok"))
    with pytest.raises(ModelError, match=r"has a text that is not UTF-8 \(b'\\xff\\xfebrok' in (Node|Tensor)Proto"):
        load(path)


def test_descriptions_may_be_in_any_encoding(tmp_path: Path) -> None:
    """Nobody reads them, and they are written as they were read."""
    path = written(tmp_path, edited("model.doc_string = graph.initializer[0].doc_string = graph.doc_string = 'broken'"))
    path.write_bytes(path.read_bytes().replace(b"broken", b"Gr\xfc\xdfen"))
    units = find_units(load(path))
    compact = onnxprune.remove(units.graph, units.plan({name: np.arange(6) < 3 for name in units.groups}))
    assert compact.save(tmp_path / "out.onnx").read_bytes().count(b"Gr\xfc\xdfen") == 3


def test_a_file_that_no_message_can_fill(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # takes no space
    with pytest.raises(
        ModelError, match=r"no ONNX model: it has more than 2,147,483,647 bytes; export it with external"
    ):
        load(path)
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_messages_are_one_line_whatever_they_quote() -> None:
    assert str(ModelError("one\ntwo\r\n\x1b[31mthree\0")) == r"one two \x1b[31mthree\x00"
    assert len(str(ModelError("x" * 100_000))) == LONGEST + len(" ...")


def test_of_initializers_with_one_name_the_last_counts() -> None:
    """As in ONNX Runtime."""
    twice = model()
    twice.graph.initializer.add().CopyFrom(twice.graph.initializer[0])
    twice.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((9, 9)), "c0"))
    graph = from_proto(twice)
    assert graph.constants["c0"].shape == (4, 6)
    assert [tensor.name for tensor in graph.proto().graph.initializer].count("c0") == 1


def with_outside_constants(tmp_path: Path, value: np.ndarray) -> Path:
    """A model whose `Constant` nodes, in the graph and in the body of an If, have their numbers in a file."""
    net = Net(20)
    h = net.op("Relu", net.dense(net.input(2, 4), 4, 6))
    h = net.dense(net.op("Mul", h, net.op("Constant", value=numpy_helper.from_array(value, "v"))), 6, 5)
    inner = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(value[:5], "w"))
    declared = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    body = helper.make_graph([inner, helper.make_node("Add", [h, "k"], ["y"])], "body", [], [declared])
    h = net.op("If", net.constant(np.array(True)), then_branch=body, else_branch=body)
    out = net.output(net.dense(h, 5, 2)).model()
    whole = out.SerializeToString()
    (tmp_path / "inline.onnx").write_bytes(whole)
    branches = [attribute.g.node[0] for node in out.graph.node if node.op_type == "If" for attribute in node.attribute]
    for node in (*out.graph.node, *branches):
        if node.op_type == "Constant":
            tensor = node.attribute[0].t
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in {"location": "v.bin", "length": length}.items():
                tensor.external_data.add(key=key, value=str(entry))
    (tmp_path / "v.bin").write_bytes(value.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(out.SerializeToString())
    return path


def test_constants_outside_lie_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the tool was started, which is where ONNX Runtime looks when it is given a message."""
    folder = tmp_path / "there"
    folder.mkdir()
    path = with_outside_constants(folder, np.arange(1, 7, dtype=np.float32))
    (tmp_path / "v.bin").write_bytes(bytes(24))
    monkeypatch.chdir(tmp_path)
    units = find_units(load(path))
    assert sizes(units) == sizes(find_units(load(folder / "inline.onnx"))) == [6]
    plan = units.plan({name: np.arange(6) < 3 for name in units.groups})
    compact = onnxprune.remove(units.graph, plan)
    assert next(a for a in compact.constants.values() if a.shape == (3,) and a[1] == 2).tolist() == [1, 2, 3]
    onnxprune.verify(units, plan, compact, {"x0": np.ones((2, 4), np.float32)})
    (folder / "v.bin").unlink()
    with pytest.raises(ModelError, match=r"external data of the tensor '[vw]' are missing: no file .*there/v.bin"):
        load(path)


def test_small_integers_outside(tmp_path: Path) -> None:
    """Two of them share a byte."""
    net = Net(21)
    values = helper.make_tensor("w", TensorProto.INT4, [3, 5], np.arange(-8, 7, dtype=np.int64))
    whole = numpy_helper.to_array(values)
    net.initializers.append(values)
    h = net.op("DequantizeLinear", "w", net.constant(np.float32(0.5)))
    packed = net.output(net.op("MatMul", net.input("N", 3), h)).model()
    tensor = packed.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(b"...." + numpy_helper.from_array(whole).raw_data)
    for field in ("raw_data", "int32_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": "w.bin", "offset": 4, "length": 8}.items():
        tensor.external_data.add(key=key, value=str(entry))
    (tmp_path / "model.onnx").write_bytes(packed.SerializeToString())
    np.testing.assert_array_equal(load(tmp_path / "model.onnx").constants["w"], whole)


def test_a_loop_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.observation.PATIENCE", 1)
    net = Net(20)
    nodes = [helper.make_node("Add", ["s", "s"], ["t"]), helper.make_node("Identity", ["go"], ["on"])]
    kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "s": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, None if name == "s" else []) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info(n, k, None) for n, k in (("on", TensorProto.BOOL), ("t", TensorProto.FLOAT))
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    h = net.op("Loop", net.constant(np.array(1 << 60)), "", net.input("N", 4), body=body)
    graph = from_proto(net.output(net.dense(h, 4, 2)).model())
    with pytest.raises(Overrun, match=r"the shapes x0 \(3, 4\) it does not end within 1 s; .* give --data"):
        find_units(graph)


def test_memory_is_bounded_where_sizes_are_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where they are the data's."""
    monkeypatch.setattr("onnxprune.observation.MADE_UP", 1 << 24)
    net = Net(20)
    x = net.input("N", "T", 6)
    grown = net.op("Expand", net.op("Unsqueeze", x, net.ints(1)), net.ints(1, 100_000, 1, 1))
    graph = net.output(net.op("MatMul", net.op("ReduceMean", grown, net.ints(1), keepdims=0), net.weight(6, 2))).graph()
    with pytest.raises(Overrun, match=r"the shapes x0 \(3, 23, 6\) it takes more than 0\.0 GB; .* give --data"):
        find_units(graph)
    find_units(graph, {"x0": np.zeros((2, 2, 6), np.float32)})


def test_tensors_are_freed_once_their_shape_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty tensors of 2 MB, of which two are alive at a time."""
    monkeypatch.setattr("onnxprune.observation.MADE_UP", 12 << 20)
    net = Net(20)
    h = net.op("Expand", net.input("N", "T", 1), net.ints(1, 1, 4000))
    for _ in range(50):
        h = net.op("Sin", h)
    net.output(net.op("ReduceMean", h, net.ints(2)))
    find_units(net.graph())
