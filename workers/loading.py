"""Loading: which layers this stage takes, its model, and what each layer stores."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from configs.config import EngineConfig
from daemon.processes import ranks
from wire.messages import Step
from workers.comm.all_gather import all_gather
from workers.comm.tensor_group import StageTensorGroup
from workers.kernels import triton_support
from workers.kernels.compiler import CompilerError
from workers.kernels.library import Library, native_library
from workers.model import batch_invariance, kv_cache, layer_split, stage_model
from workers.model.attention import backends
from workers.model.attention.backends import Backend
from workers.model.attention.probe import Probe
from workers.model.decode_graphs import CudaCapture, GraphLimits
from workers.model.fused.native import NativeOperations
from workers.model.kv_cache import KvCache, LayerShape
from workers.model.packed import linears
from workers.model.proof import admission
from workers.model.stage_model import StageModel
from workers.model.step_runner import StepRunner
from workers.profiling import layer_times, profile_cache
from workers.profiling.dummy_run import DummyRun, make_step
from workers.profiling.layer_times import LayerTimes
from workers.profiling.stage_fingerprint import StageFingerprint, fingerprint_of
from workers.sampling.sampler import Sampler, ids_to_host, most_likely

Run = Callable[[DummyRun], float]
Result = TypeVar("Result")

log = logging.getLogger("tdpipe")


@dataclass(slots=True, frozen=True)
class StagePlace:
    """Where in the pipeline this stage stands and what it runs on.

    `turn` is its number among the stages of this node that share the device.
    """

    stage: int
    epoch: int
    device: torch.device
    stages_on_device: int
    tensor_group: StageTensorGroup | None = None
    turn: int = 0

    @property
    def tensor_rank(self) -> int:
        """The number of this rank in its stage."""
        return self.tensor_group.rank if self.tensor_group else 0

    @property
    def ranks_per_stage(self) -> int:
        """The ranks that share the stage's layers."""
        return self.tensor_group.size if self.tensor_group else 1

    @property
    def name(self) -> str:
        """The rank in the log."""
        return ranks.describe(self.stage, self.tensor_rank)


@dataclass(slots=True, frozen=True)
class LoadedStage:
    """The model of a stage, what its layers store, how they attend, the KV cache, a promise."""

    model: StageModel
    probe: Probe
    attention: Backend
    cache_dtype: torch.dtype
    is_batch_invariant: bool

    @property
    def shapes(self) -> dict[int, LayerShape]:
        """What the stage stores for a token."""
        return self.probe.shapes


@dataclass(slots=True, frozen=True)
class TimedRun:
    """Runs dummy runs like steps, but without receiving or sending activations."""

    runners: Sequence[StepRunner]  # of the slices
    num_blocks: int
    device: torch.device
    tensor_group: StageTensorGroup | None = None

    def __call__(self, dummy_run: DummyRun) -> float:
        """The seconds of a step on this stage, from the activations' arrival to their packing.

        With virtual stages, this is the sum over all slices. The other ranks of the stage must run
        the same at the same time, see `led`.
        """
        step = make_step(dummy_run, self.runners[0].block_size, self.num_blocks)
        return sum(self._slice_s(runner, step, dummy_run.num_tokens) for runner in self.runners)

    def _slice_s(self, runner: StepRunner, step: Step, num_tokens: int) -> float:
        model, received = runner.model, None
        if not model.is_first:
            shape = (num_tokens, model.input_width)
            received = torch.zeros(shape, dtype=model.dtype, device=self.device)
        inputs = runner.prepare(step)
        layer_times.wait(self.device)
        began_at = time.perf_counter()
        output = runner.run(inputs, received)
        self._finish(output, model)
        layer_times.wait(self.device)
        return time.perf_counter() - began_at

    def _finish(self, output: Tensor, model: StageModel) -> None:
        if model.is_last:
            ids_to_host(most_likely(output))
        else:
            outgoing = output.new_empty(1 + output.shape[0], output.shape[1])
            outgoing[1:] = output

    def led(self, work: Callable[[Run], Result], otherwise: Result) -> Result:
        """Do work that chooses its dummy runs by their times: rank 0 does it, the others follow.

        They return `otherwise`.
        """
        group = self.tensor_group
        if group is None:
            return work(self)

        def lead(dummy_run: DummyRun) -> float:
            group.tell(dummy_run)
            return self(dummy_run)

        if not group.rank:
            try:
                return work(lead)
            finally:
                group.tell(None)
        while (dummy_run := group.hear(DummyRun | None)) is not None:
            self(dummy_run)
        return otherwise

    def touch(self, num_blocks: int) -> None:
        """Write up to `num_blocks` blocks: reading memory that was never written costs nothing."""
        for tensors in self.runners[0].cache.layers.values():
            for tensor in tensors:
                tensor[:num_blocks].zero_()


