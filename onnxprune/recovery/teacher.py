"""The original, in ONNX Runtime or in PyTorch, and what it has said before.

ONNX Runtime takes every model. PyTorch needs no ONNX Runtime for the device, leaves the outputs there, and computes in
bfloat16 what autocast allows; on a CPU a step takes 0.91 to 1.22 times as long with it (benchmarks/teacher.py).

Without augmentation a sample comes back in every epoch, so the outputs are computed once and kept: in memory where
they are small, in a folder where one is given. An augmented sample never comes back, and nothing can be kept.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxprune.checksums import DIGITS, Summed, checksum_of
from onnxprune.errors import DataError, DeviceError, ModelError, PlanError
from onnxprune.files import Results
from onnxprune.graph import Graph
from onnxprune.records import KeptIndices, Plan
from onnxprune.recovery.options import Arrays, Execution, Progress
from onnxprune.recovery.parallel import Processes, is_writer
from onnxprune.recovery.samples import Samples
from onnxprune.runtime import Session, own_cores

if TYPE_CHECKING:
    import torch

    Value = TypeVar("Value", np.ndarray, torch.Tensor)

log = logging.getLogger(__name__)

MEMORY_LIMIT = 1 << 30
"""Bytes of outputs up to which they are kept in memory."""

TRAILER = b"\nonnxprune.outputs/1 "
"""What stands behind the array in a file of kept outputs; its checksum and the end of the line follow."""

CONTRACTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "FusedConv", "FusedGemm"})
"""Operators at whose outputs groups end: there the compact model shall compute what the original does."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A tensor that both models compute.

    Attributes:
        name: in both.
        kept: the positions that the compact model still has, by axis.
    """

    name: str
    kept: KeptIndices

    def cut(self, value: Value) -> Value:
        """The part of the original's tensor that the compact model has."""
        for axis, kept in self.kept.items():
            value = value[(slice(None),) * axis + (list(kept),)]
        return value


def check_teacher(student: Graph, original: Graph) -> None:
    """Makes sure that a model can learn from another one.

    Raises:
        ModelError: their inputs or outputs differ.
    """
    if original.inputs != student.inputs or original.outputs != student.outputs:
        raise ModelError(
            "the teacher has other inputs or outputs than the model; give the model that it was made from."
        )


def find_hidden(student: Graph, original: Graph, plan: Plan | None, feeds: Arrays) -> tuple[Hidden, ...]:
    """The hidden states to match: what contractions of weights give out, where both models have it.

    Args:
        student: the compact model.
        original: its teacher.
        plan: what was removed; without it only tensors of unchanged shape are found.
        feeds: a batch.

    Raises:
        PlanError: nothing can be matched, or the plan does not fit.
    """
    theirs = {tensor.name for node in original.nodes for tensor in node.outputs}
    made = [node.outputs[0].name for node in student.nodes if node.op in CONTRACTS]
    names = [name for name in made if name in theirs and name not in student.outputs]
    shapes = []
    for graph in (student, original):
        session = Session(graph.message(outputs=names), device="cpu")
        shapes.append([array.shape for array in session.run(feeds, names)])
    found = []
    for name, ours, whole in zip(names, *shapes, strict=True):
        kept = plan.activations.get(name, {}) if plan is not None else {}
        if any(axis >= len(whole) or max(indices, default=0) >= whole[axis] for axis, indices in kept.items()):
            raise PlanError(
                f"the plan keeps positions of '{name}' that are not there, its shape is {whole}; it was edited, so "
                "make a new one."
            )
        if ours == tuple(len(kept.get(axis, range(size))) for axis, size in enumerate(whole)):
            found.append(Hidden(name, kept))
    if not found:
        raise PlanError(
            "--match-hidden finds no hidden state of the same name and shape in both models; give the --plan that "
            "prune wrote, or do without."
        )
    best = plan is not None or len(found) == len(names)
    advice = "" if best else "; for the others, which are narrower, give the --plan that prune wrote"
    if is_writer():
        log.info("compares %d of %d hidden states%s", len(found), len(names), advice)
    return tuple(found)


