"""Memory that pruning a large model with external data takes.

    python benchmarks/large.py [gigabytes]

makes a chain of wide feed-forward blocks with random weights of that size (1.5 when not given), removes 40 % of its
parameters by the default criterion in one round, saves the result, and prints the peak of resident memory, mapped
weights included. Needs the size on disk 1.6 times, and 2.5 times in memory. Some minutes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from results import publish, table

WIDTH, HIDDEN, SAMPLES = 2048, 4096, 128


def make(path: Path, size: float) -> int:
    """Writes the model, one weight at a time, and returns its bytes."""
    nodes, weights, random = [], [], np.random.default_rng(0)
    with path.with_suffix(".data").open("wb") as data:

        def constant(*shape: int) -> str:
            tensor = TensorProto(name=f"w{len(weights)}", data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            array = random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
            place = {"location": path.with_suffix(".data").name, "offset": data.tell(), "length": array.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            array.tofile(data)
            weights.append(tensor)
            return tensor.name

        def node(op: str, *inputs: str) -> str:
            nodes.append(helper.make_node(op, inputs, [f"{op.lower()}{len(nodes)}"]))
            return nodes[-1].output[0]

        x = "x"
        while data.tell() < size * 1e9:
            h = node("Gelu", node("Gemm", x, constant(WIDTH, HIDDEN), constant(HIDDEN)))
            x = node("Add", x, node("Gemm", h, constant(HIDDEN, WIDTH), constant(WIDTH)))
        total = data.tell()
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return total


def prune(path: Path) -> None:
    """Prunes the model in this process and prints bytes removed, seconds, and the peak of resident memory."""
    import onnxprune

    start = time.perf_counter()
    data = {"x": np.random.default_rng(0).standard_normal((SAMPLES, WIDTH), np.float32)}
    method = onnxprune.Method(rounds=1, latency=False)
    pruned = onnxprune.prune(path, onnxprune.Budget("params", 0.4), data, method=method)
    pruned.graph.save(path.with_name("compact.onnx"))
    gone = pruned.report.before.bytes - pruned.report.after.bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(gone, time.perf_counter() - start, peak, pruned.report.verified)


def main(size: float = 1.5) -> None:
    """Makes the model, prunes it in a process of its own, and writes the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.onnx")
        total = make(path, size)
        command = [sys.executable, __file__, "prune", str(path)]
        output = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        gone, seconds, peak, difference = map(float, output[-4:])
    publish(
        "large.py",
        "## Memory for a large model",
        f"Blocks {WIDTH} to {HIDDEN} to {WIDTH}, {SAMPLES} samples, 40 % of the parameters removed in one round.",
        table(
            [
                (
                    "model",
                    "removed",
                    "peak memory",
                    "times the model",
                    "seconds",
                    "difference from the masked original",
                ),
                (
                    f"{total / 1e9:.2f} GB",
                    f"{gone / 1e9:.2f} GB",
                    f"{peak / 1e9:.2f} GB",
                    f"{peak / total:.2f}",
                    f"{seconds:.0f}",
                    f"{difference:.1g}",
                ),
            ]
        ),
    )


if __name__ == "__main__":
    prune(Path(sys.argv[2])) if sys.argv[1:2] == ["prune"] else main(*map(float, sys.argv[1:]))
