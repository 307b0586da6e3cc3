#!/usr/bin/env bash
# A float model with integer weights: ONNX Runtime's default optimization rounds its activations to eight bits as well
#
# versions  onnx 1.23.2, onnxruntime 1.31.1 (CPU)
# expected  DequantizeLinear of a constant weight, then MatMul in float32, is a float computation: optimization levels
#           change the last bits, some 1e-7 of the values.
# happens   from opset 21 on the default level replaces the pair by com.microsoft MatMulNBits with accuracy level 4, which
#           quantizes the activations to int8 on the way. Results move by 1e-3 to 1e-2 of their size, for int4, uint4 and
#           even int8 weights. The session entry session.qdq_matmulnbits_accuracy_level = 1, or no optimization, gives
#           what the file says.
# matters   a rewritten graph in which something stands between the two nodes (a mask, a probe, an output) is not
#           replaced, and differs from the plain one by that much although both are right; so does any other runtime.
#           Tolerances for "the same model" must be measured without optimizations, or with that entry.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

KINDS = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int8": TensorProto.INT8}


def model(kind: int, inputs: int = 64, outputs: int = 32) -> bytes:
    random = np.random.default_rng(0)
    values = random.integers(0, 8, inputs * outputs).tolist()
    weight = helper.make_tensor("q", kind, [inputs, outputs], values)
    scale = numpy_helper.from_array(random.uniform(0.02, 0.06, outputs).astype(np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", inputs), ("y", outputs))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight, scale])
    opset = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


def run(content: bytes, *, optimize: bool, exact: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)})[0]


same = True
for name, kind in KINDS.items():
    content = model(kind)
    plain = run(content, optimize=False)
    moved, kept = (np.abs(run(content, optimize=True, exact=e) - plain).max() / np.abs(plain).max() for e in (False, True))
    print(f"{name:6} weights: default optimization moves results by {moved:.1e}, with accuracy level 1 by {kept:.1e}")
    same &= moved > 1e-4 and kept < 1e-5
print("as described" if same else "CHANGED: no longer what this file says")
sys.exit(not same)
PYTHON