class Teacher:
    """The original and its outputs.

    Attributes:
        hidden: tensors whose values follow the outputs.
        identity: tells it from others whose outputs differ, if only in rounding.
    """

    def __init__(
        self,
        graph: Graph,
        proof: Arrays,
        processes: Processes,
        execution: Execution,
        hidden: Sequence[Hidden] = (),
    ) -> None:
        """Loads the original.

        Args:
            graph: the original.
            proof: a batch on which PyTorch is compared with ONNX Runtime, where it runs the original.
            processes: says on which device.
            execution: says in what, and how precisely.
            hidden: states to give out as well.

        Raises:
            BridgeError: PyTorch shall run it and cannot.
            DeviceError: ONNX Runtime shall run it and cannot use the device.
            ModelError: ONNX Runtime cannot load it.
        """
        self.hidden, self.identity = tuple(hidden), graph.sha256
        self._count = len(graph.outputs)
        names = [state.name for state in self.hidden]
        run = None
        if execution.teacher_runtime != "torch":
            run = _in_onnxruntime(graph, names, processes, execution)
        if run is None:
            from onnxprune.recovery.modules import Frozen

            frozen = Frozen(graph, proof, names, processes.device, execution.precision)
            self.identity += f" in torch, {'bfloat16' if frozen.half else 'float32'}"
            run = frozen.run
        self._run: Callable[[Arrays], list[Any]] = run
        self._kept: list[np.ndarray] | None = None

    def run(self, arrays: Arrays) -> list[np.ndarray]:
        """The outputs for a batch, hidden states behind them."""
        from onnxprune.torch_bridge.arrays import array_of

        return [x if isinstance(x, np.ndarray) else array_of(x) for x in self._values(arrays)]

    def targets(self, rows: np.ndarray, arrays: Arrays, device: torch.device) -> list[torch.Tensor]:
        """The outputs for some samples on a device: those that were kept, or else computed."""
        from onnxprune.torch_bridge.arrays import tensor_of

        values = self._values(arrays) if self._kept is None else [np.asarray(array[rows]) for array in self._kept]
        return [(tensor_of(x) if isinstance(x, np.ndarray) else x).to(device) for x in values]

    def _values(self, arrays: Arrays) -> list[Any]:
        """Arrays, or tensors on the device, whichever there are."""
        results = self._run(arrays)
        cut = [state.cut(x) for state, x in zip(self.hidden, results[self._count :], strict=True)]
        return [*results[: self._count], *cut]

    def remember(self, samples: Samples, batch: int, folder: Path | None, progress: Progress) -> bool:
        """Computes the outputs of all samples once, if there is room for them; returns whether there was.

        Args:
            samples: all samples, in the form in which they come back.
            batch: samples in a run.
            folder: where to keep them for later runs; in memory when None.
            progress: called after each run.

        Raises:
            DataError: the folder does not exist.
        """
        if folder is not None and not folder.is_dir():
            raise DataError(f"--cache {folder} is no folder; create it.")
        sample = self.run(samples.first(1))
        rows = samples.fixed or 1
        if not _has_samples(sample, rows):
            return False
        needed = sum(array.nbytes for array in sample) * len(samples) // rows
        room = shutil.disk_usage(folder).free // 2 if folder is not None else MEMORY_LIMIT
        if needed > room:
            if folder is not None:
                log.warning(
                    "the teacher's outputs take %.1f GB, more than half of what %s has free; they are computed anew "
                    "in every epoch",
                    needed / 1e9,
                    folder,
                )
            return False
        paths = self._paths(samples, folder, len(sample)) if folder is not None else []
        whole = bool(paths) and all(path.is_file() for path in paths)
        if whole and (damaged := [path for path in paths if not _is_whole(path)]):
            whole = False
            if is_writer():
                log.warning("%s is damaged; the teacher's outputs are computed anew", damaged[0])
        if not whole:
            self._kept = self._compute(samples, samples.fixed or batch, progress)
            if self._kept is None:
                return False
            if not paths or not is_writer():
                return True
            with Results() as results:
                for path, array in zip(paths, self._kept, strict=True):
                    _write_whole(results, path, array)
        if paths:
            self._kept = [np.load(path, mmap_mode="r") for path in paths]
        return True

    def _compute(self, samples: Samples, batch: int, progress: Progress) -> list[np.ndarray] | None:
        """The outputs of all samples; None where those of a batch are not rows of its samples after all."""
        parts = []
        for start in range(0, len(samples), batch):
            real = min(batch, len(samples) - start)
            rows = np.arange(start, start + (samples.fixed or real)) % len(samples)
            results = self.run(samples.take(rows)[0])
            if not _has_samples(results, len(rows)):
                return None
            parts.append([a[:real] for a in results])
            progress("teacher", start + real, len(samples), "")
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _paths(self, samples: Samples, folder: Path, count: int) -> list[Path]:
        """Files that are named by everything that decides what is in them."""
        what = [self.identity, samples.fingerprint(), *(f"{s.name} {sorted(s.kept.items())}" for s in self.hidden)]
        key = hashlib.blake2b("\n".join(what).encode(), digest_size=8).hexdigest()
        return [folder / f"teacher-{key}-{i}.npy" for i in range(count)]


def _has_samples(arrays: Sequence[np.ndarray], rows: int) -> bool:
    """Whether the first axis of all arrays is that of the samples; others cannot be taken apart."""
    return all(array.ndim > 0 and len(array) == rows for array in arrays)


def _write_whole(results: Results, path: Path, array: np.ndarray) -> None:
    """Writes an array and behind it, where numpy does not look, the checksum of what is before."""
    file = results.open(path)
    np.save(summed := Summed(file), array)
    file.write(TRAILER + summed.checksum().encode() + b"\n")


def _is_whole(path: Path) -> bool:
    """Whether a file is as `_write_whole` wrote it."""
    try:
        size = path.stat().st_size - len(TRAILER) - DIGITS - 1
        with path.open("rb") as file:
            file.seek(max(size, 0))
            return size > 0 and file.read() == TRAILER + checksum_of(path, size).encode() + b"\n"
    except OSError:
        return False


def _in_onnxruntime(
    graph: Graph, hidden: Sequence[str], processes: Processes, execution: Execution
) -> Callable[[Arrays], list[Any]] | None:
    """Runs a model in ONNX Runtime; None where PyTorch shall instead, since it alone can use the GPU."""
    import torch

    device = processes.teacher
    either = execution.teacher_runtime == "auto" and processes.device != "cpu" and device.startswith(("auto", "cuda"))
    if either and device == "auto":
        device = processes.device  # by name it is the GPU or an error, never the CPU
    # as many threads as PyTorch has beside it; left to ONNX Runtime they are tied to cores, which is in the way
    threads = own_cores() or torch.get_num_threads()
    try:
        session = Session(graph.message(outputs=hidden), device=device, spin=False, threads=threads)
    except DeviceError:
        if not either:
            raise
        if is_writer():
            log.info("ONNX Runtime cannot use the GPU, so the teacher runs in PyTorch")
        return None
    return lambda arrays: session.run(arrays, [*graph.outputs, *hidden])
