"""Recurrent layers: PyTorch's own kernels where they know the cell, and a loop over the steps where they do not.

ONNX and PyTorch order the gates of a cell differently; they are put in order whenever the layer runs, so that the
parameters stay what the initializers are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import _VF

from onnxprune.torch_bridge.base import Piece, Tensor, Weight, operator

Activation = Callable[[Tensor], Tensor]

States = tuple[Tensor, ...]
"""What a cell hands on from step to step: (N, h) each, its result first."""

Step = Callable[[Tensor, States], States]
"""From what the weights make of the data of one step, (N, gates x h), and the states to the states after it."""

ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "Affine": lambda x, alpha, beta: alpha * x + beta,
    "Elu": lambda x, alpha, beta: F.elu(x, alpha),
    "HardSigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "LeakyRelu": lambda x, alpha, beta: F.leaky_relu(x, alpha),
    "Relu": lambda x, alpha, beta: torch.relu(x),
    "ScaledTanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "Sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "Softplus": lambda x, alpha, beta: F.softplus(x),
    "Softsign": lambda x, alpha, beta: F.softsign(x),
    "Tanh": lambda x, alpha, beta: torch.tanh(x),
    "ThresholdedRelu": lambda x, alpha, beta: torch.where(x > alpha, x, torch.zeros_like(x)),
}

ALPHA = {"Affine": 1.0, "Elu": 1.0, "HardSigmoid": 0.2, "LeakyRelu": 0.01, "ScaledTanh": 1.0, "ThresholdedRelu": 1.0}
BETA = {"Affine": 0.0, "HardSigmoid": 0.5, "ScaledTanh": 1.0}
"""Parameters that some activations have, and their values where the node does not give them."""


def _unknown_activation(attrs: dict[str, Any]) -> str | None:
    unknown = sorted({name for name in attrs.get("activations", ()) if name not in ACTIVATIONS})
    return f"activation {', '.join(unknown)}" if unknown else None


def _activations(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float
) -> tuple[Activation, ...]:
    """The activations by name, each with its turn of the parameters, of data that are clipped before."""
    alpha, beta = iter(alphas), iter(betas)

    def bound(name: str) -> Activation:
        a = next(alpha, ALPHA[name]) if name in ALPHA else 0.0
        b = next(beta, BETA[name]) if name in BETA else 0.0
        function = ACTIVATIONS[name]
        return lambda x: function(torch.clamp(x, -clip, clip) if clip else x, a, b)

    return tuple(bound(name) for name in names)


@operator("LSTM", since=7, lacks=_unknown_activation)
def lstm(
    x: Tensor,
    w: Weight,
    r: Weight,
    b: Weight | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Piece | None = None,
    initial_c: Piece | None = None,
    p: Weight | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """C' = f C + i g(..) and H' = o h(C'); the gates i, o, f see X W + H R + B, and C through peepholes."""
    layer = _Layer(x, w, r, b, (initial_h, initial_c), direction, layout)
    usual = not clip and not input_forget and p is None and sequence_lens is None
    if usual and list(activations) in ([], ["Sigmoid", "Tanh", "Tanh"] * layer.directions):
        return layer.by_kernel(_VF.lstm, (0, 2, 3, 1))[:outputs]
    names = activations or ["Sigmoid", "Tanh", "Tanh"] * layer.directions
    functions = _activations(names, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Step:
        f, g, h = functions[3 * d : 3 * d + 3]
        peep_i, peep_o, peep_f = p[d].chunk(3) if p is not None else (0.0, 0.0, 0.0)

        def step(given: Tensor, states: States) -> States:
            hidden, c = states
            i, o, forget, new = (given + F.linear(hidden, r[d], layer.bias(d, 1))).chunk(4, -1)
            i = f(i + peep_i * c)
            forget = 1 - i if input_forget else f(forget + peep_f * c)
            c = forget * c + i * g(new)
            return f(o + peep_o * c) * h(c), c

        return step

    return layer.by_step(cell, sequence_lens)[:outputs]


@operator("GRU", since=7, lacks=_unknown_activation)
def gru(
    x: Tensor,
    w: Weight,
    r: Weight,
    b: Weight | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Piece | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """H' = (1 - z) g(..) + z H, where the gate r resets H before R works on it, or behind it."""
    layer = _Layer(x, w, r, b, (initial_h,), direction, layout)
    usual = bool(linear_before_reset) and not clip and sequence_lens is None
    if usual and list(activations) in ([], ["Sigmoid", "Tanh"] * layer.directions):
        return layer.by_kernel(_VF.gru, (1, 0, 2))[:outputs]
    names = activations or ["Sigmoid", "Tanh"] * layer.directions
    functions = _activations(names, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Step:
        f, g = functions[2 * d : 2 * d + 2]
        gates = 2 * r.shape[2]
        bias = layer.bias(d, 1)

        def step(given: Tensor, states: States) -> States:
            (h,) = states
            z, reset = f(given[:, :gates] + F.linear(h, r[d, :gates], bias[:gates])).chunk(2, -1)
            if linear_before_reset:
                read = reset * F.linear(h, r[d, gates:], bias[gates:])
            else:
                read = F.linear(reset * h, r[d, gates:], bias[gates:])
            return ((1 - z) * g(given[:, gates:] + read) + z * h,)

        return step

    return layer.by_step(cell, sequence_lens)[:outputs]


@operator("RNN", since=7, lacks=_unknown_activation)
def rnn(
    x: Tensor,
    w: Weight,
    r: Weight,
    b: Weight | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Piece | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    outputs: int,
) -> tuple[Tensor, ...]:
    """H' = f(X W + H R + B)."""
    layer = _Layer(x, w, r, b, (initial_h,), direction, layout)
    names = list(activations) or ["Tanh"] * layer.directions
    kernel = {"Tanh": _VF.rnn_tanh, "Relu": _VF.rnn_relu}.get(names[0]) if len(set(names)) == 1 else None
    if kernel is not None and not clip and sequence_lens is None:
        return layer.by_kernel(kernel, (0,))[:outputs]
    functions = _activations(names, activation_alpha, activation_beta, clip)

    def cell(d: int) -> Step:
        return lambda given, states: (functions[d](given + F.linear(states[0], r[d], layer.bias(d, 1))),)

    return layer.by_step(cell, sequence_lens)[:outputs]


class _Layer:
    """A layer of any cell, steps in front: its data and weights, and the two ways to run it."""

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        initial: tuple[Tensor | None, ...],
        direction: str,
        layout: int,
    ) -> None:
        self.x = x.transpose(0, 1) if layout else x
        self.w, self.r, self.b, self.layout, self.direction = w, r, b, layout, direction
        self.directions = w.shape[0]
        shape = self.directions, self.x.shape[1], r.shape[2]
        self.states = tuple(
            self.x.new_zeros(shape) if state is None else state.transpose(0, 1) if layout else state
            for state in initial
        )

    def bias(self, d: int, which: int) -> Tensor:
        """The bias of W (0) or of R (1) in one direction."""
        if self.b is None:
            return self.w.new_zeros(self.w.shape[1])
        return self.b[d].chunk(2)[which]

    def by_kernel(self, kernel: Callable[..., tuple[Tensor, ...]], order: Sequence[int]) -> tuple[Tensor, ...]:
        """Runs one of PyTorch's kernels, whose gates are ours in this order; it knows no layer that only runs back."""
        given = [self.w, self.r, *(self.b.chunk(2, 1) if self.b is not None else ())]
        hidden, gates = self.r.shape[2], list(order)
        apart = [weight.reshape(self.directions, len(order), hidden, *weight.shape[2:]) for weight in given]
        ordered = [weight[:, gates].flatten(1, 2) for weight in apart]
        flat = [weight[d].contiguous() for d in range(self.directions) for weight in ordered]
        back = self.direction == "reverse"
        x = self.x.flip(0) if back else self.x
        states = self.states if len(self.states) > 1 else self.states[0]
        # cuDNN gives gradients in training mode alone; without dropout it computes the same there
        y, *last = kernel(x, states, flat, self.b is not None, 1, 0.0, True, self.directions > 1, False)
        y = y.reshape(*y.shape[:2], self.directions, hidden).movedim(2, 1)
        return self._given_out(y.flip(0) if back else y, last)

    def by_step(self, cell: Callable[[int], Step], lengths: Tensor | None) -> tuple[Tensor, ...]:
        """Runs a cell step by step; sequences that have ended keep their states and give zeros."""
        results, lasts = [], []
        for d in range(self.directions):
            given = F.linear(self.x, self.w[d], self.bias(d, 0))
            step, states = cell(d), tuple(state[d] for state in self.states)
            steps = list(range(len(given)))
            if d or self.direction == "reverse":
                steps.reverse()
            made: dict[int, Tensor] = {}
            for t in steps:
                new = step(given[t], states)
                made[t] = new[0]
                if lengths is not None:
                    running = (t < lengths)[:, None]
                    made[t] = torch.where(running, new[0], torch.zeros_like(new[0]))
                    new = tuple(torch.where(running, a, b) for a, b in zip(new, states, strict=True))
                states = new
            results.append(torch.stack([made[t] for t in sorted(made)]))
            lasts.append(states)
        return self._given_out(torch.stack(results, 1), [torch.stack(last) for last in zip(*lasts, strict=True)])

    def _given_out(self, y: Tensor, last: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Y[T,D,N,h] and the last states [D,N,h], or with the batch in front."""
        if not self.layout:
            return (y, *last)
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
