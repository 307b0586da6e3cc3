"""Half of all units of the reference ResNets: parameters removed, widths, and equality with the masked original.

python benchmarks/exports.py
"""

from __future__ import annotations

import cifar10
import onnxprune
from results import publish, table


def main() -> None:
    """Prunes each of the six files and writes the table."""
    images = cifar10.images("test", count=1024)
    rows: list[list[object]] = [["model", "parameters removed", "kept widths", "largest difference on 8 real images"]]
    for size in (20, 56):
        for export in ("bn", "folded", "dynamo"):
            name = f"resnet{size}_cifar10_{export}"
            pruned = onnxprune.prune(
                cifar10.model(name),
                onnxprune.Budget("units", 0.5),
                images,
                method=onnxprune.Method(limits=onnxprune.Limits(round_to=1), latency=False),
            )
            before, after = pruned.report.before.parameters, pruned.report.after.parameters
            widths = sorted({(row.units, row.kept) for row in pruned.report.groups})
            shown = ", ".join(f"{kept} of {units}" for units, kept in widths)
            rows.append([name, f"{100 * (1 - after / before):.2f} %", shown, f"{pruned.report.verified:.1e}"])
    publish(
        "exports.py",
        "## Half of all units, three exports",
        "`prune --units 0.5 --round-to 1`, spectral criterion, 1,024 test images. For comparison on ResNet-20: "
        "Torch-Pruning 1.6.1 on the PyTorch source removes 74.8 %, onnxsim 0.8.1 on the ONNX file 49.2 %.",
        table(rows),
    )


if __name__ == "__main__":
    main()
