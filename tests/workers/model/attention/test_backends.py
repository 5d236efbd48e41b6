"""The choice of a backend: the fastest that gives the right results; the others get a reason."""

import logging
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import shared_library, triton_backend
from tests.workers.world import CPU
from workers.kernels.compiler import CompilerError
from workers.kernels.library import Library
from workers.model.attention import backends
from workers.model.attention.backends import BackendError, check, choose
from workers.model.attention.interface import Attend, Form
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend
from workers.model.attention.probe import LayerAttention
from workers.model.batch import StepBatch
from workers.model.kv_cache import KvCache, LayerShape

LAYER = LayerAttention(LayerShape(2, 16, 16), 4, Form(None, None, None, None))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
FP32 = (torch.float32, torch.float32)  # of activations and cache
REST = ("sliding_window", "softcap", "sinks", "chunk_size")  # of a form besides its scale
KINDS = [
    LAYER,
    LayerAttention(LayerShape(1, 80, 80), 8, Form(0.2, 4096, None, None)),
    LayerAttention(LayerShape(3, 192, 128), 3, Form(None, None, 30.0, None)),
    LayerAttention(LayerShape(2, 64, 64), 14, Form(None, 128, None, torch.linspace(-1, 1, 14))),
    LayerAttention(LayerShape(1, 256, 256), 5, Form(None, 7, 50.0, None)),
    LayerAttention(LayerShape(2, 32, 32), 10, Form(None, None, None, None, 8192)),
    LayerAttention(LayerShape(1, 32, 32), 2, Form(None, 30, None, torch.zeros(2), 33)),
]


def no_library() -> Library:
    """A machine without a compiler."""
    raise CompilerError("no C++ compiler")


