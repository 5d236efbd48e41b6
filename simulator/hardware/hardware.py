"""The hardware of a simulation: a node of equal GPUs, and the costs of a model on it."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from configs.profiles import (
    Profile,
    ProfileError,
    StepTable,
    is_step_table,
    read_profile,
    read_steps,
)
from simulator.argument_types import not_negative, positive, positive_int, within
from simulator.hardware.gpu_model import KV_READ_EFFICIENCY, kv_capacity_tokens, profile_of
from simulator.hardware.gpus import Gpu, GpuError, find_gpu
from simulator.hardware.model_shape import (
    BYTES_PER_NUMBER,
    ModelShape,
    ModelShapeError,
    read_shape,
)
from simulator.pipeline import Node
from wire.messages import StageCosts
from workers.profiling.cost_fit import fit

# Partial sums per layer and token that tensor parallelism exchanges: attention and MLP.
ALLREDUCES_PER_LAYER = 2
DEFAULT_STAGES, DEFAULT_HOP_MS = 4, 0.1
# Plausible figures: from a link between hosts to several times the memory of the fastest GPU, and
# from 10 ns to ten seconds. A figure outside is in another unit: bytes instead of GB, us for ms.
GB_PER_S, MILLISECONDS = (0.01, 50_000.0), (1e-5, 10_000.0)
MOST_KV_TOKENS = 10**10


class HardwareError(ValueError):
    """The description of the node is incomplete or contradictory; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """A node of equal stages, from a profile of the whole model on one GPU.

    `kv_tokens` is the size of the KV cache of the whole node. With `tensor_parallel` N, each stage
    consists of N GPUs that share every layer and exchange `allreduce_bytes_per_token` at
    `allreduce_bytes_per_s` (14.65 GB/s on the paper's node).
    """

    profile: Profile
    kv_tokens: int
    kv_bytes_per_token: float
    memory_bytes_per_s: float
    overhead_s: float = 0.0002
    hop_s: float = 0.0001
    tensor_parallel: int = 1
    allreduce_bytes_per_token: float = 0.0
    allreduce_bytes_per_s: float = 14.65e9

    def node(self, num_stages: int, block_size: int, max_model_len: int) -> Node:
        """The hardware as `num_stages` equal stages of `tensor_parallel` GPUs each."""
        num_gpus = num_stages * self.tensor_parallel
        allreduce_s = 0.0
        if self.tensor_parallel > 1:
            allreduce_s = self.allreduce_bytes_per_token / self.allreduce_bytes_per_s / num_stages
        pairs = zip(self.profile.num_tokens, self.profile.seconds, strict=True)
        costs = StageCosts(
            self.profile.num_tokens,
            tuple(seconds / num_gpus + n * allreduce_s for n, seconds in pairs),
            self.kv_bytes_per_token / (num_gpus * self.memory_bytes_per_s),
        )
        num_blocks = self.kv_tokens // block_size
        return Node((costs,) * num_stages, num_blocks, max_model_len, self.overhead_s, self.hop_s)


@dataclass(frozen=True, slots=True)
class MeasuredHardware:
    """Stages measured by `tdpipe profile`, each with its own costs."""

    costs: tuple[StageCosts, ...]
    kv_tokens: int
    overhead_s: float = 0.0002
    hop_s: float = 0.0001

    def node(self, num_stages: int, block_size: int, max_model_len: int) -> Node:
        """The measured stages; `num_stages` must be their number."""
        assert num_stages == len(self.costs), "num_stages must come from num_stages_of"
        num_blocks = self.kv_tokens // block_size
        return Node(self.costs, num_blocks, max_model_len, self.overhead_s, self.hop_s)


