"""Paged attention as an attention implementation of transformers.

transformers calls it in every attention layer, after the rotary embedding and before keys and
values are repeated for grouped queries. What belongs to one forward pass is in its
`ForwardContext`, because not every family passes keywords on to its attention.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

NAME = "tdpipe_paged"

# Keywords that have no effect on causal attention over a paged cache. The number of layers is
# Gemma 4's, for its training.
_HARMLESS = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "dropout",
    "is_causal",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "use_cache",
}


class UnsupportedModelError(Exception):
    """The model's attention cannot be served from a paged cache; the message gives the reason."""


class Attend(Protocol):
    """The context of a step, which its attention layers get."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: "Form") -> Tensor:
        """Store the keys and values; returns `[tokens, query heads, value dim]`.

        Those of all rows are stored before any row attends: a row may begin with blocks that
        another row of the same step fills (prefix cache).
        """
        ...


class Form:
    """The properties of a layer's attention: scale, sliding window, soft cap, sinks, chunks.

    A token sees itself and the tokens before it: of these, with a `sliding_window` of n the last
    n (itself included), and with a `chunk_size` of n those from the last multiple of n on.
    """

    __slots__ = ("chunk_size", "scaling", "sinks", "sliding_window", "softcap")

    def __init__(
        self,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        chunk_size: int | None = None,
    ) -> None:
        self.scaling = scaling
        self.sliding_window = sliding_window
        self.softcap = softcap
        self.sinks = sinks
        self.chunk_size = chunk_size


@dataclass(slots=True, frozen=True)
class AttentionCall:
    """What is known of one call of attention in a layer since the probe.

    `kv_layer` names the keys and values in the cache: that of the layer itself, or of the earlier
    layer that it shares them with (Gemma 3n, Gemma 4), or one of its own for the second call in one
    layer (DiffLlama). The window and the chunk are those of the mask (`masks`).
    """

    kv_layer: int
    sliding_window: int | None
    chunk_size: int | None


Calls = Mapping[tuple[int, int], AttentionCall]
"""By (layer, number of the call in the layer)."""


class Learn(Protocol):
    """Makes `Calls` during a probe."""

    def learn(
        self, at: tuple[int, int], key: Tensor, value: Tensor, mask: object, window: int | None
    ) -> AttentionCall:
        """Record a call of attention; raises `UnsupportedModelError`."""
        ...


@dataclass(slots=True)
class ForwardContext:
    """What the attention layers of one forward pass work with."""

    step: Attend
    calls: Calls | Learn
    _counts: dict[int, int] = field(default_factory=dict)

    def count(self, layer: int) -> tuple[int, int]:
        """The layer and the number of this call in it."""
        number = self._counts.get(layer, 0)
        self._counts[layer] = number + 1
        return layer, number


_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def forward_context(step: Attend, calls: Calls | Learn) -> Iterator[None]:
    """Set what the attention layers work with while the context lasts."""
    token = _current.set(ForwardContext(step, calls))
    try:
        yield
    finally:
        _current.reset(token)


def require_one_type(layer: int, cache: torch.dtype, *activations: Tensor) -> None:
    """Raise `UnsupportedModelError` if a layer attends with several types; the cache may be fp8."""
    dtypes = {tensor.dtype for tensor in activations}
    if cache.itemsize > 1:
        dtypes.add(cache)
    if len(dtypes) > 1:
        raise UnsupportedModelError(f"layer {layer} attends with {len(dtypes)} types at once")


def paged_attention(
    module: nn.Module,
    query: Tensor,  # [1, query heads, tokens, head dim]
    key: Tensor,  # [1, KV heads, tokens, head dim]
    value: Tensor,  # [1, KV heads, tokens, value dim]
    attention_mask: object,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface; returns `[1, tokens, heads, value dim]`.

    Raises `UnsupportedModelError` for a mask or a keyword that is not supported here.
    """
    context = _current.get()
    unknown = [
        k for k, v in others.items() if v is not None and v is not False and k not in _HARMLESS
    ]
    if context is None or unknown:
        raise UnsupportedModelError(f"its attention needs {', '.join(unknown) or 'a context'}")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnsupportedModelError("its attention modules do not know their layer")
    at, calls = context.count(layer), context.calls
    if isinstance(calls, Mapping):
        if attention_mask is not None:
            raise UnsupportedModelError("its attention needs a mask of its own")
        call = calls[at]
    else:
        call = calls.learn(at, key, value, attention_mask, sliding_window)
    form = Form(scaling, call.sliding_window, softcap, s_aux, call.chunk_size)
    return context.step.attend(call.kv_layer, query[0], key[0], value[0], form)[None], None


AttentionInterface.register(NAME, paged_attention)
