"""What all tests and their daemons share: the compiled CPU kernels, and the proofs of families."""

from pathlib import Path

import pytest
import torch

from workers.kernels.compiler import FOLDER, CompilerError
from workers.kernels.library import Library, native_library
from workers.model.attention.backends import Backend
from workers.model.fused.operations import FusedOperations
from workers.model.proof import admission

SHARED = Path(__file__).resolve().parents[1] / ".pytest_cache"


def shared_library() -> Library:
    """The library; the calling test is skipped where nothing can be compiled."""
    try:
        return native_library(SHARED)
    except CompilerError as error:
        pytest.skip(str(error))


def triton_backend() -> Backend:
    """Triton's kernels, on a GPU or in the interpreter; skips where Triton is not installed."""
    pytest.importorskip("triton")
    from workers.model.attention.triton import TritonBackend

    return TritonBackend(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def triton_operations() -> FusedOperations:
    """Triton's fused operations; skips where Triton is not installed."""
    pytest.importorskip("triton")
    from workers.model.fused.triton import TritonOperations

    return TritonOperations()


def prepare_data_dir(data_dir: Path) -> Path:
    """Give a new data folder the kernels and the proofs of families of other tests; returns it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    for folder in (FOLDER, admission.FOLDER):
        (SHARED / folder).mkdir(parents=True, exist_ok=True)
        if not (data_dir / folder).exists():
            (data_dir / folder).symlink_to(SHARED / folder)
    return data_dir
