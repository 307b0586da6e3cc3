"""Builds the fx graph: one call per ONNX node, its constants bound as its operator says.

What depends on constants alone is computed here, once, unless it is trained. What is made of sizes alone is numbers
(see `arithmetic`) or tensors that stay on the CPU wherever the module runs, so that no step waits for a GPU to know a
size. Small constants that they meet are written into the code; where they meet data they go to the device of the data.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from onnxprune.errors import BridgeError
from onnxprune.graph import Graph
from onnxprune.runtime import first_line
from onnxprune.torch_bridge.arithmetic import FORMS, Kind, is_small, is_whole
from onnxprune.torch_bridge.arrays import tensor_of
from onnxprune.torch_bridge.base import SWITCHES, Operator, Role, Tensor, find_operator, number, tensor
from onnxprune.torch_bridge.names import place, register
from onnxprune.torch_bridge.weights import STEERING, Weights

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Value = fx.Node | Tensor


def literal(values: Any, dtype: torch.dtype) -> Tensor:
    """A small constant on the CPU."""
    return torch.tensor(values, dtype=dtype)


def item(values: tuple[Tensor, ...], index: int) -> Tensor:
    """One of the results of a node."""
    return values[index]


class Assembly:
    """An fx graph in the making, and the module that holds its tensors.

    Attributes:
        calls: the graph.
        root: the module.
        names: for each parameter and each buffer that training changes, the constants it stands for.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph = graph
        self.weights = weights
        self.called = weights.called()
        self.calls = fx.Graph()
        self.root = torch.nn.Module()
        self.root.dropout = False  # type: ignore[assignment]
        self.names: dict[str, list[str]] = {}
        self._values: dict[str, Value] = {}
        self._kinds: dict[fx.Node, Kind] = {}  # of what is made of sizes; all else is data
        self._tensors: dict[str, fx.Node] = {}  # parameters, buffers and flags by name
        self._like: fx.Node | None = None

    def module(self) -> fx.GraphModule:
        """The finished module of the main graph."""
        for name in self.graph.inputs:
            self._values[name] = self._placeholder(name)
        for node in self.graph.nodes:
            self.add(node)
        return self._finished(self.graph.outputs)

    def add(self, node: gs.Node) -> None:
        """Appends a node, or computes it where it depends on constants alone.

        Raises:
            BridgeError: a constant has an element type that PyTorch lacks.
        """
        domain = node.domain or ""
        operator = find_operator(domain, node.op, self.graph.opset(domain))
        assert operator is not None  # `to_torch` has looked for operators that are missing
        values = [self._value(tensor.name, tensor) if tensor.name else None for tensor in node.inputs]
        while values and values[-1] is None:
            values.pop()
        if operator.sizes and node.inputs[0].name in self.called:  # a weight's sizes do not change
            values = [tensor_of(self.graph.constants[node.inputs[0].name])]
        flags: dict[str, Any] = {}
        if "outputs" in operator.keywords:
            flags["outputs"] = len(node.outputs)
        if "opset" in operator.keywords:
            flags["opset"] = self.graph.opset(domain)
        switched = operator.keywords & SWITCHES
        bodies = {name: value for name, value in node.attrs.items() if hasattr(value, "nodes")}
        if not switched and not bodies and not any(isinstance(value, fx.Node) for value in values):
            self._fold(node, operator, values, flags)
            return
        flags |= {flag: self._flag(flag) for flag in switched}
        attrs = {name: _constant(value) for name, value in node.attrs.items() if name not in bodies}
        if bodies:
            flags["captured"], modules, kind = self._bodies(node, bodies)
            flags |= modules
            function = operator.function
            arguments = [self._given(operator.role(i), node.inputs[i].name, value) for i, value in enumerate(values)]
        else:
            function, arguments, kind = self._call(node, operator, values, attrs)
        attrs = {name: self._attribute(value, kind) for name, value in attrs.items()}
        call = self.calls.create_node("call_function", function, tuple(arguments), attrs | flags, label(node))
        call.meta["onnx"] = (label(node), node.op, [tensor.name for tensor in node.outputs])
        self._deliver(node, operator, call, kind)

    def _deliver(self, node: gs.Node, operator: Operator, call: fx.Node, kind: Kind) -> None:
        """Names the results of a call."""
        for i, output in enumerate(node.outputs):
            made = call
            if operator.several:
                made = self.calls.create_node("call_function", item, (call, i), name=output.name or "unused")
            if output.name:
                self._values[output.name] = made
            self._kinds[made] = kind

    def _value(self, name: str, tensor: gs.Tensor | None = None) -> Value:
        """A tensor by name: what a node has made, a parameter or a constant, which the body of an If may own."""
        if name in self._values:
            return self._values[name]
        if name in self.called:
            return self._parameter(self.called[name])
        array = self.graph.constants[name] if tensor is None else self.graph.constants.get(name, tensor.values)
        return self._values.setdefault(name, tensor_of(array, name))

    def _parameter(self, name: str) -> fx.Node:
        if name not in self._tensors:
            parameter = torch.nn.Parameter(tensor_of(self.graph.constants[name], name))
            path = register(self.root, name, parameter)
            self.names[path] = self.weights.parameters[name]
            self._tensors[name] = self.calls.get_attr(path)
        return self._tensors[name]

    def _buffer(self, name: str, value: Tensor) -> fx.Node:
        if name not in self._tensors:
            self._tensors[name] = self.calls.get_attr(register(self.root, name, value))
        return self._tensors[name]

    def _statistic(self, name: str) -> fx.Node:
        """A running statistic: a buffer called after the constant behind it."""
        leaf = self.weights.statistics[name]
        if leaf not in self._tensors:
            path = register(self.root, leaf, tensor_of(self.graph.constants[leaf], leaf))
            self.names[path] = [leaf]
            self._tensors[leaf] = self.calls.get_attr(path)
        return self._tensors[leaf]

    def _flag(self, name: str) -> fx.Node:
        """`training` or `dropout`, read from the module whenever it runs."""
        if name not in self._tensors:
            self._tensors[name] = self.calls.get_attr(name)
        return self._tensors[name]

    def _fold(self, node: gs.Node, operator: Operator, values: list[Any], flags: dict[str, Any]) -> None:
        """Computes a node of constants."""
        bound = [
            _plain(value, role) if isinstance(value, Tensor) and (role := operator.role(i)) in STEERING else value
            for i, value in enumerate(values)
        ]
        attrs = {k: _constant(v) for k, v in node.attrs.items()}
        try:
            with torch.no_grad():
                result = operator.function(*bound, **attrs, **flags)
        except Exception as error:  # torch raises a dozen unrelated classes
            raise BridgeError(
                f"PyTorch cannot compute node '{label(node)}' ({node.op}): {first_line(error)}"
            ) from error
        for output, made in zip(node.outputs, result if operator.several else [result], strict=True):
            value = tensor(made)
            self._values[output.name] = value.clone() if value._base is not None else value

    def _call(
        self, node: gs.Node, operator: Operator, values: list[Any], attrs: dict[str, Any]
    ) -> tuple[Callable[..., Any], list[Any], Kind]:
        """What to call for a node, with which arguments, and what comes of it."""
        data = [i for i in range(len(values)) if operator.role(i) not in STEERING or _is_array(operator, values, i)]
        kinds = [Kind.COUNTS if value is None else self._kind(value) for value in values]
        reach = max(kinds, default=Kind.COUNTS)
        form = FORMS.get(operator.function)
        if form and reach < Kind.LOCAL and form.fits(attrs, kinds):
            arguments = [value.tolist() if isinstance(value, Tensor) else value for value in values]
            return form.function, arguments, Kind.COUNTS if operator.sizes else max(form.kind, reach)
        known = [values[i] for i in data if values[i] is not None]
        fixed = bool(known) and all(isinstance(value, Tensor) for value in known)  # constants that sizes steer
        kind = Kind.DATA if fixed else max([Kind.LOCAL, *(kinds[i] for i in data)])
        if operator.sizes:
            kind = Kind.NUMBERS
        arguments = []
        for i, value in enumerate(values):
            role, name = operator.role(i), node.inputs[i].name
            if isinstance(value, fx.Node) and kinds[i] < Kind.DATA:
                if i in data:
                    value = self._raised(value, Kind.LOCAL if operator.sizes else kind)
                elif role is Role.NUMBER:
                    value = self.calls.call_function(number, (value,))
            elif isinstance(value, Tensor) and i not in data:
                value = _plain(value, role)
            elif isinstance(value, Tensor) and role is Role.STATISTIC and name in self.weights.statistics:
                value = self._statistic(name)
            elif isinstance(value, Tensor) and kind < Kind.DATA:
                value = self._literal(value)
            elif isinstance(value, Tensor):
                value = self._buffer(name, value)
            arguments.append(value)
        return operator.function, arguments, kind

    def _raised(self, value: fx.Node, kind: Kind) -> fx.Node:
        """A value as one of a higher kind: numbers become a tensor, and that goes where the data are."""
        have = self._kind(value)
        if kind is Kind.DATA and have < Kind.DATA:
            return self.calls.call_function(tensor, (value, self._like))
        return self.calls.call_function(tensor, (value,)) if have < Kind.LOCAL <= kind else value

    def _kind(self, value: Value) -> Kind:
        """What a value is made of."""
        if isinstance(value, fx.Node):
            return self._kinds.get(value, Kind.DATA)
        if is_whole(value):
            return Kind.COUNTS
        return Kind.LOCAL if is_small(value) else Kind.DATA

    def _attribute(self, value: Any, kind: Kind) -> Any:
        if isinstance(value, Tensor):
            return value.tolist() if kind < Kind.LOCAL else self._literal(value)
        return value

    def _literal(self, value: Tensor) -> fx.Node:
        return self.calls.call_function(literal, (value.tolist(), value.dtype))

    def _given(self, role: Role, name: str, value: Value | None) -> Any:
        """An input of a node that has graphs inside: a number that steers them, or data for them."""
        if value is None or role is Role.NUMBER:
            return _plain(value, role) if isinstance(value, Tensor) else value
        return self._raised(value, Kind.DATA) if isinstance(value, fx.Node) else self._buffer(name, value)

    def _bodies(self, node: gs.Node, bodies: dict[str, gs.Graph]) -> tuple[list[Any], dict[str, fx.Node], Kind]:
        """What the graphs inside a node read from outside, their modules, and what their results are made of."""
        known = {*self._values, *self.graph.constants}
        names = sorted({name for body in bodies.values() for name in _captured(body)} & known)
        outer = {name: self._value(name) for name in names}
        computed = {name: value for name, value in outer.items() if isinstance(value, fx.Node)}
        children = {}
        for attribute, body in bodies.items():
            child = children[attribute] = Assembly(self.graph, self.weights)
            child._placeholder("like")
            child._tensors = {flag: child._placeholder(flag) for flag in ("training", "dropout")}
            child._values = {name: value for name, value in outer.items() if name not in computed}
            for name, value in computed.items():
                child._values[name] = inner = child._placeholder(name)
                child._kinds[inner] = self._kind(value)
            for own in body.inputs:
                child._values[own.name] = child._placeholder(own.name)
            for inner_node in body.nodes:
                child.add(inner_node)
        results = {attribute: [tensor.name for tensor in body.outputs] for attribute, body in bodies.items()}
        made = [children[a]._kind(children[a]._value(name)) for a, names in results.items() for name in names]
        repeated = any(body.inputs for body in bodies.values())  # with what the graph has made before
        kind = Kind.DATA if repeated else max(Kind.NUMBERS, *made)  # which of the graphs runs may differ
        modules = {}
        for attribute, child in children.items():
            owner, leaf, path = place(self.root, f"{label(node)}.{attribute}")
            owner.add_module(leaf, child._finished(results[attribute], kind))
            modules[attribute] = self.calls.get_attr(path)
        return [self._like, self._flag("training"), self._flag("dropout"), *computed.values()], modules, kind

    def _placeholder(self, name: str) -> fx.Node:
        """An argument of the module; the first one says which device the data are on."""
        target = re.sub(r"\W", "_", name)
        if not target.isidentifier() or keyword.iskeyword(target) or target == "self":
            target = f"in_{target}"
        while any(node.target == target for node in self.calls.nodes):
            target += "_"
        node = self.calls.placeholder(target)
        self._like = self._like or node
        return node

    def _finished(self, outputs: list[str], kind: Kind = Kind.DATA) -> fx.GraphModule:
        """The module, whose results are of a kind."""
        results: list[Any] = []
        for name in outputs:
            value = self._value(name)
            if isinstance(value, fx.Node):
                results.append(self._raised(value, kind))
            elif kind is Kind.DATA:
                results.append(self._buffer(name, value))
            else:
                results.append(self._attribute(value, kind))
        self.calls.output(tuple(results))
        self.calls.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.calls)
        module.dropout = False  # type: ignore[assignment]
        return module


