"""The backend `plain`: paged attention in torch's own operations, one sequence at a time.

It runs wherever torch runs, and the other backends are checked against it.
"""

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from workers.device.upload import Arrays
from workers.model.attention.interface import Form
from workers.model.batch import Rows, StepBatch
from workers.model.kv_cache import FP8, KvCache, stored


class PlainStep:
    """The context of a step: where its keys and values are written and read."""

    def __init__(self, cache: KvCache, batch: StepBatch) -> None:
        self._cache = cache
        self._batch = batch

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`."""
        keys, values = self._cache.layers[layer]
        count = self._batch.num_tokens  # the model may carry padding rows, see StageModel.forward
        blocks, offsets = self._write_places
        for cached, new in ((keys, key), (values, value)):
            written = stored(new[:, :count], cached.dtype).transpose(0, 1)
            _indexable(cached)[blocks, :, offsets] = _indexable(written)
        heads, tokens, _ = query.shape
        attended = query.new_empty(tokens, heads, value.shape[-1])
        begins = self._batch.rows.begins
        for row, blocks in enumerate(self._read_blocks):
            begin, end = int(begins[row]), int(begins[row + 1])
            total = int(self._batch.rows.starts[row]) + end - begin
            seen_keys, seen_values = (
                _read(cached, blocks, total).to(query.dtype) for cached in (keys, values)
            )
            part = attend_one(query[:, begin:end], seen_keys, seen_values, form)
            attended[begin:end] = part.transpose(0, 1)
        if tokens > count:
            attended[count:] = attended[count - 1]  # exact copies go to the same experts
        return attended

    @cached_property
    def _read_blocks(self) -> list[Tensor]:
        """For each row, the blocks of its sequence, int64."""
        begins = self._batch.rows.table_begins[1:].tolist()
        return list(torch.tensor_split(self._batch.arrays["blocks"], begins))

    @cached_property
    def _write_places(self) -> tuple[Tensor, Tensor]:
        """The blocks of the new tokens and the offsets in them, int64."""
        slots, block_size = self._batch.arrays["slots"], self._batch.rows.block_size
        return slots // block_size, slots % block_size


def _read(tensor: Tensor, blocks: Tensor, total: int) -> Tensor:
    """Gather the first `total` tokens of these blocks, `[KV heads, total, dim]`."""
    _, heads, _, dim = tensor.shape
    gathered = _indexable(tensor).index_select(0, blocks).view(tensor.dtype)
    return gathered.transpose(0, 1).reshape(heads, -1, dim)[:, :total]


def _indexable(tensor: Tensor) -> Tensor:
    """The same memory in a type that torch can index on every device: fp8 as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype in FP8.values() else tensor


class PlainBackend:
    """Makes the context of each step."""

    name = "plain"

    def arrays(self, rows: Rows) -> Arrays:
        """See `workers.model.attention.backends.Backend`."""
        return {"blocks": rows.blocks.astype(np.int64), "slots": rows.new_slots()}

    def step(self, cache: KvCache, batch: StepBatch) -> PlainStep:
        """The context of this step."""
        return PlainStep(cache, batch)


def attend_one(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Compute the attention of one sequence's new tokens over all of its keys and values.

    query `[query heads, new tokens, D]`, key and value `[KV heads, all tokens, D]`; the new
    tokens are the last ones. Returns `[query heads, new tokens, value dim]`.
    """
    new, total = query.shape[1], key.shape[1]
    if form.softcap is not None or form.sinks is not None:
        return _attend_in_full(query, key, value, form)
    hides = any(size and size < total for size in (form.sliding_window, form.chunk_size))
    mask = _mask(new, total, form, query.device) if hides or 1 < new < total else None
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
    """Make the causal mask [new, total], limited to window and chunk; True if a token is seen."""
    at = torch.arange(total - new, total, device=device)[:, None]
    to = torch.arange(total, device=device)[None]
    mask = to <= at
    if form.sliding_window is not None:
        mask &= to > at - form.sliding_window
    if form.chunk_size is not None:
        mask &= to >= at // form.chunk_size * form.chunk_size
    return mask