def load_slices(config: EngineConfig, data_dir: Path, place: StagePlace) -> list[LoadedStage]:
    """Load the slices of the stage's layers, see `load`: one, or as many as virtual stages."""
    num_slices = config.pipeline.virtual_pipeline_size
    if num_slices == 1:
        return [load(config, data_dir, place)]
    _find_obstacle(config, place.device)
    parts = [i * config.pipeline.pipeline_parallel_size + place.stage for i in range(num_slices)]
    return [_load(config, data_dir, place, None, part) for part in parts]


def load(config: EngineConfig, data_dir: Path, place: StagePlace) -> LoadedStage:
    """Load the stage's model; all stages must load at the same time.

    A split by measured times is kept in `data_dir`.

    Raises what `stage_model.load` raises, and `ValueError` if batch invariance is wanted and cannot
    be promised.
    """
    _find_obstacle(config, place.device)
    if config.pipeline.layer_split != "auto":
        return _load(config, data_dir, place, None)
    known = None
    if not config.pipeline.remeasure:
        known = profile_cache.load_split(data_dir, _split_fingerprint(config, place))
    kept = all_gather(known, tuple[int, ...] | None)
    if kept[0] is not None and kept.count(kept[0]) == len(kept):
        num_layers = stage_model.read_config(config.model).get_text_config().num_hidden_layers
        log.info("layers %s, as found at an earlier start", ",".join(map(str, kept[0])))
        ranges = layer_split.split_by_hand(kept[0], num_layers)
        return _load(config, data_dir, place, ranges)
    loaded = _load(config, data_dir, place, None)
    times = all_gather(_time_layers(config, place, loaded), LayerTimes)[:: place.ranks_per_stage]
    better = layer_times.better_split(times, stage_model.find_last_cut(config.model))
    split = [len(layers) for layers in better or _present(times)]
    profile_cache.save_split(data_dir, _split_fingerprint(config, place), split)
    slowest = max(sum(stage.seconds) + stage.extra_s for stage in times)
    log.info(
        "layers %s: measured over a reference mix, the slowest stage of the first split took "
        "%.1f ms",
        ",".join(map(str, split)),
        1000 * slowest,
    )
    if better is None:
        return loaded
    del loaded
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    return _load(config, data_dir, place, better)


def estimate_graph_bytes(
    config: EngineConfig,
    slices: Sequence[LoadedStage],
    place: StagePlace,
    limits: GraphLimits | None,
) -> int:
    """The memory that CUDA graphs will take besides the KV cache, found with a small one.

    Stages that share a device measure one after the other, because its free memory is that of all.
    All stages must call this at the same time, also those without graphs (and `limits`): nodes may
    have different numbers of devices, or none, but all stages wait for each other in each turn.
    """
    num_bytes, own_turns = 0, 0 if limits is None else place.stages_on_device
    for turn in range(max(all_gather(own_turns, int))):
        dist.barrier()
        if limits is not None and turn == place.turn:
            num_bytes = sum(
                _measure_graph_bytes(config, loaded, place, limits) for loaded in slices
            )
    return num_bytes


def _measure_graph_bytes(
    config: EngineConfig, loaded: LoadedStage, place: StagePlace, limits: GraphLimits
) -> int:
    model, device, block_size = loaded.model, place.device, config.cache.block_size
    cache = KvCache(loaded.shapes, 2, block_size, loaded.cache_dtype, device)
    runner = StepRunner(model, loaded.attention, cache, block_size, device)
    num_bytes = runner.estimate_graph_bytes(CudaCapture(device), limits)
    del runner, cache
    gc.collect()
    torch.cuda.empty_cache()
    return num_bytes


def _load(
    config: EngineConfig,
    data_dir: Path,
    place: StagePlace,
    ranges: Sequence[range] | None,
    part: int | None = None,
) -> LoadedStage:
    """Load one of the parts into which the layers are split, by default that of the stage."""
    began_at = time.monotonic()
    native = partial(native_library, data_dir)
    structure = admission.admit(config.model, data_dir, place.ranks_per_stage)
    part = place.stage if part is None else part
    model = stage_model.load(config, part, place.device, structure, ranges, place.tensor_group)
    replaced = _use_kernels(model, config, place.device, native)
    took_s = time.monotonic() - began_at
    log.info("weights loaded in %.1f s: %s", took_s, stage_model.describe(model))
    probe = _probe(model, config, place.device)
    cache_dtype = kv_cache.dtype_of(config.cache, model.dtype)
    attention = backends.choose(
        config.pipeline.attention_backend,
        probe.layers.values(),
        model.dtype,
        cache_dtype,
        place.device,
        native,
    )
    obstacle = _find_obstacle(config, place.device, model, attention.name)
    invariant = f"not batch invariant: {obstacle}" if obstacle else "batch invariant"
    log.info(
        "attention: %s%s; KV cache: %s; %s",
        attention.name,
        replaced,
        str(cache_dtype).removeprefix("torch."),
        invariant,
    )
    return LoadedStage(model, probe, attention, cache_dtype, obstacle is None)


