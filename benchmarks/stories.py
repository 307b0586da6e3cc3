"""The trained decoder: a Llama of 260 thousand parameters loses 30 % of its feed-forward units and heads.

    python benchmarks/stories.py

rebuilds the network from its file, exports it with both of PyTorch's exporters, prunes both files alike by every
criterion, measures the perplexity on held-out stories, and recovers on the stories before them. About an hour on two
cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import torch

import onnxprune
from cifar10 import FOLDER
from onnxprune.criteria import CRITERIA
from onnxprune.graph import from_proto
from onnxprune.runtime import Session
from results import publish, table
from zoo.trained import Llama, Tokenizer

LONGEST, HELD_OUT, MEASURED, ROW = 512, 200, slice(-100, -31), 128
SHARE = 0.3
"""Of the parameters of feed-forward units and heads."""

TRAINING = onnxprune.Training(epochs=12, batch=16, rate=4e-3, task="next-token", temperature=1.0, save_every=500)


def file(name: str) -> Path:
    """A file of the reference data; ends the program where there is none."""
    path = FOLDER / name
    if not path.is_file():
        sys.exit(f"{path} is not here; set ONNXPRUNE_DATA to the folder of the reference data")
    return path


def exported(net: Llama, sample: torch.Tensor, *, dynamo: bool) -> onnxprune.Graph:
    """The ONNX file that one of the exporters makes, of any number and length of texts."""
    names: dict[str, object] = {"input_names": ["tokens"], "output_names": ["logits"]}
    if dynamo:
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LONGEST)}
        program = torch.onnx.export(net, (sample,), dynamo=True, dynamic_shapes={"tokens": sizes}, **names)
        return from_proto(program.model_proto)
    buffer = io.BytesIO()
    axes = {name: {0: "batch", 1: "length"} for name in ("tokens", "logits")}
    torch.onnx.export(net, (sample,), buffer, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    return from_proto(onnx.load_from_string(buffer.getvalue()))


def perplexity(graph: onnxprune.Graph, stories: list[list[int]]) -> float:
    """Of the stories, each cut at the longest text that the network takes."""
    session, total, count = Session(graph.message(), device="cpu"), 0.0, 0
    for story in stories:
        tokens = np.array([story[:LONGEST]])
        logits = torch.from_numpy(session.run({"tokens": tokens})[0][0, :-1]).double()
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[0, 1:]), reduction="sum")
        total, count = total + float(losses), count + len(logits)
    return float(np.exp(total / count))


def widths(pruned: onnxprune.Pruned) -> list[tuple[str, int, int]]:
    """What stays of each group that is pruned: kind, units before and after."""
    return [(row.kind, row.units, row.kept) for row in pruned.report.groups if row.kept < row.units]


def main() -> None:
    """Rebuilds, exports, prunes, recovers, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recover", nargs="*", default=["variance"], help="criteria to recover after")
    options = parser.parse_args()
    net = Llama(file("models/stories260K.bin").read_bytes()).eval()
    tokenizer = Tokenizer(file("models/tok512.bin").read_bytes(), len(net.embedding.weight))
    texts = file("tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:-1]
    stories = [tokenizer.encode(text.strip()) for text in texts]
    held, flat = stories[MEASURED], np.concatenate(stories[:-HELD_OUT])
    rows = flat[: len(flat) // ROW * ROW].reshape(-1, ROW)
    with contextlib.redirect_stdout(io.StringIO()):
        graph, other = (exported(net, torch.from_numpy(rows[:2, :33]), dynamo=dynamo) for dynamo in (True, False))
    before = {name: perplexity(g, held) for name, g in (("dynamo", graph), ("torchscript", other))}
    prunable = sum(p.numel() for name, p in net.layers.named_parameters() if not name.endswith("norm.weight"))
    calibration = {"tokens": rows[:128]}

    def share(of: onnxprune.Graph) -> float:
        """Of all parameters: the older exporter stores the tied embedding twice."""
        return SHARE * prunable / onnxprune.inspect(of).cost({})[0]

    def pruned(of: onnxprune.Graph, criterion: str) -> onnxprune.Pruned:
        limits = onnxprune.Limits(allocation="uniform")
        method = onnxprune.Method(limits=limits, refit=True, latency=False)
        budget = onnxprune.Budget("params", share(of))
        return onnxprune.prune(of, budget, calibration, ranking=onnxprune.Ranking(criterion), method=method)

    out = [["criterion", "pruned", "pruned and refit", "recovered", "times the original"]]
    for criterion in sorted(CRITERIA, key=lambda criterion: criterion not in options.recover):
        result = pruned(graph, criterion)
        cells = [perplexity(onnxprune.remove(graph, result.plan), held), perplexity(result.graph, held)]
        if criterion in options.recover:
            assert widths(result) == widths(pruned(other, criterion)), "the exporters differ"
            final = onnxprune.recover(result.graph, {"tokens": rows}, teacher=graph, training=TRAINING)
            cells.append(perplexity(final, held))
        times = f"{cells[-1] / before['dynamo']:.3f}" if criterion in options.recover else ""
        out.append([criterion, *(f"{cell:.2f}" for cell in cells), *[""] * (3 - len(cells)), times])
        print(*out[-1], flush=True)
    kept = "; ".join(f"{kind}s {after} of {units}" for kind, units, after in dict.fromkeys(widths(result)))
    publish(
        "stories.py",
        "## The trained decoder: 30 % of the feed-forward units and heads of stories260K",
        f"Perplexity on {sum(len(story[:LONGEST]) for story in held):,} tokens of held-out stories: "
        f"{before['dynamo']:.2f} (dynamo), {before['torchscript']:.2f} (TorchScript). `prune --ratio "
        f"{share(graph):.4f} --allocation uniform --refit`, which is {SHARE:.0%} of the {prunable:,} parameters in "
        f"feed-forward units and heads; 128 calibration texts of {ROW} tokens. In every layer stay: {kept}. Both "
        f"exports get the same widths. Recovery: {TRAINING.epochs} epochs on {rows.size:,} tokens of the stories "
        "before, by distillation alone.",
        table(out),
    )


if __name__ == "__main__":
    main()
