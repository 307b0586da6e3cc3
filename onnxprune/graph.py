"""A model in memory: an onnx-graphsurgeon graph that surgery edits, and beside it what graphsurgeon forgets.

graphsurgeon drops metadata, doc strings, denotations, attribute types that it does not know and inputs that have
default values. A `Graph` therefore keeps the source ModelProto, without weights, and saving starts from that source:
what surgery did not touch is written as it was read.

In memory every constant is a graphsurgeon `Constant`, whether the file had an initializer or a `Constant` node; the
file's choice is restored on save. Each use of a constant has its own copy, because exporters merge equal constants and
one all-zero bias shared by a whole network would tie layers together that have nothing to do with each other. Real
weight tying (two axes or more, used by two nodes or more) stays tied, and so do the slices of one constant. Copies
that are still equal are merged on save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import ModelError
from onnxprune.files import Results
from onnxprune.precision import is_floating
from onnxprune.reading import LIMIT, check, constant_of, embed, initializers_of, surgeon_graph
from onnxprune.sharing import captured_names, names_in, unshare, unused
from onnxprune.writing import Message, export, fill, put_outside, refer

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

INLINE_LIMIT = 1_800_000_000
"""Bytes of weights above which external data are used; a protobuf message ends at 2 GiB."""

LARGE = 256 << 20
"""Bytes of weights above which a session shares them with the graph instead of having a copy."""

SHARED_MINIMUM = 1 << 20
"""Bytes below which a weight of such a model is still copied."""

DATA_FIELDS = ("raw_data", *(f"{kind}_data" for kind in ("float", "double", "int32", "int64", "uint64", "string")))
"""Where a tensor of a message has its elements."""

EXTERNAL_MINIMUM = 1024
"""Bytes below which a constant stays in the model file, where runtimes expect shapes and axes."""


class Graph:
    """An ONNX model. No function of onnxprune changes the one it is given; `copy` before editing `gs`.

    Attributes:
        gs: the onnx-graphsurgeon graph.
        source: the ModelProto as read, its initializers without data.
        constants: the value of every initializer and `Constant` node of the main graph, by tensor name.
        copies: for each constant that un-sharing added, the name of the one it was copied from.
        external: whether the file kept its weights outside.
        sha256: of the model file, in hexadecimal; a plan names its model by it.
        path: of that file; None where there was none.
    """

    def __init__(
        self,
        graph: gs.Graph,
        source: onnx.ModelProto,
        constants: Mapping[str, np.ndarray],
        copies: Mapping[str, str],
        *,
        external: bool,
        sha256: str,
    ) -> None:
        self.gs = graph
        self.source = source
        self.constants = dict(constants)
        self.copies = dict(copies)
        self.external = external
        self.sha256 = sha256
        self.path: Path | None = None

    @property
    def nodes(self) -> list[gs.Node]:
        """The nodes of the main graph in the order of the file, `Constant` nodes left out."""
        return list(self.gs.nodes)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs to feed, in order."""
        return [tensor.name for tensor in self.gs.inputs]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return [tensor.name for tensor in self.gs.outputs]

    @property
    def nbytes(self) -> int:
        """Bytes of all constants, copies counted once."""
        return sum(array.nbytes for name, array in self.constants.items() if name not in self.copies)

    def opset(self, domain: str = "") -> int:
        """The version of an operator set that the model imports; 1 where it imports none of that domain."""
        names = {"", "ai.onnx"} if domain in ("", "ai.onnx") else {domain}
        return max((entry.version for entry in self.source.opset_import if entry.domain in names), default=1)

    def fresh(self, prefix: str) -> str:
        """What begins like this, and is in no name of the model: whoever adds tensors to it names them so.

        Args:
            prefix: the beginning that is wanted.
        """
        return unused(prefix, {*names_in(self.source.graph), *self.constants, *self._read()})

    def copy(self) -> Graph:
        """A graph whose nodes can be edited without touching this one; arrays are shared."""
        graph = Graph(
            self.gs.copy(), self.source, self.constants, self.copies, external=self.external, sha256=self.sha256
        )
        graph.path = self.path
        return graph

    def with_constants(self, values: Mapping[str, np.ndarray]) -> Graph:
        """The same graph with other values for some constants."""
        graph = self.copy()
        graph.constants.update(values)
        for name, tensor in graph.gs.tensors().items():
            if name in values:
                tensor.values = values[name]
        return graph

    def with_biases(self, biases: Mapping[str, np.ndarray]) -> Graph:
        """The same graph with other biases, (outputs,), for some Conv and Gemm, by their first outputs."""
        graph = self.copy() if biases else self
        for node in graph.nodes if biases else ():
            array = biases.get(first_output(node))
            if array is not None and bias_of(node):
                graph.constants[bias_of(node)] = node.inputs[2].values = array
            elif array is not None:
                graph.add_input(node, 2, array)
        return graph

    def with_frozen(self, values: Mapping[str, np.ndarray]) -> Graph:
        """The same graph, some computed tensors replaced by constants and what only they needed removed."""
        graph = self.copy()
        tensors = graph.gs.tensors()
        for name, array in values.items():
            tensors[name].inputs.clear()
            tensors[name].to_constant(array)
            graph.constants[name] = array
        if values:
            graph._drop_unneeded()
        return graph

    def without_inputs(self, omitted: Mapping[str, Iterable[int]]) -> Graph:
        """The same graph, some optional inputs left out, by first output of the node, and what only they needed."""
        import onnx_graphsurgeon as gs

        graph = self.copy()
        for node in graph.nodes:
            for index in omitted.get(first_output(node), ()):
                node.inputs[index] = gs.Variable.empty()
        if omitted:
            graph._drop_unneeded()
        return graph

    def _drop_unneeded(self) -> None:
        """Drops the nodes that no output needs, and the constants that only they read."""
        import onnx

        read = self._read()
        self.gs.cleanup()
        needed = self._read() | captured_names(self.source.graph) | set(self.outputs)
        needed |= {info.name for info in self.source.graph.input}  # constants may be inputs with a default value
        gone = {name for name in read - needed if name in self.constants}
        gone -= {self.copies[name] for name in self.copies if name not in gone}
        self.constants = {name: array for name, array in self.constants.items() if name not in gone}
        self.copies = {name: origin for name, origin in self.copies.items() if name not in gone}
        source = onnx.ModelProto()
        source.CopyFrom(self.source)
        for kept, names in ((source.graph.initializer, lambda x: [x.name]), (source.graph.node, lambda x: x.output)):
            for i in reversed(range(len(kept))):
                if names(kept[i]) and gone.issuperset(names(kept[i])):
                    del kept[i]
        self.source = source

    def _read(self) -> set[str]:
        return {tensor.name for node in self.gs.nodes for tensor in node.inputs}

    def add_input(self, node: gs.Node, index: int, array: np.ndarray) -> None:
        """Gives a node of this graph a constant for an optional input that it lacks. Edits the graph."""
        import onnx_graphsurgeon as gs

        name = self.fresh(f"{first_output(node)}.input{index}")
        self.constants[name] = array
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        node.inputs[index] = gs.Constant(name, array)

    def with_shapes(self, sizes: Mapping[str, Mapping[int, int | None]]) -> Graph:
        """The same graph, its declared shapes corrected: `sizes[tensor][axis]`, None where it varies."""
        import onnx

        graph = self.copy()
        graph.source = onnx.ModelProto()
        graph.source.CopyFrom(self.source)
        declared = graph.source.graph
        for info in (*declared.value_info, *declared.input, *declared.output):
            for axis, size in sizes.get(info.name, {}).items():
                if axis < len(info.type.tensor_type.shape.dim):
                    info.type.tensor_type.shape.dim[axis].Clear()
                    if size is not None:
                        info.type.tensor_type.shape.dim[axis].dim_value = size
        return graph

    def proto(self) -> onnx.ModelProto:
        """The whole model as one message.

        Raises:
            ModelError: the weights do not fit into one message.
        """
        if self.nbytes > INLINE_LIMIT:
            raise ModelError(f"{self.nbytes / 1e9:.1f} GB of weights do not fit into one message; save to a file.")
        model, shared = self.parts()
        for tensor in model.graph.initializer:
            if tensor.name in shared:
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
                fill(tensor, shared[tensor.name])
        return model

    def parts(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model, of a large one with references in the place of large weights, and those weights, not copied."""
        model, arrays = self.skeleton()
        return model, self.filled(model, arrays)

    def skeleton(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model without the data of its initializers, and those data by name, not copied."""
        return export(self.gs, self.source, self.constants, self.copies)

    def filled(self, model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Puts data into the initializers of a message of this model; gives those that are too large, not copied."""
        least = SHARED_MINIMUM if self.nbytes > LARGE else INLINE_LIMIT
        shared = {}
        for tensor in model.graph.initializer:
            array = arrays.get(tensor.name)
            if array is not None and array.nbytes >= least and (array.dtype.isbuiltin == 1 or is_floating(array.dtype)):
                refer(tensor, "shared", 0, array.nbytes)
                shared[tensor.name] = array
            elif array is not None:
                fill(tensor, array)
        return shared

    def without_weights(self, limit: int) -> onnx.ModelProto:
        """The model as it was read, with the present sizes of constants, and the data of those alone that are small.

        Args:
            limit: the most elements of a small one.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        for tensor in model.graph.initializer:
            array = self.constants[tensor.name]
            tensor.dims[:] = array.shape
            if array.size <= limit:
                fill(tensor, array)
        return model

    def message(
        self,
        *,
        nodes: Iterable[onnx.NodeProto] = (),
        outputs: Iterable[str] = (),
        initializers: Mapping[str, np.ndarray] | None = None,
        single: bool = False,
    ) -> Message:
        """The model serialized for a session, with nodes and constants appended and further tensors given out.

        Args:
            nodes: to append.
            outputs: tensors to give out beside the outputs.
            initializers: constants that those nodes need.
            single: whether float16 becomes float32, as bfloat16 always does.
        """
        from onnx import numpy_helper

        model, shared = self.parts()
        model.graph.ClearField("value_info")  # ONNX Runtime believes it, and may die of what is not so
        model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in (initializers or {}).items())
        model.graph.node.extend(nodes)
        known = set(self.outputs)
        for name in outputs:
            if name not in known:
                model.graph.output.add(name=name)
        return Message.of(model, shared, single=single)

    def save(self, path: Path | str, results: Results | None = None) -> Path:
        """Writes the model, replacing one that has the name.

        Where the source had its weights outside, or they are too many for one message, they go beside it: to
        `<name>.data` where there is no such file yet, else to `<name>.<checksum>.data`. Data of the model that is
        replaced are removed if they are named after it and nothing else refers to them.

        Args:
            path: where to.
            results: others that are written together with it.

        Raises:
            OutputError: the file cannot be written; nothing is changed then.
        """
        path = Path(path)
        if results is None:
            with Results() as results:
                return self.save(path, results)
        pending = results.open_model(path, self.path)
        if not self.external and self.nbytes <= INLINE_LIMIT:
            pending.file.write(self.proto().SerializeToString(deterministic=True))
            return path
        model, arrays = self.skeleton()
        put_outside(model, arrays, pending, EXTERNAL_MINIMUM)
        pending.file.write(model.SerializeToString(deterministic=True))
        return path


def first_output(node: gs.Node) -> str:
    """The name of the first output that a node gives, by which the node is known; leading ones may be left out."""
    return next((str(tensor.name) for tensor in node.outputs if tensor.name), "")


def bias_of(node: gs.Node) -> str:
    """The bias of a Conv or Gemm, "" where it has none."""
    return str(node.inputs[2].name) if len(node.inputs) > 2 else ""


def load(path: Path | str) -> Graph:
    """Reads an ONNX file with its external data, which are mapped rather than read.

    Raises:
        ModelError: the file is missing, truncated or no ONNX model, or its external data are missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        if path.stat().st_size > LIMIT:
            raise ModelError(
                f"{path} is no ONNX model: it has more than {LIMIT:,} bytes; export it with external data."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{path} is no ONNX model, or it is truncated; export it again.") from error
    try:
        graph = from_proto(model, folder=path.parent, sha256=hashlib.sha256(data).hexdigest())
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    graph.path = path.absolute()
    return graph


def from_proto(model: onnx.ModelProto, *, folder: Path | None = None, sha256: str | None = None) -> Graph:
    """Takes over a ModelProto, which loses the data of its initializers.

    Args:
        model: the model.
        folder: where its external data lie.
        sha256: of the file it came from; of the message when not given.

    Raises:
        ModelError: something in it is not what it says, or external data are missing or too short.
    """
    from onnx.external_data_helper import uses_external_data

    check(model)
    if sha256 is None:
        sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    folder = folder or Path()
    external = any(map(uses_external_data, model.graph.initializer))
    embed(model, folder)
    constants = initializers_of(model, folder)
    constants |= {node.output[0]: array for node in model.graph.node if (array := constant_of(node)) is not None}
    for tensor in model.graph.initializer:
        for field in (*DATA_FIELDS, "data_location", "external_data"):
            tensor.ClearField(field)
    graph = surgeon_graph(model, constants)
    copies = unshare(graph, constants, captured_names(model.graph), names_in(model.graph))
    constants |= {copy: constants[origin] for copy, origin in copies.items()}
    return Graph(graph, model, constants, copies, external=external, sha256=sha256)
