"""A pipeline in one process: the real scheduler plans, real stages compute, the best token wins."""

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from configs.config import EngineConfig
from engine.scheduler import Outgoing, Scheduler
from tests.workers.world import CPU
from wire.messages import (
    Event,
    Finished,
    Generated,
    Sampling,
    StageLost,
    StageReady,
    Step,
    StepDone,
    Submit,
)
from workers.device.upload import upload_to
from workers.model.attention.plain import PlainBackend
from workers.model.batch import build
from workers.model.kv_cache import KvCache
from workers.model.stage_model import StageModel

PLAIN = PlainBackend()


class ScheduledPipeline:
    """The stages behind a scheduler; `outputs` and `logits` are by sequence."""

    def __init__(self, stages: list[StageModel], num_blocks: int, **settings: Any) -> None:
        self.config = EngineConfig.of(pipeline_parallel_size=len(stages), device="cpu", **settings)
        self.scheduler = Scheduler(self.config)
        self.stages = stages
        self.caches = [self._cache(stage, num_blocks) for stage in stages]
        self.outputs: dict[int, list[int]] = {}
        self.logits: dict[int, list[Tensor]] = {}
        self.ends: dict[int, Finished] = {}
        self._steps: deque[Step] = deque()
        self._epoch, self._num_blocks = 0, num_blocks
        self._begin()

    def submit(self, prompt: Sequence[int], max_tokens: int, output: Sequence[int] = ()) -> int:
        """Submit a greedy request, with the tokens that an earlier engine has generated."""
        number = len(self.outputs)
        self.outputs[number], self.logits[number] = list(output), []
        ids, before = (array("i", tokens).tobytes() for tokens in (prompt, output))
        sampling = Sampling(temperature=0.0)
        self._hand(Submit(number, ids, max_tokens, sampling, output_token_ids=before))
        return number

    def run(self, num_steps: int = 1 << 30) -> None:
        """Run this many steps, or until nothing is left to do."""
        while self._steps and num_steps:
            num_steps -= 1
            step = self._steps.popleft()
            logits = self._forward(step)
            samples = torch.tensor(list(step.samples), dtype=torch.bool)
            numbers = torch.frombuffer(bytearray(step.sequence_ids), dtype=torch.int64)
            for number, row in zip(numbers[samples].tolist(), logits, strict=True):
                self.logits[number].append(row)
            best = logits.argmax(-1).int().numpy().tobytes()
            self._hand(StepDone(step.epoch, step.step_id, best))

    def lose_stages(self) -> None:
        """The stages die with the steps in flight, and start again with an empty cache."""
        self._steps.clear()
        self._hand(StageLost(self._epoch, "a stage died"))
        self._begin()

    def _begin(self) -> None:
        self._epoch += 1
        for i, stage in enumerate(self.stages):
            limit, rule = stage.max_model_len, stage.rope_rule
            self._hand(StageReady(i, self._epoch, self._num_blocks, limit, rope=rule))

    def _forward(self, step: Step) -> Tensor:
        """The logits of the rows that sample."""
        batch = build(step, self.config.cache.block_size, upload_to(CPU), PLAIN.arrays)
        passed: Tensor | None = None
        for stage, cache in zip(self.stages, self.caches, strict=True):
            attend = PLAIN.step(cache, batch)
            ids, at, lens = batch.token_ids, batch.position_ids, batch.rope_lens
            passed = stage.forward(ids, at, batch.output_at, attend, passed, lens)
        assert passed is not None
        return passed

    def _hand(self, event: Event) -> None:
        for message in self.scheduler.handle(event, 0.0):
            self._take(message)

    def _take(self, message: Outgoing) -> None:
        match message:
            case Step():
                self._steps.append(message)
            case Generated():
                ids, tokens = array("q", message.sequence_ids), array("i", message.token_ids)
                for number, token_id in zip(ids, tokens, strict=True):
                    self.outputs[number].append(token_id)
            case Finished():
                self.ends[message.sequence_id] = message

    def _cache(self, stage: StageModel, num_blocks: int) -> KvCache:
        size = self.config.cache.block_size
        return KvCache(stage.probe(2).shapes, num_blocks, size, stage.dtype, CPU)
