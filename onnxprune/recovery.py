"""One fine-tuning of a compact model, in PyTorch, from ONNX alone, and back into the same ONNX graph.

Without labels the model learns from the outputs of the original (distillation); with labels it can learn from both. The
order of samples and every augmentation depend on the seed, the epoch and the step alone, so that a run that was cut off
goes on as if it had not been.

Why threads wait passively: PyTorch's and ONNX Runtime's threads share the cores, and threads of one that spin while the
other works cost more than they gain. A step of a ResNet-20 with its teacher took 0.45 s instead of 2.9 s on two cores
that were not idle (benchmarks/spinning.py).
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxprune.data import Data, load_data, load_function
from onnxprune.errors import BridgeError, DataError, ModelError, PlanError
from onnxprune.files import write
from onnxprune.graph import Graph, load
from onnxprune.runtime import Session, gpu_count

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Augment = Callable[[Arrays, np.random.Generator], Arrays]
Progress = Callable[[str, int, int], None]

PROOF_SAMPLES = 8
"""Samples on which the module is compared with ONNX Runtime before and after training."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over the data.
        batch: samples in a step.
        optimizer: "adamw" or "sgd" with Nesterov momentum 0.9.
        rate: peak learning rate; 1e-3 for adamw and 0.05 for sgd when None.
        decay: weight decay, on weights of two axes or more.
        warmup: share of the steps in which the rate rises; then it falls to zero as a cosine.
        clip: largest norm of the gradient.
        temperature: of distillation on classes.
        label_weight: weight of the labels' cross-entropy, between 0 (the original alone) and 1 (labels alone).
        loss: of distillation, "kl" on classes, "mse" normalized by variance, or "auto": kl for outputs of two axes.
        seed: of the order of samples and of augmentation.
        save_every: steps between checkpoints.
    """

    epochs: int = 3
    batch: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: float | None = None
    decay: float = 1e-4
    warmup: float = 0.1
    clip: float = 5.0
    temperature: float = 4.0
    label_weight: float = 0.0
    loss: Literal["auto", "kl", "mse"] = "auto"
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch": self.batch, "temperature": self.temperature, "clip": self.clip}
        for name, value in {**positive, "save_every": self.save_every, "rate": self.rate or 1}.items():
            if value <= 0:
                raise PlanError(f"--{name.replace('_', '-')} {value:g} is out of range; give more than 0.")
        for name, value in {"label-weight": self.label_weight, "warmup": self.warmup}.items():
            if not 0 <= value <= 1:
                raise PlanError(f"--{name} {value:g} is out of range; give a share from 0 to 1.")


def recover(
    model: Graph | Path | str,
    data: object,
    *,
    teacher: Graph | Path | str | None = None,
    training: Training | None = None,
    augment: Augment | str | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Graph:
    """Trains the weights of a model and gives back the same graph with the new ones.

    Args:
        model: the model to train.
        data: samples, with labels where `label_weight` asks for them.
        teacher: the original; without it the labels are the only thing to learn from.
        training: how.
        augment: `(arrays by input, generator) -> arrays`, or "script.py[:function]" whose default is `augment()`.
        checkpoint: where the state of the training is kept, so that it can be resumed.
        resume: whether to go on from that checkpoint.
        device: of the teacher and the training, as in `runtime.Session`.
        progress: called with the stage, steps done and steps in all.

    Raises:
        BridgeError: the bridge to PyTorch lacks an operator of the model, or the result differs in ONNX Runtime.
        DataError: the data do not fit, or lack labels that are asked for.
        PlanError: there is nothing to learn from.
    """
    training = training or Training()
    if teacher is None and training.label_weight < 1:
        if training.label_weight > 0:
            raise PlanError(
                "without --teacher there are only labels to learn from; give --label-weight 1 or a teacher."
            )
        raise PlanError("there is nothing to learn from; give --teacher with the original, or --label-weight 1.")
    graph = model if isinstance(model, Graph) else load(model)
    session = Session(graph.message(), device="cpu")
    samples = _samples(load_data(data, session, size=training.batch), needs_labels=training.label_weight > 0)
    original = _teacher(teacher, graph, device) if teacher is not None else None
    run = _Run(graph, samples, original, training, _augmentation(augment), checkpoint, device, progress)
    return run.train(resume)


@dataclass(frozen=True, slots=True)
class _Samples:
    """All samples in memory: training takes them in random order."""

    inputs: Arrays
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def _samples(data: Data, *, needs_labels: bool) -> _Samples:
    batches = [(b.feeds, b.labels, b.real) for b in data.batches()]
    labels = [batch_labels for _, batch_labels, _ in batches]
    if needs_labels and any(batch_labels is None for batch_labels in labels):
        raise DataError(f"{data.source} has no labels; add an array 'labels', or use --label-weight 0.")
    names = batches[0][0].keys()
    arrays = {name: np.concatenate([feeds[name][:real] for feeds, _, real in batches]) for name in names}
    whole = None if any(x is None for x in labels) else np.concatenate([x for x in labels if x is not None])
    return _Samples(arrays, whole)


def _teacher(teacher: Graph | Path | str, graph: Graph, device: str) -> Session:
    """The original in ONNX Runtime, which runs it faster than PyTorch does on a CPU."""
    original = teacher if isinstance(teacher, Graph) else load(teacher)
    if original.inputs != graph.inputs or original.outputs != graph.outputs:
        raise ModelError(
            "the teacher has other inputs or outputs than the model; give the model that it was made from."
        )
    return Session(original.message(), device=device, spin=False)


def _augmentation(augment: Augment | str | None) -> Augment | None:
    if not isinstance(augment, str):
        return augment
    script, _, function = augment.partition(".py:")
    return load_function(Path(script + ".py" if function else augment), function or "augment")


class _Run:
    """One training; holds the module, the optimizer and the data."""

    def __init__(
        self,
        graph: Graph,
        samples: _Samples,
        teacher: Session | None,
        training: Training,
        augment: Augment | None,
        checkpoint: Path | None,
        device: str,
        progress: Progress | None,
    ) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: see the module's docstring
        import torch

        from onnxprune.torch_bridge import to_torch

        self.graph, self.samples, self.teacher, self.training = graph, samples, teacher, training
        self.augment, self.checkpoint, self.progress = augment, checkpoint, progress
        torch.manual_seed(training.seed)
        self.proof = {name: array[:PROOF_SAMPLES] for name, array in samples.inputs.items()}
        self.device = torch.device("cuda" if device != "cpu" and gpu_count() and torch.cuda.is_available() else "cpu")
        self.module = to_torch(graph, self.proof).to(self.device)
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise BridgeError("the model has no floating-point weights to train.")
        self.steps = math.ceil(len(samples) / training.batch)
        self.optimizer = _optimizer(self.module, training)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)

    def _factor(self, step: int) -> float:
        """The learning rate at a step, relative to its peak."""
        total = self.steps * self.training.epochs
        rising = max(1, round(total * self.training.warmup))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    def train(self, resume: bool) -> Graph:
        """Runs the training to its end."""
        from onnxprune.torch_bridge import to_onnx

        done = self._restore() if resume else 0
        for epoch in range(done // self.steps, self.training.epochs):
            order = np.random.default_rng([self.training.seed, epoch]).permutation(len(self.samples))
            total = count = 0.0
            for step in range(done - epoch * self.steps, self.steps):
                rows = order[step * self.training.batch : (step + 1) * self.training.batch]
                total, count = total + self._step(rows, epoch, step) * len(rows), count + len(rows)
                done += 1
                if self.progress:
                    self.progress("recovery", done, self.steps * self.training.epochs)
                if self.checkpoint and (done % self.training.save_every == 0 or step == self.steps - 1):
                    self._save(done)
            log.info("epoch %d of %d: loss %.4f", epoch + 1, self.training.epochs, total / max(count, 1))
        return to_onnx(self.module.eval(), self.graph, self.proof)

    def _step(self, rows: np.ndarray, epoch: int, step: int) -> float:
        """One step of the optimizer; returns the loss."""
        import torch

        from onnxprune.torch_bridge import inputs_of

        arrays = {name: array[rows] for name, array in self.samples.inputs.items()}
        if self.augment:
            generator = np.random.default_rng([self.training.seed, epoch, step])
            arrays = {n: np.ascontiguousarray(a) for n, a in self.augment(arrays, generator).items()}
        self.module.train()
        inputs = inputs_of(self.graph.inputs, arrays, self.device)
        outputs = self.module(*(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs))
        loss = torch.zeros((), device=self.device)
        if self.teacher and self.training.label_weight < 1:
            targets = [torch.from_numpy(target).to(self.device) for target in self.teacher.run(arrays)]
            loss = loss + (1 - self.training.label_weight) * _distillation(outputs, targets, self.training)
        if self.training.label_weight > 0 and self.samples.labels is not None:
            labels = torch.from_numpy(self.samples.labels[rows].astype(np.int64)).to(self.device)
            loss = loss + self.training.label_weight * torch.nn.functional.cross_entropy(_logits(outputs[0]), labels)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.training.clip)
        self.optimizer.step()
        self.scheduler.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BridgeError("training diverged: the loss is not finite; lower --rate.")
        return value

    def _state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def _save(self, done: int) -> None:
        """Keeps everything that the next step depends on, whole or not at all."""
        import torch

        assert self.checkpoint is not None
        buffer = io.BytesIO()
        identity = {"model": self.graph.sha256, "samples": len(self.samples), "training": asdict(self.training)}
        torch.save({"done": done, "identity": identity, **self._state()}, buffer)
        write(self.checkpoint, buffer.getvalue())

    def _restore(self) -> int:
        """Goes on from the checkpoint; returns the steps done.

        Raises:
            DataError: there is no checkpoint, or it is of another run.
        """
        import torch

        if self.checkpoint is None or not self.checkpoint.is_file():
            raise DataError(f"there is no checkpoint {self.checkpoint} to resume from; start without --resume.")
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            raise DataError(f"{self.checkpoint} is no checkpoint of onnxprune; start without --resume.") from error
        identity = {"model": self.graph.sha256, "samples": len(self.samples), "training": asdict(self.training)}
        if state["identity"] != identity:
            raise DataError(f"{self.checkpoint} is of another run: model, data or options differ; use the same ones.")
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return int(state["done"])


def _optimizer(module: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer; weight decay acts on weights, not on biases and normalizations."""
    import torch

    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.rate or 0.05, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.rate or 1e-3)