def label(node: gs.Node) -> str:
    """The name of a node for people: its own, or its first output's."""
    return str(node.name or (node.outputs[0].name if node.outputs else node.op))


def _constant(value: Any) -> Any:
    """An attribute of a node, with numpy's types replaced by torch's and Python's."""
    if hasattr(value, "values"):
        return tensor_of(value.values)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _is_array(operator: Operator, values: list[Any], i: int) -> bool:
    """Whether a steering input is an array of indices after all."""
    return operator.role(i) is Role.INDEX and not (isinstance(values[i], Tensor) and values[i].dim() == 0)


def _plain(value: Tensor, role: Role) -> Any:
    """A constant that steers an operator, as Python numbers."""
    if role is Role.NUMBERS:
        return value.reshape(-1).tolist()
    if role is Role.INDEX and value.dim() > 0:
        return value
    return value.item() if value.numel() == 1 else value


def _captured(body: gs.Graph) -> set[str]:
    """Names that a graph inside a node reads and does not make, at any depth."""
    made = {tensor.name for node in body.nodes for tensor in node.outputs} | {tensor.name for tensor in body.inputs}
    read = {tensor.name for node in body.nodes for tensor in node.inputs} | {tensor.name for tensor in body.outputs}
    inner = [value for node in body.nodes for value in node.attrs.values() if hasattr(value, "nodes")]
    return (read | set().union(*map(_captured, inner))) - made - {""}