def _find_obstacle(
    config: EngineConfig,
    device: torch.device,
    model: StageModel | None = None,
    attention: str = "",
) -> str | None:
    """What prevents batch invariance; raises `ValueError` for it if batch invariance is wanted."""
    found = batch_invariance.obstacle(config, device, model and model.module, attention)
    if found and config.pipeline.batch_invariant:
        raise ValueError(f"--batch-invariant: {found}")
    return found


def _use_kernels(
    model: StageModel, config: EngineConfig, device: torch.device, native: Callable[[], Library]
) -> str:
    """Replace what other kernels compute faster than torch's; returns a description."""
    if config.pipeline.attention_backend == "plain":
        return ""
    if device.type != "cpu":
        return _fuse_with_triton(model, device)
    try:
        library = native()
    except CompilerError:
        return ""  # the choice of the attention backend reports it
    done = [f"{model.fuse(NativeOperations(library))} norms and MLPs fused"]
    if linears.has_onednn_products(model.dtype):
        try:
            done.append(f"{linears.pack_for_onednn(model.module)} linear layers packed for oneDNN")
        except linears.PackingError as error:
            log.warning("the linear layers are not packed for oneDNN: %s", error)
    elif linears.are_worth_packing(model.dtype):
        done.append(f"{model.pack_linears(library)} linear layers and experts packed")
    return f"; {', '.join(done)}"


def _fuse_with_triton(model: StageModel, device: torch.device) -> str:
    if triton_support.obstacle(device) is not None:
        return ""  # the choice of the attention backend reports it
    # A late import: Triton is not installed with torch's CPU builds.
    from workers.model.fused.triton import TritonOperations

    return f"; {model.fuse(TritonOperations())} norms and MLPs fused"


def _time_layers(config: EngineConfig, place: StagePlace, loaded: LoadedStage) -> LayerTimes:
    """What the other stages must know of this one, measured while all stages measure."""
    model, probe = loaded.model, loaded.probe
    block_size, device = config.cache.block_size, place.device
    mix = layer_times.reference_mix(model.max_model_len)
    num_tokens = max(dummy_run.kv_tokens + dummy_run.num_tokens for dummy_run, _ in mix)
    num_blocks = -(-num_tokens // block_size) + layer_times.ROWS
    cache = KvCache(probe.shapes, num_blocks, block_size, loaded.cache_dtype, device)
    runner = StepRunner(model, loaded.attention, cache, block_size, device)
    run = TimedRun([runner], num_blocks, device)
    run.touch(num_blocks)
    all_gather(True, bool)  # no stage measures while others still load
    seconds, extra_s = layer_times.time_layers(model, run, device)
    kinds, sizes, extra_bytes = layer_times.describe_layers(model)
    longest = config.model.max_model_len or model.max_model_len
    itemsize = loaded.cache_dtype.itemsize
    kv_bytes = (probe.values_per_token(i) * itemsize * longest for i in model.layers)
    free_bytes = kv_cache.free_bytes(config.cache, device, place.stages_on_device)
    return LayerTimes(
        model.layers.start,
        tuple(seconds),
        kinds,
        sizes,
        tuple(kv_bytes),
        extra_s,
        extra_bytes,
        free_bytes + model.num_bytes,
        config.cache.kv_cache_memory_bytes,
    )


def _present(times: Sequence[LayerTimes]) -> list[range]:
    return [range(stage.first, stage.first + len(stage.seconds)) for stage in times]


def _split_fingerprint(config: EngineConfig, place: StagePlace) -> StageFingerprint:
    attention = config.pipeline.attention_backend
    return fingerprint_of(config, place.stage, None, config.model.dtype, place.device, attention)


def _probe(model: StageModel, config: EngineConfig, device: torch.device) -> Probe:
    """What each layer attends with, from a forward; on a GPU one of the largest batch.

    Raises `UnsupportedModelError` for a model with layers that keep state other than KV.
    """
    count = 2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # loading may have taken more
        count = min(config.scheduler.max_num_batched_tokens, model.max_model_len)
    probe = model.probe(count)
    if model.is_last:
        assert probe.output is not None
        Sampler(model.vocab_size, device).dummy_run(probe.output[: config.max_live])
        probe.output = None  # the logits of a large batch
    return probe
