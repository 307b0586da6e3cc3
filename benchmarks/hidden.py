"""How much hidden states help recovery, and at what weight: ResNet-56 after half an epoch.

    python benchmarks/hidden.py

takes half an hour on two cores. It prunes as `resnet56.py --round-to 8` does, then recovers with several weights of
`match_hidden`.
"""

from __future__ import annotations

import argparse
import time

import cifar10
import onnxprune
from results import publish, table

IMAGES = 25600


def main() -> None:
    """Prunes once, recovers with each weight, and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weight", type=float, action="append", help="may be repeated; 0, 10, 50, 250 and 1000")
    options = parser.parse_args()
    original = onnxprune.load(cifar10.model("resnet56_cifar10_bn"))
    test = cifar10.images("test")
    train = cifar10.images(*(f"train_{i}" for i in range(5)), count=IMAGES // 5)
    pruned = cifar10.pruned(original, 0.476, round_to=8)
    rows, spans = [["--match-hidden", "top-1", "time"]], []
    for weight in options.weight or (0, 10, 50, 250, 1000):
        training = onnxprune.Training(epochs=1, label_weight=0.3, match_hidden=weight, optimizer="sgd", decay=5e-4)
        start = time.perf_counter()
        final = onnxprune.recover(
            pruned.graph, train, teacher=original, plan=pruned.plan, training=training, augment=cifar10.crop
        )
        spans.append(time.perf_counter() - start)
        rows.append(
            [f"{weight:g}", f"{100 * onnxprune.evaluate(final, test)[0]:.2f} %", f"x {spans[-1] / spans[0]:.2f}"]
        )
        print(*rows[-1], flush=True)
    before, after = (100 * onnxprune.evaluate(graph, test)[0] for graph in (original, pruned.graph))
    publish(
        "hidden.py",
        "## Recovery of ResNet-56 with hidden states",
        f"`prune --macs 0.476 --criterion variance --refit --round-to 8`: {before:.2f} % -> {after:.2f} %. Then once "
        f"over {IMAGES:,} training images with augmentation in {IMAGES // 128} steps of sgd (decay 0.0005), "
        "distillation 0.7 and labels 0.3; top-1 on 10,000 test images, time relative to the first row.",
        table(rows),
    )


if __name__ == "__main__":
    main()
