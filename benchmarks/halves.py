"""Half of the units of networks that other tools were measured on, as `prune --units 0.5 --round-to 1` removes them.

    python benchmarks/halves.py

The figures of other tools, where they are known, are of networks of the same kind with random weights: onnxsim 0.8.1 on
the ONNX file and Torch-Pruning 1.6.1 on the PyTorch source.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping

import onnx

import onnxprune
from onnxprune.graph import from_proto
from results import publish, table
from zoo import language, vision
from zoo.base import DYNAMO, TORCHSCRIPT, Model, exported, feeds, zoo

WIDE = {"HIDDEN": 256, "INNER": 1024, "HEADS": 4, "QUERIES": 8, "SHARED": 4, "WIDTH": 32, "LAYERS": 4}
NETWORKS: dict[str, tuple[Mapping[str, int], str, str, bool]] = {
    "mlp": ({}, "56.1 %", "56.1 %", False),
    "resnet20": ({}, "49.2 %", "74.8 %", False),
    "resnet50": ({}, "51.6 %", "72.9 %", False),
    "mobilenet_v2": ({}, "43.9 to 65.2 %", "65.1 %", False),
    "unet": ({}, "60.3 %", "74.9 %", False),
    "lstm": ({}, "1.5 %", "fails", False),
    "bert": (WIDE, "0.7 to 23.9 %", "67.7 % with the stream", True),
    "vit": (
        {**WIDE, "HIDDEN": 192, "INNER": 768, "HEADS": 6, "LAYERS": 6},
        "0 to 32.6 %",
        "74.4 % with the stream",
        True,
    ),
    "gpt2": (WIDE, "0 %", "0 %", True),
    "llama": (WIDE, "19.3 %", "hangs", True),
}
"""Sizes, where they are not those of the zoo; what the other tools removed; whether there is a residual width."""


@contextlib.contextmanager
def sized(sizes: Mapping[str, int]) -> Iterator[None]:
    """The zoo's transformers in other sizes."""
    old = [
        (module, name, getattr(module, name))
        for module in (language, vision)
        for name in sizes
        if hasattr(module, name)
    ]
    for module, name, _ in old:
        setattr(module, name, sizes[name])
    try:
        yield
    finally:
        for module, name, value in old:
            setattr(module, name, value)


def removed(content: bytes, model: Model, *, residual: bool) -> str:
    """The share of the parameters that went, after its proof, and the largest difference that the proof found."""
    graph = from_proto(onnx.load_from_string(content))
    limits = onnxprune.Limits(round_to=1)
    method = onnxprune.Method(rounds=1, limits=limits, latency=False, residual=residual)
    ranking = onnxprune.Ranking("random")
    pruned = onnxprune.prune(graph, onnxprune.Budget("units", 0.5), feeds(model), ranking=ranking, method=method)
    before, after = pruned.report.before.parameters, pruned.report.after.parameters
    return f"{100 * (1 - after / before):.1f} % ({pruned.report.verified:.0e})"


def main() -> None:
    """Exports, prunes, proves, and writes the table."""
    rows = [["network", "exporter", "removed", "with `--residual`", "onnxsim", "Torch-Pruning"]]
    for name, (sizes, onnxsim, torch_pruning, stream) in NETWORKS.items():
        for export in (TORCHSCRIPT, DYNAMO):
            with sized(sizes), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                model = zoo()[name]
                content = exported(model, export, (model.attention or ("",))[-1])
            figures = [removed(content, model, residual=residual) for residual in (False, True)[: 1 + stream]]
            rows.append([name, export, *figures, *[""] * (2 - len(figures)), onnxsim, torch_pruning])
            print(*rows[-1], sep=" | ", flush=True)
    publish(
        "halves.py",
        "## Half of all units, beside other tools",
        "Parameters removed by `prune --units 0.5 --round-to 1`, in brackets the largest difference from the masked "
        "original relative to the outputs' scale. BERT, GPT-2 and Llama have 4 layers of width 256, ViT has 6 of width "
        "192; the figures of onnxsim 0.8.1 and Torch-Pruning 1.6.1 are of networks of the same kind.",
        table(rows),
    )


if __name__ == "__main__":
    main()
