"""Packed linear layers: torch's results within rounding; ours give the same bits in any batch."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.kernels import shared_library
from workers.model.packed import linears
from workers.model.packed.linears import (
    OnednnLinear,
    PackedLinear,
    PackingError,
    are_worth_packing,
    has_onednn_products,
    pack,
    pack_for_onednn,
)

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


def test_rows_of_another_type_are_an_error_as_with_torch() -> None:
    packed = PackedLinear(torch.randn(8, 4), None, shared_library())
    with pytest.raises(RuntimeError, match=r"rows of torch\.float16 for weights of torch\.float32"):
        packed(torch.randn(2, 4).half())


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


def test_each_type_is_packed_by_us_or_for_onednn_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answers(dtype: torch.dtype) -> tuple[bool, bool]:
        return are_worth_packing(dtype), has_onednn_products(dtype)

    for dtype, name in linears.ONEDNN_SUPPORT.items():
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: True)
        assert answers(dtype) == (False, True)
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: False)
        assert answers(dtype) == (True, False)
        monkeypatch.setitem(linears.ONEDNN_SUPPORT, dtype, "_a_name_that_torch_does_not_have")
        assert answers(dtype) == (False, False)
    assert answers(torch.float32) == (True, False)


def test_a_packed_weight_is_freed_unless_the_embedding_has_it() -> None:
    for packing in (lambda model: pack(model, shared_library()), pack_for_onednn):
        model = Model().requires_grad_(False)
        embedding = nn.Embedding(8, 8)
        model.first.weight = embedding.weight
        tied, own = (weakref.ref(layer.weight) for layer in (model.first, model.inner[1]))
        assert packing(model) == 2
        assert own() is None
        assert tied() is embedding.weight
        assert embedding(torch.tensor([3])).shape == (1, 8)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_layer_in_onednn_s_order_is_the_original(
    inputs: int, outputs: int, *, has_bias: bool, dtype: torch.dtype
) -> None:
    if dtype != torch.float32 and not has_onednn_products(dtype):
        pytest.skip("oneDNN has no such products on this CPU")
    torch.manual_seed(1)
    linear = nn.Linear(inputs, outputs, bias=has_bias).to(dtype).requires_grad_(False)
    packed = OnednnLinear(linear.weight, linear.bias)
    wide = torch.randn(2, 40, 2 * inputs).to(dtype)
    with torch.inference_mode():
        for rows in (*(wide[0, :n, :inputs] for n in NUM_ROWS), wide[..., ::2], wide[0, 0, 1::2]):
            want, got = linear(rows), packed(rows)
            assert got.shape == want.shape
            assert got.dtype == dtype
            assert (got - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()
        assert packed(wide[:, :0, :inputs]).shape == (2, 0, outputs)


def test_all_linear_layers_of_a_model_are_put_into_onednn_s_order_once() -> None:
    model = Model().requires_grad_(False)
    rows = torch.randn(3, 8)
    want = model(rows)
    assert pack_for_onednn(model) == 2
    assert model.first is model.inner[0]
    assert isinstance(model.first, OnednnLinear)
    torch.testing.assert_close(model(rows), want)
    assert model.first.weight.shape == (8, 8)
    assert model.first.weight.is_meta


@pytest.mark.parametrize("fault", ["wrong", "nan", "type", "missing", "refused"])
def test_if_one_layer_fails_the_check_the_model_stays_as_it_is(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OnednnLinear.forward

    def wrong(layer: OnednnLinear, rows: Tensor) -> Tensor:
        out = right(layer, rows)
        if fault == "missing":
            return torch.ops.mkldnn._a_name_that_torch_does_not_have(rows)  # type: ignore[no-any-return]
        if fault == "refused":
            raise RuntimeError("not on this CPU\nand a trace")
        if fault == "type":
            return out.double()
        out[-1, -1] = float("nan") if fault == "nan" else out[-1, -1] + 0.01
        return out

    monkeypatch.setattr(OnednnLinear, "forward", wrong)
    model = Model().requires_grad_(False)
    rows = torch.randn(3, 8)
    want = model(rows)
    message = {
        "wrong": "its results differ from torch's",
        "nan": "its results differ from torch's by nan",
        "type": "oneDNN returned torch.float64",
        "missing": "AttributeError",
        "refused": "^RuntimeError: not on this CPU$",
    }[fault]
    with pytest.raises(PackingError, match=message):
        pack_for_onednn(model)
    assert torch.equal(model(rows), want)


def test_zeros_pass_the_check() -> None:
    model = nn.ModuleList([nn.Linear(8, 8, bias=False)]).requires_grad_(False)
    model[0].weight.zero_()
    assert pack_for_onednn(model) == 1


@pytest.mark.skipif(has_onednn_products(torch.bfloat16), reason="oneDNN has bf16 products here")
def test_where_onednn_has_no_bf16_products_it_refuses() -> None:
    model = Model().to(torch.bfloat16).requires_grad_(False)
    with pytest.raises(PackingError, match=r"^RuntimeError: mkldnn_reorder_linear_weight: bf16 "):
        pack_for_onednn(model)
    assert model(torch.randn(3, 8).to(torch.bfloat16)).shape == (3, 4)
