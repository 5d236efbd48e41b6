"""The agreement: what each stage tells all others, as bytes that are data and nothing else.

torch's own collectives for objects unpickle what the others send, which can be a program.
"""

from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def all_gather(mine: Value, kind: Any) -> list[Value]:
    """What each stage tells, in order; all must ask at the same time.

    `kind` is the type of it, any that msgspec knows. Raises `msgspec.ValidationError` when another
    tells something else.
    """
    payload = msgspec.msgpack.encode(mine)
    sizes = [int(size) for size in _gathered(torch.tensor([len(payload)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    decoder = msgspec.msgpack.Decoder(kind)
    return [
        decoder.decode(told[:size].numpy().tobytes())
        for told, size in zip(_gathered(padded), sizes, strict=True)
    ]


def _gathered(mine: Tensor) -> list[Tensor]:
    """Each stage's tensor of one shape, on the CPU."""
    # NCCL knows nothing of the CPU's memory; the stage has chosen its GPU before.
    sent = mine.cuda() if dist.get_backend() == "nccl" else mine
    told = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(told, sent)
    return [tensor.cpu() for tensor in told]
