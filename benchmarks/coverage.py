"""Half of all units of one model after the other, as the exporters write them: found, removed, and proven.

python benchmarks/coverage.py
python benchmarks/coverage.py --only 'bert*' --export dynamo

python benchmarks/coverage.py --residual

A run of everything writes its section of RESULTS.md; with --only or --export the table is printed alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import io
import re
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

import torch

from onnxprune.errors import DataError
from onnxprune.graph import Graph
from onnxprune.runtime import Feeds, Session
from onnxprune.torch_bridge import inputs_of, to_torch, untouched_parameters
from results import publish, table
from zoo.base import EXPORTS, Model, exported, feeds, zoo
from zoo.halving import halve
from zoo.public import absent
from zoo.public import models as public

HEADING = ["model", "export", "attention", "groups", "removed", "largest difference", "seconds"]
HEADING += ["trainable", "compiled"]


def cases(only: str, export: str) -> Iterator[tuple[str, Model, str, str]]:
    """Each model, export and form of attention that was asked for."""
    for name, model in {**zoo(), **dict(public())}.items():
        if fnmatch.fnmatch(name, only):
            for label in EXPORTS:
                if fnmatch.fnmatch(label, export):
                    yield from ((name, model, label, attention) for attention in model.attention or ("",))


def row(
    name: str, model: Model, export: str, attention: str, *, residual: bool = False
) -> tuple[list[object], Graph | None]:
    """One line of the table, but for its end, and the compact model.

    A failure of the exporter, of the analysis or of the law stands where figures would.
    """
    head: list[object] = [name, export, attention]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # they print graphs
            content = exported(model, export, attention)
        Session(content, device="cpu").run(feeds(model))
    except Exception as error:  # whatever an exporter throws is a result here, or ONNX Runtime on what it wrote
        return [*head, f"no export: {reason(error)}", "", "", "", ""], None
    start = time.perf_counter()
    try:
        try:
            found = halve(content, feeds(model), residual=residual)
        except DataError:  # an export of one length, which data settle
            found = halve(content, feeds(model), residual=residual, sample=feeds(model))
    except Exception as error:  # so is what the tool throws
        return [*head, f"failed: {reason(error)}", "", "", f"{time.perf_counter() - start:.1f}", "", ""], None
    seconds = f"{time.perf_counter() - start:.1f}"
    difference = f"{found.difference:.1e}" if found.groups else ""
    removed, trained = f"{100 * found.removed:.1f} %", trainable(found.compact, feeds(model))
    return [*head, groups(found.groups), removed, difference, seconds, trained, ""], found.compact


def trainable(graph: Graph, batch: Feeds) -> str:
    """Whether the compact model comes out the same in PyTorch, and what gradients do not reach there."""
    try:
        module = to_torch(graph, batch)
        lost = untouched_parameters(module, batch)
    except Exception as error:  # as above
        return f"failed: {reason(error)}"
    count = len(list(module.parameters()))
    return f"all {count}" if not lost else f"{count - len(lost)} of {count}, not {lost[0]}"


def compiled(graph: Graph, batch: Feeds) -> str:
    """Whether torch.compile takes the module as one graph that computes the same."""
    torch.compiler.reset()
    module = to_torch(graph, check=False)
    arguments = inputs_of(graph.inputs, batch)
    try:
        found = torch.compile(module, backend="eager", fullgraph=True)(*arguments)
    except Exception as error:  # as above
        return f"in pieces: {reason(error)}"
    same = all(torch.equal(ours, theirs) for ours, theirs in zip(found, module(*arguments), strict=True))
    return "as one" if same else "failed: it computes something else"


def groups(found: Counter[tuple[int, str]]) -> str:
    """The groups in few words: for each kind how many groups of which size."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for (size, kind), count in found.items():
        kinds.setdefault(kind, []).append((size, count))
    parts = [
        f"{several(kind)} {', '.join(f'{n} x {size}' for size, n in sorted(sizes))}" for kind, sizes in kinds.items()
    ]
    return "; ".join(parts) or "none"


def several(kind: str) -> str:
    """More than one unit of a kind, such as value widths of each head."""
    unit, each, whole = kind.partition(" of each ")
    return f"{unit}s{each}{whole}"


def brief(rows: list[list[object]]) -> list[list[object]]:
    """One line for each model: what was halved, what went from each export, and the largest difference of all."""
    models: dict[str, list[list[str]]] = {}
    for cells in rows[1:]:
        models.setdefault(str(cells[0]), []).append([str(cell) for cell in cells])
    out: list[list[object]] = [["model", "halved", *EXPORTS, "largest difference"]]
    for name, lines in models.items():
        done = [line for line in lines if line[4]]
        kinds = re.findall(r"([a-z][a-z -]+?) \d", done[0][3]) if done else []
        shares = [
            ", ".join(dict.fromkeys(line[4] for line in done if line[1] == label)) or "no export" for label in EXPORTS
        ]
        out.append([name, ", ".join(kinds), *shares, max((line[5] for line in done), key=float, default="")])
    return out


def reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", (lines or ["no message"])[0])
    return f"{type(error).__name__}: {plain[:160]}".replace("|", "/")


def main() -> None:
    """Runs the cases and prints or publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="a glob of model names, such as 'timm/*'")
    parser.add_argument("--export", default="*", help=f"a glob of {', '.join(EXPORTS)}")
    parser.add_argument("--residual", action="store_true", help="halve the residual streams too")
    options = parser.parse_args()
    rows: list[list[object]] = [HEADING]
    compact: list[tuple[list[object], Graph, Feeds]] = []
    for case in cases(options.only, options.export):
        cells, graph = row(*case, residual=options.residual)
        rows.append(cells)
        if graph is not None:
            compact.append((cells, graph, feeds(case[1])))
        print(*cells, sep=" | ", flush=True)
    for cells, graph, batch in compact:  # at the end, so that nothing of it reaches the exporters
        cells[-1] = compiled(graph, batch)
        print(*cells[:3], cells[-1], sep=" | ", flush=True)
    without = "".join(f" {name} is not installed: its architectures are left out." for name in absent())
    about = (
        f"Random halves of all groups that are pruned {'with --residual' if options.residual else 'by default'}, "
        "random weights, inputs that vary. Differences are from the masked original, relative to the largest output; "
        "seconds are those of analysis, surgery and proof; trainable: how many weights of the compact model, which in "
        "PyTorch equals ONNX Runtime to 1e-4, are reached by gradients; compiled: whether torch.compile takes the "
        "module as one graph. "
        f"transformers {version('transformers')}.{without}"
    )
    if (options.only, options.export) == ("*", "*"):
        section = "coverage.py" + " --residual" * options.residual
        publish(
            section,
            f"## {'Residual widths' if options.residual else 'Architectures and exporters'}",
            about,
            table(brief(rows)),
            "Each export:",
            table(rows),
        )
    else:
        print(f"\n{table(rows)}\n\n{about}")


if __name__ == "__main__":
    main()
