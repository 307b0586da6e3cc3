"""From the message that a file holds to arrays: what all else relies on is checked here, and said by name.

onnx, protobuf and graphsurgeon raise what they like at a model that is not what it says, so each call of theirs that
reads stands inside `translated`. Our own code stands outside of it: what it relies on it looks at first.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import ModelError, OnnxPruneError

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

ADVICE = "export the model again; onnx.checker.check_model may say more"

LIMIT = (1 << 31) - 1
"""Bytes of the largest protobuf message."""

DESCRIPTIONS = frozenset({"denotation", "doc_string", "metadata_props", "producer_name", "producer_version"})
"""Fields that nothing reads."""

VALUES = {
    "value": ("TENSOR", None),
    "value_int": ("INT", np.int64),
    "value_ints": ("INTS", np.int64),
    "value_float": ("FLOAT", np.float32),
    "value_floats": ("FLOATS", np.float32),
}
"""Attributes of `Constant` nodes that hold numbers: their kind, and what numbers are that do not say it."""


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Makes one error of whatever a library raises that reads a part of a model.

    Args:
        what: the part, such as "the initializer 'w'".

    Raises:
        ModelError: it cannot be read.
    """
    try:
        yield
    except OnnxPruneError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "").rstrip(" .") or type(error).__name__
        raise ModelError(f"{what} cannot be read ({said}); {ADVICE}.") from error


def check(model: onnx.ModelProto) -> None:
    """Makes sure that a message is as one expects before its numbers are read.

    Raises:
        ModelError: there are no outputs, a text is not UTF-8, an element type does not exist, a node gives nothing, an
            attribute refers to a parameter where there is none, or a size is negative.
    """
    if not model.ir_version or not model.graph.output:
        raise ModelError("this is no ONNX model: it declares no graph with outputs; export it again.")
    _check(model, "the model", inside=False)


def _check(message: Any, where: str, *, inside: bool) -> None:
    """The same for a message of any kind and all inside it.

    Args:
        message: the message.
        where: what it is part of, in words.
        inside: whether it is part of a local function, whose attributes may refer to parameters.
    """
    kind = message.DESCRIPTOR.name
    texts, messages = _fields(message.DESCRIPTOR)
    for name, repeated in texts:
        value = getattr(message, name)
        for text in value if repeated else (value,):
            if isinstance(text, bytes):
                raise ModelError(f"{where} has a text that is not UTF-8 ({text[:40]!r} in {kind}.{name}); {ADVICE}.")
    where = _named(kind, message, where)
    match kind:
        case "NodeProto" if not any(message.output):
            raise ModelError(f"{where} has no output, so that nothing can use it; take it out.")
        case "TensorProto":
            _check_type(message.data_type, where)
            if any(size < 0 for size in message.dims):
                raise ModelError(f"{where} has a negative size ({list(message.dims)}); {ADVICE}.")
        case "Tensor" | "SparseTensor":
            _check_type(message.elem_type, where)
        case "AttributeProto":
            _check_attribute(message, where, inside=inside)
    for name, repeated in messages:
        if repeated:
            for part in getattr(message, name):
                _check(part, where, inside=inside or kind == "FunctionProto")
        elif message.HasField(name):
            _check(getattr(message, name), where, inside=inside)


