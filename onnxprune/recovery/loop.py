"""The training itself: steps, epochs, and the state that outlives an interruption."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from onnxprune.errors import BridgeError, PlanError
from onnxprune.recovery.augmentation import Augmentation
from onnxprune.recovery.checkpoint import Checkpoint, Log
from onnxprune.recovery.evaluation import Evaluator
from onnxprune.recovery.losses import Objective, known_of, labels_that_count, seen_in, shown_positions
from onnxprune.recovery.modules import computes_in_bfloat16, lay_out
from onnxprune.recovery.options import Arrays, Execution, Progress, Training
from onnxprune.recovery.parallel import Processes, waits_for_gradients
from onnxprune.recovery.samples import Samples, Schedule
from onnxprune.recovery.student import Student
from onnxprune.recovery.teacher import Teacher
from onnxprune.recovery.weights import Average, full, load_optimizer, optimizer_for, optimizer_state, put, shed
from onnxprune.runtime import first_line
from onnxprune.torch_bridge.arrays import array_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a training is made of.

    Attributes:
        student: the model.
        samples: what it is trained on.
        teacher: the original, if it is learnt from.
        objective: the loss.
        schedule: which samples each step takes.
        training: how.
        execution: where.
        processes: this one and the others.
        augmentation: changes the samples of each step.
        progress: called after each step.
    """

    student: Student
    samples: Samples
    teacher: Teacher | None
    objective: Objective
    schedule: Schedule
    training: Training
    execution: Execution
    processes: Processes
    augmentation: Augmentation | None
    progress: Progress


