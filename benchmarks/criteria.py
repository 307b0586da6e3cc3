"""Does the spectral part add anything? Every criterion on ResNet-20 at 30 % of the parameters.

    python benchmarks/criteria.py            without training, a quarter of an hour on two cores
    python benchmarks/criteria.py --recover  and after the same recovery, an hour more
    python benchmarks/criteria.py --recover variance  one criterion alone, in a section of its own

Every criterion in the same rounds, with and without refit, lowest scores first and highest scores first.
"""

from __future__ import annotations

import sys

import cifar10
import onnxprune
from onnxprune.criteria import CRITERIA
from results import publish, table

RATIO = 0.3


def main() -> None:
    """Measures and writes the table."""
    original = onnxprune.load(cifar10.model("resnet20_cifar10_bn"))
    calibration, test = cifar10.images("train_0", count=1024), cifar10.images("test")
    training_data = cifar10.images("train_0")
    heading = ["criterion", "low first", "low first, refit", "high first", "high first, refit"]
    recover = "--recover" in sys.argv
    rows = [heading + (["low first, recovered", "low first, refit, recovered"] if recover else [])]
    chosen = [name for name in CRITERIA if name in sys.argv]
    for criterion in chosen or CRITERIA:
        cells, recovered = [], []
        for reverse in (False, True):
            for refit in (False, True):
                pruned = onnxprune.prune(
                    original,
                    onnxprune.Budget("params", RATIO),
                    calibration,
                    ranking=onnxprune.Ranking(criterion, reverse=reverse),
                    method=onnxprune.Method(refit=refit, latency=False),
                )
                cells.append(_percent(onnxprune.evaluate(pruned.graph, test)[0]))
                if recover and not reverse:
                    final = onnxprune.recover(
                        pruned.graph,
                        {"image": training_data["image"]},
                        teacher=original,
                        training=onnxprune.Training(epochs=3),
                        augment=cifar10.crop,
                    )
                    recovered.append(_percent(onnxprune.evaluate(final, test)[0]))
                print(criterion, reverse, refit, cells[-1], *recovered[-1:], flush=True)
        rows.append([criterion, *cells, *recovered])
    publish(
        " ".join(["criteria.py", *chosen]),
        "## " + (", ".join(chosen) or "Criteria") + ", with and without refit and recovery",
        f"ResNet-20 `_bn`, {_percent(onnxprune.evaluate(original, test)[0])} before; `prune --ratio {RATIO}`, 5 "
        "rounds, default rounding to 8, 1,024 calibration images, top-1 on all 10,000 test images. Recovery: 3 "
        "epochs on 10,000 training images without labels, distilled from the original, augmented as in its "
        "training. For comparison: onnxsim 0.8.1 at 30 % keeps 17.8 % on `_folded` and removes nothing on `_bn`; "
        "Torch-Pruning 1.6.1 keeps 10-15 %, and 81.6-85.9 % on the first 2,000 images after 3 epochs on 10,000 "
        "images with labels.",
        table(rows),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
