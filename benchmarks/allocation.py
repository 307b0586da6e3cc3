"""How scores of different groups are compared: why they are multiplied by the number of weights that read a group.

    python benchmarks/allocation.py

prunes ResNet-20 in one round with the factor and without it. A few minutes on two cores.
"""

from __future__ import annotations

from dataclasses import replace

import cifar10
import onnxprune
from onnxprune.selection import Budget, Limits, select
from onnxprune.surgery import remove
from onnxprune.units import Units
from results import publish, table


def main() -> None:
    """Measures and writes the table."""
    path = cifar10.model("resnet20_cifar10_bn")
    calibration, test = cifar10.images("train_0", count=1024), cifar10.images("test")
    rows = [["criterion", "rounded to", "with the factor", "without it", "widths with", "widths without"]]
    for criterion in ("spectral", "random", "wanda", "variance", "reconstruction"):
        scored = onnxprune.score(path, calibration, ranking=onnxprune.Ranking(criterion))
        for multiple in (1, 8):
            cells, widths = [], []
            for factor in (True, False):
                units = scored.units if factor else _one_reader_each(scored.units)
                keep = select(units, scored.scores, Budget("params", 0.3), Limits(round_to=multiple))
                compact = remove(scored.units.graph, scored.units.plan(keep))
                cells.append(f"{100 * onnxprune.evaluate(compact, test)[0]:.2f} %")
                widths.append(" ".join(str(int(mask.sum())) for mask in keep.values()))
            rows.append([criterion, str(multiple), *cells, *widths])
            print(*rows[-1], flush=True)
    publish(
        "allocation.py",
        "## The number of readers as a factor in global allocation",
        "ResNet-20 `_bn`, 30 % of the parameters in one round, neither refit nor trained, top-1 on 10,000 test images. "
        "The first width is the residual stream of the first stage (16), which every later block reads.",
        table(rows),
    )


def _one_reader_each(units: Units) -> Units:
    """The same units, as if each group were read by one weight."""
    groups = {name: replace(group, readers=group.readers[:1]) for name, group in units.groups.items()}
    return replace(units, groups=groups)


if __name__ == "__main__":
    main()
