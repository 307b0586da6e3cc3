"""The command line: each command parses, calls one public function, and writes the result.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failure, 2 usage, 3 a goal or a
verification missed, 4 nothing to prune.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from onnxprune import __version__
from onnxprune.criteria import CRITERIA
from onnxprune.endings import Commands, how_to_go_on, saving
from onnxprune.errors import GoalMissed
from onnxprune.paths import Inputs, Output, beside, check_paths
from onnxprune.terminal import (
    RECOVERY_SECTIONS,
    Bar,
    allow_io,
    as_json,
    feeding_of,
    feeding_options,
    force,
    model_argument,
    note,
    ranking_of,
    ranking_options,
    recovery_of,
    recovery_options,
    residual,
    sections,
)

log = logging.getLogger(__name__)


@click.group(name="onnxprune", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notices.")
@click.option("-v", "--verbose", count=True, help="More messages; -vv shows where an error came from.")
def main(quiet: bool, verbose: int) -> None:
    """Make ONNX models smaller and faster by taking out neurons, channels and heads.

    \b
    Examples:
      onnxprune inspect model.onnx
      onnxprune prune model.onnx --ratio 0.4 --data calib.npz -o compact.onnx
      onnxprune recover compact.onnx --teacher model.onnx --data train.npz -o final.onnx
      onnxprune compare model.onnx final.onnx --data test.npz
    """
    level = logging.ERROR if quiet else (logging.INFO, logging.DEBUG)[min(verbose, 1)]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("onnxprune").setLevel(level)


@main.command()
@model_argument
@click.option("--data", help="Samples, where sizes of symbolic axes have to come from them.")
@residual
@allow_io
@as_json
def inspect(model: Path, data: str | None, residual: bool, allow_io: tuple[str, ...], as_json: bool) -> None:
    """Show what can be pruned, what cannot, and why.

    \b
    Example:
      onnxprune inspect model.onnx
    """
    from onnxprune import pipeline, report

    units = pipeline.inspect(model, data, residual=residual, allow_io=allow_io)
    click.echo(report.inspection_json(units) if as_json else report.inspection(units))


@main.command()
@model_argument
@feeding_options
@ranking_options
@residual
@allow_io
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the scores as .npz.")
@click.option("--moments", type=click.Path(path_type=Path), help="Write the moments of the states as .npz.")
@force
@as_json
def score(
    model: Path,
    data: str | None,
    residual: bool,
    allow_io: tuple[str, ...],
    output: Path | None,
    moments: Path | None,
    force: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Score every unit; low scores go first.

    \b
    Example:
      onnxprune score model.onnx --data calib.npz -o scores.npz
    """
    from onnxprune import pipeline, report

    outputs = [Output(role, path) for role, path in {"-o": output, "--moments": moments}.items() if path]
    check_paths(outputs, Inputs({"the model": model}, {"--data": data}), force=force)
    bar = Bar()
    ranking, feeding = ranking_of(values), feeding_of(values)
    scored = pipeline.score(
        model, data, ranking=ranking, feeding=feeding, progress=bar, residual=residual, allow_io=allow_io
    )
    bar.close()
    note(scored.notes)
    with saving(force=force) as results:
        if moments:
            scored.moments.save(moments, results)
        if output:
            scored.scores.save(output, results)
    click.echo(report.scores_json(scored.scores) if as_json else report.scored(scored.units, scored.scores))


