"""Names of parameters: an initializer's own name, unless a torch module cannot have an attribute of that name."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from torch import fx

from onnxprune.torch_bridge.base import Tensor

FORBIDDEN = '"\\\n\r'
"""Characters that break the code that fx writes."""


@cache
def _taken(root: bool) -> frozenset[str]:
    """Attributes that a module has anyway; those of the root are those of an fx module and our own flags."""
    empty = torch.nn.Module()
    return frozenset({"dropout", *dir(fx.GraphModule(empty, fx.Graph()))} if root else dir(empty))


def place(root: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str, str]:
    """Where a tensor or module of this name goes: dots make submodules.

    Args:
        root: the module to put it into; submodules are made as needed.
        name: any text.

    Returns:
        The submodule to own it, its attribute there, and its whole name, which equals `name` where torch allows it.
    """
    owner, path = root, []
    *outer, leaf = name.translate({ord(letter): "_" for letter in FORBIDDEN}).split(".")
    for part in outer:
        part = part or "_"
        while part in _taken(owner is root) or not isinstance(getattr(owner, part, owner), torch.nn.Module):
            part += "_"
        if not hasattr(owner, part):
            owner.add_module(part, torch.nn.Module())
        owner = cast(torch.nn.Module, getattr(owner, part))
        path.append(part)
    leaf = leaf or "_"
    while leaf in _taken(owner is root) or hasattr(owner, leaf):
        leaf += "_"
    return owner, leaf, ".".join([*path, leaf])


def register(root: torch.nn.Module, name: str, tensor: Tensor) -> str:
    """Puts a parameter or a buffer into a module and returns the name it got."""
    owner, leaf, path = place(root, name)
    if isinstance(tensor, torch.nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)
    return path
