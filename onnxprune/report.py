"""Reports as text: tables that a stranger can read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from onnxprune.findings import GroupRow, Latency, Proof, Quality, Report
from onnxprune.records import NOT_EXACT, Group, Scores, reference
from onnxprune.units import Units

SHOWN = 5
"""Names that a note lists."""


def table(rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Columns aligned with spaces, the first row a heading.

    Args:
        rows: cells; all rows of one length.
        numbers: columns to align to the right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def count(value: float) -> str:
    """A number in thousands, millions or billions with three digits or more."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.{2 if abs(value) < 100 * size else 1}f}{unit}"
    return f"{value:g}"


def percent(share: float) -> str:
    """A share in percent, with two decimals."""
    return f"{100 * share:.2f} %"


def change(before: float, after: float) -> str:
    """How a quantity changed, in percent."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"


def summary(report: Report) -> str:
    """Before, after and change, then what a reader should know."""
    before, after = report.before, report.after
    rows = [
        ["", "before", "after", "change"],
        ["parameters", count(before.parameters), count(after.parameters), change(before.parameters, after.parameters)],
        ["multiply-accumulates", count(before.macs), count(after.macs), change(before.macs, after.macs)],
        ["file size", count(before.bytes) + "B", count(after.bytes) + "B", change(before.bytes, after.bytes)],
    ]
    if report.latency:
        rows.append(["latency, median", *_milliseconds(report.latency), f"x {report.latency.ratio:.2f}"])
    quality = report.quality
    for found, how in ((report.unrefit, ", not refit"), (quality, ", refit" if report.unrefit else "")):
        rows += _outputs(found, how) if found else []
    lines = [table(rows, numbers=(1, 2, 3)), ""]
    if report.latency:
        lines.append(_conditions(report.latency))
    if quality:
        lines.append(f"Outputs: {quality.samples:,} samples of {quality.source}.")
    if report.proof:
        proof = report.proof
        lines.append(
            f"Verified: equal to {reference(exact=report.exact)} in {proof.tensors:,} tensors on {proof.samples} "
            f"samples; largest difference of an output {proof.difference:.1e} of its values."
        )
    return "\n".join([*lines, *report.notes])


def unproved(proof: Proof) -> list[str]:
    """What to say where the proof could not see everything."""
    notes = []
    if proof.random:
        notes.append(f"Outputs that are other numbers in every run could not be compared: {', '.join(proof.random)}.")
    for name, by in proof.moved.items():
        much = f"by {by:.2g} of its values" if by is not None else "to other classes, or what is no number"
        notes.append(f"ONNX Runtime's optimizations move output '{name}' {much}; without them it is equal.")
    reasons: dict[str, list[str]] = {}
    for weight, because in proof.unseen.items():
        reasons.setdefault(because, []).append(weight)
    for because, weights in reasons.items():
        shown = ", ".join(weights[:SHOWN]) + (f" and {len(weights) - SHOWN} more" if len(weights) > SHOWN else "")
        notes.append(
            f"The proof did not see {len(weights)} of {proof.weights} weights that were cut, since on its inputs "
            f"{because}: {shown}."
        )
    return notes


def _outputs(quality: Quality, how: str) -> list[list[str]]:
    """Rows on what the models compute."""
    rows = [["largest output difference" + how, "", f"{quality.difference:.3g}", ""]]
    if quality.agreement is not None:
        rows.insert(0, ["same class as the original" + how, "", percent(quality.agreement), ""])
    if quality.top1:
        points = f"{100 * (quality.top1[1] - quality.top1[0]):+.2f} points"
        rows.insert(0, ["top-1" + how, percent(quality.top1[0]), percent(quality.top1[1]), points])
    return rows


def _milliseconds(latency: Latency) -> list[str]:
    return [f"{1e3 * span[1]:.2f} ms" for span in (latency.before, latency.after)]


def _conditions(latency: Latency) -> str:
    """How latency was measured."""
    spans = " and ".join(f"{1e3 * low:.2f}-{1e3 * high:.2f} ms" for low, _, high in (latency.before, latency.after))
    threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}" if latency.threads else "all cores"
    return (
        f"Latency: {latency.provider}, {threads}, batch {latency.batch}, {latency.runs} runs of each in turns; "
        f"10th to 90th percentile {spans}."
    )


def groups(rows: Sequence[GroupRow]) -> str:
    """One line a group: kept of total, scores, notes."""
    cells = [["group", "unit", "kept", "of", "scores", "note"]]
    for row in rows:
        scores = f"{row.scores[0]:.3g} to {row.scores[1]:.3g}" if row.scores else ""
        cells.append([row.name, row.kind, str(row.kept), str(row.units), scores, row.note])
    return table(cells, numbers=(2, 3))


def inspection(units: Units) -> str:
    """What can be pruned, what cannot, and why."""
    parameters, macs = units.cost({})
    lines = [f"{count(parameters)} parameters, {count(macs)} multiply-accumulates a sample", ""]
    if units.groups:
        cells = [["group", "unit", "units", "parameters each", "written by", "read by", "note"]]
        for group in units.groups.values():
            cells.append([group.name, group.kind, str(group.size), _each(units, group), *_ends(group), _remark(group)])
        lines += [table(cells, numbers=(2, 3)), ""]
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for axis in units.kept:
        axes, nodes = reasons.setdefault(axis.kept.because, ([], []))
        axes.append(f"{axis.constant}[{axis.axis}]")
        nodes.append(axis.kept.node)
    cells = [["stays", "because", "said by"]]
    for because, (axes, nodes) in reasons.items():
        cells.append([_some(axes), because, _some(list(dict.fromkeys(nodes)))])
    return "\n".join([*lines, table(cells)]) if reasons else "\n".join(lines)


def trials(study: Sequence[tuple[float, str, bool, bool, float, Quality]]) -> str:
    """One line a criterion and budget: what is left when low scores go first and when high ones do.

    Args:
        study: budget, criterion, reversed, refit, share of parameters removed, and what was measured.
    """
    cells = [["budget", "criterion", "low first", "low first, refit", "high first", "high first, refit", "removed"]]
    rows: dict[tuple[float, str], dict[tuple[bool, bool], tuple[float, Quality]]] = {}
    for share, criterion, reverse, refit, removed, quality in study:
        rows.setdefault((share, criterion), {})[reverse, refit] = removed, quality
    for (share, criterion), found in rows.items():
        values = [_left(found[reverse, refit][1]) for reverse in (False, True) for refit in (False, True)]
        cells.append([f"{share:g}", criterion, *values, percent(found[False, False][0])])
    return table(cells, numbers=(0, 2, 3, 4, 5, 6))


def _left(quality: Quality) -> str:
    """Accuracy where there are labels, else agreement, else the largest difference."""
    if quality.top1:
        return percent(quality.top1[1])
    return percent(quality.agreement) if quality.agreement is not None else f"{quality.difference:.3g}"


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are besides."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _each(units: Units, group: Group) -> str:
    """Parameters that one unit of a group costs while everything else is whole."""
    keep = units.whole()[group.name]
    keep[0] = False
    return f"{units.cost({})[0] - units.cost({group.name: keep})[0]:,}"


def _ends(group: Group) -> list[str]:
    """The weights that write and read a group, the first of each."""
    sides = (list(dict.fromkeys(weight.tensor for weight in weights)) for weights in (group.writers, group.readers))
    return [_some(side) if side else "each other" for side in sides]


def _remark(group: Group) -> str:
    if group.instead_of:
        return f"shares positions with {group.instead_of}; pruned only when named by --only"
    inside = "its gates are inside one operator and cannot be recorded"
    between = "no nonlinearity between its writers and readers"
    remarks = [inside if group.kind == "hidden unit" else between] if group.linear and group.readers else []
    if not group.exact:
        remarks.append(NOT_EXACT)
    return "; ".join(remarks)


def scored(units: Units, scores: Scores) -> str:
    """The range of scores of each group, and how many units change no output, so that they have none."""
    cells = [["group", "unit", "units", "lowest", "highest", "note"]]
    for name, values in scores.by_group.items():
        group, finite = units.groups[name], [float(value) for value in values if math.isfinite(value)]
        span = [f"{end(finite):.4g}" if finite else "" for end in (min, max)]
        silent = sum(value == -math.inf for value in values)
        notes = [scores.notes.get(name, ""), f"{silent} change no output and go first" if silent else ""]
        cells.append([name, group.kind, str(group.size), *span, "; ".join(filter(None, notes))])
    return table(cells, numbers=(2, 3, 4))


def inspection_json(units: Units) -> str:
    """What can be pruned and what cannot, schema onnxprune.units/1."""
    parameters, macs = units.cost({})
    found = {
        name: {
            "kind": group.kind,
            "units": group.size,
            "written_by": sorted({weight.tensor for weight in group.writers}),
            "read_by": sorted({weight.tensor for weight in group.readers}),
            "instead_of": group.instead_of or None,
            "exact": group.exact,
        }
        for name, group in units.groups.items()
    }
    kept = [
        {"constant": axis.constant, "axis": axis.axis, "size": axis.size, "because": axis.kept.because}
        | {"node": axis.kept.node or None}
        for axis in units.kept
    ]
    out = {"schema": "onnxprune.units/1", "parameters": parameters, "macs": macs, "groups": found, "kept": kept}
    return json.dumps(out, indent=1, sort_keys=True)


def scores_json(scores: Scores) -> str:
    """Scores by group, schema onnxprune.scores/1; null where a unit goes before all others."""
    by_group = {
        name: [float(value) if math.isfinite(value) else None for value in values]
        for name, values in scores.by_group.items()
    }
    out = {"schema": "onnxprune.scores/1", "criterion": scores.criterion, "scores": by_group, "notes": scores.notes}
    return json.dumps(out, indent=1, sort_keys=True)
