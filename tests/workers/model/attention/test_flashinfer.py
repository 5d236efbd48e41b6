"""The backend flashinfer, with a library that is faked from its documentation.

tests/workers/test_gpu.py runs the real one where it is installed.
"""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.workers.model.attention.fake_flashinfer import FakeFlashInfer, MisuseError
from tests.workers.model.attention.test_backends import LAYER, no_library
from tests.workers.world import CPU, Ground
from workers.device.upload import upload_to
from workers.model.attention import flashinfer
from workers.model.attention.backends import Backend, BackendError, check, choose
from workers.model.attention.flashinfer import FlashInferBackend, refusal
from workers.model.attention.interface import Form
from workers.model.attention.plain import PlainBackend
from workers.model.attention.probe import LayerAttention
from workers.model.batch import StepBatch
from workers.model.kv_cache import KvCache, LayerShape

BF16, FP16 = torch.bfloat16, torch.float16
KINDS = [
    LayerAttention(LayerShape(2, 64, 64), 4, Form(None, None, None, None)),
    LayerAttention(LayerShape(1, 128, 128), 8, Form(0.2, 4096, None, None)),
    LayerAttention(LayerShape(3, 64, 64), 3, Form(None, 1, 30.0, None)),
    LayerAttention(LayerShape(1, 256, 256), 5, Form(None, 7, 50.0, None)),
    LayerAttention(LayerShape(2, 64, 64), 14, Form(None, None, 5.0, None)),
]


