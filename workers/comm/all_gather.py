"""The all-gather: each stage sends a value to all others, encoded as MessagePack.

The object collectives of torch are not used, because they unpickle the received bytes, and
unpickling can run code.
"""

from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def all_gather(mine: Value, kind: Any) -> list[Value]:
    """Return the values of all stages, in order; all stages must call this at the same time.

    `kind` is the type of the value, which msgspec must support. Raises `msgspec.ValidationError` if
    another stage sends a value of a different type.
    """
    payload = msgspec.msgpack.encode(mine)
    sizes = [int(size) for size in _gathered(torch.tensor([len(payload)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    decoder = msgspec.msgpack.Decoder(kind)
    return [
        decoder.decode(gathered[:size].numpy().tobytes())
        for gathered, size in zip(_gathered(padded), sizes, strict=True)
    ]


def _gathered(mine: Tensor) -> list[Tensor]:
    """Return the tensors of all stages, of the same shape, on the CPU."""
    # NCCL cannot read host memory; the stage has already selected its GPU.
    sent = mine.cuda() if dist.get_backend() == "nccl" else mine
    gathered = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sent)
    return [tensor.cpu() for tensor in gathered]
