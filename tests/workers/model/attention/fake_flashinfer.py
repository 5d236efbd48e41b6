"""FlashInfer's documented interface in plain torch, strict about every argument.

Written from the documentation of flashinfer-python 0.3 to 0.7: `append_paged_kv_cache`,
`BatchPrefillWithPagedKVCacheWrapper` and `BatchDecodeWithPagedKVCacheWrapper`, for the layout HND
with keys and values in two tensors. What the library would read beyond its arguments, compile for
no kernel, or wait for the device for, is an error here.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HEAD_SIZES = (64, 128, 256)
GROUPS_WITHOUT_TENSOR_CORES = (1, 2, 3, 4, 8)
# Types of the cache that may differ from that of the queries.
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class MisuseError(Exception):
    """An argument that the documentation excludes."""


def require(condition: object, what: str) -> None:
    """Raise `MisuseError` unless the condition holds."""
    if not condition:
        raise MisuseError(what)


def require_integers(name: str, tensor: Tensor, length: int | None = None) -> None:
    """int32, one-dimensional, contiguous, and of this length."""
    require(tensor.dtype == torch.int32, f"{name} is {tensor.dtype}")
    require(tensor.dim() == 1 and tensor.is_contiguous(), f"{name} is not one array")
    require(length is None or len(tensor) == length, f"{name} has {len(tensor)} of {length}")


def require_indptr(name: str, tensor: Tensor, end: int | None = None) -> None:
    """Begins at 0, does not fall, and ends at `end`."""
    require_integers(name, tensor)
    require(int(tensor[0]) == 0 and bool((tensor.diff() >= 0).all()), f"{name} is no indptr")
    require(end is None or int(tensor[-1]) == end, f"{name} ends at {int(tensor[-1])}, not {end}")


@dataclass
class Table:
    """The paged KV of each request."""

    indptr: Tensor
    indices: Tensor
    last_page_len: Tensor
    page_size: int

    def __post_init__(self) -> None:
        require_indptr("paged_kv_indptr", self.indptr, len(self.indices))
        require_integers("paged_kv_indices", self.indices)
        require_integers("paged_kv_last_page_len", self.last_page_len, len(self.indptr) - 1)
        inside = (self.last_page_len >= 1) & (self.last_page_len <= self.page_size)
        require(inside.all(), "paged_kv_last_page_len is not in 1 to page_size")
        require((self.indptr.diff() >= 1).all(), "a request has no page")

    def length(self, request: int) -> int:
        """The number of tokens of a request."""
        pages = int(self.indptr[request + 1] - self.indptr[request])
        return (pages - 1) * self.page_size + int(self.last_page_len[request])

    def gather(self, cache: Tensor, request: int) -> Tensor:
        """`[KV heads, tokens, dim]` of a request."""
        pages = self.indices[int(self.indptr[request]) : int(self.indptr[request + 1])].long()
        whole = cache[pages].transpose(0, 1).flatten(1, 2)
        return whole[:, : self.length(request)]


def append_paged_kv_cache(
    append_key: Tensor,
    append_value: Tensor,
    batch_indices: Tensor,
    positions: Tensor,
    paged_kv_cache: tuple[Tensor, Tensor],
    kv_indices: Tensor,
    kv_indptr: Tensor,
    kv_last_page_len: Tensor,
    kv_layout: str = "NHD",
) -> None:
    """Append keys and values `[tokens, KV heads, dim]`, which the table already counts."""
    require(kv_layout == "HND", "the other layout is not faked")
    k_cache, v_cache = paged_kv_cache
    table = Table(kv_indptr, kv_indices, kv_last_page_len, k_cache.shape[2])
    require_integers("batch_indices", batch_indices, len(append_key))
    require_integers("positions", positions, len(append_key))
    for new, cache in ((append_key, k_cache), (append_value, v_cache)):
        require(new.shape[1:] == (cache.shape[1], cache.shape[3]), "shapes differ")
        require(new.dtype == cache.dtype and new.stride(2) == 1, "type or last dimension")
    for token, (request, position) in enumerate(
        zip(batch_indices.tolist(), positions.tolist(), strict=True)
    ):
        require(position < table.length(request), "a position beyond the table")
        page = int(kv_indices[int(kv_indptr[request]) + position // table.page_size])
        k_cache[page, :, position % table.page_size] = append_key[token]
        v_cache[page, :, position % table.page_size] = append_value[token]


@dataclass
class Plan:
    """What `plan` was told, and what `run` must be given."""

    qo_indptr: Tensor
    table: Table
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool
    sm_scale: float
    window_left: int
    logits_soft_cap: float
    dtype: torch.dtype
    kv_dtype: torch.dtype

    def __post_init__(self) -> None:
        require(self.num_qo_heads % self.num_kv_heads == 0, "query heads are no multiple")
        require(self.head_dim in HEAD_SIZES, f"no kernel for heads of {self.head_dim}")
        require(self.dtype in (torch.float16, torch.bfloat16), f"no kernel for {self.dtype}")
        require(self.kv_dtype in (self.dtype, *FP8), f"no kernel for KV in {self.kv_dtype}")
        require(self.window_left >= -1, "window_left is below -1")
        require(self.logits_soft_cap >= 0, "logits_soft_cap is negative")

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], out: Tensor | None) -> Tensor:
        """Attention of each request's queries, which are its last tokens."""
        k_cache, v_cache = paged_kv_cache
        pages = (self.num_kv_heads, self.table.page_size, self.head_dim)
        for name, cache in (("k", k_cache), ("v", v_cache)):
            require(cache.shape[1:] == pages, f"{name}_cache is {tuple(cache.shape)}")
            require(cache.dtype == self.kv_dtype, f"{name}_cache was planned as {self.kv_dtype}")
        shape = (int(self.qo_indptr[-1]), self.num_qo_heads, self.head_dim)
        require(q.shape == shape, f"q is {tuple(q.shape)}, planned was {shape}")
        require(q.dtype == self.dtype and q.is_contiguous(), "q is of another type, or a view")
        out = torch.empty_like(q) if out is None else out
        require(out.shape == q.shape and out.dtype == q.dtype, "out is not as q")
        require(out.is_contiguous(), "out is a view")
        for request in range(len(self.qo_indptr) - 1):
            rows = slice(int(self.qo_indptr[request]), int(self.qo_indptr[request + 1]))
            out[rows] = self._attend(
                q[rows].float(),
                self.table.gather(k_cache, request).float(),
                self.table.gather(v_cache, request).float(),
            ).to(out.dtype)
        return out

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        group = self.num_qo_heads // self.num_kv_heads
        scores = torch.einsum("qhd,hkd->hqk", q, keys.repeat_interleave(group, 0)) * self.sm_scale
        if self.logits_soft_cap > 0:
            scores = self.logits_soft_cap * torch.tanh(scores / self.logits_soft_cap)
        at = torch.arange(len(q))[:, None] + keys.shape[1] - len(q)
        to = torch.arange(keys.shape[1])[None]
        seen = torch.ones(len(q), keys.shape[1], dtype=torch.bool)
        if self.causal:
            seen &= to <= at
        if self.window_left >= 0:
            seen &= to >= at - self.window_left  # inclusive
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return torch.einsum("hqk,hkd->qhd", weights, values.repeat_interleave(group, 0))


