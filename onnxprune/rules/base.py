"""What a rule is, and the registry of rules.

A rule is a pure function named like its operator. It reads a `Node` (node.py), the shapes of its tensors and the
integers that steer it, and yields facts (facts.py).

An axis that no fact of the rule mentions is pinned, and so is every axis of an operator without a rule: ignorance costs
compression, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnxprune.rules.facts import Fact, paired
from onnxprune.rules.node import Node

Rule = Callable[[Node], Iterator[Fact]]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Registered:
    """A rule, what its operator does to its data, and the first opset it holds for.

    Attributes:
        rule: the rule.
        linear: whether the operator is linear in each of its data inputs.
        since: the first opset.
        elementwise: whether each element of the result is made of the elements at its place alone.
    """

    rule: Rule
    linear: bool
    since: int
    elementwise: bool = False


_REGISTRY: dict[tuple[str, str], list[Registered]] = {}


def rule(
    *ops: str, since: int = 1, linear: bool = False, elementwise: bool = False, domain: str = ""
) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of operators, from an opset up to the next registered one.

    Args:
        ops: operators that share the rule.
        since: the first opset it holds for.
        linear: whether the operator is linear in each of its data inputs, which is where a nonlinearity is sought.
        elementwise: whether each element of the result is made of the elements at its place alone.
        domain: the operator set.

    Raises:
        ValueError: the operator has a rule for this opset already.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            entries = _REGISTRY.setdefault((domain, op), [])
            if any(entry.since == since for entry in entries):
                raise ValueError(f"{op} has two rules for opset {since}")
            entries.append(Registered(function, linear, since, elementwise))
            entries.sort(key=lambda entry: -entry.since)
        return function

    return register


def carries(*ops: str, linear: bool = False, domain: str = "") -> None:
    """Registers operators that work on each element of their first input by itself."""

    @rule(*ops, linear=linear, elementwise=True, domain=domain)
    def carry(node: Node) -> Iterator[Fact]:
        for output in filter(None, node.outputs):
            yield from paired(node.input(), output)


def find_rule(domain: str, op: str, version: int) -> Registered | None:
    """The rule of an operator at an opset: the newest that is not newer than it."""
    domain = "" if domain in ("", "ai.onnx") else domain
    return next((entry for entry in _REGISTRY.get((domain, op), ()) if entry.since <= version), None)


def supported_operators() -> dict[str, list[str]]:
    """The operators with a rule, by domain."""
    table: dict[str, list[str]] = {}
    for domain, op in sorted(_REGISTRY):
        table.setdefault(domain, []).append(op)
    return table
