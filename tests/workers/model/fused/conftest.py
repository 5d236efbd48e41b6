"""Both implementations of the fused operations run the same tests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from workers.model.fused.operations import FusedOperations


@pytest.fixture(params=["native", "triton"])
def operations(request: pytest.FixtureRequest) -> "Iterator[FusedOperations]":
    """One implementation; on a machine with a GPU, Triton's tensors are made there."""
    # Late imports: this file is read before tests/conftest.py chooses Triton's interpreter.
    import torch

    from tests.kernels import shared_library, triton_operations
    from workers.model.fused.native import NativeOperations

    if request.param == "native":
        yield NativeOperations(shared_library())
        return
    made = triton_operations()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield made