class Loop:
    """One training.

    Attributes:
        best: the best value measured so far, None before the first.
    """

    def __init__(self, setting: Setting, evaluator: Evaluator | None, checkpoint: Checkpoint | None) -> None:
        """Puts the module on its device and makes the optimizer.

        Raises:
            PlanError: the precision cannot be had.
        """
        self.s, self.evaluator, self.checkpoint = setting, evaluator, checkpoint
        training, processes = setting.training, setting.processes
        self.device = torch.device(processes.device)
        self.half = computes_in_bfloat16(setting.execution.precision, self.device)
        self.module = setting.student.module.to(self.device)
        if not setting.execution.fsdp:  # fully_shard takes contiguous weights alone
            lay_out(self.module)
        outputs = len(setting.student.graph.outputs)
        self.wrapped = processes.wrap(self.module, fsdp=setting.execution.fsdp, several_outputs=outputs > 1)
        self.called: Any = self.wrapped
        if setting.execution.compile:
            try:
                self.called = torch.compile(self.wrapped, backend=setting.execution.compile)
            except Exception as error:  # torch raises a dozen unrelated classes
                raise self._uncompiled(error) from error
        self.optimizer = optimizer_for(self.module, training)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        self.average = Average(setting.student.trained(), training.ema) if training.ema else None
        known = setting.samples.labels
        self.counted = None if known is None else labels_that_count(known, training)
        shown = shown_positions(setting.samples.inputs)
        self.seen = None if shown is None else seen_in(shown)
        self.done = 0
        self.best: float | None = None
        self.chosen: dict[str, torch.Tensor] = {}
        self.waited = 0
        self.note = ""

    def _factor(self, step: int) -> float:
        """The learning rate at a step, relative to its peak."""
        total = self.s.schedule.steps * self.s.training.epochs
        rising = max(1, round(total * self.s.training.warmup))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    def train(self) -> Mapping[str, torch.Tensor]:
        """Runs the training to its end; returns the weights to keep."""
        if self.s.execution.resume:
            self._restore()
        elif self.evaluator:
            self._measure(0)
        writer = self.s.processes.rank == 0
        self.journal = Log(self.s.execution.losses if writer else None, after=self.done)
        steps, epochs = self.s.schedule.steps, self.s.training.epochs
        for epoch in range(self.done // steps, epochs):
            if self._is_over():
                break
            order = self.s.schedule.epoch(epoch)
            losses = []
            for step in range(self.done - epoch * steps, steps):
                rate = self.optimizer.param_groups[0]["lr"]
                loss = self._step(order[step], epoch, step)
                losses.append(loss)
                self.done += 1
                self.journal.add(step=self.done, loss=loss, rate=rate)
                self.s.progress("recovery", self.done, steps * epochs, f"loss {loss:.4f}{self.note}")
                last = step == steps - 1
                if last and self.evaluator:
                    self._measure(epoch + 1)
                if self.checkpoint and (last or self.done % self.s.training.save_every == 0):
                    self._save()
            if writer:
                mean = sum(losses) / len(losses)  # of the steps since it was resumed, if that was in this epoch
                log.info("epoch %d of %d: mean loss %.4f%s", epoch + 1, epochs, mean, self.note)
        return self.chosen if self.evaluator else self._weights()

    def _is_over(self) -> bool:
        """Whether the goal is reached, or nothing has become better for too long."""
        if self.evaluator is None or self.best is None:
            return False
        patience = self.evaluator.watch.patience
        return self.evaluator.reached(self.best) or bool(patience and self.waited >= patience)

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
        """The parts of a step that are this process's: number, rows, and weight in the sum of all processes' means.

        Every process takes part in every exchange, so one without samples computes the first one at no weight.
        """
        schedule, processes = self.s.schedule, self.s.processes
        parts = schedule.split(rows)
        own = schedule.parts // processes.count
        for number in range(processes.rank * own, (processes.rank + 1) * own):
            part = parts[number]
            if len(part) or processes.count > 1:
                yield number, part if len(part) else rows[:1], len(part) / len(rows)

    def _step(self, rows: np.ndarray, epoch: int, step: int) -> float:
        """One step of the optimizer; returns the loss over all processes."""
        self.module.train(not self.s.training.freeze_batchnorm)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        parts = list(self._parts(rows))
        for i, (number, part, weight) in enumerate(parts):
            arrays, labels = self.s.samples.take(part)
            if self.s.augmentation:
                generator = np.random.default_rng([self.s.training.seed, epoch, step, number])
                arrays, labels = self.s.augmentation(arrays, labels, generator)
            with waits_for_gradients(self.wrapped, last=i == len(parts) - 1):
                loss = weight * self._loss(part, arrays, labels)
                torch.autograd.backward(self.s.processes.count * loss)  # gradients are averaged over the processes
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.s.training.clip)
        self.optimizer.step()
        self.scheduler.step()
        if self.average:
            self.average.update(self.s.student.trained(), self.done + 1)
        value = self.s.processes.mean(total)
        if not math.isfinite(value):
            raise BridgeError("training diverged: the loss is not finite; lower --rate.")
        return value

    def _loss(self, rows: np.ndarray, arrays: Arrays, labels: np.ndarray | None) -> torch.Tensor:
        """The mean loss of some samples."""
        targets: list[torch.Tensor] = []
        if self.s.teacher and self.s.objective.learns:
            targets = self.s.teacher.targets(rows, arrays, self.device)
        known = replace(known_of(arrays, labels, self.device), counted=self.counted, seen=self.seen)
        return self.s.objective(self._forward(arrays), targets, known)

    def _forward(self, arrays: Arrays) -> tuple[torch.Tensor, ...]:
        inputs = self.s.student.arguments(arrays, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            try:
                return self.called(*inputs)
            except Exception as error:
                if not self.s.execution.compile or not type(error).__module__.startswith("torch._"):
                    raise
                raise self._uncompiled(error) from error

    def _uncompiled(self, error: Exception) -> BridgeError:
        """What to say where torch.compile fails."""
        backend = self.s.execution.compile
        return BridgeError(f"torch.compile with {backend} fails: {first_line(error)}; train without --compile.")

    def outputs(self, arrays: Arrays) -> list[np.ndarray]:
        """Outputs and hidden states in evaluation mode, as arrays."""
        with torch.no_grad():
            return [array_of(output) for output in self._forward(arrays)]

    def _measure(self, epoch: int) -> None:
        """Measures the weights that would be kept, and remembers them if they are the best."""
        assert self.evaluator is not None
        trained = self.s.student.trained()
        before = {name: tensor.detach().clone() for name, tensor in trained.items()}
        if self.average:
            put(trained, self.average.values)
        self.module.eval()
        value = self.s.processes.agree(self.evaluator.measure(self.outputs))
        shed(self.module)
        self.note = f", {self.evaluator.in_words(value)}"
        if self.evaluator.better(value, self.best):
            self.best, self.waited, self.chosen = value, 0, full(trained)
        else:
            self.waited += 1
        put(trained, before)
        if not epoch and self.s.processes.rank == 0:
            log.info("before: %s", self.evaluator.in_words(value))
        if epoch:
            self.journal.add(step=self.done, epoch=epoch, metric=self.evaluator.metric, value=value)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The weights as they would be kept now."""
        return full(self.average.values if self.average else self.s.student.trained())

    def _save(self) -> None:
        state: dict[str, Any] = {
            "done": self.done,
            "module": full(self.s.student.trained()),
            "optimizer": optimizer_state(self.module, self.optimizer, shared=self.s.execution.fsdp),
            "scheduler": self.scheduler.state_dict(),
            "average": full(self.average.values) if self.average else None,
            "best": self.best,
            "chosen": self.chosen,
            "waited": self.waited,
            "note": self.note,
        }
        assert self.checkpoint is not None
        if self.s.processes.rank == 0:
            self.checkpoint.save(state)

    def _restore(self) -> None:
        """Goes on from the checkpoint.

        Raises:
            DataError: there is none, or it is of another run.
        """
        if self.checkpoint is None:
            raise PlanError("there is no checkpoint to resume from; name one.")
        state = self.checkpoint.load()
        put(self.s.student.trained(), state["module"])
        load_optimizer(self.module, self.optimizer, state["optimizer"], shared=self.s.execution.fsdp)
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            put(self.average.values, state["average"])
        self.done, self.best, self.chosen = state["done"], state["best"], state["chosen"]
        self.waited, self.note = state["waited"], state["note"]
