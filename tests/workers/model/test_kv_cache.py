"""The KV cache: as many blocks as fit, no more than can be used, and a readable refusal."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from configs.config import EngineConfig
from tests.workers.world import CPU
from workers.model.kv_cache import (
    CPU_MEMORY_PART,
    FP8,
    KvCache,
    KvCacheError,
    LayerShape,
    count_blocks,
    dtype_of,
    stored,
)

# 2 x (3 + 5) + 1 x (4 + 4) = 24 numbers a token
SHAPES = {7: LayerShape(2, 3, 5), 9: LayerShape(1, 4, 4)}


def count(
    *,
    max_model_len: int = 1000,
    itemsize: int = 2,
    stages_on_device: int = 1,
    reserved_bytes: int = 0,
    config_len: int | None = None,
    **settings: int,
) -> int:
    """Blocks of 10 tokens (480 bytes in two-byte numbers) unless set otherwise."""
    config = EngineConfig.of(**{"block_size": 10, "max_model_len": config_len, **settings})
    return count_blocks(
        config, SHAPES, itemsize, max_model_len, CPU, stages_on_device, reserved_bytes
    )


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with memory for exactly 100 blocks of 480 bytes."""
    available = int(480 * 100 / CPU_MEMORY_PART)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_the_bytes_asked_for_are_filled_with_whole_blocks() -> None:
    assert count(kv_cache_memory_bytes=480) == 1
    assert count(kv_cache_memory_bytes=480 * 8 - 1) == 7
    assert count(kv_cache_memory_bytes=480 * 8) == 8


def test_wider_numbers_and_larger_blocks_leave_fewer() -> None:
    assert count(kv_cache_memory_bytes=480 * 8, itemsize=4) == 4
    assert count(kv_cache_memory_bytes=480 * 8, block_size=20) == 4


@pytest.mark.usefixtures("free_bytes")
def test_the_set_bytes_are_taken_whatever_is_free_or_useful() -> None:
    assert count(kv_cache_memory_bytes=480 * 5000, max_num_seqs=1) == 5000


@pytest.mark.usefixtures("free_bytes")
def test_without_a_setting_a_part_of_the_free_memory_is_taken() -> None:
    assert count() == 100


@pytest.mark.usefixtures("free_bytes")
def test_the_stages_on_one_machine_share_its_memory() -> None:
    assert count(stages_on_device=4) == 25


@pytest.mark.usefixtures("free_bytes")
def test_what_cuda_graphs_need_is_left_free_unless_the_bytes_are_set() -> None:
    assert count(reserved_bytes=480 * 30) == 70
    assert count(reserved_bytes=480 * 30, kv_cache_memory_bytes=480 * 90) == 90


@pytest.mark.usefixtures("free_bytes")
def test_no_more_is_taken_than_all_sequences_could_fill() -> None:
    assert count(max_num_seqs=3, max_model_len=21) == 9
    assert count(max_num_seqs=3, max_model_len=20) == 6


@pytest.mark.usefixtures("free_bytes")
def test_memory_for_not_even_one_block_is_refused_with_the_figures() -> None:
    with pytest.raises(KvCacheError, match=r"479 bytes .* 480 bytes \(10 tokens\)"):
        count(kv_cache_memory_bytes=479)
    with pytest.raises(KvCacheError, match="one KV block"):
        count(stages_on_device=101)


def test_each_layer_has_its_own_shape_in_the_cache() -> None:
    cache = KvCache(SHAPES, 6, 10, torch.bfloat16, CPU)
    shapes = {layer: tuple(t.shape for t in pair) for layer, pair in cache.layers.items()}
    assert shapes == {
        7: ((6, 2, 10, 3), (6, 2, 10, 5)),
        9: ((6, 1, 10, 4), (6, 1, 10, 4)),
    }
    assert {t.dtype for pair in cache.layers.values() for t in pair} == {torch.bfloat16}


@pytest.mark.usefixtures("free_bytes")
def test_fp8_doubles_the_blocks_of_the_same_memory() -> None:
    assert count(itemsize=torch.float8_e4m3fn.itemsize) == 2 * count()
    assert count(itemsize=1, kv_cache_memory_bytes=480 * 8) == 16
    halves = KvCache(SHAPES, 6, 10, torch.float8_e5m2, CPU)
    assert 2 * halves.num_bytes == KvCache(SHAPES, 6, 10, torch.bfloat16, CPU).num_bytes


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [
        ("auto", torch.bfloat16),
        ("fp8", torch.float8_e4m3fn),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_the_setting_names_the_type(setting: str, dtype: torch.dtype) -> None:
    config = EngineConfig.of(kv_cache_dtype=setting)
    assert dtype_of(config.cache, torch.bfloat16) == dtype


@pytest.mark.parametrize("dtype", FP8.values(), ids=str)
def test_fp8_saturates_and_keeps_nan(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    values = torch.tensor([most, 2 * most, -1e30, float("inf"), float("-inf"), 1e-30, -0.0])
    want = torch.tensor([most, most, -most, most, -most, 0, 0])
    for source in (torch.float32, torch.bfloat16):
        assert torch.equal(stored(values.to(source), dtype).float(), want)
        assert stored(torch.full([3], float("nan"), dtype=source), dtype).float().isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, *FP8.values()], ids=str)
def test_random_contents_are_finite_and_of_ordinary_size(dtype: torch.dtype) -> None:
    cache = KvCache(SHAPES, 6, 10, dtype, CPU)
    for tensor in (t for pair in cache.layers.values() for t in pair):
        tensor.fill_(float("nan"))
    cache.randomise(4)
    for tensor in (t.float() for pair in cache.layers.values() for t in pair):
        assert 0 < tensor[:4].abs().max() < 8
        assert tensor[4:].isnan().all()


def test_a_configured_length_that_does_not_fit_is_refused_before_anything_is_measured() -> None:
    config = {"kv_cache_memory_bytes": 480 * 8}
    assert count(max_model_len=80, config_len=80, **config) == 8
    with pytest.raises(KvCacheError, match="max_model_len 81 does not fit the KV cache of 80 tok"):
        count(max_model_len=81, config_len=81, **config)


def test_a_cache_that_cannot_be_allocated_names_the_settings() -> None:
    with pytest.raises(KvCacheError, match="too small for a KV cache of 1125899906842624 blocks"):
        KvCache(SHAPES, 1 << 50, 10, torch.float32, CPU)
