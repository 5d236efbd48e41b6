"""The GPU model: estimates the seconds of a forward on an unmeasured GPU from its data sheet.

The model is a roofline with stairs. A matrix of P parameters over n rows takes

    read     2 P bytes / (bandwidth * the part of it that kernels reach)
    compute  2 P * (n rounded up to whole tiles) / (FLOP/s that large products reach)
    together (read ** OVERLAP + compute ** OVERLAP) ** (1 / OVERLAP)

because the two do not overlap completely if they take about the same time. Besides the matrices of
all layers and the head, a forward includes the attention within the prompt, the memory traffic of
activations, and an overhead per layer. The comment of each constant says what it was fitted to;
`benchmarks.virtual.check_gpu_model` prints the errors against measured times.
"""

import numpy as np
from numpy.typing import NDArray

from configs.profiles import Profile
from simulator.hardware.gpus import Architecture, Gpu
from simulator.hardware.model_shape import BYTES_PER_NUMBER, ModelShape

Counts = NDArray[np.int64]
Numbers = NDArray[np.float64]

# The part of the data sheet's bandwidth at which weights are read: up to FEW_ROWS rows, and more.
# Ada: n = 2..16 and 17..64 of TD-Pipe's profiles of a 13B and a 32B on L20. Ampere and Hopper:
# one layer of Llama-2-70B at 1..64 rows on A100, A40 and H100 in microsoft/vidur's profiles.
READ_EFFICIENCY: dict[Architecture, tuple[float, float]] = {
    "ada": (0.89, 0.73),
    "ampere": (0.79, 0.77),
    "hopper": (0.87, 0.86),
}
FEW_ROWS = 16
# Rows are computed in tiles of 16, 32, 64 or 128, more than 128 in tiles of 128: the stairs at
# 129, 257, 385, ... of every profile. Whole waves of tiles over the SMs, with the best of eight
# tile shapes and split-K for each matrix, were tried as well and were not more accurate.
SMALLEST_TILE, TILE = 16, 128
# Best fit: 3 for A100, A40 and H100, 4 for L20.
OVERLAP = 3.5
# Memory accesses per number that a matrix reads or writes, for residuals, norms, rotations and
# activation functions. Fitted to the 13B and the 32B on L20, as is LAYER_OVERHEAD_S.
ACTIVATION_PASSES = 0.57
# GPU time of the small kernels of a layer and the gaps between them. It explains why a byte of the
# 13B takes longer to read than one of the 32B on L20.
LAYER_OVERHEAD_S = 90e-6
# CPU time to launch the kernels of a layer, a lower bound of its time: opt-125m on L20 takes 2.8 ms
# for 12 layers at any n up to 600. This is vLLM 0.5.3 on that host; with CUDA graphs it is zero.
LAYER_LAUNCH_S = 230e-6
# Rows that are sampled and pass the head: all rows of a decode step, one per prompt. An assumption.
HEAD_ROWS = 256
# The part of the bandwidth at which decode attention reads KV: 0.61 to 0.84 with FlashAttention's
# paged kernel on A100 for 54 to 108 sequences of 2,432 tokens (microsoft/vidur). Only for A100.
KV_READ_EFFICIENCY = 0.75
# Memory of CUDA and the activations of 2,048 tokens, on each GPU. An assumption.
RESERVED_BYTES = int(1.5 * 2**30)

# The last point of TD-Pipe's profiles.
MAX_TOKENS = 2048


def profile_of(
    gpu: Gpu,
    shape: ModelShape,
    max_tokens: int = MAX_TOKENS,
    layer_launch_s: float = LAYER_LAUNCH_S,
) -> Profile:
    """Seconds of a forward through the whole model on one GPU, at 1..`max_tokens` tokens.

    The weights need not fit on one GPU: each stage of a node takes its share of the seconds.
    """
    num_tokens = np.arange(1, max_tokens + 1)
    seconds = forward_s(gpu, shape, num_tokens, layer_launch_s)
    return Profile(tuple(num_tokens.tolist()), tuple(seconds.tolist()))


def forward_s(
    gpu: Gpu, shape: ModelShape, num_tokens: Counts, layer_launch_s: float = LAYER_LAUNCH_S
) -> Numbers:
    """Seconds of a forward over `num_tokens` tokens of one new prompt; same shape."""
    gpu_s = (
        matrices_s(gpu, shape.layer_parameters, num_tokens)
        + _experts_s(gpu, shape, num_tokens)
        + matrices_s(gpu, shape.head_parameters, np.minimum(num_tokens, HEAD_ROWS))
        + _attention_s(gpu, shape, num_tokens)
        + _activations_s(gpu, shape, num_tokens)
        + shape.num_layers * LAYER_OVERHEAD_S
    )
    return np.maximum(gpu_s, shape.num_layers * layer_launch_s)


def matrices_s(gpu: Gpu, num_parameters: Numbers | int, rows: Counts | Numbers) -> Numbers:
    """Seconds of matrices with `num_parameters` in total, each over `rows` rows; same shape."""
    few, more = READ_EFFICIENCY[gpu.architecture]
    reached = gpu.bytes_per_s * np.where(rows <= FEW_ROWS, few, more)
    read_s = num_parameters * BYTES_PER_NUMBER / reached
    compute_s = 2 * num_parameters * _in_tiles(rows) / gpu.matmul_flops
    together: Numbers = (read_s**OVERLAP + compute_s**OVERLAP) ** (1 / OVERLAP)
    return together


def kv_capacity_tokens(
    gpu: Gpu, shape: ModelShape, num_gpus: int, gpu_memory_utilization: float = 0.9
) -> int:
    """Tokens of KV that `num_gpus` GPUs hold beside the weights; 0 if the weights do not fit.

    Layers are taken as evenly split; the fullest stage of a real split holds slightly less.
    """
    usable = gpu.memory_bytes * gpu_memory_utilization - RESERVED_BYTES
    free_bytes = num_gpus * usable - shape.weight_bytes
    return max(0, int(free_bytes // shape.kv_bytes_per_token))


def _experts_s(gpu: Gpu, shape: ModelShape, num_tokens: Counts) -> Numbers | float:
    """Seconds of the routed experts, if every expert is equally likely for a token."""
    if not shape.num_experts:
        return 0.0
    part = shape.experts_per_token / shape.num_experts
    part_used: Numbers = 1 - (1 - part) ** num_tokens.astype(np.float64)
    rows_of_each = num_tokens * part / part_used
    return matrices_s(gpu, shape.expert_parameters * part_used, rows_of_each)


def _attention_s(gpu: Gpu, shape: ModelShape, num_tokens: Counts) -> Numbers:
    """Seconds of causal attention within the prompt: half of all pairs of tokens."""
    pairs = num_tokens.astype(np.float64) ** 2 / 2
    flops = 2 * pairs * shape.num_layers * shape.num_heads * (shape.key_dim + shape.value_dim)
    return flops / gpu.matmul_flops


def _activations_s(gpu: Gpu, shape: ModelShape, num_tokens: Counts) -> Numbers:
    numbers = num_tokens.astype(np.float64) * shape.layer_width * ACTIVATION_PASSES
    return numbers * BYTES_PER_NUMBER / gpu.bytes_per_s


def _in_tiles(rows: Counts | Numbers) -> Numbers:
    """The number of rows rounded up to whole tiles."""
    small = 2 ** np.ceil(np.log2(np.maximum(rows, SMALLEST_TILE)))
    whole: Numbers = np.ceil(rows / TILE) * TILE
    return np.where(rows <= TILE, small, whole)
