"""One fine-tuning of a compact model, in PyTorch, from ONNX alone, and back into the same ONNX graph.

Without labels the model learns from the outputs of the original (distillation); with labels it can learn from both. The
order of samples and every augmentation depend on the seed, the epoch and the step alone, so that a run that was cut off
goes on as if it had not been.
"""

from onnxprune.recovery.checking import Trainable, check
from onnxprune.recovery.fresh import export_fresh
from onnxprune.recovery.options import Execution, Training, Watch
from onnxprune.recovery.parallel import is_writer
from onnxprune.recovery.paths import check_files, files_read, remove_checkpoint, state_of
from onnxprune.recovery.training import recover

__all__ = [
    "Execution",
    "Trainable",
    "Training",
    "Watch",
    "check",
    "check_files",
    "export_fresh",
    "files_read",
    "is_writer",
    "recover",
    "remove_checkpoint",
    "state_of",
]
