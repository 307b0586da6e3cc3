"""What is minimized: the distance from the original's outputs, and from labels.

Every loss is a mean over samples, squared errors are relative to a variance that is measured once, on the first
samples, and sums over positions to the number of those that count in a sample of all data: so a step computed in parts,
in one process or several, has the loss and the gradient of the whole step, wherever the padding lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import BridgeError, DataError, blames
from onnxprune.labels import IGNORED, no_class
from onnxprune.padding import TOKENS, Places, mask_of
from onnxprune.records import MASK
from onnxprune.recovery.options import Arrays, Training, from_script, is_script

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of the outputs of a model from its first samples.

    Attributes:
        probabilities: whether each output holds probabilities, as a final Softmax gives them.
        variances: of each output of the original, and then of each of its hidden states.
        places: where these hold the tokens of a mask.
    """

    probabilities: tuple[bool, ...]
    variances: tuple[float, ...]
    places: tuple[Places | None, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a batch, besides what models say about it.

    Attributes:
        labels: where they are learnt from or say what does not count.
        shown: what `shown_positions` gives.
        counted: labels of a sample that count, on average over all data; that of the batch when None.
        seen: what `seen_in` gives for all data; that of the batch when None.
    """

    labels: torch.Tensor | None = None
    shown: torch.Tensor | None = None
    counted: float | None = None
    seen: tuple[float, float] | None = None


def shape_of(
    outputs: Sequence[np.ndarray],
    hidden: Sequence[np.ndarray] = (),
    shown: np.ndarray | None = None,
    places: Sequence[Places | None] = (),
) -> Shape:
    """Looks at the outputs of the first samples, and at hidden states, where they are shown.

    Args:
        outputs: of the original.
        hidden: states of it.
        shown: what `shown_positions` gives for the samples.
        places: of all these arrays; nowhere when empty.
    """
    import torch

    arrays = [np.asarray(array, np.float64) for array in (*outputs, *hidden)]
    places = tuple(places) or (None,) * len(arrays)
    seen = [
        array if shown is None or at is None else at.shown(torch.tensor(array), torch.tensor(shown)).numpy()
        for array, at in zip(arrays, places, strict=True)
    ]
    return Shape(
        tuple(_is_probability(array) for array in arrays[: len(outputs)]),
        tuple(max(float(array.var()), 1e-12) if array.size else 1.0 for array in seen),
        places,
    )


def _is_probability(output: np.ndarray) -> bool:
    return bool(output.ndim >= 2 and (output >= 0).all() and (abs(output.sum(-1) - 1) < 1e-3).all())


class Objective:
    """The loss of one batch.

    Attributes:
        learns: whether there is a teacher to learn from.
    """

    def __init__(self, training: Training, shape: Shape, *, learns: bool) -> None:
        self.training, self.shape, self.learns = training, shape, learns
        self.script: Callable[..., Any] | None = None
        if is_script(training.task):
            self.script = from_script(training.task, "loss")

    def __call__(self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], known: Known) -> torch.Tensor:
        """The loss.

        Args:
            outputs: of the model, its hidden states behind them.
            targets: the same of the original; empty without one.
            known: of the batch.

        Raises:
            BridgeError: there is nothing floating to learn from, or the two models give differently many rows.
            DataError: labels do not fit the output.
        """
        import torch

        loss = torch.zeros((), device=outputs[0].device)
        weight = self.training.label_weight
        if self.learns and weight < 1:
            loss = loss + (1 - weight) * self._distillation(outputs, targets, known)
        if weight > 0 and known.labels is not None:
            loss = loss + weight * self._task(outputs[: len(self.shape.probabilities)], known.labels, known.counted)
        return loss

    def _distillation(
        self, outputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], known: Known
    ) -> torch.Tensor:
        """How far the outputs are from the original's, and the hidden states."""
        import torch
        from torch.nn import functional

        losses: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []
        count = len(self.shape.probabilities)
        for i, (output, target) in enumerate(zip(outputs, targets, strict=True)):
            if not output.is_floating_point():
                continue
            if output.shape != target.shape:
                raise BridgeError(
                    f"an output has shape {tuple(output.shape)} and that of the teacher {tuple(target.shape)}: data "
                    "decide how many rows there are. Cut the model before that, or train on labels alone, with a "
                    "--task script and --label-weight 1."
                )
            classes = i < count and self._is_classes(i, output)
            output, target, total = self._that_counts(i, output.float(), target.float(), known, classes=classes)
            if classes:
                t = self.training.temperature
                student = functional.log_softmax(self._logits(output, i) / t, dim=-1)
                original = functional.log_softmax(self._logits(target, i) / t, dim=-1)
                total *= output.shape[1:-1].numel()
                losses.append(t * t * functional.kl_div(student, original, log_target=True, reduction="sum") / total)
            else:
                total *= output.shape[1:].numel() * self.shape.variances[i]
                error = functional.mse_loss(output, target, reduction="sum") / total
                (losses if i < count else hidden).append(error)
        if not losses:
            raise BridgeError("the model has no floating-point output to learn from.")
        loss = torch.stack(losses).mean()
        return loss + self.training.match_hidden * torch.stack(hidden).mean() if hidden else loss

    def _that_counts(
        self, i: int, output: torch.Tensor, target: torch.Tensor, known: Known, *, classes: bool
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """What counts of an output and of the original's, and how many rows a batch has of that on average."""
        if known.labels is not None and self._is_tokens(i, output):
            counts = self._next(output, known.labels)[1] != IGNORED
            output, target = output[:, :-1], target[:, :-1]
            return output[counts], target[counts], _total(counts, known.counted)
        places = self.shape.places[i]
        if known.shown is None or places is None or (classes and TOKENS in places.axes[-1]):  # tokens are the classes
            return output, target, output.shape[:1].numel()
        seen = known.seen or seen_in(known.shown)
        total = seen[places.tokens - 1] * len(known.shown) or 1.0
        return places.shown(output, known.shown), places.shown(target, known.shown), total

    def _is_classes(self, i: int, output: torch.Tensor) -> bool:
        if self.training.loss != "auto":
            return self.training.loss == "kl"
        return (output.ndim == 2 or self._is_tokens(i, output)) and output.shape[-1] > 1

    def _is_tokens(self, i: int, output: torch.Tensor) -> bool:
        return self.training.task == "next-token" and i == 0 and output.ndim == 3

    def _logits(self, output: torch.Tensor, i: int) -> torch.Tensor:
        """Classes as logits: probabilities become their logarithm."""
        return output.clamp_min(1e-12).log() if self.shape.probabilities[i] else output

    def _next(self, output: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the labels of the tokens behind them."""
        if labels.shape != output.shape[:-1]:
            raise _unfit(labels, output, "one token for each position")
        return self._logits(output, 0)[:, :-1], labels[:, 1:]

    def _task(self, outputs: Sequence[torch.Tensor], labels: torch.Tensor, counted: float | None) -> torch.Tensor:
        """The loss of labels."""
        from torch.nn import functional

        if self.script is not None:
            return self._scripted(self.script, outputs, labels)
        output = outputs[0].float()
        if self.training.task == "mse":
            if labels.numel() != output.numel():
                raise _unfit(labels, output, "the same shape")
            return functional.mse_loss(output, labels.reshape(output.shape).to(output.dtype))
        logits = self._logits(output, 0)
        if self.training.task == "next-token":
            logits, labels = self._next(output, labels)
        elif labels.ndim == logits.ndim and labels.shape[-1] == 1:
            labels = labels.squeeze(-1)
        total = _total(labels != IGNORED, counted)
        if labels.shape == logits.shape[:-1]:
            logits, labels = logits.flatten(0, -2), labels.flatten()
        elif labels.shape != (logits.shape[0], *logits.shape[2:]):
            raise _unfit(labels, output, "one class for each row or position")
        whole = _classes(labels, logits.shape[1])
        return functional.cross_entropy(logits, whole, ignore_index=IGNORED, reduction="sum") / total

    def _scripted(
        self, script: Callable[..., Any], outputs: Sequence[torch.Tensor], labels: torch.Tensor
    ) -> torch.Tensor:
        """The loss of labels that a script computes."""
        import torch

        with blames(f"the loss {self.training.task}"):
            loss = script(list(outputs), labels)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise DataError(f"the loss {self.training.task} gives no tensor of one number; let it return one.")
        return loss


def _classes(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Labels as whole numbers.

    Raises:
        DataError: one is no class.
    """
    whole = labels.long()
    wrong = (labels != whole) | ((whole != IGNORED) & ((whole < 0) | (whole >= count)))
    if bool(wrong.any()):
        raise no_class(labels[wrong][0].item(), count)
    return whole


def _total(counts: torch.Tensor, counted: float | None) -> float:
    """What a sum over the labels that count is divided by; one where none does."""
    return (float(counts.sum()) if counted is None else counted * len(counts)) or 1.0


def _unfit(labels: torch.Tensor, output: torch.Tensor, wanted: str) -> DataError:
    return DataError(
        f"labels of shape {tuple(labels.shape)} do not fit the first output of shape {tuple(output.shape)}; "
        f"give {wanted}, or another --task."
    )


def known_labels(inputs: Arrays, labels: np.ndarray | None, training: Training) -> np.ndarray | None:
    """The labels: those of a "next-token" task are the tokens where none are given.

    Raises:
        DataError: tokens are to be learnt from, and no input holds them.
    """
    if labels is not None or training.task != "next-token":
        return labels
    return token_labels(inputs) if training.label_weight > 0 or MASK in inputs else None


def known_of(arrays: Arrays, labels: np.ndarray | None, device: torch.device | None = None) -> Known:
    """What is known of a batch, from its inputs and labels."""
    import torch

    shown = shown_positions(arrays)
    return Known(
        None if labels is None else torch.tensor(labels, device=device),
        None if shown is None else torch.tensor(shown, device=device),
    )


def labels_that_count(labels: np.ndarray, training: Training) -> float:
    """How many labels of a sample count, on average."""
    shown = labels[:, 1:] if training.task == "next-token" and labels.ndim > 1 else labels
    return float((shown != IGNORED).sum()) / len(labels)


def token_labels(inputs: Arrays) -> np.ndarray:
    """The labels of a "next-token" task: the tokens themselves, without those that the mask leaves out.

    Raises:
        DataError: no input holds tokens.
    """
    tokens = {n: a for n, a in inputs.items() if a.ndim == 2 and a.dtype.kind == "i" and "mask" not in n}
    if "input_ids" in tokens:
        tokens = {"input_ids": tokens["input_ids"]}
    if len(tokens) != 1:
        found = ", ".join(tokens) or "none"
        raise DataError(f"--task next-token needs one input of whole numbers, (samples, tokens); there are: {found}.")
    (labels,) = tokens.values()
    shown = shown_positions(inputs)
    return np.where(shown, labels, IGNORED) if shown is not None and shown.shape == labels.shape else labels


def shown_positions(inputs: Arrays) -> np.ndarray | None:
    """Where the mask is not 0, (samples, positions); None where there is none: see `padding.mask_of`."""
    name = mask_of(inputs)
    return inputs[name] != 0 if name and inputs[name].ndim == 2 else None


def seen_in(shown: Any) -> tuple[float, float]:
    """How many positions of a sample are shown on average, an array or a tensor, and how many pairs of them."""
    counts = shown.sum(1)
    return float(counts.sum()) / len(shown), float((counts * counts).sum()) / len(shown)
