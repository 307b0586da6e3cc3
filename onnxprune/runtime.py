"""ONNX Runtime sessions, and which device they really run on.

Only `session.get_providers()` of a session that was made says where a model runs: `get_available_providers()` lists
CUDA on machines without a GPU, and a session asked for CUDA falls back to the CPU without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DeviceError, ModelError
from onnxprune.writing import Message

log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}

ADVICE = {
    "No Op registered|not a registered": "take that operator out, or give its body as a local function of the model.",
    "Could not find an implementation": "no kernel has its type and opset; convert it to float32 or another opset.",
    r"Opset \d+ is under development|IR version": "export it at an older opset, or install a newer ONNX Runtime.",
    "[Pp]rotobuf parsing": "the file was cut off or is no ONNX model; get it anew.",
    "": "onnx.checker.check_model says more.",
}
"""What to do about a model that ONNX Runtime refuses, by what it says; the first that fits counts."""

Feeds = Mapping[str, np.ndarray]


class Session:
    """A model loaded in ONNX Runtime.

    Attributes:
        provider: the execution provider in use, e.g. "CPUExecutionProvider".
        inputs: (name, ONNX type, shape) of each input; unknown sizes are strings or None.
        outputs: the same of each output.
        widened: whether it runs in float32 what the model has in half precision.
    """

    def __init__(
        self,
        model: bytes | Path,
        *,
        device: str = "auto",
        optimize: bool = True,
        threads: int | None = None,
        spin: bool = True,
        adapt: Callable[[Feeds], Feeds] | None = None,
    ) -> None:
        """Loads a model.

        Args:
            model: a serialized ModelProto, or the path of a file.
            device: "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "openvino".
            optimize: whether ONNX Runtime may fuse and fold.
            threads: intra-op threads; `own_cores()` when None or 0.
            spin: whether idle threads wait busily, which is faster alone and slows PyTorch down beside it.
            adapt: makes the inputs of this model from those that `run` is given.

        Raises:
            ModelError: ONNX Runtime cannot load the model.
            DeviceError: the device was asked for by name and cannot be had.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        threads = threads or own_cores()
        if threads:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._weights = {name: np.ascontiguousarray(array) for name, array in shared_by(model).items()}
        self.widened = isinstance(model, Message) and model.widened
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = _open(onnxruntime, source, options, device)
        except DeviceError:
            raise
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            said = first_line(error).rstrip(" .;")
            advice = next(advice for pattern, advice in ADVICE.items() if re.search(pattern, said))
            raise ModelError(f"ONNX Runtime cannot load the model: {said}; {advice}") from error
        self._adapt = adapt
        self.provider: str = self._session.get_providers()[0]
        self.inputs = [
            (x.name, x.type, tuple(x.shape)) for x in self._session.get_inputs() if x.name not in self._weights
        ]
        self.outputs = [(x.name, x.type, tuple(x.shape)) for x in self._session.get_outputs()]

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> list[np.ndarray]:
        """Runs one batch.

        Args:
            feeds: an array for each input.
            names: the outputs to return, in this order; all when None.

        Raises:
            ModelError: ONNX Runtime fails on these inputs.
        """
        wanted = list(names) if names is not None else [name for name, _, _ in self.outputs]
        try:
            given = self._adapt(feeds) if self._adapt else feeds
            results = self._session.run(wanted, {**self._weights, **given})
            return list(results) if wanted else []  # asked for nothing, it gives all
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error


def own_cores() -> int | None:
    """The cores of this process; None where they are all of the machine's.

    ONNX Runtime makes a thread for each core of the machine, and ties them to cores, also where this process may run on
    some of them alone, or torchrun has started others that work at the same time.
    """
    every = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    own = max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return own if own < every else None


def shared_by(model: bytes | Path) -> Mapping[str, np.ndarray]:
    """The weights that a message leaves to whoever runs it."""
    return model.arrays if isinstance(model, Message) else {}


def _open(onnxruntime: Any, source: bytes | str, options: Any, device: str) -> Any:
    kind, _, index = device.partition(":")
    if kind not in (*PROVIDERS, "auto"):
        raise DeviceError(f"unknown device '{device}': use auto, {', '.join(PROVIDERS)}, or cuda:1 for the second GPU")
    if kind == "cpu" or (kind == "auto" and gpu_count() == 0):
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    provider = PROVIDERS["cuda" if kind == "auto" else kind]
    settings = {"device_id": index or "0"} if provider != PROVIDERS["openvino"] else {"device_type": "CPU"}
    if provider != PROVIDERS["openvino"]:
        preload_cuda()
    wanted = [(provider, settings)] if provider in onnxruntime.get_available_providers() else []
    session = onnxruntime.InferenceSession(source, options, providers=[*wanted, "CPUExecutionProvider"])
    if session.get_providers()[0] == provider:
        return session
    cure = (
        "install onnxruntime-gpu and torch with CUDA 13, and see `onnxruntime.get_available_providers()`"
        if provider != PROVIDERS["openvino"]
        else "install onnxruntime-openvino"
    )
    if kind != "auto":
        raise DeviceError(f"device '{device}' cannot be used: ONNX Runtime made no {provider} session; {cure}")
    log.warning("a GPU is present but ONNX Runtime could not use it, so the CPU is used; %s", cure)
    return session


def preload_cuda() -> None:
    """Loads the CUDA libraries that torch brings, before ONNX Runtime looks for them. Its printing is captured."""
    import onnxruntime

    with contextlib.suppress(ImportError):
        import torch  # noqa: F401  (its import loads the libraries)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        onnxruntime.preload_dlls()


def gpu_count() -> int:
    """How many NVIDIA GPUs the driver reports; 0 without a driver. Costs no import."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def first_line(error: Exception) -> str:
    """The first line of a message, without ONNX Runtime's code, category and place in its source in front.

    Where it ends in a colon, the next line is what it wants to say.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    text = text.rsplit("[ONNXRuntimeError] : ", 1)[-1].split(" : ", 2)[-1]
    return re.sub(r"^/\S+:\d+ .*?\) (?=[A-Z])", "", text)