def add_hardware_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the hardware: a profile, or a GPU and a model."""
    add = parser.add_argument
    add(
        "--profile",
        type=Path,
        help="CSV of `Total Length,Execute Time` (tokens, ms) of one GPU, or FILE.steps.csv of "
        "`tdpipe profile`",
    )
    add("--gpu", help="a GPU of simulator/hardware/gpus.yaml, instead of a profile")
    add(
        "--model",
        help="with --gpu: a config.json, its folder, or a name from simulator/hardware/models",
    )
    add(
        "--stages",
        type=within(positive_int, 1, 1024, "stages"),
        help="pipeline stages [4, or those of FILE.steps.csv]",
    )
    add(
        "--kv-tokens",
        type=within(positive_int, 1, MOST_KV_TOKENS, "tokens"),
        help="tokens in the KV cache of the node [with --gpu: what fits; as in FILE.steps.csv]",
    )
    add(
        "--kv-cache-dtype",
        choices=("auto", "fp8", "fp8_e4m3", "fp8_e5m2"),
        default="auto",
        help="with --gpu: a byte for each number in the KV cache, instead of two [auto]",
    )
    add(
        "--kv-bytes-per-token",
        type=within(positive, 1, 1e8, "bytes"),
        help="over all layers [with --gpu: of the model]",
    )
    add(
        "--memory-bandwidth",
        type=within(positive, *GB_PER_S, "GB/s"),
        help="GB/s of one GPU [with --gpu: of the GPU]",
    )
    add(
        "--overhead-ms",
        type=within(not_negative, *MILLISECONDS, "ms"),
        default=0.2,
        help="overhead of each step on a stage [0.2]",
    )
    add(
        "--hop-ms",
        type=within(not_negative, *MILLISECONDS, "ms"),
        help="time to the next stage [0.1, or as measured in FILE.steps.csv]",
    )
    add(
        "--engine-ms",
        type=within(not_negative, *MILLISECONDS, "ms"),
        default=0.0,
        help="time from sampled tokens in the engine to the next step in the stages [0]",
    )
    add(
        "--tensor-parallel",
        type=within(positive_int, 1, 1024, "GPUs"),
        default=1,
        help="GPUs that share each stage [1]",
    )
    add(
        "--allreduce-bandwidth",
        type=within(positive, *GB_PER_S, "GB/s"),
        default=14.65,
        help="GB/s [14.65, PCIe switch]",
    )
    add(
        "--allreduce-bytes-per-token",
        type=within(positive, 1, 1e9, "bytes"),
        help="2 x layers x hidden x 2 [of the model]",
    )


def num_stages_of(options: argparse.Namespace) -> int:
    """The number of stages: `--stages`, those of a table of measured stages, or 4.

    Raises `HardwareError` if `--stages` contradicts the table, and `ProfileError`.
    """
    given: int | None = options.stages
    if options.profile is None or not is_step_table(options.profile):
        return given or DEFAULT_STAGES
    measured = len(read_steps(options.profile).stages)
    if given not in (None, measured):
        raise HardwareError(f"{options.profile} has {measured} stages, not {given}")
    return measured


def hardware_of(options: argparse.Namespace) -> Hardware | MeasuredHardware:
    """The hardware that the options of `add_hardware_options` describe.

    Raises `HardwareError`, `ProfileError`, `GpuError` or `ModelShapeError`, each one line.
    """
    if (options.profile is None) == (options.gpu is None):
        raise HardwareError("give either --profile CSV or --gpu NAME --model CONFIG")
    if options.profile is not None and is_step_table(options.profile):
        return _of_steps(options)
    given = {
        "kv_tokens": options.kv_tokens,
        "kv_bytes_per_token": options.kv_bytes_per_token,
        "memory_bytes_per_s": options.memory_bandwidth and options.memory_bandwidth * 1e9,
        "allreduce_bytes_per_token": options.allreduce_bytes_per_token,
    }
    return replace(
        _of_profile(options) if options.gpu is None else _of_gpu(options),
        overhead_s=options.overhead_ms / 1000,
        hop_s=(DEFAULT_HOP_MS if options.hop_ms is None else options.hop_ms) / 1000,
        tensor_parallel=options.tensor_parallel,
        allreduce_bytes_per_s=options.allreduce_bandwidth * 1e9,
        **{name: value for name, value in given.items() if value is not None},
    )


def _of_profile(options: argparse.Namespace) -> Hardware:
    needed = ["kv_tokens", "kv_bytes_per_token", "memory_bandwidth"]
    if options.tensor_parallel > 1:
        needed.append("allreduce_bytes_per_token")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(options, name) is None]
    if missing:
        raise HardwareError(f"a profile is not enough: give {', '.join(missing)} too")
    return Hardware(read_profile(options.profile), 0, 0.0, 1.0)


def _of_steps(options: argparse.Namespace) -> MeasuredHardware:
    if options.tensor_parallel > 1:
        raise HardwareError(f"{options.profile} was measured without tensor parallelism")
    table = read_steps(options.profile)
    return MeasuredHardware(
        tuple(fit(steps) for steps in table.stages),
        options.kv_tokens or _number(options.profile, table, "kv_tokens"),
        options.overhead_ms / 1000,
        _hop_ms(options, table) / 1000,
    )


def _hop_ms(options: argparse.Namespace, table: StepTable) -> float:
    if options.hop_ms is not None:
        return float(options.hop_ms)
    links = table.notes.get("p2p_latency_us")
    if not links:
        return DEFAULT_HOP_MS
    try:
        hops_ms = [float(link) / 1000 for link in links.split(",")]
    except ValueError:
        raise HardwareError(f"{options.profile}: p2p_latency_us {links} is not a number") from None
    if not all(0 <= hop_ms <= MILLISECONDS[1] for hop_ms in hops_ms):
        raise HardwareError(
            f"{options.profile}: p2p_latency_us {links} cannot be: between 0 and "
            f"{1000 * MILLISECONDS[1]:g} are plausible"
        )
    return median(hops_ms)


def _number(path: Path, table: StepTable, key: str) -> int:
    number = table.notes.get(key, "")
    if len(number) > len(str(MOST_KV_TOKENS)):
        raise HardwareError(f"{path}: {key} {number[:20]} cannot be: at most {MOST_KV_TOKENS:g}")
    if not number.isdecimal() or not int(number):
        raise HardwareError(f"{path} does not contain {key}: give --{key.replace('_', '-')}")
    return int(number)


def _of_gpu(options: argparse.Namespace) -> Hardware:
    if options.model is None:
        raise HardwareError(
            "--gpu needs --model: a config.json or a name from simulator/hardware/models"
        )
    gpu, shape = find_gpu(options.gpu), read_shape(options.model)
    if options.kv_cache_dtype != "auto":
        shape = replace(shape, bytes_per_kv_number=1)
    num_gpus = num_stages_of(options) * options.tensor_parallel
    hardware = hardware_of_gpu(gpu, shape, num_gpus)
    if not hardware.kv_tokens and options.kv_tokens is None:
        raise HardwareError(f"{shape.name} does not fit {num_gpus} x {gpu.name}")
    return hardware


def hardware_of_gpu(gpu: Gpu, shape: ModelShape, num_gpus: int) -> Hardware:
    """A node of so many GPUs by the GPU model; it has no KV cache if the model does not fit."""
    exchanged = ALLREDUCES_PER_LAYER * shape.num_layers * shape.hidden_size * BYTES_PER_NUMBER
    return Hardware(
        profile_of(gpu, shape),
        kv_capacity_tokens(gpu, shape, num_gpus),
        shape.kv_bytes_per_token,
        gpu.bytes_per_s * KV_READ_EFFICIENCY,
        allreduce_bytes_per_token=float(exchanged),
    )


ERRORS = (HardwareError, ProfileError, GpuError, ModelShapeError)
"""The exceptions that `hardware_of` raises."""
