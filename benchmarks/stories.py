"""The trained decoder: a Llama of 260 thousand parameters without 30 % of its feed-forward and head parameters.

    python benchmarks/stories.py                         six hours on a core; started again, it goes on where it was
    python benchmarks/stories.py --criterion activation  prunes and recovers by one criterion alone, without a table

The network is rebuilt from its file, exported with both of PyTorch's exporters, and held to its known perplexity. Both
files are pruned alike.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

import onnxprune
from onnxprune.criteria import CRITERIA
from onnxprune.files import Results
from onnxprune.grouping import find_units
from onnxprune.runtime import Session
from reference import file
from results import publish, table
from zoo.trained import Llama, Tokenizer

CACHE = Path(__file__).parents[1] / "build" / "stories"
SHARE, LENGTH, CUT, BEGIN = 0.3, 256, 512, 1
TOLD, AT_ONCE, LONGEST = 8192, 512, 33
HELD_OUT, LEARNT = slice(-100, -31), slice(69)
KINDS = ("key-value head", "feed-forward unit")


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the recovery.

    Attributes:
        name: what it is, for the table.
        training: how.
        alone: whether it learns from the stories alone, without what the original tells, and not from windows of them.
    """

    name: str
    training: onnxprune.Training
    alone: bool = False


DISTILLED = onnxprune.Training(epochs=18, batch=4, rate=3e-3, task="next-token", temperature=1.0, match_hidden=1.0)
LONGER = replace(DISTILLED, epochs=28, batch=8, accumulate=2, rate=2e-3, match_hidden=0.0)
LABELLED = replace(LONGER, epochs=2, batch=4, accumulate=1, rate=1e-3, label_weight=0.25)
STAGES = (
    Stage("with hidden states", DISTILLED),
    Stage("without them", LONGER),
    Stage("with labels", LABELLED, alone=True),
)
"""One after the other, each with a schedule of its own.

Hidden states help at first and hold the weights back later. Labels are soon learnt by heart, so they come last.
"""
RECOVERED = ("activation",)
"""What the table recovers from: it takes five hours each on a core."""


def network() -> Llama:
    """The network."""
    return Llama(file("models/stories260K.bin").read_bytes()).eval()


@cache
def stories() -> list[list[int]]:
    """The tokens of all whole stories."""
    tokenizer = Tokenizer(file("models/tok512.bin").read_bytes(), 512)
    texts = file("tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:-1]
    return [tokenizer.encode(text.strip()) for text in texts]


def calibration() -> dict[str, np.ndarray]:
    """Rows of LENGTH tokens from the first stories, one behind the other."""
    stream = [token for story in stories()[:200] for token in story]
    return {"tokens": np.array(stream[: 64 * LENGTH]).reshape(64, LENGTH)}


def lessons(*, alone: bool = False) -> dict[str, np.ndarray]:
    """CUT tokens from the start of each story before the last 200, as those are read that are held out, and `told`.

    Where a story is shorter, the next ones follow: padding would teach nothing.
    """
    chosen = stories()[:-200]
    starts = np.cumsum([0, *map(len, chosen[:-1])])
    stream = np.concatenate([*chosen, *chosen])
    rows = np.lib.stride_tricks.sliding_window_view(stream, CUT)[starts]
    return {"tokens": rows if alone else np.concatenate([rows, told()])}


def told() -> np.ndarray:
    """Stories that begin as those before the last 200 do and that the original itself goes on with, (TOLD, CUT).

    Without them the compact model learns the few stories that there are by heart.
    """
    path = CACHE / "told.npy"
    if not path.is_file():
        generator, chosen = np.random.default_rng(0), [story for story in stories()[:-200] if len(story) > LONGEST]
        net, rows = network(), []
        for number in range(TOLD // AT_ONCE):
            begun = int(generator.integers(1, LONGEST))
            beginnings = [chosen[i][:begun] for i in generator.integers(0, len(chosen), AT_ONCE)]
            rows.append(net.tell(torch.tensor(beginnings), CUT, torch.Generator().manual_seed(number)).numpy())
        with Results() as results:
            np.save(results.open(path), np.concatenate(rows).astype(np.int16))
    return np.load(path).astype(np.int64)


def window(arrays: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """In nine of ten steps LENGTH tokens in a row, read as the start of a story: attention is most of a longer step.

    The original says what follows wherever a window begins; steps of CUT tokens teach what is far apart.
    """
    tokens = arrays["tokens"]
    if generator.random() < 0.1:
        return arrays
    first = generator.integers(0, CUT - LENGTH + 1)
    tokens = tokens[:, first : first + LENGTH].copy()
    tokens[:, 0] = BEGIN
    return {"tokens": tokens}


def perplexity(graph: onnxprune.Graph, chosen: slice = HELD_OUT) -> float:
    """Of some stories."""
    session, loss, count = Session(graph.message(), device="cpu"), 0.0, 0
    for story in stories()[chosen]:
        tokens = np.array([story[:CUT]])
        logits = torch.from_numpy(session.run({"tokens": tokens})[0][0, :-1]).double()
        loss += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[0, 1:]), reduction="sum"))
        count += len(logits)
    return math.exp(loss / count)


def exported(net: Llama, *, dynamo: bool) -> onnxprune.Graph:
    """The network as one of the exporters writes it."""
    path = CACHE / f"{'dynamo' if dynamo else 'script'}.onnx"
    tokens = torch.tensor([[1, 403, 407], [1, 410, 261]])
    if not path.is_file():
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=CUT)}
        named = {name: {0: "batch", 1: "length"} for name in ("tokens", "logits")}
        options = (
            {"dynamic_shapes": {"tokens": sizes}, "opset_version": 23}
            if dynamo
            else {"dynamic_axes": named, "opset_version": 17}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                net, (tokens,), path, dynamo=dynamo, input_names=["tokens"], output_names=["logits"], **options
            )
    return onnxprune.load(path)


