"""The KV cache in fp8: every backend stores and reads the same values, at all ends of the types."""

import pytest
import torch
from torch import Tensor

from tests.kernels import shared_library, triton_backend
from tests.workers.world import CPU, Ground
from workers.model.attention.backends import Backend
from workers.model.attention.interface import Form
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend, attend_one
from workers.model.kv_cache import FP8, KvCache, LayerShape, stored

FORM = Form(None, None, None, None)
WIDE = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["plain", "native", "triton"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that runs on a CPU, Triton's in its interpreter."""
    if request.param == "triton":
        if torch.cuda.is_available():
            pytest.skip("Triton's kernels run on the GPU here, see tests/workers/test_gpu.py")
        return triton_backend()
    return PlainBackend() if request.param == "plain" else NativeBackend(shared_library())


@pytest.fixture(params=FP8.values(), ids=FP8.keys())
def fp8(request: pytest.FixtureRequest) -> torch.dtype:
    """Each type of the cache."""
    dtype: torch.dtype = request.param
    return dtype


def attend(
    backend: Backend, cache: KvCache, lengths: list[int], tensors: list[Tensor], seed: int = 1
) -> Tensor:
    """New sequences of these lengths, in one step; query, key and value `[heads, tokens, dim]`."""
    ground = Ground(block_size=16, num_blocks=len(cache.layers[0][0]), seed=seed)
    batch = ground.batch([(ground.sequence([0] * n), n) for n in lengths], backend)
    return backend.step(cache, batch).attend(0, *tensors, FORM)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_value_is_stored_as_by_torch_and_saturates(
    backend: Backend, fp8: torch.dtype, dtype: torch.dtype
) -> None:
    # All values of 16 bits with a stride, all values of fp8, those halfway between, and next to it.
    codes = torch.arange(-(1 << 15), 1 << 15, 61).to(torch.int16)
    values = [codes.view(torch.bfloat16).float(), codes.view(torch.float16).float()]
    exact = torch.arange(256, dtype=torch.uint8).view(fp8).float()
    finite = exact[exact.isfinite()].sort().values
    halfway = (finite[1:] + finite[:-1]) / 2
    ends = [halfway.nextafter(torch.tensor(end)) for end in (float("inf"), float("-inf"))]
    column = torch.cat([*values, exact, halfway, *ends]).to(dtype)
    num_tokens = -(-len(column) // 256)
    key = torch.zeros(num_tokens * 256, dtype=dtype)
    key[: len(column)] = column
    key = key.view(1, num_tokens, 256)
    cache = KvCache({0: LayerShape(1, 256, 256)}, -(-num_tokens // 16), 16, fp8, CPU)
    attend(backend, cache, [num_tokens], [torch.zeros_like(key), key, key.flip(1)], seed=2)
    ground = Ground(block_size=16, num_blocks=len(cache.layers[0][0]), seed=2)
    blocks = ground.sequence([0] * num_tokens).block_table
    for tensor, new in zip(cache.layers[0], (key, key.flip(1)), strict=True):
        got = tensor[blocks].flatten(0, 2)[:num_tokens].float()
        want = stored(new[0], fp8).float()
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_code_is_read_exactly(backend: Backend, fp8: torch.dtype, dtype: torch.dtype) -> None:
    # A sequence of one token returns the value that it has just stored.
    codes = torch.arange(256, dtype=torch.uint8).view(fp8).float().nan_to_num(1, 1, 1)
    value = codes.to(dtype).view(1, 16, 16)
    cache = KvCache({0: LayerShape(1, 16, 16)}, 16, 16, fp8, CPU)
    got = attend(backend, cache, [1] * 16, [torch.ones_like(value)] * 2 + [value])
    assert torch.equal(got.view(-1).float(), codes)


def test_attention_is_that_of_the_rounded_keys_and_values(
    backend: Backend, fp8: torch.dtype
) -> None:
    make = torch.Generator().manual_seed(3)
    lengths = [17, 1, 5]
    query, key, value = (
        torch.randn(heads, sum(lengths), 40, generator=make) for heads in (6, 2, 2)
    )
    cache = KvCache({0: LayerShape(2, 40, 40)}, 8, 16, fp8, CPU)
    got = attend(backend, cache, lengths, [query, key, value])
    parts = (torch.split(t, lengths, dim=1) for t in (query, key, value))
    for q, k, v, part in zip(*parts, torch.split(got, lengths), strict=True):
        rounded = (stored(t, fp8).float() for t in (k, v))
        torch.testing.assert_close(part, attend_one(q, *rounded, FORM).transpose(0, 1))
        assert (part - attend_one(q, k, v, FORM).transpose(0, 1)).abs().max() > 1e-3


def test_a_nan_is_seen_by_its_own_sequence_only(backend: Backend, fp8: torch.dtype) -> None:
    query, key, value = (torch.ones(1, 16, 32) for _ in range(3))
    value[0, 7, 5] = float("nan")  # of the second of three sequences
    cache = KvCache({0: LayerShape(1, 32, 32)}, 6, 16, fp8, CPU)
    got = attend(backend, cache, [5, 10, 1], [query, key, value])
    has_nan = got.isnan().any(-1).flatten()
    assert has_nan[7:15].all()
    assert not has_nan[:5].any()
    assert not has_nan[15:].any()


def test_results_do_not_depend_on_chunks(fp8: torch.dtype) -> None:
    backend = NativeBackend(shared_library())
    make = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(heads, 50, 64, generator=make) for heads in (6, 2, 2))
    results = []
    for chunks in ([50], [7, 1, 30, 12], [49, 1]):
        ground = Ground(block_size=16)
        sequence = ground.sequence([0] * 50)
        cache = KvCache({0: LayerShape(2, 64, 64)}, ground.num_blocks, 16, fp8, CPU)
        outs, begin = [], 0
        for count in chunks:
            batch = ground.batch([(sequence, count)], backend)
            part = (t[:, begin : begin + count] for t in (query, key, value))
            outs.append(backend.step(cache, batch).attend(0, *part, FORM))
            begin += count
        results.append(torch.cat(outs))
    rows = [result[[0, 20, 30]] for result in results[:2]]
    assert torch.equal(*rows)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
