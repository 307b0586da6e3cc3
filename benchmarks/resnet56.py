"""ResNet-56 with 2.1 times fewer multiply-accumulates: accuracy before and after recovery, latency on one thread.

    python benchmarks/resnet56.py

takes an hour on two cores and goes on where it was when it is started again. Widths are multiples of 4, which
leaves more weights for the same work than multiples of 8 (`--round-to 8`), the block of ONNX Runtime's convolutions
with AVX2, and is less fast. Every choice of options has its own table and checkpoint. `--mirrored N`, once or several
times, goes on for N epochs from the mean of the weights at all ends so far, and averages again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import cifar10
import onnxprune
from onnxprune.measure import latency
from onnxprune.runtime import Session
from results import publish, table

CACHE = Path(__file__).parents[1] / "build" / "resnet56"
NETWORK, SECOND_RATE = "resnet56_cifar10_bn", 0.03
MIRRORED = (
    "from the mean of the weights of all ends so far, taught by the mean of what the original says of an image and of "
    "its mirror image, which is right in"
)


def kept(graph: onnxprune.Graph, name: str) -> onnxprune.Graph:
    """A graph as read from the file that it is written to, so that a checkpoint knows it by the sha256 of its own."""
    path = CACHE / f"{name}.onnx"
    graph.save(path)
    return onnxprune.load(path)


def recovered(
    graph: onnxprune.Graph, data: dict[str, np.ndarray], run: str, options: argparse.Namespace, **given: Any
) -> onnxprune.Graph:
    """A graph after a recovery that goes on where it was cut off and is kept under a name."""
    checkpoint = CACHE / f"{run}.ckpt"
    execution = onnxprune.Execution(
        checkpoint=checkpoint,
        resume=checkpoint.exists(),
        precision=options.precision,
        teacher_runtime=options.teacher_runtime,
    )
    augment = getattr(cifar10, options.augment)
    return kept(onnxprune.recover(graph, data, augment=augment, execution=execution, **given), run)


def averaged(*ends: onnxprune.Graph) -> onnxprune.Graph:
    """A graph whose weights and statistics are the means of those of others (arXiv 1803.05407)."""
    floating = [name for name, value in ends[0].constants.items() if value.dtype == np.float32]
    return ends[0].with_constants({name: sum(end.constants[name] for end in ends) / len(ends) for name in floating})


def main() -> None:
    """Prunes, measures, recovers, measures again, and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--macs", type=float, default=0.476)
    parser.add_argument("--criterion", default="variance")
    parser.add_argument("--round-to", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.025)
    parser.add_argument("--match-hidden", type=int, default=0)
    parser.add_argument("--label-weight", type=float, default=0.1)
    parser.add_argument("--temperature", type=int, default=4)
    augmentations = "crop", "half_cutmix", "cutmix"
    parser.add_argument("--augment", choices=augmentations, default="cutmix", help="a function of cifar10.py")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="sgd")
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--teacher-runtime", choices=("auto", "torch"), default="auto")
    mirrored_help = "epochs after those, taught by cifar10.mirrored"
    parser.add_argument("--mirrored", type=int, action="append", default=[], help=mirrored_help)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    changed = {n: v for n, v in vars(options).items() if v != parser.get_default(n) and n != "mirrored"}
    run = "resnet56.py" + "".join(f" --{n.replace('_', '-')} {v}" for n, v in changed.items())
    CACHE.mkdir(parents=True, exist_ok=True)
    original = onnxprune.load(cifar10.model(NETWORK))
    train, test = cifar10.images(*(f"train_{i}" for i in range(5))), cifar10.images("test")
    pruned = cifar10.pruned(original, options.macs, options.criterion, options.round_to)
    training = onnxprune.Training(
        epochs=options.epochs,
        batch=options.batch,
        rate=options.rate,
        label_weight=options.label_weight,
        temperature=options.temperature,
        match_hidden=options.match_hidden,
        optimizer=options.optimizer,
        decay=options.decay,
        seed=options.seed,
    )
    graphs = {"original": original, "pruned and refit": pruned.graph}
    final = recovered(pruned.graph, train, run, options, teacher=original, plan=pruned.plan, training=training)
    graphs[f"recovered, {options.epochs} epochs"] = final
    mirrored = ""
    if options.mirrored:
        teacher, ends, total = cifar10.mirrored(NETWORK), [final], options.epochs
        for part, epochs in enumerate(options.mirrored):
            run, total = f"{run} --mirrored {epochs}", total + epochs
            seed = options.seed + part
            training = replace(training, epochs=epochs, rate=SECOND_RATE, match_hidden=0.0, seed=seed)
            ends.append(recovered(final, train, run, options, teacher=teacher, training=training))
            final = kept(averaged(*ends), f"{run}, averaged")
            graphs |= {f"{total} epochs": ends[-1], f"mean of {len(ends)} ends": final}
        parts = " and ".join(map(str, options.mirrored))
        share = 100 * onnxprune.evaluate(teacher, test)[0]
        mirrored = f"; then {parts} epochs at the rate {SECOND_RATE:g}, {MIRRORED} {share:.2f} %"
    before, after = pruned.report.before, pruned.report.after
    accuracy = [f"{100 * onnxprune.evaluate(graph, test)[0]:.2f} %" for graph in graphs.values()]
    sessions = [Session(graph.message(), device="cpu", threads=1) for graph in (original, final)]
    generator = np.random.default_rng(0)
    timed = [
        latency(*sessions, {"image": generator.standard_normal((n, 3, 32, 32)).astype("f")}, threads=1, seconds=10)
        for n in (1, 32)
    ]
    macs, parameters = (before.macs, after.macs), (before.parameters, after.parameters)
    blank = [""] * (len(graphs) - 3)
    rows = [["", *graphs], ["top-1 on 10,000 test images", *accuracy]]
    for name, (old, new) in {"multiply-accumulates": macs, "parameters": parameters}.items():
        rows.append([name, f"{old:,}", f"{new:,}", *blank, f"x {new / old:.3f}"])
    for found in timed:
        milliseconds = [f"{1e3 * span[1]:.2f} ms" for span in (found.before, found.after)]
        rows.append([f"latency, batch {found.batch}", *milliseconds, *blank, f"x {found.ratio:.3f}"])
    hidden = f", `--match-hidden {options.match_hidden}`" if options.match_hidden else ""
    temperature = f" at temperature {options.temperature}" if options.temperature != 4 else ""
    precision = f", in {options.precision}" if options.precision != "auto" else ""
    runtime = f", teacher in {options.teacher_runtime}" if options.teacher_runtime != "auto" else ""
    seed = f", seed {options.seed}" if options.seed else ""
    publish(
        run,
        f"## ResNet-56 at {options.macs} of its multiply-accumulates: `{run}`",
        f"`prune --macs {options.macs} --criterion {options.criterion} --refit --round-to {options.round_to}`, 1,024 "
        f"calibration images; then `recover` on the 50,000 training images, {options.epochs} epochs of "
        f"{options.optimizer} (batches of {options.batch}, rate {options.rate:g}, decay {options.decay:g}), "
        f"distillation {1 - options.label_weight:g}{temperature} and labels {options.label_weight:g}{hidden}, "
        f"augmentation `{options.augment}`{precision}{runtime}{seed}{mirrored}. Latency: ONNX "
        "Runtime, one thread, original and result in turns, median of the ratios.",
        table(rows),
    )


if __name__ == "__main__":
    main()
