"""The all-gather: each stage sends a value to all others, as bytes that are data and nothing else.

torch's own collectives for objects unpickle what the others send, and a pickle can run code.
"""

from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def all_gather(mine: Value, kind: Any) -> list[Value]:
    """Each stage's value, in the order of the stages; all of them must call this at the same time.

    `kind` is the value's type, any that msgspec can convert. Raises `msgspec.ValidationError` when
    another stage sends a value of another type.
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
    """Each stage's tensor of the same shape, on the CPU."""
    # NCCL cannot read the CPU's memory; the stage has chosen its GPU before.
    sent = mine.cuda() if dist.get_backend() == "nccl" else mine
    gathered = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, sent)
    return [tensor.cpu() for tensor in gathered]