@cache
def _fields(kind: Any) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The fields of a message that are texts, and those that are messages, each with whether there are many.

    What only describes a model is left out: it is written as it was read.
    """
    fields = [field for field in kind.fields if field.name not in DESCRIPTIONS]
    texts = [(field.name, _many(field)) for field in fields if field.type == field.TYPE_STRING]
    return texts, [(field.name, _many(field)) for field in fields if field.type == field.TYPE_MESSAGE]


def _many(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _named(kind: str, message: Any, where: str) -> str:
    """What a message is, in words; what it is part of where it has no name of its own."""
    match kind:
        case "NodeProto":
            return called(message)
        case "TensorProto" if message.name:
            return f"the tensor '{message.name}'"
        case "ValueInfoProto":
            return f"the declaration of '{message.name}'"
        case "AttributeProto":
            return f"the attribute '{message.name}' of {where}"
        case "FunctionProto":
            return f"the function '{message.name}'"
    return where


def called(node: onnx.NodeProto) -> str:
    """A node in words, by its name or else its first output."""
    return f"the node '{node.name or next(filter(None, node.output), '')}' ({node.op_type})"


def _check_type(kind: int, where: str) -> None:
    from onnx import TensorProto

    if kind not in TensorProto.DataType.values():
        raise ModelError(f"{where} has the element type {kind}, which the installed onnx does not know; {ADVICE}.")


def _check_attribute(attribute: onnx.AttributeProto, where: str, *, inside: bool) -> None:
    """Refuses a reference outside of functions, and bytes that are no text where graphsurgeon takes them for one."""
    if attribute.ref_attr_name and not inside:
        raise ModelError(f"{where} refers to a parameter, which only functions have; {ADVICE}.")
    kinds = attribute.STRING, attribute.STRINGS
    if attribute.type in kinds:
        for text in [attribute.s] if attribute.type == attribute.STRING else attribute.strings:
            with translated(where):
                text.decode()


def initializers_of(model: onnx.ModelProto, folder: Path) -> dict[str, np.ndarray]:
    """The values of all initializers by name; of several with one name the last, which the message keeps alone.

    Raises:
        ModelError: one is not as long as it says, or its data cannot be found.
    """
    initializers = model.graph.initializer
    last = {tensor.name: i for i, tensor in enumerate(initializers)}
    for i in reversed(range(len(initializers))):
        if not initializers[i].name:
            raise ModelError(f"an initializer (number {i}) has no name; {ADVICE}.")
        if last[initializers[i].name] != i:
            del initializers[i]
    return {tensor.name: array_of(tensor, folder, f"the initializer '{tensor.name}'") for tensor in initializers}


def array_of(tensor: onnx.TensorProto, folder: Path, what: str) -> np.ndarray:
    """The value of a tensor; external data are mapped where numpy knows the type byte by byte.

    Args:
        tensor: the tensor.
        folder: where its external data lie.
        what: it is, in words.

    Raises:
        ModelError: it is not as long as it says, or its data cannot be found.
    """
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import uses_external_data

    if tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"{what} has no element type; {ADVICE}.")
    count, bits = math.prod(tensor.dims), _bits(tensor.data_type)
    if uses_external_data(tensor):
        return _external(tensor, folder, what, -(-count * bits // 8))
    if tensor.HasField("raw_data") and bits and len(tensor.raw_data) != -(-count * bits // 8):
        needed = f"{list(tensor.dims)} takes {-(-count * bits // 8)}"
        raise ModelError(f"{what} holds {len(tensor.raw_data)} bytes, its shape {needed}; {ADVICE}.")
    with translated(what):
        return np.array(numpy_helper.to_array(tensor))


def _bits(kind: int) -> int:
    """The bits of an element; 0 for strings."""
    from onnx import TensorProto, helper

    name = TensorProto.DataType.Name(kind)
    if name == "STRING":
        return 0
    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
    return small.get(name) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize


def _external(tensor: onnx.TensorProto, folder: Path, what: str, needed: int) -> np.ndarray:
    """The value of a tensor whose data lie in a file beside the model.

    Args:
        tensor: the tensor.
        folder: where the model lies.
        what: it is, in words.
        needed: how many bytes it has.
    """
    import onnx
    from onnx import helper, numpy_helper

    where = {entry.key: entry.value for entry in tensor.external_data}
    numbers = [where.get(key, default) for key, default in (("offset", "0"), ("length", str(needed)))]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ModelError(f"external data of {what} have the offset or length {numbers}, which are no sizes; {ADVICE}.")
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{what} holds texts, which cannot be external data; {ADVICE}.")
    offset, length = map(int, numbers)
    file = folder / where.get("location", "")
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
        regular = file.is_file()
        have = file.stat().st_size - offset if regular else 0
    except (OSError, ValueError) as error:  # ValueError: a name with a null in it
        raise ModelError(f"external data of {what} are missing: no file {file}; put it there.") from error
    if not inside:
        raise ModelError(f"external data of {what} lie outside the model's folder ({file}); move them there.")
    if not regular:
        raise ModelError(f"external data of {what} are missing: no file {file}; put it there.")
    if length != needed:
        raise ModelError(f"external data of {what} are {length} bytes, its shape takes {needed}; {ADVICE}.")
    if have < needed:
        raise ModelError(f"external data of {what} are truncated: {file} has {max(have, 0)} of {needed} bytes there.")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if not needed:
        return np.zeros(tensor.dims, dtype)
    if needed == math.prod(tensor.dims) * dtype.itemsize:
        return np.memmap(file, dtype, "r", offset, tuple(tensor.dims)).view(np.ndarray)
    packed = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    with file.open("rb") as data, translated(what):
        data.seek(offset)
        packed.raw_data = data.read(needed)
        return np.array(numpy_helper.to_array(packed))


def constant_of(node: onnx.NodeProto) -> np.ndarray | None:
    """The value of a `Constant` node; None for other nodes, strings and sparse values.

    Raises:
        ModelError: it is not what it says.
    """
    from onnx import helper

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name not in VALUES:
        return None
    wanted, dtype = VALUES[attribute.name]
    if (kind := attribute.AttributeType.Name(attribute.type)) != wanted:
        raise ModelError(f"{called(node)} has a '{attribute.name}' of kind {kind} instead of {wanted}; {ADVICE}.")
    if dtype is None:
        return array_of(attribute.t, Path(), called(node))
    return np.array(helper.get_attribute_value(attribute), dtype)


def embed(model: onnx.ModelProto, folder: Path) -> None:
    """Takes external data into the message that belong to anything but its initializers, such as a `Constant` node.

    Runtimes that are given a message look for such data where they were started, instead of beside the model.

    Raises:
        ModelError: they cannot be found, or do not fit into one message.
    """
    from onnx import numpy_helper
    from onnx.external_data_helper import uses_external_data

    total = 0
    parts = (*model.graph.node, *model.graph.sparse_initializer, *model.functions, *model.training_info)
    for tensor in itertools.chain.from_iterable(map(_tensors, parts)):
        if uses_external_data(tensor):
            array = array_of(tensor, folder, f"the tensor '{tensor.name}'" if tensor.name else "a constant of a node")
            total += array.nbytes
            if total > LIMIT:
                raise ModelError(f"the constants of nodes hold more than {LIMIT:,} bytes; make them initializers.")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors in a message."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for name, repeated in _fields(message.DESCRIPTOR)[1]:
        if repeated:
            for part in getattr(message, name):
                yield from _tensors(part)
        elif message.HasField(name):
            yield from _tensors(getattr(message, name))


def inferred_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of each tensor of the main graph, as far as onnx infers it; 0 for what is no tensor.

    Args:
        model: the model, with the numbers that steer shapes. What it says of tensors inside it plays no part and is
            dropped: nobody checks it.
    """
    from onnx import shape_inference

    model.graph.ClearField("value_info")
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # whatever it is: ONNX Runtime refuses what cannot be, and knows the types of all else
        return {}
    infos = (*graph.value_info, *graph.input, *graph.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos if info.type.WhichOneof("value")}


def surgeon_graph(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> gs.Graph:
    """The nodes as graphsurgeon has them, constants with their values.

    Raises:
        ModelError: graphsurgeon cannot take the model over.
    """
    import onnx_graphsurgeon as gs

    gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL  # it prints; what matters here is raised by us
    with translated("the graph"):
        graph = gs.import_onnx(model)
    for name, tensor in graph.tensors().items():
        if name in constants:
            tensor.inputs.clear()
            if isinstance(tensor, gs.Constant):
                tensor.values = constants[name]
            else:
                tensor.to_constant(constants[name])
    graph.nodes = [node for node in graph.nodes if node.op != "Constant" or node.outputs]
    return graph
