"""The stage: receive the plan, receive activations, build the batch, forward, send."""

import logging
import time
from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from configs.schema import Config
from engine.messages import StageCosts, StageReady, Step, StepDone, ToStage
from engine.wire import Spoke
from workers import batch, kv_cache, profiler, stage_model
from workers.attention import UnsupportedModelError
from workers.batch import Batch
from workers.heartbeat import Progress
from workers.kv_cache import KvCache, LayerShape, PagedStep, Probe
from workers.sampler import sample
from workers.stage_model import StageModel
from workers.transport import Transport

IDLE_WAIT_S = 1.0

log = logging.getLogger("tdpipe")


@dataclass(slots=True, frozen=True)
class Place:
    """Where in the pipeline this stage stands and what it runs on."""

    stage: int
    epoch: int
    device: torch.device
    stages_on_device: int


class Stage:
    """One stage's life after the process group is made.

    Making it loads the weights and the KV cache; raises what `stage_model.load` raises and
    `KvCacheError`.
    """

    def __init__(self, config: Config, place: Place, progress: Progress) -> None:
        self._config, self._place, self._progress = config, place, progress
        began_at = time.monotonic()
        self._model = stage_model.load(config, place.stage, place.device)
        log.info(
            "weights loaded in %.1f s: %s",
            time.monotonic() - began_at,
            stage_model.describe(self._model),
        )
        shapes = _probe(self._model, config, place.device)
        # Stages that share a device measure what all of them have left, and only then take it.
        dist.barrier()
        self._num_blocks = kv_cache.count_blocks(
            config,
            shapes,
            self._model.dtype.itemsize,
            config.max_model_len or self._model.max_model_len,
            place.device,
            place.stages_on_device,
        )
        dist.barrier()
        self._cache = KvCache(
            shapes, self._num_blocks, config.block_size, self._model.dtype, place.device
        )
        self._costs = self._measure()
        self._plans: deque[Step] = deque()
        self._transport = Transport(
            self._model.hidden_size,
            self._model.dtype,
            place.device,
            config.distributed_timeout_seconds,
        )

    def run(self, engine: Spoke[ToStage]) -> None:
        """Obey plans for ever. Raises `TransportError` when a neighbour is gone."""
        place = self._place
        engine.send(
            StageReady(
                place.stage,
                place.epoch,
                self._num_blocks,
                self._model.max_model_len,
                self._costs,
            )
        )
        while True:
            self._take_plans(engine)
            if self._plans:
                self._run_step(self._plans.popleft(), engine)
            self._progress.chores += 1

    def _take_plans(self, engine: Spoke[ToStage]) -> None:
        """Take what has come; wait for it only with nothing to do. Receives are posted at once."""
        if not self._plans and not engine.wait(IDLE_WAIT_S):
            return
        for step in engine.drain():
            if step.epoch == self._place.epoch:
                self._transport.expect(step.step_id, batch.num_tokens(step))
                self._plans.append(step)

    def _run_step(self, step: Step, engine: Spoke[ToStage]) -> None:
        inputs = batch.build(step, self._config.block_size, self._place.device)
        received = None if self._model.is_first else self._transport.recv(step.step_id)
        began_at = time.monotonic()
        output = self._forward(inputs, received)
        # The time is taken before anything leaves: the next stage begins after this one has ended.
        if self._model.is_last:
            token_ids = sample(output, step)
            self._progress.count_step(step.step_id, began_at, time.monotonic())
            engine.send(StepDone(step.epoch, step.step_id, token_ids))
        else:
            outgoing = self._transport.pack(step.step_id, output)
            self._progress.count_step(step.step_id, began_at, time.monotonic())
            self._transport.send(step.step_id, outgoing)

    def _measure(self) -> StageCosts:
        """What steps cost, with all stages at it at the same time."""
        model, device = self._model, self._place.device

        def run(step: Step) -> None:
            inputs = batch.build(step, self._config.block_size, device)
            received = None
            if not model.is_first:
                shape = (inputs.num_tokens, model.hidden_size)
                received = torch.zeros(shape, dtype=model.dtype, device=device)
            output = self._forward(inputs, received)
            if model.is_last:
                sample(output, step)

        dist.barrier()
        costs = profiler.profile(
            run,
            device=device,
            block_size=self._config.block_size,
            num_blocks=self._num_blocks,
            max_tokens=min(self._config.max_num_batched_tokens, model.max_model_len),
            budget_s=self._config.profile_seconds,
        )
        if costs.num_tokens:
            log.info(
                "a step takes %s; %.0f ns for each token of KV",
                ", ".join(
                    f"{1000 * costs.seconds[i]:.1f} ms for {costs.num_tokens[i]}"
                    for i in (0, len(costs.num_tokens) // 2, -1)
                )
                + " tokens",
                1e9 * costs.kv_s_per_token,
            )
        return costs

    def _forward(self, inputs: Batch, received: Tensor | None) -> Tensor:
        return self._model.forward(
            inputs.token_ids if received is None else received,
            inputs.position_ids,
            inputs.sample_at,
            PagedStep(self._cache, inputs),
        )


def _probe(model: StageModel, config: Config, device: torch.device) -> dict[int, LayerShape]:
    """What each layer stores, learnt from a forward; on a GPU it is one of the largest batch.

    Raises `UnsupportedModelError` for a model with layers that keep something else than KV.
    """
    count = 2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # loading may have needed more than running
        count = min(config.max_num_batched_tokens, model.max_model_len)
    positions = torch.arange(count, device=device)[None]
    inputs = (
        torch.zeros(1, count, dtype=torch.int64, device=device)
        if model.is_first
        else torch.zeros(count, model.hidden_size, dtype=model.dtype, device=device)
    )
    probe = Probe({})
    num_sampling = config.max_live(config.pipeline_parallel_size)
    model.forward(inputs, positions, positions[0, -num_sampling:], probe)
    silent = [layer for layer in model.layers if layer not in probe.shapes]
    if silent:
        raise UnsupportedModelError(
            f"{model.config.model_type} models cannot be served: layer {silent[0]} keeps no KV "
            "that can be paged"
        )
    return probe.shapes
