"""What several tests share: where the demonstration models and the reference data are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"


def reference_data() -> Path | None:
    """The folder of the reference data; None where there is none."""
    folder = Path(os.environ.get("ONNXPRUNE_DATA", ROOT.parent / "shared" / "data"))
    return folder if (folder / "models").is_dir() else None


@pytest.fixture
def data_folder() -> Path:
    folder = reference_data()
    if folder is None:
        pytest.skip("the reference data are not here; set ONNXPRUNE_DATA to their folder")
    return folder


@pytest.fixture
def conv_model() -> Path:
    return MODELS / "digits_conv.onnx"


@pytest.fixture
def mlp_model() -> Path:
    return MODELS / "digits_mlp.onnx"


@pytest.fixture
def train_data() -> Path:
    return MODELS / "digits_train.npz"


@pytest.fixture
def test_data() -> Path:
    return MODELS / "digits_test.npz"


@pytest.fixture
def model(tmp_path: Path, mlp_model: Path) -> Path:
    """A copy that a test may write beside."""
    return Path(shutil.copy(mlp_model, tmp_path / "model.onnx"))