class _Wrapper:
    """What both wrappers share."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str) -> None:
        require(float_workspace_buffer.dtype == torch.uint8, "the workspace is not uint8")
        require(len(float_workspace_buffer) >= 128 << 20, "the workspace is smaller than 128 MiB")
        require(kv_layout == "HND", "the other layout is not faked")
        self._plan: Plan | None = None
        self.num_plans = self.num_runs = 0

    def _set(self, plan: Plan) -> None:
        self._plan = plan
        self.num_plans += 1

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor | None = None
    ) -> Tensor:
        """Compute what was planned."""
        require(self._plan is not None, "run before plan")
        assert self._plan is not None
        self.num_runs += 1
        return self._plan.run(q, paged_kv_cache, out)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """Prefill and append attention."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        super().__init__(float_workspace_buffer, kv_layout)

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        """Plan for requests of `qo_indptr` queries each."""
        require_indptr("qo_indptr", qo_indptr)
        require(len(qo_indptr) == len(paged_kv_indptr), "indptrs of different batch sizes")
        table = Table(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        for request, count in enumerate(qo_indptr.diff().tolist()):
            require(count <= table.length(request), "more queries than keys")
        scale = head_dim_qk**-0.5 if sm_scale is None else sm_scale
        self._set(
            Plan(
                qo_indptr,
                table,
                num_qo_heads,
                num_kv_heads,
                head_dim_qk,
                causal,
                scale,
                window_left,
                logits_soft_cap or 0.0,
                q_data_type,
                kv_data_type or q_data_type,
            )
        )


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """Decode attention: one query per request."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
    ) -> None:
        require(not use_cuda_graph, "graphs are not faked")
        super().__init__(float_workspace_buffer, kv_layout)
        self.use_tensor_cores = use_tensor_cores

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
        sm_scale: float | None = None,
    ) -> None:
        """Plan for one query per request."""
        group = num_qo_heads // num_kv_heads
        require(
            self.use_tensor_cores or group in GROUPS_WITHOUT_TENSOR_CORES,
            f"no kernel for groups of {group} without tensor cores",
        )
        scale = head_dim**-0.5 if sm_scale is None else sm_scale
        self._set(
            Plan(
                torch.arange(len(last_page_len) + 1, dtype=torch.int32),
                Table(indptr, indices, last_page_len, page_size),
                num_qo_heads,
                num_kv_heads,
                head_dim,
                False,
                scale,
                window_left,
                logits_soft_cap or 0.0,
                q_data_type,
                kv_data_type or q_data_type,
            )
        )


@dataclass
class FakeFlashInfer:
    """The module, which keeps the wrappers that were made."""

    wrappers: list[Any] = field(default_factory=list)
    append_paged_kv_cache = staticmethod(append_paged_kv_cache)

    def BatchPrefillWithPagedKVCacheWrapper(  # noqa: N802 - FlashInfer's name
        self, *arguments: Any, **keywords: Any
    ) -> BatchPrefillWithPagedKVCacheWrapper:
        """Make one, and keep it."""
        self.wrappers.append(BatchPrefillWithPagedKVCacheWrapper(*arguments, **keywords))
        made: BatchPrefillWithPagedKVCacheWrapper = self.wrappers[-1]
        return made

    def BatchDecodeWithPagedKVCacheWrapper(  # noqa: N802 - FlashInfer's name
        self, *arguments: Any, **keywords: Any
    ) -> BatchDecodeWithPagedKVCacheWrapper:
        """Make one, and keep it."""
        self.wrappers.append(BatchDecodeWithPagedKVCacheWrapper(*arguments, **keywords))
        made: BatchDecodeWithPagedKVCacheWrapper = self.wrappers[-1]
        return made
