"""The whole recovery: read, build, train, write back.

Why threads wait passively: PyTorch's and ONNX Runtime's threads share the cores, and threads of one that spin while the
other works cost more than they gain. A step of a ResNet-20 with its teacher took 0.63 s instead of 0.99 s on two cores
beside a busy process. ONNX Runtime has as many threads as PyTorch, not tied to cores, as it ties those that it chooses:
in two processes at once a step took 0.59 s instead of 0.64 s (benchmarks/spinning.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.data import load_data
from onnxprune.errors import DataError, GoalMissed, PlanError
from onnxprune.graph import Graph, load
from onnxprune.inference import infer
from onnxprune.observation import observe
from onnxprune.padding import Places, Tokens
from onnxprune.plans import check_plan
from onnxprune.records import Plan, take
from onnxprune.recovery.augmentation import Augmentation
from onnxprune.recovery.batches import closed, opened
from onnxprune.recovery.losses import Objective, known_labels, known_of, shape_of, shown_positions
from onnxprune.recovery.options import Arrays, Augment, Execution, Progress, Training, Watch
from onnxprune.recovery.parallel import Processes, is_writer, processes
from onnxprune.recovery.paths import check_files, files_read
from onnxprune.recovery.samples import Samples, plan_epochs, read
from onnxprune.recovery.teacher import Teacher, check_teacher, find_hidden
from onnxprune.runtime import Session

if TYPE_CHECKING:
    from onnxprune.recovery.evaluation import Evaluator
    from onnxprune.recovery.loop import Loop, Setting

log = logging.getLogger(__name__)

PROOF_SAMPLES = 8
"""Samples on which the module is compared with ONNX Runtime before and after training."""

SHAPE_SAMPLES = 256
"""Samples on which the variance of the original's outputs is measured, if a step has as many."""

STATISTICS_SAMPLES = 1024
"""Samples on which the statistics of new normalizations are measured."""

FEW_SAMPLES = 16
"""Samples in a part of a step below which the statistics of normalizations are noise.

They are unfolded on request alone then, and a model that takes so few in a run keeps to the statistics that it has.
"""