@pytest.mark.parametrize("cache_dtype", [None, *FP8], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_passes_the_check_for_every_kind_of_layer(
    dtype: torch.dtype, cache_dtype: torch.dtype | None
) -> None:
    check(NativeBackend(shared_library()), KINDS, dtype, cache_dtype or dtype, CPU)


# The interpreter's exp overflows to infinity with a warning, a GPU's without one; a soft cap of
# infinity is right.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "kinds"),
    [
        (torch.float32, torch.float32, [*KINDS[1:4], KINDS[6]]),
        (torch.bfloat16, torch.bfloat16, [KINDS[3], KINDS[5]]),
        (torch.float16, torch.float16, KINDS[:1]),
        (torch.float32, torch.float8_e5m2, KINDS[:1]),
        (torch.bfloat16, torch.float8_e4m3fn, [KINDS[3], KINDS[5]]),
        (torch.float16, torch.float8_e4m3fn, KINDS[:1]),
        *(
            pytest.param(dtype, cache_dtype, KINDS, marks=pytest.mark.long)
            for dtype in DTYPES
            for cache_dtype in (dtype, *FP8)
        ),
    ],
)
def test_triton_passes_the_check(
    dtype: torch.dtype, cache_dtype: torch.dtype, kinds: list[LayerAttention]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU here, see tests/workers/test_gpu.py")
    check(triton_backend(), kinds, dtype, cache_dtype, CPU)


@pytest.mark.parametrize("splits", [pytest.param(2, marks=pytest.mark.long), 8])
def test_the_parts_of_a_decode_row_are_combined(splits: int) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU here, see tests/workers/test_gpu.py")
    whole = triton_backend()

    class Split:
        name, arrays = "split", staticmethod(whole.arrays)

        def step(self, cache: KvCache, batch: StepBatch) -> Attend:
            return whole.step(cache, batch, splits)  # type: ignore[call-arg]

    check(Split(), KINDS[3:4], torch.float32, torch.float32, CPU)


def test_the_number_of_splits_fills_the_device_but_is_worth_it() -> None:
    pytest.importorskip("triton")
    from workers.model.attention.triton import num_splits, split_counts

    assert num_splits(8, 100_000, 132) == 32
    assert num_splits(64, 100_000, 132) == 4
    assert num_splits(1000, 100_000, 132) == 1
    assert num_splits(8, 600, 132) == 2
    assert num_splits(1, 10, 132) == num_splits(0, 0, 132) == 1
    for programs, longest, processors in product([1, 3, 40, 500], [1, 900, 10**6], [8, 80, 200]):
        assert num_splits(programs, longest, processors) in split_counts()


def test_the_fastest_backend_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    shared_library()
    for cache_dtype in (torch.bfloat16, *FP8):
        stage = (KINDS, torch.bfloat16, cache_dtype, CPU)
        assert choose("auto", *stage, shared_library).name == "native"
        assert choose("plain", *stage, no_library).name == "plain"
    assert not caplog.records


def test_without_a_compiler_plain_is_chosen_and_the_reason_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tdpipe"):
        assert choose("auto", KINDS, *FP32, CPU, no_library).name == "plain"
    assert caplog.messages == ["native attention cannot be used: no C++ compiler"]
    with pytest.raises(BackendError, match=r"^native attention cannot be used: no C\+\+ compiler$"):
        choose("native", KINDS, *FP32, CPU, no_library)


def test_a_type_without_kernels_is_left_to_plain(caplog: pytest.LogCaptureFixture) -> None:
    for cache_dtype in (torch.float64, *FP8):
        stage = (KINDS, torch.float64, cache_dtype, CPU)
        assert choose("auto", *stage, shared_library).name == "plain"
    assert "no kernels for torch.float64" in caplog.text


class Wrong:
    """A backend that errs: it changes the arguments of the plain one, or its results."""

    name, arrays = "wrong", staticmethod(PlainBackend().arrays)

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def step(self, cache: KvCache, batch: StepBatch) -> Attend:
        """A step of the plain backend, with the fault."""
        inner, fault = PlainBackend().step(cache, batch), self._fault

        class Step:
            def attend(
                self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form
            ) -> Any:
                if fault == "window":
                    form = Form(form.scaling, None, form.softcap, form.sinks, form.chunk_size)
                if fault == "chunk":
                    form = Form(form.scaling, form.sliding_window, form.softcap, form.sinks)
                if fault == "scale":
                    form = Form(0.9, *(getattr(form, name) for name in REST))
                out = inner.attend(layer, query, key, value, form)
                if fault == "nan":
                    out[3, 0, 0] = float("nan")
                if fault == "one token":
                    out[-3] += 0.5
                if fault == "store":
                    cache.layers[0][1][0, 0, 0] += 1
                return out

        return Step()


@pytest.mark.parametrize("fault", ["window", "chunk", "scale", "nan", "one token", "store"])
def test_the_check_finds_a_fault(fault: str) -> None:
    form = Form(None, None, None, None, 1000) if fault == "chunk" else Form(None, 1000, None, None)
    layer = LayerAttention(LAYER.shape, 4, form)
    check(Wrong(""), [layer], torch.float32, torch.float32, CPU)
    with pytest.raises(BackendError, match="differ from those of plain"):
        check(Wrong(fault), [layer], torch.float32, torch.float32, CPU)


def test_the_check_finds_fp8_that_does_not_saturate() -> None:
    class Overflowing:
        name, arrays = "overflowing", staticmethod(PlainBackend().arrays)

        def step(self, cache: KvCache, batch: StepBatch) -> Attend:
            inner = PlainBackend().step(cache, batch)

            class Step:
                def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: Form) -> Any:
                    out = inner.attend(layer, q, k, v, form)
                    if k.abs().max() > 448:
                        cache.layers[0][0].view(torch.uint8)[0, 0, 0, 0] = 0x7F  # NaN
                    return out

            return Step()

    with pytest.raises(BackendError, match="differ from those of plain"):
        check(Overflowing(), [LAYER], torch.float32, torch.float8_e4m3fn, CPU)
    check(Overflowing(), [LAYER], torch.float32, torch.float32, CPU)


def test_layers_of_one_kind_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LayerAttention] = []
    monkeypatch.setattr(
        backends, "_largest_error", lambda _backend, layer, *_: seen.append(layer) or 0.0
    )
    kinds = [LAYER, LAYER, *KINDS, KINDS[1]]
    check(PlainBackend(), kinds, torch.float32, torch.float32, CPU)
    assert len(seen) == len(KINDS)