def budget(graph: onnxprune.Graph) -> onnxprune.Budget:
    """SHARE of the parameters of heads and feed-forward units as a share of all parameters of a file."""
    units, whole = find_units(graph, calibration()), 0.0
    total = units.cost({})[0]
    for name, group in units.groups.items():
        if group.kind in KINDS:
            whole += (total - units.cost({name: np.arange(group.size) < 1})[0]) * group.size / (group.size - 1)
    return onnxprune.Budget("params", SHARE * whole / total)


def pruned(graph: onnxprune.Graph, criterion: str) -> onnxprune.Pruned:
    """A model without SHARE of the parameters of heads and feed-forward units, the same share of every group."""
    return onnxprune.prune(
        graph,
        budget(graph),
        calibration(),
        ranking=onnxprune.Ranking(criterion),
        method=onnxprune.Method(refit=True, latency=False, limits=onnxprune.Limits(allocation="uniform")),
    )


def widths(found: onnxprune.Pruned) -> list[tuple[str, int]]:
    """Kinds of the groups that lost units, and how many each keeps."""
    return sorted((row.kind, row.kept) for row in found.report.groups if row.kept < row.units)


def recovered(found: onnxprune.Pruned, original: onnxprune.Graph) -> list[onnxprune.Graph]:
    """The compact model after each stage, which go on where they were cut off."""
    graphs = [found.graph]
    for stage in STAGES:
        key = hashlib.sha256(f"{graphs[-1].sha256} {stage.training} {stage.alone}".encode()).hexdigest()[:12]
        done, checkpoint = (CACHE / f"{key}.{ending}" for ending in ("onnx", "ckpt"))
        if not done.is_file():
            onnxprune.recover(
                graphs[-1],
                lessons(alone=stage.alone),
                teacher=original,
                plan=found.plan,
                training=stage.training,
                augment=None if stage.alone else window,
                execution=onnxprune.Execution(
                    checkpoint=checkpoint, resume=checkpoint.exists(), losses=CACHE / f"{key}.jsonl", force=True
                ),
            ).save(done)
        graphs.append(onnxprune.load(done))
    return graphs[1:]


def main() -> None:
    """Prunes by every criterion, recovers from some, and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--criterion", choices=CRITERIA)
    only = parser.parse_args().criterion
    CACHE.mkdir(parents=True, exist_ok=True)
    net = network()
    other, original = (exported(net, dynamo=dynamo) for dynamo in (False, True))
    exact = [perplexity(graph) for graph in (other, original)]
    known = perplexity(original, LEARNT)
    out = [["criterion", "pruned", "refit", *(stage.name for stage in STAGES), "times the original", "on lessons"]]
    for criterion in [only] if only else CRITERIA:
        found = pruned(original, criterion)
        graphs = recovered(found, original) if criterion in RECOVERED or only else []
        cells = [perplexity(graph) for graph in (onnxprune.remove(original, found.plan), found.graph, *graphs)]
        if graphs:
            cells += [cells[-1] / exact[1], perplexity(graphs[-1], LEARNT) / known]
        out.append([criterion, *(f"{cell:.3f}" for cell in cells), *[""] * (len(out[0]) - 1 - len(cells))])
        print(*out[-1], flush=True)
    if only:
        return
    script, dynamo = (pruned(graph, RECOVERED[0]) for graph in (other, original))
    if widths(script) != widths(dynamo):
        raise SystemExit(f"the exporters differ: {widths(script)} and {widths(dynamo)}")
    before, after = dynamo.report.before.parameters, dynamo.report.after.parameters
    kept = {kind: sorted({count for k, count in widths(dynamo) if k == kind}) for kind in KINDS}
    publish(
        "stories.py",
        "## The trained decoder without 30 % of its feed-forward and head parameters",
        "The 260K Llama of the reference data, rebuilt in PyTorch; perplexity on the first 69 of the last 100 stories, "
        f"28,948 tokens: {exact[0]:.3f} from the TorchScript exporter, {exact[1]:.3f} from the dynamo one. "
        f"`prune --ratio {budget(original).share:.4f} --allocation uniform --refit`, 5 rounds, 64 x {LENGTH} tokens "
        f"for calibration: {before:,} parameters become {after:,}, {kept[KINDS[0]][0]} of 4 key-value heads and "
        f"{kept[KINDS[1]][0]} of 172 feed-forward units in each layer. By {RECOVERED[0]}, the TorchScript file gets "
        f"the same widths (largest difference from the masked original {script.report.verified:.1e}, dynamo "
        f"{dynamo.report.verified:.1e}) and perplexity {perplexity(script.graph):.3f} after refit. Recovery: "
        f"distillation with hidden states (`--match-hidden {DISTILLED.match_hidden:g}`), {DISTILLED.epochs} epochs of "
        f"the {len(stories()) - 200:,} stories before the last 200 and of {TOLD:,} rows that begin like those and that "
        f"the original itself goes on with: {CUT} tokens of each or, in nine of ten steps, {LENGTH} of them. Then "
        f"{LONGER.epochs} epochs of {LONGER.batch} instead of {DISTILLED.batch} rows a step without hidden states, and "
        f"{LABELLED.epochs} of the stories alone, {CUT} tokens each, {LABELLED.batch} a step, with labels "
        f"(`--label-weight {LABELLED.label_weight:g}`). The last column is the same as the one before it, on the first "
        "69 stories, which are learnt from.",
        table(out),
    )


if __name__ == "__main__":
    main()
