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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import DeviceError, ModelError, Overrun
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


@dataclass(frozen=True, slots=True)
class Bound:
    """What a run with made-up inputs may take, on the CPU.

    Attributes:
        memory: bytes of all tensors at a time, weights left out.
        seconds: of one run.
    """

    memory: int
    seconds: float


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
        bound: Bound | None = None,
        shapes_first: bool = False,
    ) -> None:
        """Loads a model.

        Args:
            model: a serialized ModelProto, or the path of a file.
            device: "auto", "cpu", "cuda", "cuda:1", "tensorrt" or "openvino".
            optimize: whether ONNX Runtime may fuse and fold.
            threads: intra-op threads; `own_cores()` when None or 0.
            spin: whether idle threads wait busily, which is faster alone and slows PyTorch down beside it.
            adapt: makes the inputs of this model from those that `run` is given.
            bound: what a run may take; no user's own data are ever bounded.
            shapes_first: whether Shape nodes run as soon as they can, so that tensors are freed once they are read.

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
        if shapes_first:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        self._bound = bound
        if bound:
            _bind_memory(onnxruntime, options, bound.memory)
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
            Overrun: the run takes more than the session is bound to.
        """
        wanted = list(names) if names is not None else [name for name, _, _ in self.outputs]
        try:
            given = self._adapt(feeds) if self._adapt else feeds
            with self._ending() as options:
                results = self._session.run(wanted, {**self._weights, **given}, options)
            return list(results) if wanted else []  # asked for nothing, it gives all
        except Overrun:
            raise
        except Exception as error:  # as above
            if self._bound and "Available memory of" in str(error):
                raise Overrun(f"it takes more than {self._bound.memory / 1e9:.1f} GB") from error
            raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error

    @contextlib.contextmanager
    def _ending(self) -> Iterator[Any]:
        """The options of a run that ends, between two nodes, when its time is over; None where it has no bound.

        Raises:
            Overrun: it had to be ended.
        """
        if self._bound is None:
            yield None
            return
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        over = threading.Event()

        def end() -> None:
            over.set()
            options.terminate = True

        timer = threading.Timer(self._bound.seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield options
        except Exception as error:
            if not over.is_set():
                raise
            raise Overrun(f"it does not end within {self._bound.seconds:.0f} s") from error
        finally:
            timer.cancel()


def _bind_memory(onnxruntime: Any, options: Any, memory: int) -> None:
    """Lets sessions made with these options have so many bytes of tensors.

    ONNX Runtime bounds arenas that sessions share, so one is made; the next one that is made takes its place. Weights
    stay out of it.
    """
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    settings = {
        "max_mem": memory,
        "arena_extend_strategy": 1,  # as much as is asked for
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    onnxruntime.create_and_register_allocator(info, onnxruntime.OrtArenaCfg(settings))
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


def own_memory() -> int:
    """Bytes of memory that this process may have: those of the machine, or fewer where it was given a limit."""
    found = [8 << 30]  # where nothing says it
    if hasattr(os, "sysconf"):
        import resource

        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        found += [limit] if limit != resource.RLIM_INFINITY else []
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


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