@pytest.fixture(autouse=True)
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as the library takes."""
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 128 << 20)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(BF16, BF16), (FP16, FP16), (BF16, torch.float8_e4m3fn), (FP16, torch.float8_e5m2)],
    ids=str,
)
def test_it_passes_the_check_for_every_kind_of_layer(
    dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    backend = FlashInferBackend(FakeFlashInfer(), KINDS, CPU)
    check(backend, KINDS, dtype, cache_dtype, CPU)


def shares_of(ground: Ground, backend: Backend) -> list[StepBatch]:
    """A prefill step, decode steps, and one that mixes a chunk with a decode; blocks of 4."""
    short, middle, long = (ground.sequence([0] * n, spare=8) for n in (3, 9, 21))
    steps = []
    for shares in (
        [(short, 3), (middle, 9), (long, 8)],
        [(short, 1), (long, 13)],
        [(short, 1), (middle, 1), (long, 1)],
        [(middle, 1)],
        [(long, 2), (middle, 1)],
    ):
        for sequence, count in shares:
            sequence.token_ids.extend([0] * (sequence.fed + count - len(sequence.token_ids)))
        steps.append(ground.batch(shares, backend))
    return steps


def test_steps_of_all_sorts_attend_as_with_plain() -> None:
    library = FakeFlashInfer()
    backend = FlashInferBackend(library, KINDS, CPU)
    ground = Ground(block_size=4)
    shapes = {number: layer.shape for number, layer in enumerate(KINDS)}
    cache = KvCache(shapes, ground.num_blocks, 4, BF16, CPU)
    exact = KvCache(shapes, ground.num_blocks, 4, torch.float32, CPU)
    for tensors in (*cache.layers.values(), *exact.layers.values()):
        for tensor in tensors:
            tensor.fill_(float("nan"))  # reading a slot that was never written will show
    make = torch.Generator().manual_seed(5)
    for batch in shares_of(ground, backend):
        arrays = upload_to(CPU)(PlainBackend().arrays(batch.rows))
        step = backend.step(cache, batch)
        plain = PlainBackend().step(exact, replace(batch, arrays=arrays))
        for number, layer in enumerate(KINDS):
            query, key, value = _inputs(layer, batch.num_tokens + 1, make)  # one pads the batch
            got = step.attend(number, query, key, value, layer.form)
            want = plain.attend(number, query.float(), key.float(), value.float(), layer.form)
            assert got.dtype == BF16
            assert (got.float() - want).abs().max() < 0.02 * want.abs().max()
            assert torch.equal(got[-1], got[-2])
            for stored, other in zip(cache.layers[number], exact.layers[number], strict=True):
                assert torch.equal(stored.float().nan_to_num(7), other.nan_to_num(7))


def _inputs(layer: LayerAttention, count: int, make: torch.Generator) -> tuple[Tensor, ...]:
    """Query, key and value as transformers passes them, some as views of other memory."""
    kv_heads, dim = layer.shape.num_kv_heads, layer.shape.key_dim
    query = torch.randn(count, layer.num_heads, dim, generator=make).to(BF16).transpose(0, 1)
    key = torch.randn(kv_heads, count, dim, generator=make).to(BF16)
    both = torch.randn(count, kv_heads, 2 * dim, generator=make).to(BF16)
    return query, key, both[..., dim:].transpose(0, 1)


def test_layers_of_one_kind_share_a_plan_and_all_memory_is_taken_at_the_start() -> None:
    library = FakeFlashInfer()
    layers = [KINDS[0], KINDS[4], KINDS[0], KINDS[4]]
    backend = FlashInferBackend(library, layers, CPU)
    assert len(library.wrappers) == 4  # of each kind one for prefill and one for decode
    ground, make = Ground(block_size=4), torch.Generator().manual_seed(6)
    shape = layers[0].shape
    cache = KvCache(dict.fromkeys(range(4), shape), ground.num_blocks, 4, BF16, CPU)
    for batch in shares_of(ground, backend)[:2]:
        step = backend.step(cache, batch)
        for number, layer in enumerate(layers):
            step.attend(number, *_inputs(layer, batch.num_tokens, make), layer.form)
    assert sum(wrapper.num_plans for wrapper in library.wrappers) == 4  # two steps, two kinds
    assert sum(wrapper.num_runs for wrapper in library.wrappers) == 8
    check(backend, layers, BF16, BF16, CPU)
    assert len(library.wrappers) == 4


def test_a_step_of_decode_rows_uses_the_decode_kernels() -> None:
    library = FakeFlashInfer()
    backend = FlashInferBackend(library, KINDS[1:2], CPU)
    ground, make = Ground(block_size=4), torch.Generator().manual_seed(7)
    cache = KvCache({0: KINDS[1].shape}, ground.num_blocks, 4, BF16, CPU)
    decode, prefill = library.wrappers
    assert decode.use_tensor_cores  # 8 query heads share a KV head
    runs = []
    for batch in shares_of(ground, backend):
        step = backend.step(cache, batch)
        step.attend(0, *_inputs(KINDS[1], batch.num_tokens, make), KINDS[1].form)
        runs.append((prefill.num_runs, decode.num_runs))
    assert runs == [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (LAYER, BF16, "it has no kernels for heads of 16"),
        (KINDS[0], torch.float32, "it has no kernels for torch.float32"),
        (
            LayerAttention(LayerShape(3, 192, 128), 3, Form(None, None, None, None)),
            BF16,
            "it has no kernels for keys of 192 and values of 128",
        ),
        (
            LayerAttention(LayerShape(2, 64, 64), 4, Form(None, None, None, torch.ones(4))),
            BF16,
            "it has no kernels with attention sinks",
        ),
        (
            LayerAttention(LayerShape(2, 64, 64), 4, Form(None, None, None, None, 8192)),
            BF16,
            "it has no kernels with attention in chunks",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(
    layer: LayerAttention, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal([KINDS[0], layer], dtype) == reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(BackendError, match=f"^flashinfer attention cannot be used: {reason}"):
        choose("flashinfer", [KINDS[0], layer], dtype, dtype, torch.device("cuda"), no_library)


def test_it_is_refused_without_a_gpu_or_without_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert refusal(KINDS, BF16) is None
    with pytest.raises(BackendError, match="it runs on GPUs only"):
        choose("flashinfer", KINDS, BF16, BF16, CPU, no_library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(BackendError, match=r"FlashInfer is not installed \(flashinfer\)"):
        choose("flashinfer", KINDS, BF16, BF16, torch.device("cuda"), no_library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(BackendError, match=r"compute capability 8\.0"):
        choose("flashinfer", KINDS, BF16, BF16, torch.device("cuda"), no_library)


def test_the_fake_itself_notices_misuse() -> None:
    library = FakeFlashInfer()
    workspace = torch.zeros(128 << 20, dtype=torch.uint8)
    wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
    with pytest.raises(MisuseError, match="run before plan"):
        wrapper.run(torch.zeros(1, 1, 64), (workspace, workspace))
    good = {
        "qo_indptr": [0, 2],
        "paged_kv_indptr": [0, 1],
        "paged_kv_indices": [3],
        "paged_kv_last_page_len": [2],
    }
    for name, values, message in (
        ("qo_indptr", [0, 5], "more queries than keys"),
        ("paged_kv_indptr", [0, 2], "ends at 2, not 1"),
        ("paged_kv_last_page_len", [0], "not in 1 to page_size"),
        ("paged_kv_last_page_len", [1, 1], "has 2 of 1"),
    ):
        arrays = {k: torch.tensor(v, dtype=torch.int32) for k, v in (good | {name: values}).items()}
        with pytest.raises(MisuseError, match=message):
            wrapper.plan(
                **arrays, num_qo_heads=1, num_kv_heads=1, head_dim_qk=64, page_size=4, causal=True
            )
