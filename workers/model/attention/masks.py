"""Masks: which earlier tokens a layer sees, learnt from the mask that transformers would make.

A sliding window or a chunk may be known only to the function that makes the mask (Phi-MoE,
Llama 4). During a probe, it makes no mask, but is asked about positions at the borders of windows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from workers.model.attention.interface import NAME, UnsupportedModelError, paged_attention

PROBE_NAME = "tdpipe_probe"

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


@dataclass(slots=True, frozen=True)
class Visible:
    """Which tokens the token at position q sees, beside those after it, which it never sees.

    With a sliding window w those from q - w + 1 on, with chunks of c those of its own chunk.
    """

    sliding_window: int | None = None
    chunk_size: int | None = None

    def at(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether the token at position `q` sees that at position `k`."""
        seen = k <= q
        if self.sliding_window is not None:
            seen &= k > q - self.sliding_window
        if self.chunk_size is not None:
            seen &= k // self.chunk_size == q // self.chunk_size
        return seen


class Mask:
    """Takes the place of a mask during a probe."""

    def __init__(
        self,
        function: MaskFunction,
        num_tokens: int,
        local_size: int | None,
        device: torch.device | str,
    ) -> None:
        self._function, self._num_tokens = function, num_tokens
        self._local_size, self._device = local_size, device

    def __getattr__(self, name: str) -> NoReturn:
        raise UnsupportedModelError("it computes with its attention mask")

    def __getitem__(self, at: object) -> NoReturn:
        raise UnsupportedModelError("it computes with its attention mask")

    def read(self) -> Visible:
        """What it lets a token see; raises `UnsupportedModelError` for another kind of mask."""
        size = self._local_size
        kinds = [*([Visible(size), Visible(None, size)] if size is not None else []), Visible()]
        q, k = _borders(size or 8)
        try:
            found = self._ask(q, k)
        except IndexError:  # it depends on what the tokens are (images), not only on where
            known = (q < self._num_tokens) & (k < self._num_tokens)
            q, k = q[known], k[known]
            found = self._ask(q, k)
        for kind in kinds:
            if torch.equal(found, kind.at(q, k)):
                return kind
        raise UnsupportedModelError("its attention needs a mask of its own")

    def _ask(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether the tokens at positions `q` see those at `k`."""
        q, k = q.to(self._device), k.to(self._device)
        nothing = torch.zeros((), dtype=torch.int64, device=self._device)
        return torch.as_tensor(self._function(nothing, nothing, q, k)).expand(q.shape).cpu()


@contextmanager
def are_read(model: PreTrainedModel) -> Iterator[None]:
    """Give the model's layers a `Mask` while the context lasts; otherwise they get none.

    transformers looks masks up by the attention's name, in a table of the process. The model gets
    another name meanwhile: other threads, which may run other models, are not concerned.
    """
    model.set_attn_implementation(PROBE_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(NAME)


def _make_mask(
    *args: Any,  # noqa: ARG001 - the interface of transformers
    mask_function: MaskFunction,
    q_length: int,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **others: Any,  # noqa: ARG001
) -> Mask:
    return Mask(mask_function, q_length, local_size, device)


def _borders(size: int) -> tuple[Tensor, Tensor]:
    """Positions of pairs around the borders of windows and chunks of this size."""
    qs = sorted({max(0, n * size + d) for n in (0, 1, 2, 3) for d in (-2, -1, 0, 1, 2)})
    pairs = [
        (q, k)
        for q in qs
        for k in {0, q - size - 1, q - size, q - size + 1, q - 1, q, q + 1, *qs}
        if k >= 0
    ]
    q, k = torch.tensor(pairs).unbind(1)
    return q, k


AttentionInterface.register(PROBE_NAME, paged_attention)
AttentionMaskInterface.register(PROBE_NAME, _make_mask)
