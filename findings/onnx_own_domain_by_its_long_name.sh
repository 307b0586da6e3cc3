#!/usr/bin/env bash
# ONNX's own operators by the long name of their domain: one package runs them, its neighbours do not know them
#
# versions  onnx 1.23.2, onnxruntime 1.31.1
# expected  "ai.onnx" and the empty domain are one: ONNX's documentation lists its operators under "ai.onnx (default)". A
#           file that spells the domain out is checked, inferred and run like any other.
# happens   ONNX Runtime runs it. onnx.checker refuses it. onnx.shape_inference raises where the nodes alone have the
#           long name, and where the opset has it too it returns without an error and without a single shape. ONNX's
#           reference evaluator knows the operators by the empty domain alone, and does not run even a model whose nodes
#           are plain where its opset import has the long name.
# matters   whoever rewrites graphs asks shape inference for types, and gets none from a file that runs everywhere: the
#           domains must be shortened first. That nothing is raised in one of the cases makes it hard to notice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, shape_inference
from onnx.reference import ReferenceEvaluator

X = np.ones((1, 3), np.float32)


def model(of_nodes: str, of_opset: str):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    nodes = [helper.make_node(op, [a], [b], domain=of_nodes) for op, a, b in (("Relu", "x", "h"), ("Exp", "h", "y"))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(of_opset, 20)], ir_version=10)


WAYS = {
    "ONNX Runtime": lambda m: onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"x": X}) and "runs",
    "checker": lambda m: checker.check_model(m) or "accepts",
    "shape inference": lambda m: f"finds {len(shape_inference.infer_shapes(m).graph.value_info)} of 1 shapes",
    "reference evaluator": lambda m: ReferenceEvaluator(m).run(None, {"x": X}) and "runs",
}
EXPECTED = {
    ("", ""): ["runs", "accepts", "finds 1 of 1 shapes", "runs"],
    ("ai.onnx", ""): ["runs", "ValidationError", "InferenceError", "RuntimeError"],
    ("ai.onnx", "ai.onnx"): ["runs", "ValidationError", "finds 0 of 1 shapes", "NotImplementedError"],
    ("", "ai.onnx"): ["runs", "accepts", "finds 1 of 1 shapes", "RuntimeError"],
}
changed = False
for (of_nodes, of_opset), seen_before in EXPECTED.items():
    print(f"nodes in domain {of_nodes!r}, opset of domain {of_opset!r}")
    for (name, way), before in zip(WAYS.items(), seen_before, strict=True):
        try:
            now = way(model(of_nodes, of_opset))
        except Exception as error:  # the kind of error is what is recorded
            now = type(error).__name__
        print(f"    {name:20} {now}")
        changed |= now != before
print("CHANGED: no longer what this file says" if changed else "as described")
sys.exit(changed)
PYTHON
