"""Which networks of the zoo, exported for one sample, recovery can train with several at once.

    python benchmarks/batches.py

takes a minute. The others are trained in runs of one sample, their normalizations with the statistics that they have.
"""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import torch

from onnxprune.graph import from_proto
from onnxprune.recovery.batches import opened
from onnxprune.recovery.samples import Samples
from results import publish, table
from zoo.base import Model, feeds, randomize, zoo

OPSET = 17


def fixed(model: Model) -> bytes:
    """A network as an ONNX file for one sample."""
    torch.manual_seed(0)
    net = randomize(model.build(next(iter(model.attention))) if model.attention else model.build())
    file, one = io.BytesIO(), feeds(model, {"batch": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = tuple(map(torch.from_numpy, one.values()))
        torch.onnx.export(net, arguments, file, input_names=list(one), opset_version=OPSET, dynamo=False)
    return file.getvalue()


def main() -> None:
    """Exports every network, tries it, and writes the table."""
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)
    found: dict[bool, list[str]] = {True: [], False: []}
    for name, model in zoo().items():
        graph = from_proto(onnx.load_from_string(fixed(model)))
        apart = [feeds(model, {"batch": 1}, seed) for seed in (1, 2, 3)]
        samples = Samples({key: np.concatenate([one[key] for one in apart]) for key in apart[0]}, None, 1)
        found[opened(graph, samples) is not None].append(name)
    rows = [["", "networks", ""]]
    rows.append(["with several samples at once", str(len(found[True])), ""])
    rows.append(["with one at a time", str(len(found[False])), ", ".join(found[False])])
    publish(
        "batches.py",
        "## Networks that were exported for one sample",
        f"How recovery trains the networks of the zoo from PyTorch's older exporter, opset {OPSET}, without open axes.",
        table(rows),
    )


if __name__ == "__main__":
    main()
