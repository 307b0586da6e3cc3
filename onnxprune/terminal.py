"""What the commands share at the terminal: progress, options, and how options become records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.records import CRITERIA

if TYPE_CHECKING:
    from onnxprune.run import Feeding, Ranking

F = TypeVar("F", bound=Callable[..., Any])


class Bar:
    """Progress on stderr with the remaining time: a bar on a terminal, a line a stage elsewhere, nothing when quiet."""

    def __init__(self) -> None:
        context = click.get_current_context().find_root()
        self.quiet = bool(context.params.get("quiet"))
        self.stage, self.started, self.width = "", 0.0, 0
        self.told: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows where the work is."""
        if self.quiet:
            return
        now = time.monotonic()
        if stage != self.stage or done <= 1:
            self.close()
            self.stage, self.started = stage, now
            if not sys.stderr.isatty() and stage not in self.told:
                self.told.add(stage)
                click.echo(f"{stage} ...", err=True)
        if sys.stderr.isatty():
            share = f"{done}/{total}" if total > 0 else str(done)
            left = (now - self.started) / done * (total - done) if done > 1 and total > 0 else 0
            text = f"{stage} {share}" + (f", {left:.0f} s left" if left >= 1 else "")
            click.echo("\r" + text.ljust(self.width), nl=False, err=True)
            self.width = len(text)

    def close(self) -> None:
        """Ends the line."""
        if self.width:
            click.echo("\r" + " " * self.width + "\r", nl=False, err=True)
            self.width = 0


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_argument = click.argument("model", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of tables.")
force = click.option("--force", is_flag=True, help="Replace files that exist.")
residual = click.option("--residual", is_flag=True, help="Also the residual width under normalization: not exact.")
feeding_options = options(
    click.option("--data", help="Samples: .npz, .npy, a folder of .npz, or script.py[:function]."),
    click.option("--samples", default=1024, show_default=True, help="Most samples to calibrate on."),
    click.option("--batch", default=32, show_default=True, help="Samples in a run."),
    click.option("--stride", default=1, show_default=True, help="Take every which position of an image or text."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, tensorrt or openvino."),
)
ranking_options = options(
    click.option("--criterion", type=click.Choice(CRITERIA), default="spectral", show_default=True),
    click.option("--reverse", is_flag=True, help="Highest scores first, to put a criterion to the test."),
    click.option("--k", default=10, show_default=True, help="spectral: nearest neighbours of a unit."),
    click.option("--edges", type=click.Choice(["unit", "inverse"]), default="unit", help="spectral: edge weights."),
    click.option("--metric", type=click.Choice(["euclidean", "correlation"]), default="euclidean", help="spectral."),
    click.option("--eigenpairs", default="10", show_default=True, help="spectral: how many count, or 'all'."),
    click.option("--ridge", default=1e-3, show_default=True, help="spectral: relative ridge of the output graph."),
    click.option("--seed", default=0, show_default=True, help="Of everything random."),
)
FEEDING = ("samples", "batch", "device", "stride")
RANKING = ("criterion", "reverse", "k", "edges", "metric", "eigenpairs", "ridge", "seed")


def feeding_of(values: dict[str, Any]) -> Feeding:
    """Takes the options on data out of a command's values."""
    from onnxprune.run import Feeding

    for name in ("samples", "batch", "stride"):
        if values[name] < 1:
            raise click.BadParameter(f"{values[name]} is too small; give 1 or more.", param_hint=f"--{name}")
    return Feeding(**{name: values.pop(name) for name in FEEDING})


def ranking_of(values: dict[str, Any]) -> Ranking:
    """Takes the options on ranking out of a command's values."""
    from onnxprune.run import Ranking
    from onnxprune.spectral import SpectralOptions

    taken = {name: values.pop(name) for name in RANKING}
    count = taken["eigenpairs"]
    if count != "all" and not (count.isdigit() and int(count) > 0):
        raise click.BadParameter(f"'{count}' is neither a number nor 'all'.", param_hint="--eigenpairs")
    if taken["k"] < 1 or taken["ridge"] <= 0:
        raise click.BadParameter("must be positive.", param_hint="--k" if taken["k"] < 1 else "--ridge")
    spectral = SpectralOptions(
        taken["k"],
        taken["edges"],
        taken["metric"],
        "all" if count == "all" else int(count),
        taken["ridge"],
        taken["seed"],
    )
    return Ranking(taken["criterion"], spectral, taken["reverse"], taken["seed"])