@main.command()
@model_argument
@click.option("--ratio", type=float, help="Share of all parameters to remove.")
@click.option("--macs", type=float, help="Share of the multiply-accumulates that may REMAIN.")
@click.option("--units", type=float, help="Share of the units of every group to remove.")
@feeding_options
@ranking_options
@click.option("--rounds", default=5, show_default=True, help="Remove in parts, rescoring after each; 1 is one shot.")
@click.option("--allocation", type=click.Choice(["global", "uniform"]), default="global", show_default=True)
@click.option("--round-to", type=int, help="Multiple for widths.  [default: 8 for channels, else 1]")
@click.option("--floor", default=0.1, show_default=True, help="Share of its units that each group keeps.")
@click.option("--only", multiple=True, help="Glob of groups that may lose units; may be given again.")
@click.option("--skip", multiple=True, help="Glob of groups that may not.")
@residual
@allow_io
@click.option("--refit", is_flag=True, help="Refit the remaining weights in closed form.")
@click.option("--no-latency", is_flag=True, help="Do not time the models.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The compact model.  [default: NAME.pruned.onnx]")
@click.option("--plan", type=click.Path(path_type=Path), help="Write what was removed as JSON.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@force
@as_json
def prune(
    model: Path,
    data: str | None,
    output: Path | None,
    plan: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Remove units until a budget is met, prove the result, and write the compact model.

    \b
    Examples:
      onnxprune prune model.onnx --ratio 0.4 --data calib.npz -o compact.onnx
      onnxprune prune model.onnx --macs 0.5 --data calib.npz --criterion variance --refit
      onnxprune prune model.onnx --units 0.5 --round-to 1 --only 'layer3*' --plan plan.json
      onnxprune prune bert.onnx --ratio 0.3 --data calib.npz --residual --refit
    """
    from onnxprune import pipeline, report
    from onnxprune.selection import Budget, Limits

    shares = {"params": values.pop("ratio"), "macs": values.pop("macs"), "units": values.pop("units")}
    given: list[Any] = [(kind, share) for kind, share in shares.items() if share is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --ratio, --macs and --units, such as --ratio 0.4.")
    output = output or beside(model, "pruned")
    outputs = [Output("-o", output, model=True), *([Output("--plan", plan)] if plan else [])]
    check_paths(() if dry_run else outputs, Inputs({"the model": model}, {"--data": data}), force=force)
    limits = Limits(values["allocation"], values["round_to"], values["floor"], values["only"], values["skip"])
    flags = values["refit"], not values["no_latency"], values["residual"], values["allow_io"]
    method = pipeline.Method(values["rounds"], limits, *flags)
    bar = Bar()
    pruned = pipeline.prune(
        model,
        Budget(*given[0]),
        data,
        ranking=ranking_of(values),
        method=method,
        feeding=feeding_of(values),
        progress=bar,
    )
    bar.close()
    if not dry_run:
        with saving(force=force) as results:
            if plan:
                pruned.plan.save(plan, results)
            pruned.graph.save(output, results)
    if as_json:
        click.echo(pruned.report.to_json())
    else:
        click.echo(report.groups(pruned.report.groups) + "\n\n" + report.summary(pruned.report))


@main.command(cls=sections(RECOVERY_SECTIONS))
@model_argument
@click.option("--data", help="Training samples, with labels if --label-weight is not 0.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result.  [default: NAME.recovered.onnx]")
@force
@click.option("--export", type=click.Choice(["torch"]), help="Write OUTPUT.torch.onnx too, by torch.onnx.export.")
@click.option("--check", is_flag=True, help="Show what would train and what would not; train nothing.")
@as_json
@recovery_options
def recover(
    model: Path,
    data: str | None,
    output: Path | None,
    force: bool,
    export: str | None,
    check: bool,
    as_json: bool,
    teacher: Path | None,
    plan: Path | None,
    augment: str | None,
    checkpoint: Path | None,
    **values: Any,
) -> None:
    """Train the weights of a compact model, in PyTorch, and write them back into the same graph.

    \b
    Examples:
      onnxprune recover compact.onnx --check
      onnxprune recover compact.onnx --teacher model.onnx --data train.npz -o final.onnx
      onnxprune recover compact.onnx --teacher model.onnx --data train.npz --label-weight 0.3 --epochs 10
      onnxprune recover compact.onnx --teacher model.onnx --data train.npz --eval test.npz --goal 0.92
      onnxprune recover model.onnx --data train.npz --label-weight 1
      torchrun --nproc-per-node 2 -m onnxprune recover compact.onnx --teacher model.onnx --data train.npz
    """
    from onnxprune import recovery

    if check:
        found = recovery.check(model, data)
        click.echo(found.to_json() if as_json else found.in_words())
        return
    if data is None:
        raise click.UsageError("there is nothing to train on; give --data, or --check to see what would train.")
    output = output or beside(model, "recovered")
    fresh = output.with_name(f"{output.stem}.torch.onnx")
    checkpoint = checkpoint or output.with_name(output.name + ".ckpt")
    training, watch, execution = recovery_of(values, checkpoint, force=force)
    if recovery.is_writer():
        inputs = recovery.files_read(model, data, teacher, plan, augment, training, watch, execution)
        outputs = [Output("-o", output, model=True)]
        outputs += [Output("--export", fresh, model=True)] if export else []
        recovery.check_files(inputs, execution, outputs)
        how_to_go_on(checkpoint, execution)
    bar = Bar()
    missed = None
    try:
        graph = recovery.recover(
            model,
            data,
            teacher=teacher,
            plan=plan,
            training=training,
            augment=augment,
            watch=watch,
            execution=execution,
            progress=bar,
        )
    except GoalMissed as error:
        graph, missed = error.graph, error
    bar.close()
    if recovery.is_writer():
        read = [model, *([teacher] if teacher else [])]
        with saving(force=force, models=read) as results:
            graph.save(output, results)
        if export:
            with saving(force=force, models=read) as results:
                recovery.export_fresh(graph, fresh, data, results)
        recovery.remove_checkpoint(checkpoint)
    if missed is not None:
        raise missed


@main.command(name="eval")
@model_argument
@click.option("--data", required=True, help="Samples with labels.")
@click.option("--metric", type=click.Choice(["top1"]), default="top1", show_default=True)
@click.option("--batch", default=128, show_default=True, help="Samples in a run.")
@click.option("--device", default="auto", show_default=True)
@as_json
def evaluate(model: Path, data: str, metric: str, batch: int, device: str, as_json: bool) -> None:
    """Measure the accuracy of a model.

    \b
    Example:
      onnxprune eval final.onnx --data test.npz --metric top1
    """
    from onnxprune import pipeline, run

    bar = Bar()
    accuracy, samples = pipeline.evaluate(model, data, feeding=run.Feeding(batch=batch, device=device), progress=bar)
    bar.close()
    if as_json:
        click.echo(json.dumps({"schema": "onnxprune.eval/1", "metric": metric, "value": accuracy, "samples": samples}))
    else:
        click.echo(f"top-1 {100 * accuracy:.2f} % on {samples:,} samples of {data}")


@main.command()
@model_argument
@click.option("--eval", "test", required=True, help="Samples to measure on, with labels for accuracy.")
@click.option(
    "--ratio", "ratios", type=float, multiple=True, default=(0.3,), show_default=True, help="May be repeated."
)
@click.option(
    "--criterion", "criteria", multiple=True, type=click.Choice(CRITERIA), help="May be repeated.  [default: all]"
)
@feeding_options
@click.option("--rounds", default=5, show_default=True)
@residual
@click.option("--seed", default=0, show_default=True, help="Of the random criterion.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the study as JSON.")
@force
@as_json
def study(
    model: Path,
    test: str,
    ratios: tuple[float, ...],
    criteria: tuple[str, ...],
    data: str | None,
    rounds: int,
    residual: bool,
    seed: int,
    output: Path | None,
    force: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Prune with every criterion, low and high scores first, with and without refit, and compare.

    \b
    Example:
      onnxprune study model.onnx --data calib.npz --eval test.npz --ratio 0.2 --ratio 0.4
    """
    from onnxprune import pipeline, report, run
    from onnxprune.selection import Budget
    from onnxprune.trials import study

    inputs = Inputs({"the model": model}, {"--data": data, "--eval": test})
    check_paths([Output("-o", output)] if output else [], inputs, force=force)
    bar = Bar()
    found = study(
        model,
        [Budget("params", ratio) for ratio in ratios],
        data,
        test,
        criteria=criteria or CRITERIA,
        ranking=run.Ranking(seed=seed),
        method=pipeline.Method(rounds=rounds, residual=residual),
        feeding=feeding_of(values),
        progress=bar,
    )
    bar.close()
    with saving(force=force) as results:
        if output:
            found.save(output, results)
    rows = [(t.share, t.criterion, t.reverse, t.refit, t.removed, t.quality) for t in found.trials]
    click.echo(found.to_json() if as_json else report.trials(rows))


@main.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--data", help="Samples, with labels for accuracy.")
@click.option("--batch", default=1, show_default=True, help="Samples in a timed run.")
@click.option("--threads", default=0, show_default=True, help="Threads to time with; 0 for all cores.")
@click.option("--device", default="auto", show_default=True)
@as_json
def compare(before: Path, after: Path, data: str | None, batch: int, threads: int, device: str, as_json: bool) -> None:
    """Set two models side by side: size, work, latency in turns, accuracy, agreement.

    \b
    Example:
      onnxprune compare model.onnx final.onnx --data test.npz --threads 1
    """
    from onnxprune import pipeline, report, run

    bar = Bar()
    feeding = run.Feeding(batch=batch, device=device)
    result = pipeline.compare(before, after, data, feeding=feeding, threads=threads, progress=bar)
    bar.close()
    click.echo(result.to_json() if as_json else report.summary(result))
