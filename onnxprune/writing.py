"""From a graph in memory back to a message, starting from the message that was read.

What surgery did not touch is written as it was: nodes keep their doc strings, metadata and attributes of every type,
`Constant` nodes stay nodes, and copies of a constant that are still equal are merged again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.precision import BRAIN, HALF, is_floating, mentions, widen
from onnxprune.reading import constant_of

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from onnxprune.files import PendingModel


class Message(bytes):
    """A serialized model for a runtime, and the large weights that it has as inputs instead of holding them.

    Why inputs: they are the one way by which a session of ONNX Runtime reads weights where they lie. Initializers
    that are handed to it are copied, and the masked and the compact model are both loaded when they are compared.

    Attributes:
        arrays: those weights by name.
        widened: whether the message is in float32 where the model is in bfloat16 or float16.
    """

    arrays: Mapping[str, np.ndarray]
    widened: bool

    @classmethod
    def of(cls, model: onnx.ModelProto, shared: Mapping[str, np.ndarray], *, single: bool = False) -> Message:
        """Serializes a model, whose initializers `shared` become inputs. Edits the model.

        Args:
            model: the model.
            shared: its large weights.
            single: whether float16 becomes float32; bfloat16, which ONNX Runtime lacks on the CPU, always does.
        """
        kinds = [kind for kind in ((BRAIN, HALF) if single else (BRAIN,)) if mentions(model, kind)]
        if kinds:
            widen(model, kinds)
            halves = {
                name
                for name, array in shared.items()
                if {"float16": HALF, "bfloat16": BRAIN}.get(array.dtype.name) in kinds
            }
            shared = {name: array.astype(np.float32) if name in halves else array for name, array in shared.items()}
        if shared:
            kept = [tensor for tensor in model.graph.initializer if tensor.name not in shared]
            declared = {value.name for value in model.graph.input}
            for tensor in model.graph.initializer:
                if tensor.name in shared and tensor.name not in declared:
                    value = model.graph.input.add(name=tensor.name)
                    value.type.tensor_type.elem_type = tensor.data_type
                    for size in tensor.dims:
                        value.type.tensor_type.shape.dim.add(dim_value=size)
            del model.graph.initializer[:]
            model.graph.initializer.extend(kept)
        model.ir_version = max(model.ir_version, 4)  # before that each initializer must be an input, helpers included
        message = cls(model.SerializeToString())
        message.arrays = dict(shared)
        message.widened = bool(kinds)
        return message


def shorten_domains(model: onnx.ModelProto) -> None:
    """Calls ONNX's own domain by its short name, in place: its shape inference knows no other."""
    for entry in model.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    for owner in (*_graphs(model.graph), *model.functions):
        for node in owner.node:
            node.domain = "" if node.domain == "ai.onnx" else node.domain


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _graphs(body)


