"""Kills the writing of a model with external data over an old one, many times: never a broken file, and no leftovers.

    python benchmarks/kills.py [KILLS]

takes about a quarter of an hour with 200 kills while it writes; those that come too late do not count. One half of
them are spread evenly over the time that a save takes, the other half over the moments around its renames, which begin
when the new data get their name. After each kill the model has to load, in onnx and in ONNX Runtime, with weights that
are bit by bit the old or the new ones; then the next run writes the new model again, and nothing but the model and its
data may be left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from results import publish, table

WIDTH, LAYERS = 1024, 24
SAVE = """
import sys, onnxprune
graph = onnxprune.load(sys.argv[1])
print("loaded", flush=True)
sys.stdin.readline()
graph.save(sys.argv[2])
print("saved", flush=True)
"""
END = "after the end"
PHASES = {
    "while files were written": "the old model and its data, and temporary files",
    "between the names of data and model": "the new data, too",
    "between the name of the model and the end": "the new model, and the old data or a journal",
    END: "the new model and its data",
}


def network(path: Path, seed: int) -> None:
    """Writes a chain of dense layers, its weights outside: 4 MiB each."""
    generator, nodes, weights = np.random.default_rng(seed), [], []
    for i in range(LAYERS):
        array = generator.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(WIDTH**0.5)
        weights.append(numpy_helper.from_array(array, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", f"h{LAYERS}"))
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def digest(path: Path) -> str:
    """Of all weights of a model, once ONNX Runtime has run it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": np.ones((1, WIDTH), np.float32)})[0]).all()
    found = hashlib.sha256()
    for tensor in onnx.load(path).graph.initializer:
        found.update(tensor.raw_data)
    return found.hexdigest()


def files(folder: Path) -> set[tuple[str, int]]:
    """What is in a folder: names, and which file each of them is of."""
    with os.scandir(folder) as entries:
        return {(entry.name, entry.inode()) for entry in entries}


def is_named(folder: Path, before: set[tuple[str, int]]) -> bool:
    """Whether the new data have their name."""
    return any(name.endswith(".data") for name, _ in files(folder) - before)


def phase(before: set[tuple[str, int]], left: set[tuple[str, int]], *, new: bool) -> str:
    """How far a writer had come, to judge by what it left."""
    phases = list(PHASES)
    if new:
        return phases[3 if len(left) == 2 else 2]
    return phases[1 if any(name.endswith(".data") for name, _ in left - before) else 0]


def save(graph: Path, path: Path) -> tuple[subprocess.Popen[str], float]:
    """Starts a writer; it has begun at the time that is given back."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE, graph, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write("\n")
    process.stdin.flush()
    return process, time.perf_counter()


def main() -> None:
    """Writes, kills, checks, writes again."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        folder.mkdir()
        models = [Path(name) / f"{letter}.onnx" for letter in "ab"]
        for seed, model in enumerate(models):
            network(model, seed)
        digests = [digest(model) for model in models]
        path = onnxprune.load(models[0]).save(folder / "model.onnx")
        now, whole, named = 0, [], []
        for _ in range(4):  # how long a save takes, and when in it the data get their name
            now, before = 1 - now, files(folder)
            process, start = save(models[now], path)
            while not is_named(folder, before):
                time.sleep(0.0005)
            named.append(time.perf_counter() - start)
            assert process.stdout is not None
            process.stdout.readline()
            whole.append(time.perf_counter() - start)
            process.wait()
        length, renames = max(whole), max(a - b for a, b in zip(whole, named, strict=True))
        print(f"a save takes {length:.2f} s, the end of it, from the name of its data on, {1000 * renames:.0f} ms")
        reached, right, clean = Counter(), Counter(), Counter()
        while reached.total() - reached[END] < wanted:
            other, before = 1 - now, files(folder)
            process, start = save(models[other], path)
            if reached.total() % 2:
                while not is_named(folder, before) and process.poll() is None:
                    time.sleep(0.0001)
                time.sleep(generator.random() * renames)
            else:
                time.sleep(generator.random() * length)
            process.kill()
            process.wait()
            left, found = files(folder), None
            with contextlib.suppress(Exception):  # whatever does not load is counted
                found = digest(path)
            new = found == digests[other]
            at = phase(before, left, new=new)
            reached[at] += 1
            right[at] += found in digests
            process, start = save(models[other], path)
            assert process.wait() == 0
            clean[at] += len(files(folder)) == 2 and digest(path) == digests[other]
            now = other
            print(f"{reached.total()}: {at}, {'whole' if found in digests else 'BROKEN'}", flush=True)
    rows: list[list[object]] = [
        ["killed", "the folder then has", "kills", "old or new, bit by bit", "clean after the next run"]
    ]
    rows += [[at, what, reached[at], right[at], clean[at]] for at, what in PHASES.items()]
    rows.append(["in all", "", reached.total(), right.total(), clean.total()])
    publish(
        "kills.py",
        "## Killed while a model is written",
        f"A model with {LAYERS * WIDTH * WIDTH * 4 >> 20} MiB of external data, written over another one by "
        f"`Graph.save`, which is killed (SIGKILL) at a random moment, {wanted} times while it writes, else too late. "
        "Then it has to load in onnx and in ONNX Runtime with the weights of the old or of the new model.",
        table(rows),
    )


if __name__ == "__main__":
    main()
