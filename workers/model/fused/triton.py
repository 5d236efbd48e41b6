"""The fused operations on GPUs, by the kernels of triton_elementwise.py.

Nothing here waits for the device, and memory comes from torch's allocator, so that CUDA graphs can
hold the launches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from workers.kernels import triton_elementwise as kernels

# Elements of a program: enough for vectors, few enough for small steps to fill a GPU.
PROGRAM_ELEMENTS = 1024
ELEMENTS_PER_WARP, FEWEST_WARPS, MOST_WARPS = 512, 4, 16


class TritonOperations:
    """See `workers.model.fused.operations.FusedOperations`."""

    # Joined weights would be copies: what they replace leaves holes between the other weights,
    # which torch's allocator cannot give to the KV cache.
    joins_products = False

    def rms_norm(
        self, weight: Tensor, epsilon: float, offset: float, rounds: bool
    ) -> Callable[[Tensor], Tensor]:
        """See `FusedOperations.rms_norm`."""
        width, constants = len(weight), norm_constants(len(weight), epsilon, offset, rounds)
        per_program = constants["ROWS"]

        def normalised(hidden_states: Tensor) -> Tensor:
            rows = hidden_states.contiguous()
            out, count = torch.empty_like(rows), rows.numel() // width
            kernels.rms_norm[(triton.cdiv(count, per_program),)](
                rows, weight, out, count, **constants
            )
            return out

        return normalised

    def rotate(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, rounds: bool
    ) -> tuple[Tensor, Tensor]:
        """See `FusedOperations.rotate`; both are one launch."""
        _, query_heads, tokens, query_dim = query.shape
        key_heads, key_dim = key.shape[1], key.shape[3]
        outs = [
            each.new_empty(tokens, heads, dim)
            for each, heads, dim in ((query, query_heads, query_dim), (key, key_heads, key_dim))
        ]
        constants = rotary_constants(
            (query_heads, query_dim), (key_heads, key_dim), cos.shape[2], rounds
        )
        tile = constants["TILE"]
        grid = (tokens, triton.cdiv(query_heads, tile) + triton.cdiv(key_heads, tile))
        strides = (*query.stride()[1:3], *key.stride()[1:3], cos.stride(1))
        kernels.rotate[grid](query, key, cos, sin, *outs, *strides, **constants)
        turned_query, turned_key = (out.transpose(0, 1)[None] for out in outs)
        return turned_query, turned_key

    def gate(self, products: Sequence[Tensor], activation: int) -> Tensor:
        """See `FusedOperations.gate`."""
        gates, ups = (product.contiguous() for product in products)
        out, width = torch.empty_like(gates), gates.shape[-1]
        constants = gate_constants(width, activation)
        grid = (gates.numel() // width, triton.cdiv(width, constants["BLOCK"]))
        kernels.gate[grid](gates, ups, out, **constants)
        return out


def norm_constants(width: int, epsilon: float, offset: float, rounds: bool) -> dict[str, Any]:
    """The constants of `rms_norm`, for rows of this width, and its launch options."""
    block = triton.next_power_of_2(width)
    rows = max(1, PROGRAM_ELEMENTS // block)
    return {
        "EPSILON": epsilon,
        "OFFSET": offset,
        "ROUNDS": rounds,
        "WIDTH": width,
        "BLOCK": block,
        "ROWS": rows,
        "num_warps": min(MOST_WARPS, max(FEWEST_WARPS, rows * block // ELEMENTS_PER_WARP)),
    }


def rotary_constants(
    query: tuple[int, int], key: tuple[int, int], rotated: int, rounds: bool
) -> dict[str, Any]:
    """The constants of `rotate`, for these (heads, dim), and its launch options."""
    half_width = triton.next_power_of_2(max(1, rotated // 2))
    widest_rest = max(query[1], key[1]) - rotated
    most_heads = triton.next_power_of_2(max(query[0], key[0]))
    return {
        "QUERY_HEADS": query[0],
        "KEY_HEADS": key[0],
        "QUERY_DIM": query[1],
        "KEY_DIM": key[1],
        "ROTATED": rotated,
        "HALF_WIDTH": half_width,
        "REST_WIDTH": triton.next_power_of_2(max(1, widest_rest)),
        "TILE": min(most_heads, max(1, PROGRAM_ELEMENTS // half_width)),
        "ROUNDS": rounds,
        "enable_fp_fusion": False,  # torch rounds each product, in fp32 too
    }


def gate_constants(width: int, activation: int) -> dict[str, Any]:
    """The constants of `gate`, for rows of this width."""
    block = min(PROGRAM_ELEMENTS, triton.next_power_of_2(width))
    return {"ACTIVATION": activation, "WIDTH": width, "BLOCK": block}
