"""The law on random graphs: pruned by the whole path, compared with the masked original on inputs it has not seen.

    python benchmarks/random_graphs.py [--graphs 20000] [--first 0] [--processes 1]

Weights have dead, constant and equal units, data have features and whole inputs that stand still, and may be a single
sample. A graph that differs in float32 is computed anew in float64 by ONNX's reference evaluator, which decides.
"""

from __future__ import annotations

import argparse
import logging
import traceback
import warnings
from collections import Counter
from multiprocessing import Pool

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxprune
from onnxprune.criteria import CRITERIA
from onnxprune.differences import difference
from onnxprune.errors import NothingToPrune, PlanError
from onnxprune.graph import from_proto
from onnxprune.grouping import find_units
from onnxprune.runtime import Session
from results import publish, table
from zoo.random_graphs import random_data, random_model

SINGLE, DOUBLE, FOLDED = 1e-5, 1e-9, 1e-6
"""What outputs may differ by in float32 before float64 decides, there, and there with sums rounded to float32."""


def outcome(seed: int) -> tuple[int, str, int]:
    """What becomes of one graph: its seed, one word or the failure, and how many units went without a trace."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return seed, *_outcome(seed)
    except Exception as error:  # whatever the tool throws is a result here
        where = traceback.extract_tb(error.__traceback__)[-1]
        return seed, f"failed: {type(error).__name__}: {str(error)[:200]} ({where.name})", 0


def _outcome(seed: int) -> tuple[str, int]:
    generator = np.random.default_rng([seed, 1])
    model = random_model(seed)
    graph = from_proto(onnx.load_from_string(model.SerializeToString()))
    data = random_data(model, int(generator.choice([1, 2, 8, 70])), seed, still=True)
    ranking = onnxprune.Ranking(str(generator.choice(CRITERIA)), seed=seed)
    limits = onnxprune.Limits("uniform" if generator.random() < 0.3 else "global", round_to=1)
    method = onnxprune.Method(int(generator.integers(1, 3)), limits, latency=False)
    budget = onnxprune.Budget("units", float(generator.uniform(0.1, 0.8)))
    given = data if generator.random() < 0.9 else None
    try:
        pruned = onnxprune.prune(graph, budget, given, ranking=ranking, method=method)
    except NothingToPrune:
        return "nothing to prune", 0
    except PlanError:
        return "out of reach", 0
    plan = pruned.plan
    traceless = sum(map(len, plan.merged.values())) + sum(map(len, plan.constant.values()))
    masked = onnxprune.mask(find_units(graph, data), plan)
    unseen = {name: 2 * array for name, array in random_data(model, 9, seed + 1).items()}
    sessions = (Session(x, device="cpu") for x in (masked.SerializeToString(), pruned.graph.message()))
    outputs = [session.run(unseen, graph.outputs) for session in sessions]
    if all(difference(a, b) <= SINGLE for a, b in zip(*outputs, strict=True)):
        return "equal", traceless
    exact = [
        ReferenceEvaluator(in_double(x)).run(None, {n: a.astype(np.float64) for n, a in unseen.items()})
        for x in (masked, pruned.graph.proto())
    ]
    by = max(difference(a, b) for a, b in zip(*exact, strict=True))
    return (
        "equal in float64" if by <= (FOLDED if plan.joined or plan.biases else DOUBLE) else f"DIFFERS by {by:.1e}"
    ), traceless


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 for float32."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    tensors = list(out.graph.initializer)
    for node in out.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
            elif node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for info in (*out.graph.input, *out.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    out.graph.ClearField("value_info")
    return out


def main() -> None:
    """Runs the graphs and publishes what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    count: Counter[str] = Counter()
    traceless = with_some = 0
    with Pool(options.processes) as pool:
        seeds = range(options.first, options.first + options.graphs)
        for i, (seed, word, gone) in enumerate(pool.imap_unordered(outcome, seeds, chunksize=20), 1):
            kind = word.split(" by ")[0].split(":")[0]
            count[kind] += 1
            traceless += gone
            with_some += gone > 0
            if kind in ("DIFFERS", "failed"):
                print(f"seed {seed}: {word}", flush=True)
            if i % 1000 == 0:
                print(i, dict(count), flush=True)
    rows: list[list[object]] = [["outcome", "graphs"], *([kind, count[kind]] for kind in sorted(count))]
    about = (
        f"{options.graphs:,} random graphs from seed {options.first} on, pruned by a random criterion to a random "
        f"share of units; {with_some:,} of them lost {traceless:,} constant or duplicate units without a trace. "
        "Compared on inputs that calibration has not seen, twice as large."
    )
    if options.graphs >= 20_000:
        publish("random_graphs.py", "## Random graphs", about, table(rows))
    else:
        print(about, table(rows), sep="\n\n")


if __name__ == "__main__":
    main()