def recover(
    model: Graph | Path | str,
    data: object,
    *,
    teacher: Graph | Path | str | None = None,
    plan: Plan | Path | None = None,
    training: Training | None = None,
    augment: Augment | str | None = None,
    watch: Watch | None = None,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> Graph:
    """Trains the weights of a model and gives back the same graph with the new ones.

    Args:
        model: the model to train.
        data: samples, with labels where `label_weight` asks for them.
        teacher: the original; without it the labels are the only thing to learn from.
        plan: what was removed from it, so that hidden states can be compared that got narrower.
        training: how.
        augment: `(arrays by input, generator) -> arrays`, or "script.py[:function]" whose default is `augment()`; with
            a third parameter `labels` it gets these too and may return `(arrays, labels)`.
        watch: what to measure after every epoch, and when to stop.
        execution: where, and what is kept on disk.
        progress: called with the stage, steps done, steps in all, and the loss in words.

    Raises:
        BridgeError: the bridge to PyTorch lacks an operator of the model, or the result differs in ONNX Runtime.
        DataError: the data do not fit, or lack labels that are asked for.
        DeviceError: a device or a way of sharing was asked for by name and cannot be had.
        GoalMissed: training ended below the goal; the exception holds the best graph.
        OutputError: a file that shall be written is one that is read, or it exists already, or it cannot be written.
        PlanError: there is nothing to learn from, or an option says something of a teacher that there is not.
    """
    training, execution = training or Training(), execution or Execution()
    if teacher is None and training.label_weight < 1:
        if training.label_weight > 0:
            raise PlanError(
                "without --teacher there are only labels to learn from; give --label-weight 1 or a teacher."
            )
        raise PlanError("there is nothing to learn from; give --teacher with the original, or --label-weight 1.")
    if teacher is None and (option := _of_teacher(plan, training, execution)):
        raise PlanError(f"{option} has to do with the original, and there is none; give --teacher or leave it out.")
    if is_writer():
        check_files(files_read(model, data, teacher, plan, augment, training, watch, execution), execution)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: see the module's docstring
    graph = model if isinstance(model, Graph) else load(model)
    original = teacher if isinstance(teacher, Graph) or teacher is None else load(teacher)
    plan = Plan.load(Path(plan)) if isinstance(plan, str | Path) else plan
    if plan is not None and original is not None:
        if plan.model != original.sha256:
            raise PlanError("the plan is of another model than the teacher; give the plan that prune wrote for it.")
        check_plan(original, plan)
    with processes(execution.device) as joined:
        tell = progress if progress and joined.rank == 0 else _quiet
        samples = _samples(graph, data, training)
        model, theirs = graph, original
        if samples.fixed:
            model, theirs, samples, training = _opened(graph, original, samples, training)
        made = _teacher(model, theirs, plan, samples, training, execution, joined) if theirs is not None else None
        setting = _setting(model, made, samples, training, execution, joined, augment, tell)
        try:
            return closed(graph, _trained(setting, watch))
        except GoalMissed as missed:
            missed.graph = closed(graph, missed.graph)
            raise


def _quiet(stage: str, done: int, total: int, note: str) -> None:
    """Progress for nobody."""


def _of_teacher(plan: Plan | Path | None, training: Training, execution: Execution) -> str | None:
    """An option that says something of the teacher."""
    usual = Training()
    given = {
        "--loss": training.loss != usual.loss,
        "--temperature": training.temperature != usual.temperature,
        "--match-hidden": training.match_hidden > 0,
        "--plan": plan is not None,
        "--cache": execution.cache is not None,
        "--teacher-runtime": execution.teacher_runtime != "auto",
    }
    return next((option for option, found in given.items() if found), None)


def _opened(
    graph: Graph, original: Graph | None, samples: Samples, training: Training
) -> tuple[Graph, Graph | None, Samples, Training]:
    """Model and teacher for any number of samples, where both can; else normalizations keep to their statistics."""
    model = opened(graph, samples)
    theirs = opened(original, samples) if model is not None and original is not None else None
    if model is not None and (original is None or theirs is not None):
        return model, theirs, replace(samples, fixed=0), training
    if samples.fixed < FEW_SAMPLES and not training.freeze_batchnorm and not training.unfold_batchnorm:
        if is_writer() and any(node.op == "BatchNormalization" for node in graph.nodes):
            log.info("the model takes %d samples a run, so normalizations keep to their statistics", samples.fixed)
        training = replace(training, freeze_batchnorm=True)
    return graph, original, samples, training


def _samples(graph: Graph, data: object, training: Training) -> Samples:
    """All samples, with the labels that the task wants."""
    session = Session(graph.message(), device="cpu")
    needs_labels = training.label_weight > 0 and training.task != "next-token"
    samples = read(load_data(data, session, size=training.batch), needs_labels=needs_labels)
    return replace(samples, labels=known_labels(samples.inputs, samples.labels, training))


def _teacher(
    graph: Graph,
    original: Graph,
    plan: Plan | None,
    samples: Samples,
    training: Training,
    execution: Execution,
    joined: Processes,
) -> Teacher:
    check_teacher(graph, original)
    hidden = find_hidden(graph, original, plan, samples.first(2)) if training.match_hidden else ()
    return Teacher(original, samples.first(PROOF_SAMPLES), joined, execution, hidden)


def _setting(
    graph: Graph,
    teacher: Teacher | None,
    samples: Samples,
    training: Training,
    execution: Execution,
    joined: Processes,
    augment: Augment | str | None,
    progress: Progress,
) -> Setting:
    """Everything that a training is made of."""
    import torch

    from onnxprune.recovery.loop import Setting
    from onnxprune.recovery.student import Student

    torch.manual_seed(training.seed)
    augmentation = Augmentation(augment) if augment else None
    if augmentation and augmentation.labelled and samples.labels is None:
        raise DataError("--augment takes labels, and there are none; add an array 'labels' to the data.")
    names = [state.name for state in teacher.hidden] if teacher else []
    schedule = plan_epochs(samples, training, joined.count)
    few = training.unfold_batchnorm is None and len(samples) < FEW_SAMPLES * schedule.steps * schedule.parts
    student = Student(
        graph,
        samples.first(PROOF_SAMPLES),
        _pieces(samples, STATISTICS_SAMPLES),
        hidden=names,
        unfolded=False if training.freeze_batchnorm or few else training.unfold_batchnorm,
    )
    learns = teacher is not None and training.label_weight < 1
    if teacher and learns:
        if augmentation and execution.cache:
            raise PlanError("--cache keeps nothing with --augment: no sample comes twice; leave out one of them.")
        if not augmentation and (training.epochs > joined.count or execution.cache):
            teacher.remember(samples, training.batch, execution.cache, progress)
    first = samples.first(min(SHAPE_SAMPLES, training.batch))
    known = teacher.run(first) if teacher else Session(graph.message(), device="cpu").run(first)
    shown, count = shown_positions(first), len(graph.outputs)
    places = () if shown is None else _places(graph, [*graph.outputs, *names], samples.first(2))
    shape = shape_of(known[:count], known[count:], shown, places)
    objective = Objective(training, shape, learns=learns)
    return Setting(student, samples, teacher, objective, schedule, training, execution, joined, augmentation, progress)


def _places(graph: Graph, names: Sequence[str], feeds: Arrays) -> list[Places | None]:
    """Where tensors of a model hold the tokens of its mask."""
    tokens = Tokens(infer(graph, observe(graph, feeds)))
    return [tokens.places(name) for name in names]


def _pieces(samples: Samples, count: int) -> list[Arrays]:
    """The first samples, in batches."""
    size = samples.fixed or 64
    whole = min(count, len(samples)) // size * size
    if not whole:
        return [samples.first(size)]
    return [take(samples.inputs, slice(start, start + size)) for start in range(0, whole, size)]


def _trained(setting: Setting, watch: Watch | None) -> Graph:
    """Trains, and writes the weights into the graph."""
    from onnxprune.recovery.checkpoint import Checkpoint
    from onnxprune.recovery.loop import Loop

    path = setting.execution.checkpoint
    checkpoint = Checkpoint(path, _identity(setting, watch)) if path else None
    evaluator = _evaluator(setting, watch) if watch else None
    loop: Loop = Loop(setting, evaluator, checkpoint)
    graph = setting.student.export(loop.train())
    if watch and watch.goal is not None and evaluator and (loop.best is None or not evaluator.reached(loop.best)):
        best = "nothing" if loop.best is None else evaluator.in_words(loop.best)
        raise GoalMissed(
            f"the goal of {watch.goal:g} was missed: the best was {best}; train longer or prune less.", graph
        )
    return graph


def _evaluator(setting: Setting, watch: Watch) -> Evaluator:
    import torch

    from onnxprune.recovery.evaluation import Evaluator, real_part
    from onnxprune.torch_bridge.arrays import tensor_of

    graph, teacher = setting.student.graph, setting.teacher
    data = load_data(watch.data, Session(graph.message(), device="cpu"), size=setting.training.batch)

    def loss(feeds: Arrays, outputs: list[np.ndarray], labels: np.ndarray | None, real: int) -> float:
        targets: list[Any] = []
        if teacher and setting.objective.learns:
            targets = [tensor_of(target) for target in real_part(teacher.run(feeds), feeds, real)]
        inputs = take(feeds, slice(real))
        known = known_of(inputs, known_labels(inputs, labels, setting.training))
        with torch.no_grad():
            return float(setting.objective([torch.tensor(output) for output in outputs], targets, known))

    outputs, next_token = len(graph.outputs), setting.training.task == "next-token"
    return Evaluator(watch, data, teacher.run if teacher else None, loss, outputs=outputs, next_token=next_token)


def _identity(setting: Setting, watch: Watch | None) -> dict[str, Any]:
    """What tells one run from another; a checkpoint of another run is refused."""
    options = {k: v for k, v in asdict(setting.training).items() if k != "save_every"}
    return {
        "model": setting.student.graph.sha256,
        "teacher": setting.teacher.identity if setting.teacher else "",
        "samples": setting.samples.fingerprint(),
        "training": options,
        "watch": [watch.metric, watch.patience, watch.goal] if watch else [],
        "processes": setting.processes.count,
        "shared": setting.execution.fsdp,
        "hidden": [state.name for state in setting.teacher.hidden] if setting.teacher else [],
        "augmented": setting.augmentation is not None,
        "precision": setting.execution.precision,
    }
