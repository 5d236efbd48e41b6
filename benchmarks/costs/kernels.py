"""The CPU kernels beside torch and beside reading the same bytes: `make kernels`.

Attention on one thread: a decode step, a prefill, and a chunk of a long prompt, by each backend.
`read` is one pass over the keys and values of all rows, which no kernel can be faster than. Linear
layers: packed ones beside torch's own, with growing numbers of rows. The operations between them:
fused ones beside torch's own. Each figure is the median of
runs that alternate between the candidates, in CPU time of the calling thread.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from bench.machine import describe_machine, describe_versions
from configs import loader
from workers.device.upload import upload_to
from workers.kernels.library import Library, native_library
from workers.model.attention.interface import Form
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend
from workers.model.batch import HostBatch, Rows, StepBatch, send
from workers.model.fused import norms
from workers.model.fused.gated_mlp import GatedMlp
from workers.model.fused.native import NativeOperations
from workers.model.fused.rotary import FusedRotary
from workers.model.kv_cache import KvCache, LayerShape
from workers.model.packed.linears import PackedLinear

BLOCK_SIZE = 16
NO_FORM = Form(None, None, None, None)
CPU = torch.device("cpu")
# Of activations and KV cache.
ATTENTION_TYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float8_e4m3fn),
    (torch.float32, torch.float32),
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One attention layer: heads, and for each row the tokens in the cache and the new ones."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    rows: Sequence[tuple[int, int]]

    @property
    def num_flops(self) -> float:
        """Multiplications and additions of the scores and of the weighted values."""
        pairs = sum(new * start + new * (new + 1) / 2 for start, new in self.rows)
        return 4 * pairs * self.heads * self.dim


def spread_lengths(total: int, count: int) -> list[int]:
    """`count` different lengths that add up to about `total`."""
    generator = random.Random(count)
    drawn = [generator.uniform(0.1, 2) for _ in range(count)]
    return [max(1, int(total * length / sum(drawn))) for length in drawn]


def problems() -> list[Problem]:
    """The shapes of some real models."""
    decode = [(length - 1, 1) for length in spread_lengths(8086, 32)]
    return [
        Problem("decode, 32 rows, 8,086 tokens, 12/4 heads of 64", 12, 4, 64, decode),
        Problem("decode, 32 rows, 8,086 tokens, 12/12 heads of 64", 12, 12, 64, decode),
        Problem("decode, 32 rows, 8,086 tokens, 32/8 heads of 128", 32, 8, 128, decode),
        Problem("decode, 128 rows of 60 tokens, 4/4 heads of 16", 4, 4, 16, [(59, 1)] * 128),
        Problem("prefill of 2,048 tokens, 9/3 heads of 64", 9, 3, 64, [(0, 2048)]),
        Problem("chunk of 512 tokens after 6,000, 9/3 heads of 64", 9, 3, 64, [(6000, 512)]),
    ]


def measure(candidates: dict[str, Callable[[], object]], num_runs: int) -> dict[str, float]:
    """The median microseconds of each candidate; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(num_runs + 1):
        for name, run in candidates.items():
            began_at = time.thread_time()
            run()
            times[name].append(1e6 * (time.thread_time() - began_at))
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def attention(
    library: Library,
    problem: Problem,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    num_runs: int,
) -> str:
    """The line of one problem, with a KV cache of this type."""
    batch, num_blocks = _batch(problem.rows)
    shape = LayerShape(problem.kv_heads, problem.dim, problem.dim)
    cache = KvCache({0: shape}, num_blocks, BLOCK_SIZE, cache_dtype, CPU)
    cache.randomise(num_blocks)
    query, key, value = (
        torch.randn(batch.num_tokens, heads, problem.dim).to(dtype).transpose(0, 1)
        for heads in (problem.heads, problem.kv_heads, problem.kv_heads)
    )

    def attend(backend: NativeBackend | PlainBackend) -> Tensor:
        return backend.step(cache, batch).attend(0, query, key, value, NO_FORM)

    native, plain = NativeBackend(library), PlainBackend()
    reader = native.step(cache, batch)
    reader.attend(0, query, key, value, NO_FORM)
    took = measure(
        {
            "read": reader.read,
            "native": lambda: attend(native),
            "plain": lambda: attend(plain),
        },
        num_runs,
    )
    gflops = problem.num_flops / took["native"] / 1e3
    types = " / ".join(str(kind).removeprefix("torch.") for kind in (dtype, cache_dtype))
    return (
        f"| {problem.name} | {types} | {took['native']:,.0f} | "
        f"{took['plain']:,.0f} | {took['read']:,.0f} | {took['native'] / took['read']:.2f} | "
        f"{gflops:.0f} |"
    )


