"""The stage: receives steps and activations, builds the batch, runs the model and sends on."""

import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from msgspec.structs import replace
from tqdm import tqdm

from configs.config import EngineConfig
from daemon.processes.ranks import socket_name
from wire.messages import Hello, StageReady, Step, StepDone, ToStage
from wire.sockets import Spoke
from workers import loading
from workers.comm.token_handover import TokenHandover
from workers.comm.transport import connect
from workers.device.events import event_of
from workers.device.work import DeviceWork
from workers.heartbeat import INTERVAL_S, Progress
from workers.interleaving import Interleaving
from workers.loading import StagePlace, TimedRun
from workers.model import batch, kv_cache
from workers.model.decode_graphs import CudaCapture, GraphLimits, Key
from workers.model.kv_cache import KvCache
from workers.model.step_runner import StepRunner
from workers.profiling import layer_times, profiler
from workers.profiling.dummy_run import block_counts, prefill
from workers.profiling.known_costs import find_costs
from workers.profiling.profiler import Measurement
from workers.profiling.stage_fingerprint import fingerprint_of
from workers.results import Result, Results
from workers.sampling import vocabulary
from workers.sampling.grammars import Grammars
from workers.sampling.logprobs import scores_of
from workers.sampling.sampler import Sampler
from workers.sampling.vocabulary import Vocabulary

IDLE_WAIT_S = 1.0
# Steps that the last stage launches before the first of them must be reported.
MAX_UNREPORTED = 8
# Time limit of the warm-up; 64 sizes of the demo model take 0.6 s. Up to `WARM_UP_ROWS` tokens,
# a warm-up step has one row per token.
WARM_UP_S, WARM_UP_ROWS = 1.0, 128
# Profiling steps use this much of the KV cache; pages that were never written take no memory.
MEASURED_KV_BYTES = 1 << 27


