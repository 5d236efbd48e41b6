"""Packed linear layers: torch's results within rounding, and the same bits in any batch."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.kernels import shared_library
from workers.model.linears import PackedLinear, are_worth_packing, pack

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# (inputs, outputs): whole panels and parts, one output, more inputs than are converted at once
SIZES = [(64, 64), (100, 50), (7, 1), (1, 33), (300, 40)]
NUM_ROWS = [1, 2, 5, 6, 7, 12, 13, 40]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_packed_layer_is_the_original(
    inputs: int, outputs: int, *, has_bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(inputs, outputs, bias=has_bias).to(dtype).requires_grad_(False)
    packed = PackedLinear(linear.weight, linear.bias, shared_library())
    for count in NUM_ROWS:
        rows = torch.randn(count, inputs).to(dtype)
        want, got = linear.float()(rows.float()), packed(rows)
        linear.to(dtype)
        assert got.dtype == dtype
        off = (got.float() - want).abs().max() / want.abs().max()
        assert off <= TOLERANCE[dtype], count


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_has_the_same_result_in_any_batch(dtype: torch.dtype) -> None:
    linear = nn.Linear(300, 70).to(dtype).requires_grad_(False)
    packed = PackedLinear(linear.weight, linear.bias, shared_library())
    rows = torch.randn(50, 300).to(dtype)
    alone = torch.cat([packed(row[None]) for row in rows])
    for count in NUM_ROWS:
        assert torch.equal(packed(rows[:count]), alone[:count])
        assert torch.equal(packed(rows[-count:]), alone[-count:])


def test_several_threads_share_the_work() -> None:
    linear = nn.Linear(512, 700).requires_grad_(False)
    packed = PackedLinear(linear.weight, linear.bias, shared_library())
    rows = torch.randn(40, 512)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            results.append(packed(rows))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_of_any_shape_and_stride_are_taken() -> None:
    linear = nn.Linear(16, 24).requires_grad_(False)
    packed = PackedLinear(linear.weight, linear.bias, shared_library())
    wide = torch.randn(2, 3, 32)
    for rows in (
        wide[..., :16],
        wide[..., ::2],
        wide[:, 1, 16:],
        wide[0, 0, :16],
        wide[:0, :, :16],
    ):
        torch.testing.assert_close(packed(rows), linear(rows))


class Model(nn.Module):
    """Layers that can be packed, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.inner = nn.ModuleList([self.first, Conv1D(4, 8), nn.LayerNorm(4)])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """All of them in turn."""
        for layer in (self.first, *self.inner):
            rows = layer(rows)
        return rows


def test_all_linear_layers_of_a_model_are_packed_once() -> None:
    model = Model().requires_grad_(False)
    rows = torch.randn(3, 8)
    want = model(rows)
    assert pack(model, shared_library()) == 2
    assert model.first is model.inner[0]
    torch.testing.assert_close(model(rows), want)
    # Code that looks at the weights finds their shape and type; no data, which may be used wrongly.
    assert model.first.weight.shape == (8, 8)
    assert model.first.weight.is_meta


def test_no_types_but_those_of_the_kernels_are_packed() -> None:
    assert are_worth_packing(torch.float32)
    assert not are_worth_packing(torch.float64)
