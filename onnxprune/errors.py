"""Everything onnxprune raises on purpose.

OnnxPruneError            exit code 1; the message says what was seen, what is needed and what to do
├── ModelError            the file is no usable ONNX model
│   └── Overrun           it takes more time or memory than is spent on finding out its shapes
├── DataError             calibration, training or test data do not fit the model
├── DeviceError           the execution provider that was asked for cannot be had
├── PlanError             a plan or a budget does not fit the model
├── BridgeError           a model cannot be rebuilt in PyTorch
├── OutputError           a result cannot be written
├── VerificationError     exit code 3; the compact model differs from the masked original, or a goal was missed
│   └── GoalMissed        exit code 3; a training ended below its goal
└── NothingToPrune        exit code 4; no group is free, or none is left after --only and --skip
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 2000
"""Characters of a message, of which more would say nothing."""


class OnnxPruneError(Exception):
    """A failure that the caller can act upon; `exit_code` is what the command line returns.

    Its message is one line: what it quotes, such as names in a model, may hold anything.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        text = re.sub(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], " ".join(message.splitlines())
        )
        super().__init__(text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")


class ModelError(OnnxPruneError):
    """The file is no usable ONNX model, or ONNX Runtime cannot run it."""


class Overrun(ModelError):
    """The model takes more time or memory than a run with made-up inputs is given."""


class DataError(OnnxPruneError):
    """Calibration, training or test data do not fit the model."""


class DeviceError(OnnxPruneError):
    """The execution provider that was asked for by name cannot be had."""


class PlanError(OnnxPruneError):
    """A plan or a budget does not fit the model."""


class BridgeError(OnnxPruneError):
    """A model cannot be rebuilt in PyTorch, or its PyTorch form computes something else."""


class OutputError(OnnxPruneError):
    """A result cannot be written where it was asked for."""


class VerificationError(OnnxPruneError):
    """The compact model differs from the masked original, or a goal was missed."""

    exit_code = 3


class GoalMissed(VerificationError):
    """A training ended below its goal; `graph` is the best that it found."""

    def __init__(self, message: str, graph: Any) -> None:
        super().__init__(message)
        self.graph = graph


class NothingToPrune(OnnxPruneError):
    """No group of the model may lose a unit."""

    exit_code = 4


@contextmanager
def blames(what: str) -> Iterator[None]:
    """Makes one error of whatever the user's own code, which runs inside, may raise.

    Args:
        what: names that code, such as "the script augment.py".

    Raises:
        DataError: it fails.
    """
    try:
        yield
    except OnnxPruneError:
        raise
    except SystemExit as error:
        raise DataError(f"{what} ends the program with sys.exit({error.code!r}); let it return instead.") from error
    except Exception as error:
        raise DataError(f"{what} fails: {type(error).__name__}: {error}") from error