def linear(library: Library, count: int, dtype: torch.dtype, num_runs: int) -> str:
    """The line of one number of rows through a layer of 768 inputs and 3,072 outputs."""
    layer = nn.Linear(768, 3072, bias=False).to(dtype).requires_grad_(False)
    packed = PackedLinear(layer.weight, None, library)
    rows = torch.randn(count, 768).to(dtype)
    took = measure({"packed": lambda: packed(rows), "torch": lambda: layer(rows)}, num_runs)
    gflops = (2 * count * 768 * 3072 / took[name] / 1e3 for name in ("packed", "torch"))
    cells = [str(count), str(dtype).removeprefix("torch."), *(f"{took[n]:,.0f}" for n in took)]
    return "| " + " | ".join([*cells, *(f"{rate:.0f}" for rate in gflops)]) + " |"


def fused(library: Library, num_rows: int, width: int, dtype: torch.dtype, num_runs: int) -> str:
    """The line of the operations between the products of a layer of this width."""
    heads, dim, inner = width // 64, 64, 3 * width
    operations = NativeOperations(library)
    norm = LlamaRMSNorm(width).to(dtype).requires_grad_(False)
    fused_norm = norms.fused(norm, operations)
    assert fused_norm is not None
    mlp = GatedMlp([nn.Identity()], nn.Identity(), 0, operations)
    hidden, both = torch.randn(1, num_rows, width), torch.randn(1, num_rows, 2 * inner)
    hidden, both = hidden.to(dtype), both.to(dtype)
    gate, up = (part.contiguous() for part in both.chunk(2, -1))
    heads_of = hidden.view(1, num_rows, heads, dim).transpose(1, 2)
    angles = (heads_of, heads_of, *torch.randn(2, 1, num_rows, dim).to(dtype))
    rotate = FusedRotary(apply_rotary_pos_emb, operations)
    took = measure(
        {
            "norm": lambda: fused_norm(hidden),
            "torch's norm": lambda: norm(hidden),
            "rotary": lambda: rotate(*angles),
            "torch's rotary": lambda: apply_rotary_pos_emb(*angles),
            "gate": lambda: mlp(both),
            "torch's gate": lambda: nn.functional.silu(gate) * up,
        },
        num_runs,
    )
    cells = [str(num_rows), str(width), str(dtype).removeprefix("torch.")]
    return "| " + " | ".join([*cells, *(f"{us:,.0f}" for us in took.values())]) + " |"


def _batch(rows: Sequence[tuple[int, int]]) -> tuple[StepBatch, int]:
    """The batch of these rows over shuffled blocks, and the number of blocks."""
    starts, counts = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    begins, tables = (
        np.concatenate([[0], np.cumsum(sizes)]) for sizes in (counts, -(-(starts + counts) // 16))
    )
    blocks = np.random.default_rng(1).permutation(int(tables[-1])).astype(np.int32)
    tokens = np.zeros(begins[-1], np.int64)
    table = Rows(begins, starts, tables[:-1], blocks, BLOCK_SIZE)
    host = HostBatch(tokens, tokens, tokens + 1, tokens[:0], 0, table)
    return send(host, upload_to(CPU), PlainBackend().arrays), len(blocks)


def main(argv: Sequence[str]) -> int:
    """Print the tables as Markdown. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make kernels ARGS=...", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="runs of each candidate [15]")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    data_dir: Path = loader.load([]).runtime.data_dir
    library = native_library(data_dir)
    machine, versions = describe_machine(), describe_versions()
    print(f"{machine['cpu']}, one thread, torch {versions['torch']}, load", end=" ")
    print(f"{machine['load_average_1min']}\n")
    print("| attention of one layer | type / KV | native us | plain us | read us |", end="")
    print(" native / read | GFLOP/s |\n|---|---|---|---|---|---|---|")
    for problem in problems():
        for types in ATTENTION_TYPES:
            print(attention(library, problem, *types, options.runs), flush=True)
    print("\n| rows | type | packed us | torch us | packed GFLOP/s | torch GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for count in (1, 2, 6, 12, 32, 128, 512):
            print(linear(library, count, dtype, options.runs), flush=True)
    print("\n| rows | width | type | RMSNorm us | torch us | rotary us | torch us", end=" | ")
    print("SiLU us | torch us |")
    print("|---|---|---|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for count, width in ((2, 128), (128, 128), (64, 768), (1024, 576)):
            print(fused(library, count, width, dtype, options.runs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
