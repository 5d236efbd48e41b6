"""The KV cache of one stage: two tensors per layer, sized by the available memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.config import EngineConfig
from configs.schema.pipeline import CacheConfig
from daemon.host import host_memory

# The types that `kv_cache_dtype` names besides that of the activations.
FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
# By default, all stages on a CPU together take this fraction of the free memory at start-up.
CPU_MEMORY_PART = 0.4


@dataclass(slots=True, frozen=True)
class LayerShape:
    """The shape of the KV that one token stores in one layer."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def values_per_token(self) -> int:
        """The number of values of key and value together."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KvCacheError(Exception):
    """The memory is too small for a usable KV cache; the message is for the user."""


class KvCache:
    """Keys and values by layer, `[blocks, KV heads, block size, dim]`.

    A head's part of a block is contiguous, because a kernel reads one head at a time. `dtype` is
    that of the activations, or an fp8 type: attention backends then convert what they write (see
    `stored`) and what they read, which is exact.

    The tensors are not zeroed: a slot is written before it is read, and unused pages take no
    memory. Raises `KvCacheError` where they cannot be allocated.
    """

    def __init__(
        self,
        shapes: dict[int, LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.dtype = dtype
        options: Any = {"dtype": dtype, "device": device}
        try:
            self.layers: dict[int, tuple[Tensor, Tensor]] = {
                layer: (
                    torch.empty(num_blocks, s.num_kv_heads, block_size, s.key_dim, **options),
                    torch.empty(num_blocks, s.num_kv_heads, block_size, s.value_dim, **options),
                )
                for layer, s in shapes.items()
            }
        except RuntimeError as error:  # torch.OutOfMemoryError too
            raise KvCacheError(
                f"the memory of {device} is too small for a KV cache of {num_blocks} blocks; lower "
                "kv_cache_memory_bytes or gpu_memory_utilization"
            ) from error

    @property
    def num_bytes(self) -> int:
        """The maximum memory of all layers in bytes."""
        return sum(tensor.nbytes for tensors in self.layers.values() for tensor in tensors)

    def randomise(self, num_blocks: int) -> None:
        """Fill the first blocks with random values of ordinary size."""
        for tensor in (t for tensors in self.layers.values() for t in tensors):
            if self.dtype in FP8.values():
                # Below 2: without the upper bit of the exponent, which also excludes NaN.
                tensor[:num_blocks].view(torch.uint8).random_(256).bitwise_and_(0xBF)
            else:
                tensor[:num_blocks].normal_()


def dtype_of(config: CacheConfig, activations: torch.dtype) -> torch.dtype:
    """The type of the KV cache of a model with activations of this type."""
    return FP8.get(config.kv_cache_dtype, activations)


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values as a cache of this type stores them; only for fp8 they are rounded.

    fp8 saturates: beyond its largest value (448 or 57,344) it has only NaN or infinity, and one of
    these would make all results of its sequence NaN.
    """
    if dtype not in FP8.values():
        return tensor
    most = torch.finfo(dtype).max
    return tensor.clamp(-most, most).to(dtype)


def count_blocks(
    config: EngineConfig,
    shapes: dict[int, LayerShape],
    itemsize: int,
    max_model_len: int,
    device: torch.device,
    stages_on_device: int,
    reserved_bytes: int = 0,
) -> int:
    """Count the KV blocks that this stage can hold.

    Raises `KvCacheError` if not even one fits, or not a sequence of the configured length.

    By default, the count is limited to the blocks that the maximum number of live sequences fills
    at full length. On a GPU, call this after a forward pass of the largest batch, so that the
    allocator has recorded the memory that it needs. `reserved_bytes` are left free besides.
    """
    cache = config.cache
    block_bytes = cache.block_size * itemsize * sum(s.values_per_token for s in shapes.values())
    if cache.kv_cache_memory_bytes is not None:
        budget_bytes = cache.kv_cache_memory_bytes
        source = "kv_cache_memory_bytes:"
        num_blocks = budget_bytes // block_bytes
    else:
        budget_bytes = free_bytes(cache, device, stages_on_device) - reserved_bytes
        source = f"gpu_memory_utilization {cache.gpu_memory_utilization:g}:"
        if device.type == "cpu":
            source = f"{CPU_MEMORY_PART:.0%} of the free memory, for {stages_on_device} stages:"
        useful = config.max_live * -(-max_model_len // cache.block_size)
        num_blocks = min(budget_bytes // block_bytes, useful)
    if num_blocks < 1:
        raise KvCacheError(
            f"{source} {max(0, budget_bytes):,} bytes do not hold one KV block of {block_bytes:,} "
            f"bytes ({cache.block_size} tokens)"
        )
    wanted, num_tokens = config.model.max_model_len, num_blocks * cache.block_size
    if wanted is not None and num_tokens < wanted:
        raise KvCacheError(
            f"max_model_len {wanted} does not fit the KV cache of {num_tokens} tokens; "
            "raise kv_cache_memory_bytes or gpu_memory_utilization, or lower max_model_len"
        )
    return num_blocks


def free_bytes(config: CacheConfig, device: torch.device, stages_on_device: int) -> int:
    """The bytes that the KV cache of a stage may take by default on this device."""
    if device.type == "cpu":
        return int(host_memory.available_bytes() * CPU_MEMORY_PART) // stages_on_device
    free, total = torch.cuda.mem_get_info(device)
    activations = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    used_by_all = total - free
    share = int(total * config.gpu_memory_utilization) - used_by_all
    return share // stages_on_device + reserved - activations