def _merged(constants: Mapping[str, np.ndarray], copies: Mapping[str, str]) -> dict[str, str]:
    """The copies that are equal to their origin or to an earlier copy of it, and what to write in their place."""
    kept: dict[str, list[str]] = {}
    merged = {}
    for copy, origin in copies.items():
        array = constants[copy]
        for other in kept.setdefault(origin, [origin]):
            if array is constants[other] or _identical(array, constants[other]):
                merged[copy] = other
                break
        else:
            kept[origin].append(copy)
    return merged


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def export(
    graph: gs.Graph, source: onnx.ModelProto, constants: Mapping[str, np.ndarray], copies: Mapping[str, str]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model without the data of its initializers, and those data by name.

    Args:
        graph: the nodes as they are now.
        source: the message that was read.
        constants: all constants as they are now.
        copies: which of them are copies of which.
    """
    import onnx

    merged = _merged(constants, copies)
    used = {tensor.name for node in graph.nodes for tensor in node.inputs}
    model = onnx.ModelProto()
    model.CopyFrom(source)
    declared = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name: constants[name] for name in declared if name in constants}
    from_nodes = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    written = {*merged, *declared, *from_nodes}
    for name in constants:
        if name in used and name not in written:
            arrays[name] = constants[name]
            declared[name] = model.graph.initializer.add(name=name)
            if model.ir_version < 4:  # there every initializer must be an input too
                model.graph.input.add(name=name)
    for name, array in arrays.items():
        declared[name].data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        declared[name].dims[:] = array.shape
    for value in (*model.graph.input, *model.graph.value_info):
        if value.name in arrays:
            array = arrays[value.name]
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            if list(array.shape) != [size.dim_value for size in value.type.tensor_type.shape.dim]:
                value.type.tensor_type.shape.CopyFrom(
                    onnx.TensorShapeProto(dim=[onnx.TensorShapeProto.Dimension(dim_value=n) for n in array.shape])
                )
    _write_nodes(model, graph, constants, merged)
    inputs = {value.name for value in model.graph.input}
    alive = inputs.union(arrays, *(node.output for node in model.graph.node))
    known = [info for info in model.graph.value_info if info.name in alive]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    return model, arrays


def _write_nodes(
    model: onnx.ModelProto, graph: gs.Graph, constants: Mapping[str, np.ndarray], merged: Mapping[str, str]
) -> None:
    """Brings the source's nodes up to date: constants, inputs and attributes that surgery changed, dead nodes gone."""
    from onnx import helper, numpy_helper

    living = {tuple(tensor.name for tensor in node.outputs): node for node in graph.nodes}
    known = {name for proto in model.graph.node for name in proto.output}
    added = {node.outputs[0].name: node for node in graph.nodes if node.outputs[0].name not in known}
    for i in range(len(model.graph.node) - 1, -1, -1):
        proto = model.graph.node[i]
        original = constant_of(proto)
        if original is not None:
            array = constants[proto.output[0]]
            if not _identical(array, original):
                del proto.attribute[:]
                proto.attribute.add(name="value", t=numpy_helper.from_array(array), type=4)  # 4 is TENSOR
        elif (node := living.get(tuple(proto.output))) is None:
            del model.graph.node[i]
        else:
            proto.input[:] = [merged.get(tensor.name, tensor.name) for tensor in node.inputs]
            _write_attributes(proto, node.attrs)
            queue = [tensor.name for tensor in node.inputs]
            while queue:  # nodes that surgery added stand before the one that reads them
                if new := added.get(queue.pop(0)):
                    names = [merged.get(x.name, x.name) for x in new.inputs]
                    model.graph.node.insert(i, helper.make_node(new.op, names, [new.outputs[0].name], new.name))
                    queue += names


def _write_attributes(proto: onnx.NodeProto, attrs: Mapping[str, Any]) -> None:
    """Surgery changes, adds and drops numbers only; every other attribute stays as it was read."""
    import onnx

    numbers = {onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT}
    before = {a.name: a for a in proto.attribute}
    for name, attribute in before.items():
        if attribute.type in numbers and attrs.get(name) != onnx.helper.get_attribute_value(attribute):
            proto.attribute.remove(attribute)
    present = {a.name for a in proto.attribute}
    for name, value in attrs.items():
        number = isinstance(value, int | float) or (isinstance(value, list) and value and isinstance(value[0], int))
        if name not in present and number:
            proto.attribute.append(onnx.helper.make_attribute(name, value))


def fill(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    """Writes an array into a tensor whose name, type and shape are set."""
    from onnx import numpy_helper

    data = numpy_helper.from_array(array)
    if data.string_data:
        tensor.string_data.extend(data.string_data)
    else:
        tensor.raw_data = data.raw_data


def put_outside(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray], pending: PendingModel, minimum: int) -> None:
    """Writes the large initializers of a model into a file beside it, and fills in the others. Edits the model.

    Args:
        model: the model, its initializers without data.
        arrays: these by name.
        pending: the model in the making.
        minimum: bytes below which data stay in the model.
    """
    outside = []
    for tensor in model.graph.initializer:
        array = arrays.get(tensor.name)
        data = _raw(array) if array is not None and array.nbytes >= minimum else None
        if data is not None:
            pending.weights.write(b"\0" * (-pending.weights.size % 4096))  # so that runtimes can map it page by page
            outside.append((tensor, pending.weights.size, data.nbytes))
            pending.weights.write(data)
        elif array is not None:
            fill(tensor, array)
    location = pending.place() if outside else ""
    for tensor, offset, length in outside:
        refer(tensor, location, offset, length)


def _raw(array: np.ndarray) -> memoryview | None:
    """The bytes of an array as files hold them, not copied where types are whole bytes; None for strings."""
    from onnx import numpy_helper

    if array.dtype.kind in "OSU":
        return None
    if array.dtype.isbuiltin == 1 or is_floating(array.dtype):
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return memoryview(numpy_helper.from_array(array).raw_data)  # such as two numbers of four bits in a byte


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Says in a tensor that its data lie in another file."""
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