class Stage:
    """One stage of the pipeline; it requires that the process group has been initialised.

    The constructor loads the weights and the KV cache; it raises what `stage_model.load` raises,
    `KvCacheError`, and `ValueError` for a profile of another pipeline.
    """

    def __init__(
        self, config: EngineConfig, data_dir: Path, place: StagePlace, progress: Progress
    ) -> None:
        self._config, self._place, self._progress = config, place, progress
        slices = loading.load_slices(config, data_dir, place)
        self._model, self._attention = slices[0].model, slices[0].attention
        shapes = {layer: shape for loaded in slices for layer, shape in loaded.shapes.items()}
        self._is_batch_invariant = all(loaded.is_batch_invariant for loaded in slices)
        cache_dtype = slices[0].cache_dtype
        max_model_len = config.model.max_model_len or self._model.max_model_len
        self._graph_limits = GraphLimits(config.max_live, max_model_len)
        limits = self._graph_limits if self._captures_graphs else None
        graph_bytes = loading.estimate_graph_bytes(config, slices, place, limits)
        # Stages that share a device all measure its free memory before any of them allocates.
        dist.barrier()
        self._num_blocks = kv_cache.count_blocks(
            config,
            shapes,
            cache_dtype.itemsize,
            max_model_len,
            place.device,
            place.stages_on_device,
            graph_bytes,
        )
        dist.barrier()
        size = config.cache.block_size
        self._cache = KvCache(shapes, self._num_blocks, size, cache_dtype, place.device)
        self._runners = [
            StepRunner(loaded.model, loaded.attention, self._cache, size, place.device)
            for loaded in slices
        ]
        if self._captures_graphs:
            show, capture = partial(_show_progress, place.stage), CudaCapture(place.device)
            for runner in self._runners:
                runner.capture(capture, self._graph_limits, show)
        self._warm_up()
        type_name = str(self._model.dtype).removeprefix("torch.")
        self.fingerprint = fingerprint_of(
            config,
            place.stage,
            [loaded.model.layers for loaded in slices],
            type_name,
            place.device,
            self._attention.name + ", CUDA graphs" * self._runners[0].has_graphs,
        )
        self._costs = find_costs(config.pipeline, data_dir, self.fingerprint, self._measure)
        vocab_size = self._vocab_size = slices[-1].model.vocab_size
        self._samples = slices[-1].model.is_last and not place.tensor_rank
        grammars = Grammars(vocab_size, self._load_vocabulary)
        self._sampler = Sampler(vocab_size, place.device, grammars)
        self._device_work = DeviceWork(partial(event_of, place.device))
        progress.device_doing = self._device_work.doing
        self.step_id = -1  # of the current step
        self._plans: deque[ToStage] = deque()
        self._last_step_id = -1
        self._transports = connect(
            [loaded.model.input_width for loaded in slices],
            self._model.dtype,
            place.device,
            config.pipeline.distributed_timeout_seconds,
            place.ranks_per_stage,
        )
        self._interleaving: Interleaving | None = None
        if len(slices) > 1:
            self._interleaving = Interleaving(
                self._transports,
                config.pipeline.pipeline_parallel_size,
                is_first=self._model.is_first,
            )
        self._handover: TokenHandover | None = None
        if config.scheduler.async_scheduling:
            ahead = config.scheduler.td_pipe.prefill_ahead
            self._handover = TokenHandover(
                config.pipeline.distributed_timeout_seconds,
                ahead * config.pipeline.pipeline_parallel_size + 1,
            )

    def run(self, engine: Spoke[ToStage]) -> None:
        """Execute steps forever. Raises `TransportError` when a neighbouring stage is gone."""
        self._progress.doing = "idle"
        # Measured times need a step at a time, and a host that waits elsewhere could not report.
        is_in_order = self._config.pipeline.exact_times or self._transports[0].waits_for_neighbours
        most = 0 if is_in_order else MAX_UNREPORTED
        results = Results(partial(self._report, engine), self._progress.count_step, most)
        engine.send(self._ready())
        try:
            while True:
                self._take_plans(engine, results)
                if self._plans:
                    self._handle(self._plans.popleft(), engine, results)
                elif self._interleaving is not None and not self._run_next(results):
                    continue  # no progress: this stage waits for a neighbour
                results.send_finished()
                self._progress.iterations += 1
                self._progress.doing = "idle"
        except torch.AcceleratorError:
            # A GPU tells its errors late: this one is of the first step that it has not finished.
            if results.oldest_step_id is not None:
                self.step_id = results.oldest_step_id
            raise

    @property
    def rank_name(self) -> str:
        """The name under which the engine sends to this rank."""
        return socket_name("stage", self._place.stage, self._place.tensor_rank)

    @property
    def number(self) -> int:
        """The index of the stage in the pipeline."""
        return self._place.stage

    @property
    def _captures_graphs(self) -> bool:
        # Collectives in a graph were never tried.
        is_alone = self._place.tensor_group is None
        is_eager = self._config.pipeline.enforce_eager
        return self._place.device.type == "cuda" and is_alone and not is_eager

    def _ready(self) -> StageReady:
        return StageReady(
            self._place.stage,
            self._place.epoch,
            self._num_blocks,
            self._model.max_model_len,
            self._costs,
            self._last_step_id,
            self._attention.name,
            self._is_batch_invariant,
            self._model.context_length.reason,
            self._model.rope_rule,
            min(self._model.vocab_size, self._vocab_size),
            self._place.tensor_rank,
            self.fingerprint.hardware,
            self.fingerprint.dtype,
        )

    def _take_plans(self, engine: Spoke[ToStage], results: Results) -> None:
        """Read the messages that have arrived and post their receives.

        Waits for a message only if no step is pending.
        """
        has_message, interleaving = engine.wait, self._interleaving
        if interleaving is not None:
            has_message = partial(interleaving.wait, engine)
            self._progress.doing = "waits" if len(interleaving) else "idle"
        is_pending = self._plans or (interleaving is not None and interleaving.has_next())
        if not is_pending and not results.wait(has_message, IDLE_WAIT_S):
            return
        for message in engine.drain():
            if isinstance(message, Hello):
                self._plans.append(message)
            elif message.epoch == self._place.epoch:
                self.step_id = self._last_step_id = message.step_id
                if interleaving is not None:
                    interleaving.expect(message)
                else:
                    self._transports[0].expect(message.step_id, batch.num_tokens(message))
                    self._plans.append(message)
                if self._handover is not None:
                    self._handover.expect(message)
                if self._samples:
                    self._sampler.expect(message)

    def _handle(self, message: ToStage, engine: Spoke[ToStage], results: Results) -> None:
        if isinstance(message, Step):
            self._run_step(message, results)
        else:
            engine.send(self._ready())  # to a new engine, which does not know this stage yet

    def _run_next(self, results: Results) -> bool:
        """Run a step where it has arrived; returns False if no open step has arrived anywhere."""
        assert self._interleaving is not None
        chosen = self._interleaving.take()
        if chosen is not None:
            self._run_step(chosen[0], results, chosen[1])
        return chosen is not None or not len(self._interleaving)

    def _report(self, engine: Spoke[ToStage], done: StepDone) -> None:
        """Send what a step has sampled to the first stage, which waits for it, and the engine."""
        if self._handover is not None:
            self._handover.hand(done.step_id, done.token_ids)
        engine.send(done)

    def _run_step(self, step: Step, results: Results, slice_index: int = 0) -> None:
        runner, transport = self._runners[slice_index], self._transports[slice_index]
        self.step_id, progress = step.step_id, self._progress
        if step.follows >= 0:
            step = self._with_tokens(step)
        inputs = runner.prepare(step)
        progress.doing = "waits"
        received = None if runner.model.is_first else transport.recv(step.step_id)
        progress.doing = "computes"
        self._wait_for_device()
        began_at = time.monotonic()
        self._device_work.begin()
        output = runner.run(inputs, received)
        self._device_work.end()
        if self._place.device.type == "cuda":
            progress.doing = "waits"  # from here on for the device, which tells what it does
        self._wait_for_device()
        if runner.model.is_last and self._samples:
            num_sampling = inputs.num_sampling
            sampled = self._sampler.launch(output[:num_sampling], step)
            scores = scores_of(output[num_sampling:], step) if step.scored else ()
            check = transport.check(step.step_id)
            results.add(Result(step, began_at, sampled, scores, check))
        elif runner.model.is_last:
            progress.count_step(step.step_id, began_at, time.monotonic())
        else:
            outgoing = transport.pack(step.step_id, output)
            # The end is measured before anything is sent, so that it precedes the next stage's
            # begin.
            progress.count_step(step.step_id, began_at, time.monotonic())
            progress.doing = "waits"
            transport.send(step.step_id, outgoing)

    def _with_tokens(self, step: Step) -> Step:
        """The step with the tokens that were sampled after it was planned.

        Only the first stage needs them. A later one with an embedding of its own, for the LM head,
        may look them up nevertheless, and gets others.
        """
        assert self._handover is not None
        token_ids = np.frombuffer(step.token_ids, np.int32).copy()
        is_pending = token_ids < 0
        if self._model.is_first:
            self._progress.doing = "waits"
            sampled = self._handover.take(step.follows)
            token_ids[is_pending] = sampled[-1 - token_ids[is_pending]]
        else:
            token_ids[is_pending] = 0
        return replace(step, token_ids=token_ids.tobytes())

    def _wait_for_device(self) -> None:
        """Wait until the GPU has finished its queue, so that measured times are those of a step."""
        if self._config.pipeline.exact_times:
            layer_times.wait(self._place.device)

    def _load_vocabulary(self) -> Vocabulary:
        """Load the vocabulary for the first grammar, in a separate thread.

        It may block all other threads, including the heartbeat, for a second.
        """
        self._progress.is_loading = True
        time.sleep(2 * INTERVAL_S)  # until a heartbeat has reported that the stage loads
        try:
            return vocabulary.load(self._config.model, self._vocab_size)
        finally:
            self._progress.is_loading = False

    def _timed_run(self) -> TimedRun:
        """A run on part of the KV cache: more than fits a CPU's caches, but not all memory."""
        block_bytes = self._cache.num_bytes // self._num_blocks
        num_blocks = min(self._num_blocks, max(1, MEASURED_KV_BYTES // block_bytes))
        return TimedRun(self._runners, num_blocks, self._place.device, self._place.tensor_group)

    def _warm_up(self) -> None:
        """If each step size is compiled separately, run all sizes once, the smallest first."""
        if not self._model.compiles_for_each_size:
            return
        config = self._config
        most = min(
            config.scheduler.max_num_batched_tokens, self._num_blocks * config.cache.block_size
        )

        def run_all(run: loading.Run) -> None:
            ends_at = time.monotonic() + WARM_UP_S
            for size in self._model.sizes(most):
                if time.monotonic() > ends_at:
                    return
                # Rows of one token all sample, so that the LM head's matmul is compiled as well.
                row = 1 if size <= WARM_UP_ROWS else 2 * config.cache.block_size
                run(prefill([min(row, size - at) for at in range(0, size, row)]))

        self._timed_run().led(run_all, None)

    def _measure(self) -> Measurement:
        config, model = self._config, self._model
        run = self._timed_run()
        dummy_runs = profiler.quick_dummy_runs(
            max_tokens=config.scheduler.max_num_batched_tokens,
            max_model_len=min(
                model.max_model_len, config.model.max_model_len or model.max_model_len
            ),
            max_rows=config.max_live,
            cache_tokens=self._num_blocks * config.cache.block_size,
            has_stairs=self._place.device.type == "cuda",
        )
        run.touch(max(sum(block_counts(t, config.cache.block_size)) for t in dummy_runs))
        seconds = config.pipeline.profile_seconds
        return run.led(lambda led: profiler.profile(led, dummy_runs, seconds), profiler.NOTHING)


def _show_progress(stage: int, keys: list[Key]) -> Iterable[Key]:
    return tqdm(keys, desc=f"stage {stage}: capturing CUDA graphs", unit=" graphs", disable=None)
