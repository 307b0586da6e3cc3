"""Whether a normalization behind each convolution helps where the model's own were folded into the weights.

    python benchmarks/unfold.py --images 25000 --epochs 1         ResNet-56, half an hour on two cores
    python benchmarks/unfold.py                                   with all images, five times: some hours
    python benchmarks/unfold.py --model resnet20_cifar10_folded --images 6000 --epochs 1 --rate 0.001

prunes to half of the multiply-accumulates with refit, then recovers with and without `unfold_batchnorm` at several
rates: a folded network may want another one.
"""

from __future__ import annotations

import argparse

import cifar10
import onnxprune
from results import publish, table


def main() -> None:
    """Prunes once, recovers in each way, and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet56_cifar10_folded")
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=50000, help="training images")
    parser.add_argument("--rate", type=float, action="append", help="may be repeated; 0.0003, 0.001 and 0.003")
    options = parser.parse_args()
    original = onnxprune.load(cifar10.model(options.model))
    test = cifar10.images("test")
    train = cifar10.images(*(f"train_{i}" for i in range(5)), count=-(-options.images // 5))
    pruned = cifar10.pruned(original, options.macs).graph
    rows = [["peak rate", "as it is", "unfolded"]]
    for rate in options.rate or (3e-4, 1e-3, 3e-3):
        cells = []
        for unfolded in (False, True):
            training = onnxprune.Training(epochs=options.epochs, rate=rate, label_weight=0.3, unfold_batchnorm=unfolded)
            final = onnxprune.recover(pruned, train, teacher=original, training=training, augment=cifar10.crop)
            cells.append(f"{100 * onnxprune.evaluate(final, test)[0]:.2f} %")
            print(rate, unfolded, cells[-1], flush=True)
        rows.append([f"{rate:g}", *cells])
    before, after = (100 * onnxprune.evaluate(graph, test)[0] for graph in (original, pruned))
    publish(
        f"unfold.py {options.model}",
        f"## Recovery of {options.model} with and without unfolded normalizations",
        f"`prune --macs {options.macs} --criterion variance --refit`: {before:.2f} % -> {after:.2f} %. Then "
        f"{options.epochs} epoch{'s' * (options.epochs > 1)} on {len(train['label']):,} training images with "
        "augmentation, distillation 0.7 and labels 0.3; top-1 on 10,000 test images.",
        table(rows),
    )


if __name__ == "__main__":
    main()
