"""Paged attention as an attention implementation of transformers.

transformers calls it in every attention layer, after the rotary embedding and before keys and
values are repeated for grouped queries; the context of the step is passed as the keyword `step`.
"""

from typing import Any, Protocol

from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

NAME = "tdpipe_paged"

# Keywords that have no effect on causal attention over a paged cache.
_HARMLESS = {
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "dropout",
    "is_causal",
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
        """Store the keys and values; returns `[tokens, query heads, value dim]`."""
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


def paged_attention(
    module: nn.Module,
    query: Tensor,  # [1, query heads, tokens, head dim]
    key: Tensor,  # [1, KV heads, tokens, head dim]
    value: Tensor,  # [1, KV heads, tokens, value dim]
    attention_mask: Tensor | None,
    *,
    step: Attend | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface; returns `[1, tokens, heads, value dim]`.

    Raises `UnsupportedModelError` for a mask, or for a keyword that is not supported here.
    """
    unknown = [
        k for k, v in others.items() if v is not None and v is not False and k not in _HARMLESS
    ]
    if step is None or attention_mask is not None or unknown:
        what = ", ".join(unknown) or ("a mask of its own" if step else "no step context")
        raise UnsupportedModelError(f"its attention needs {what}")
    form = Form(scaling, sliding_window, softcap, s_aux)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return step.attend(layer, query[0], key[0], value[0], form)[None], None


AttentionInterface.register(NAME, paged_attention)
