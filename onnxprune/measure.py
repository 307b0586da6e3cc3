"""What a model costs and how well it does: parameters, multiply-accumulates, bytes, latency, accuracy, agreement."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np

from onnxprune.errors import DataError
from onnxprune.findings import Cost, Latency, Quality
from onnxprune.graph import Graph
from onnxprune.grouping import find_units
from onnxprune.labels import IGNORED, classes
from onnxprune.records import Batch
from onnxprune.runtime import Feeds, Session

log = logging.getLogger(__name__)

SECONDS = 4.0
"""How long two models are timed, warm-up left out."""


def cost(graph: Graph, sample: Feeds | None = None) -> Cost:
    """Parameters, multiply-accumulates for one sample, and bytes when saved.

    Args:
        graph: the model.
        sample: an array for each input, where sizes of symbolic axes have to come from data.
    """
    parameters, macs = find_units(graph, sample).cost({})
    return Cost(parameters, macs, stored_bytes(graph))


def stored_bytes(graph: Graph) -> int:
    """Bytes of the saved model, external data included."""
    model, shared = graph.parts()
    return model.ByteSize() + sum(array.nbytes for array in shared.values())


def latency(before: Session, after: Session, feeds: Feeds, *, threads: int = 0, seconds: float = SECONDS) -> Latency:
    """Times two models in turns.

    Args:
        before: the original, loaded with `threads` threads.
        after: the other model, likewise.
        feeds: one batch.
        threads: for the record.
        seconds: how long to go on; at least 10 runs of each are made.
    """
    for session in (before, after) * 3:
        session.run(feeds)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 10 or (time.perf_counter() < end and len(times) < 1000):
        times.append((_timed(before, feeds), _timed(after, feeds)))
    array = np.array(times)  # (runs, 2)
    low, median, high = np.percentile(array, [10, 50, 90], axis=0)
    ratio = float(np.median(array[:, 1] / array[:, 0]))
    batch = next((len(value) for value in feeds.values() if value.ndim), 1)
    spans = [(float(low[i]), float(median[i]), float(high[i])) for i in (0, 1)]
    return Latency(after.provider, threads, batch, len(times), spans[0], spans[1], ratio)


def _timed(session: Session, feeds: Feeds) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def top1(session: Session, batches: Iterable[Batch]) -> tuple[float, int]:
    """Share of samples whose label is the largest entry of the first output, and the number of samples.

    Raises:
        DataError: the data have no labels that are classes, or the output is not one row of classes a sample.
    """
    hits = samples = 0
    for batch in batches:
        if batch.labels is None:
            raise DataError("top-1 accuracy needs labels; add an array 'labels' to the data.")
        output = session.run(batch.feeds)[0]
        chosen = _classes(output, batch)
        if chosen is None:
            raise DataError("top-1 accuracy needs a first output of one row of classes a sample; this model has none.")
        labels = classes(batch.labels[: batch.real], chosen.shape, output.shape[1])
        hits += int(np.sum(chosen == labels))
        samples += int(np.sum(labels != IGNORED))
    if not samples:
        raise DataError(f"nothing in the data counts: all labels are {IGNORED}; give others.")
    return hits / samples, samples


def _classes(output: np.ndarray, batch: Batch) -> np.ndarray | None:
    """The chosen class of each sample; None where the output is not (samples, classes)."""
    if not isinstance(output, np.ndarray):
        return None
    usable = output.ndim == 2 and len(output) == batch.rows and output.shape[1] > 1 and output.dtype.kind == "f"
    return output[: batch.real].argmax(axis=1) if usable else None


def quality(
    before: Session,
    after: Session,
    batches: Iterable[Batch],
    *,
    source: str = "",
    progress: Callable[[int], None] | None = None,
) -> Quality:
    """Compares what two models compute.

    Args:
        before: the original.
        after: the other model.
        batches: samples, with labels where there are any.
        source: what they are, for the report.
        progress: called with the samples done.
    """
    samples, counted, hits, agreed, difference = 0, 0, np.zeros(2), 0, 0.0
    labelled = classified = True
    for batch in batches:
        outputs = [session.run(batch.feeds) for session in (before, after)]
        for a, b in zip(*outputs, strict=True):
            if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.shape == b.shape:
                numbers = np.isfinite(a) & np.isfinite(b)
                gap = np.abs(a[numbers].astype(np.float64) - b[numbers])
                difference = max(difference, float(np.max(gap, initial=0.0)))
        chosen = [_classes(out[0], batch) for out in outputs]
        samples += batch.real
        if chosen[0] is None or chosen[1] is None:
            classified = False
        else:
            agreed += int(np.sum(chosen[0] == chosen[1]))
            labels = _labels(batch, chosen[0], outputs[0][0].shape[1]) if labelled else None
            labelled = labels is not None
            if labels is not None:
                hits += [np.sum(choice == labels) for choice in chosen]
                counted += int(np.sum(labels != IGNORED))
        if progress:
            progress(samples)
    known = labelled and classified and counted
    accuracy = (float(hits[0] / counted), float(hits[1] / counted)) if known else None
    return Quality(samples, source, accuracy, agreed / samples if classified else None, difference)


def _labels(batch: Batch, chosen: np.ndarray, count: int) -> np.ndarray | None:
    """The labels of a batch as classes; None where it has none, which is said where it has other ones."""
    if batch.labels is None:
        return None
    try:
        return classes(batch.labels[: batch.real], chosen.shape, count)
    except DataError as error:
        log.warning("no top-1 accuracy: %s", error)
        return None
