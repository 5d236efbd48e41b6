"""Paged attention in plain torch, registered with transformers as an attention implementation.

transformers calls it in every attention layer, after the rotary embedding and before keys and
values are repeated for grouped queries; the context of the step is passed as the keyword `step`.
Attention is computed for one sequence at a time, so that the result of a sequence cannot depend on
the rest of the batch.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
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
    """The properties of a model's attention: scale, sliding window, soft cap, sinks."""

    __slots__ = ("scaling", "sinks", "sliding_window", "softcap")

    def __init__(
        self,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        self.scaling = scaling
        self.sliding_window = sliding_window
        self.softcap = softcap
        self.sinks = sinks


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


def attend_one(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Compute the attention of one sequence's new tokens over all of its keys and values.

    query `[query heads, new tokens, D]`, key and value `[KV heads, all tokens, D]`; the new
    tokens are the last ones. Returns `[query heads, new tokens, value dim]`.
    """
    new, total = query.shape[1], key.shape[1]
    if form.softcap is not None or form.sinks is not None:
        return _attend_in_full(query, key, value, form)
    is_windowed = form.sliding_window is not None and total > form.sliding_window
    mask = _mask(new, total, form, query.device) if is_windowed or 1 < new < total else None
    if mask is not None and query.is_cuda:
        # With a mask and unequal heads, CUDA has only a kernel that materialises all scores.
        groups = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    dtype = query.dtype
    if new == 1 and not query.is_cuda and dtype is not torch.float32:
        # torch's kernel for one bf16 query is 3 to 5 times slower on a CPU without AMX.
        query, key, value = query.float(), key.float(), value.float()
    attended = F.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=mask,
        is_causal=mask is None and new > 1,
        scale=form.scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    )
    return attended[0].to(dtype)


def _attend_in_full(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Compute the same with materialised scores, for models that cap scores or add sinks."""
    new, total = query.shape[1], key.shape[1]
    groups = query.shape[0] // key.shape[0]
    scale = query.shape[-1] ** -0.5 if form.scaling is None else form.scaling
    scores = query @ key.repeat_interleave(groups, 0).transpose(1, 2) * scale
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    mask = _mask(new, total, form, query.device)
    scores = scores.masked_fill(~mask, float("-inf")).float()
    if form.sinks is not None:
        sinks = form.sinks.float().view(-1, 1, 1).expand(-1, new, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :total].to(query.dtype)
    return weights @ value.repeat_interleave(groups, 0)


def _mask(new: int, total: int, form: Form, device: torch.device) -> Tensor:
    """Make the causal mask [new, total], limited to the window; True if a token is visible."""
    at = torch.arange(total - new, total, device=device)[:, None]
    to = torch.arange(total, device=device)[None]
    mask = to <= at
    if form.sliding_window is not None:
        mask &= to > at - form.sliding_window
    return mask


AttentionInterface.register(NAME, paged_attention)
