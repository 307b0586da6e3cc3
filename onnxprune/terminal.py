"""What the commands share at the terminal: progress, options, and how options become records."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.criteria import CRITERIA
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.recovery import Execution, Training, Watch
    from onnxprune.run import Feeding, Ranking

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)


class Commands(click.Group):
    """Turns what onnxprune raises on purpose into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except OnnxPruneError as error:
            if ctx.params.get("verbose", 0) > 1:
                traceback.print_exc()
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)


class Bar:
    """Progress on stderr with the remaining time: a bar on a terminal, a line a stage elsewhere, nothing when quiet."""

    def __init__(self) -> None:
        context = click.get_current_context().find_root()
        self.quiet = bool(context.params.get("quiet"))
        self.stage, self.started, self.width = "", 0.0, 0
        self.told: set[str] = set()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Shows where the work is, and what was measured last."""
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
            text = ", ".join(filter(None, [f"{stage} {share}", note, f"{left:.0f} s left" if left >= 1 else ""]))
            click.echo("\r" + text.ljust(self.width), nl=False, err=True)
            self.width = len(text)

    def close(self) -> None:
        """Ends the line."""
        if self.width:
            click.echo("\r" + " " * self.width + "\r", nl=False, err=True)
            self.width = 0


def note(notes: tuple[str, ...], written: list[Path]) -> None:
    """Says on stderr what was written and what the reader should know."""
    for text in notes:
        log.warning(text)
    for path in written:
        log.info("wrote %s", path)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def sections(titles: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """A kind of command whose help lists its options under titles; those that no title has come first.

    Args:
        titles: parameters by title.
    """

    class Sectioned(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            """Writes the options, section by section."""
            titled = {name: title for title, names in titles.items() for name in names}
            records: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Options", *titles)}
            for parameter in self.get_params(ctx):
                record = parameter.get_help_record(ctx)
                if record is not None:
                    records[titled.get(str(parameter.name), "Options")].append(record)
            for title, rows in records.items():
                with formatter.section(title):
                    formatter.write_dl(rows)

    return Sectioned


TASKS_HELP = "cross-entropy, mse, next-token, or script.py[:function]"
METRIC_HELP = (
    "top1, agreement, loss, or script.py[:function]: evaluate(run, data).  [default: top1 with labels, else loss]"
)
RUNTIMES = "auto", "onnxruntime", "torch"
RUNTIME_HELP = "What runs the teacher.  [default: onnxruntime, and torch where only it can use the GPU]"
UNFOLD_HELP = "Train convolutions with a normalization, folded back.  [default: as the model needs]"
model_argument = click.argument("model", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of tables.")
force = click.option("--force", is_flag=True, help="Replace files that exist.")
allow_io = click.option(
    "--allow-io",
    type=click.Choice(["head"]),
    multiple=True,
    help="Let inputs and outputs of the model shrink: 'head' lets heads go from key-value caches.",
)
residual = click.option("--residual", is_flag=True, help="Also the residual width under normalization: not exact.")
feeding_options = options(
    click.option("--data", help="Samples: .npz, .npy, a folder of .npz, or script.py[:function]."),
    click.option("--samples", type=int, help="Most samples to calibrate on.  [default: 1024, or 32 that are made up]"),
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
recovery_options = options(
    click.option("--teacher", type=click.Path(path_type=Path), help="The original, whose outputs are learnt."),
    click.option("--label-weight", default=0.0, show_default=True, help="0: the teacher alone; 1: the labels alone."),
    click.option("--task", default="cross-entropy", show_default=True, help=f"{TASKS_HELP}: loss(outputs, labels)."),
    click.option("--loss", type=click.Choice(["auto", "kl", "mse"]), default="auto", help="Distance from the teacher."),
    click.option("--temperature", default=4.0, show_default=True, help="Of kl."),
    click.option("--match-hidden", default=0.0, metavar="WEIGHT", help="Learn hidden states too, with this weight."),
    click.option("--plan", type=click.Path(path_type=Path), help="What was pruned: narrower states are matched too."),
    click.option("--augment", help="script.py[:function], default augment(arrays, generator[, labels])."),
    click.option("--epochs", default=3, show_default=True),
    click.option("--batch", default=128, show_default=True, help="Samples in a step, over all processes."),
    click.option("--accumulate", default=1, show_default=True, help="Compute a step in so many parts, for memory."),
    click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True),
    click.option("--rate", type=float, help="Peak learning rate.  [default: 0.001 for adamw, 0.05 for sgd]"),
    click.option("--decay", default=1e-4, show_default=True, help="Weight decay."),
    click.option("--warmup", default=0.1, show_default=True, help="Share of the steps in which the rate rises."),
    click.option("--clip", default=5.0, show_default=True, help="Largest norm of the gradient."),
    click.option("--ema", default=0.0, metavar="DECAY", help="Keep a moving average of the weights, such as 0.999."),
    click.option("--unfold-batchnorm/--no-unfold-batchnorm", default=None, help=UNFOLD_HELP),
    click.option("--freeze-batchnorm", is_flag=True, help="Keep to the running statistics."),
    click.option("--seed", default=0, show_default=True),
    click.option("--eval", "test", help="Samples to measure on after every epoch; the best weights are kept."),
    click.option("--metric", help=METRIC_HELP),
    click.option("--patience", default=0, help="Stop after so many epochs without a better value."),
    click.option("--goal", type=float, help="Stop at this value; exit code 3 where it is missed."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True),
    click.option("--teacher-runtime", type=click.Choice(RUNTIMES), default="auto", help=RUNTIME_HELP),
    click.option("--compile", is_flag=False, flag_value="inductor", metavar="[BACKEND]", help="Use torch.compile."),
    click.option("--fsdp", is_flag=True, help="Share the weights among the processes of torchrun."),
    click.option("--checkpoint", type=click.Path(path_type=Path), help="[default: OUTPUT.ckpt]"),
    click.option("--save-every", default=200, show_default=True, help="Steps between checkpoints."),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint of the same run."),
    click.option("--losses", type=click.Path(path_type=Path), help="Write the loss of every step as JSON lines."),
    click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the teacher's outputs."),
)
RECOVERY_SECTIONS = {
    "What is learnt": ("teacher", "label_weight", "task", "loss", "temperature", "match_hidden", "plan", "augment"),
    "How": (
        *("epochs", "batch", "accumulate", "optimizer", "rate", "decay", "warmup", "clip", "ema"),
        *("unfold_batchnorm", "freeze_batchnorm", "seed"),
    ),
    "When to stop": ("test", "metric", "patience", "goal"),
    "Where": ("device", "precision", "teacher_runtime", "compile", "fsdp"),
    "What is kept on the way": ("checkpoint", "save_every", "resume", "losses", "cache"),
}
EXECUTION = ("device", "precision", "teacher_runtime", "compile", "fsdp", "resume", "losses", "cache")
FEEDING = ("samples", "batch", "device", "stride")
RANKING = ("criterion", "reverse", "k", "edges", "metric", "eigenpairs", "ridge", "seed")


def feeding_of(values: dict[str, Any]) -> Feeding:
    """Takes the options on data out of a command's values."""
    from onnxprune.run import Feeding

    for name in ("samples", "batch", "stride"):
        if values[name] is not None and values[name] < 1:
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


def recovery_of(values: dict[str, Any], checkpoint: Path) -> tuple[Training, Watch | None, Execution]:
    """Takes the options on recovery out of a command's values."""
    from onnxprune.recovery import Execution, Training, Watch

    test, metric = values.pop("test"), values.pop("metric")
    patience, goal = values.pop("patience"), values.pop("goal")
    if test is None and (metric is not None or patience or goal is not None):
        raise click.UsageError("--metric, --patience and --goal need samples to measure on; give --eval.")
    watch = Watch(test, metric, patience, goal) if test is not None else None
    execution = Execution(checkpoint=checkpoint, **{name: values.pop(name) for name in EXECUTION})
    return Training(**values), watch, execution
