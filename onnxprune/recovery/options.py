"""How a model is trained, when training stops, and where it runs: what the options of `recover` become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from onnxprune.data import load_function
from onnxprune.errors import PlanError
from onnxprune.validation import FINITE, NATURAL, NOT_NEGATIVE, POSITIVE, SEED, SHARE, validate

Arrays = dict[str, np.ndarray]
Augment = Callable[..., Any]
"""`(arrays by input, generator) -> arrays`, or with a third parameter `labels`, and then also `-> (arrays, labels)`."""
Progress = Callable[[str, int, int, str], None]
"""Called with the stage, what is done of it, how much there is, and what was measured last, in words."""

TASKS = ("cross-entropy", "mse", "next-token")
METRICS = ("top1", "agreement", "loss")


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over the data.
        batch: most samples in a step of the optimizer, over all processes.
        accumulate: parts that a step is computed in, one after the other; more parts take less memory.
        optimizer: "adamw" or "sgd" with Nesterov momentum 0.9.
        rate: peak learning rate; 1e-3 for adamw and 0.05 for sgd when None.
        decay: weight decay, on weights of two axes or more.
        warmup: share of the steps in which the rate rises; then it falls to zero as a cosine.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights that is kept in the end; 0 keeps the last ones.
        temperature: of distillation on classes.
        label_weight: weight of the labels' loss, between 0 (the original alone) and 1 (labels alone).
        loss: of distillation, "kl" on classes, "mse" relative to the variance, or "auto": kl for outputs of two axes
            and for the tokens of a "next-token" task.
        task: what labels are for: one of `TASKS`, or "script.py[:function]" whose default is `loss(outputs, labels)`.
        match_hidden: weight of the hidden states in distillation.
        unfold_batchnorm: whether convolutions train with a BatchNormalization behind them; None decides by the model.
        freeze_batchnorm: whether BatchNormalization keeps to its running statistics.
        seed: of the order of samples and of augmentation.
        save_every: steps between checkpoints.
    """

    epochs: Annotated[int, POSITIVE] = 3
    batch: Annotated[int, POSITIVE] = 128
    accumulate: Annotated[int, POSITIVE] = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, FINITE] | None = None
    decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    warmup: Annotated[float, SHARE] = 0.1
    clip: Annotated[float, POSITIVE] = 5.0
    ema: Annotated[float, SHARE] = 0.0
    temperature: Annotated[float, FINITE] = 4.0
    label_weight: Annotated[float, SHARE] = 0.0
    loss: Literal["auto", "kl", "mse"] = "auto"
    task: str = "cross-entropy"
    match_hidden: Annotated[float, NOT_NEGATIVE] = 0.0
    unfold_batchnorm: bool | None = None
    freeze_batchnorm: bool = False
    seed: Annotated[int, SEED] = 0
    save_every: Annotated[int, POSITIVE] = 200

    def __post_init__(self) -> None:
        validate(self)
        if self.unfold_batchnorm and self.freeze_batchnorm:
            raise PlanError("--unfold-batchnorm and --freeze-batchnorm exclude each other; give one of them.")
        _known("--task", self.task, TASKS)


@dataclass(frozen=True, slots=True)
class Watch:
    """What is measured after every epoch; the best weights are kept.

    Attributes:
        data: samples that are not trained on.
        metric: one of `METRICS`, or "script.py[:function]" whose default is `evaluate(run, data)`; top1 where there
            are labels and loss where there are none when None. The loss shall fall, everything else rise.
        patience: epochs without a better value after which training stops; 0 never stops it.
        goal: the value at which training stops; to end without it is a failure.
    """

    data: object
    metric: str | None = None
    patience: Annotated[int, NATURAL] = 0
    goal: float | None = None

    def __post_init__(self) -> None:
        validate(self, data="--eval")
        if self.metric is not None:
            _known("--metric", self.metric, METRICS)


@dataclass(frozen=True, slots=True)
class Execution:
    """Where training runs, and what it keeps on disk.

    Attributes:
        device: of the teacher and the training, as in `runtime.Session`.
        precision: "bfloat16" computes in it what autocast allows; "auto" does so on a GPU that can.
        teacher_runtime: what runs the teacher; "auto" is ONNX Runtime, and PyTorch where only it can use the GPU.
        compile: the backend of torch.compile, such as "inductor"; None does without.
        fsdp: whether several processes share weights, gradients and the optimizer's state instead of copying them.
        checkpoint: where the state of the training is kept, so that it can be resumed.
        resume: whether to go on from that checkpoint.
        losses: file of JSON lines, one for each step and each measurement.
        force: whether a checkpoint and a log of losses that exist are replaced.
        cache: folder that keeps the teacher's outputs for later runs.
    """

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    teacher_runtime: Literal["auto", "onnxruntime", "torch"] = "auto"
    compile: str | None = None
    fsdp: bool = False
    checkpoint: Path | None = None
    resume: bool = False
    losses: Path | None = None
    force: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        validate(self)


def is_script(text: str) -> bool:
    """Whether an option names a script instead of a word of its own."""
    return text.endswith(".py") or ".py:" in text


def from_script(text: str, default: str) -> Callable[..., Any]:
    """The function that "script.py[:function]" names.

    Raises:
        DataError: there is no such file or function, or the file fails.
    """
    script, _, function = text.partition(".py:")
    return load_function(Path(script + ".py" if function else text), function or default)


def _known(option: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words and not is_script(value):
        raise PlanError(f"{option} '{value}' is unknown; use {', '.join(words)}, or script.py[:function].")
