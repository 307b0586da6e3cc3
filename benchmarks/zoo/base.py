"""What a model of the zoo is, how it gets its weights, and how it is exported."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # configurations only: nothing is downloaded

Axes = tuple[int | str, ...]
SIZES = {"batch": 2, "tokens": 7, "words": 5, "samples": 400, "past": 4}
"""Sizes of symbolic axes in the export."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model.

    Attributes:
        axes: a size or a symbol for each axis.
        below: integers from 0 up to this one, numbers from a normal distribution when 0.
        padding: whether it marks padding, 1 for tokens and 0 for what follows them.
    """

    axes: Axes
    below: int = 0
    padding: bool = False

    def draw(self, generator: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
        """One batch."""
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.axes)
        if self.padding:
            lengths = shape[1] - np.arange(shape[0]) % 3  # the first sample is whole, the next ones lack a few tokens
            return (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        if self.below:
            return generator.integers(0, self.below, shape)
        return generator.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Model:
    """A network and what it is fed with.

    Attributes:
        build: makes the network; for transformers' models, given "eager" or "sdpa".
        inputs: its inputs by name, in order.
        attention: the forms of attention that it can be exported with; () where there is no choice.
    """

    build: Callable[..., nn.Module]
    inputs: Mapping[str, Input]
    attention: tuple[str, ...] = ()


TORCHSCRIPT, DYNAMO, NEWEST = "torchscript, opset 17", "dynamo", "dynamo, opset 23"
EXPORTS: dict[str, dict[str, object]] = {
    TORCHSCRIPT: {"dynamo": False, "opset_version": 17},
    DYNAMO: {"dynamo": True},
    NEWEST: {"dynamo": True, "opset_version": 23},
}


def zoo() -> dict[str, Model]:
    """All models by name."""
    from zoo import audio, convolutional, images, language, sequences, vision

    families = (convolutional, images, sequences, language, vision, audio)
    return {name: model for family in families for name, model in family.models().items()}


def randomize(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic a size at which it matters; fresh networks have biases of zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in net.modules():
            if isinstance(layer, nn.Embedding):
                layer.weight.normal_()
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return net.eval()


def feeds(model: Model, sizes: Mapping[str, int] | None = None, seed: int = 1) -> dict[str, np.ndarray]:
    """One batch of inputs: tokens within the vocabulary, masks with padding, normal numbers."""
    generator = np.random.default_rng(seed)
    return {name: x.draw(generator, {**SIZES, **(sizes or {})}) for name, x in model.inputs.items()}


@cache
def member(name: str, export: str, attention: str = "") -> bytes:
    """A model of the zoo as an ONNX file, exported once."""
    return exported(zoo()[name], export, attention)


def exported(model: Model, export: str, attention: str = "") -> bytes:
    """A model as an ONNX file.

    Args:
        model: the model.
        export: the exporter and the opset, a key of `EXPORTS`.
        attention: "eager" or "sdpa", for models that have the choice.
    """
    options = EXPORTS[export]
    torch.manual_seed(0)
    net = randomize(model.build(attention) if model.attention else model.build())
    arguments = tuple(map(torch.from_numpy, feeds(model).values()))
    symbols = {n: {i: a for i, a in enumerate(x.axes) if isinstance(a, str)} for n, x in model.inputs.items()}
    axes = {"dynamic_shapes": tuple(symbols.values())} if options["dynamo"] else {"dynamic_axes": symbols}
    file = io.BytesIO()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which no exporter knows
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, arguments, file, input_names=list(symbols), verbose=False, **axes, **options)
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(fast)
    return file.getvalue()