def _logits(output: torch.Tensor) -> torch.Tensor:
    """Classes as logits: probabilities, as a final Softmax gives them, become their logarithm."""
    rows = output.sum(dim=-1)
    if bool(((output >= 0).all() & ((rows - 1).abs() < 1e-3).all()).item()):
        return output.clamp_min(1e-12).log()
    return output


def _distillation(outputs: tuple[torch.Tensor, ...], targets: list[torch.Tensor], training: Training) -> torch.Tensor:
    """How far the outputs are from the original's: divergence of classes, or squared error over variance."""
    import torch
    from torch.nn import functional

    losses = []
    for output, target in zip(outputs, targets, strict=True):
        if not output.is_floating_point():
            continue
        classes = output.ndim == 2 and output.shape[1] > 1
        if training.loss == "kl" or (training.loss == "auto" and classes):
            t = training.temperature
            student = functional.log_softmax(_logits(output) / t, dim=-1)
            original = functional.log_softmax(_logits(target) / t, dim=-1)
            losses.append(t * t * functional.kl_div(student, original, log_target=True, reduction="batchmean"))
        else:
            losses.append(functional.mse_loss(output, target) / target.var().clamp_min(1e-12))
    if not losses:
        raise BridgeError("the model has no floating-point output to learn from.")
    return torch.stack(losses).mean()
