"""What an outsider does who has the original file, plan.json and numpy: the constants of the compact model, bit by bit.

Shares nothing with the package. docs/files.md describes the steps.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import ml_dtypes  # noqa: F401  (numpy then knows bfloat16 by name)
import numpy as np
import onnx
from onnx import numpy_helper

Constants = dict[str, np.ndarray]


def constants_of(model: onnx.ModelProto) -> Constants:
    """Initializers, and Constant nodes by their output."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            attribute = node.attribute[0]
            value: Any = onnx.helper.get_attribute_value(attribute)
            if attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(value)
            elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                found[node.output[0]] = np.array(value, np.int64 if "int" in attribute.name else np.float32)
    return found


def rebuilt(original: onnx.ModelProto, compact: onnx.ModelProto, plan: dict[str, Any]) -> Constants:
    """The constants of a compact model, from those of the original and a plan.

    Args:
        original: the original; its constants are used.
        compact: the compact model; only its nodes and the names of its constants are.
        plan: the content of plan.json.
    """
    before, out = constants_of(original), {}
    numbers = defaultdict(list)
    added = defaultdict(list)
    for number in plan["numbers"]:
        if number["constant"]:
            numbers[number["constant"]].append(number)
        elif number["input"] >= 0:
            added[f"{number['node']}.input{number['input']}"].append(number)
    for name in constants_of(compact):
        origin = plan["copies"].get(name, name)
        if name in plan["frozen"]:
            frozen = plan["frozen"][name]
            array = np.array(frozen["values"], frozen["dtype"]).reshape(frozen["shape"])
        elif origin in before:
            array = np.array(before[origin])
        else:
            continue
        for number in numbers[name]:
            array.reshape(-1)[number["index"]] = number["value"]
        wide = array.astype(np.float64) if name in plan["joined"] else array
        for axis, pairs in sorted(plan["joined"].get(name, {}).items(), key=lambda entry: int(entry[0])):
            rows = np.moveaxis(wide, int(axis), 0)
            for source, into in pairs:
                rows[into] += rows[source]
        array = wide.astype(array.dtype)
        for axis, kept in plan["initializers"].get(name, {}).items():
            array = np.take(array, kept, int(axis))
        out[name] = array
    for name, entries in added.items():
        out |= _added(name, entries)
    for node in compact.graph.node:
        bias = plan["biases"].get(next(filter(None, node.output), ""))
        if bias is not None:
            out[node.input[2]] = np.array(bias["values"], bias["dtype"]).reshape(bias["shape"])
    return out


def _added(name: str, entries: list[dict[str, Any]]) -> Constants:
    """The vectors that numbers without a place of their own are put into."""
    whole, parts = ([n for n in entries if bool(n["part"]) is is_part] for is_part in (False, True))

    def vector(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)

    return {
        name: vector([n["value"] for n in sorted(entries, key=lambda n: n["index"])]),
        f"{name}.places": vector([n["index"] for n in whole]),
        f"{name}.numbers": vector([int(n["value"]) for n in whole]),
        f"{name}.parts.places": vector([n["index"] for n in parts]),
        f"{name}.parts.div.by": vector([n["part"] for n in parts]),
        f"{name}.parts.mul.by": vector([int(n["value"]) for n in parts]),
    }


def check_constants(original: onnx.ModelProto, compact: onnx.ModelProto, plan: str) -> None:
    """Asserts that every constant of a compact model follows from the original and the plan, bit by bit."""
    expected = rebuilt(original, compact, json.loads(plan))
    for name, array in constants_of(compact).items():
        assert name in expected, name
        assert array.dtype == expected[name].dtype, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name
