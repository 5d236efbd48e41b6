"""A simulated instance: a pipeline that tells the router its status, as a daemon does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from configs.config import EngineConfig
from engine.promises import Promiser
from engine.scheduler import Outgoing
from simulator.pipeline import EventQueue, Node, SimulatedPipeline
from wire.instance_status import InstanceStatus
from wire.messages import Submit

STATUS_S = 0.25
LEAST_STATUS_S = 0.02
"""Seconds between two statuses at most, and at least where something has changed."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What an instance is made of."""

    config: EngineConfig
    node: Node


class _Tick:
    pass


class SimulatedInstance:
    """A pipeline behind an HTTP server; `hop_s` is the time of a message to and from it."""

    def __init__(
        self,
        name: str,
        spec: InstanceSpec,
        queue: EventQueue,
        remaining: dict[int, int],
        on_message: Callable[["SimulatedInstance", Outgoing, float], None],
        on_status: Callable[["SimulatedInstance", InstanceStatus, float], None] | None = None,
    ) -> None:
        self.name = name
        self.is_stopped = False
        self.has_prefix_cache = spec.config.cache.enable_prefix_caching
        self.longest = min(
            spec.node.max_model_len, spec.node.num_blocks * spec.config.cache.block_size
        )
        self._queue, self._on_status = queue, on_status
        self.pipeline = SimulatedPipeline(
            spec.config, spec.node, queue, remaining, lambda m, at: on_message(self, m, at)
        )
        self.promiser = Promiser(self.pipeline.scheduler)
        self.pipeline.on_event = self._follow
        self._targets = (
            spec.config.scheduler.ttft_slo or 0.0,
            spec.config.scheduler.tpot_slo or 0.0,
        )
        self._told_at = float("-inf")
        self._has_changed = False

    def start(self, now: float) -> None:
        """Let its stages be ready at `now`, and send statuses from then on."""
        self.pipeline.start(now)
        if self._on_status is not None:
            self._queue.push(now, self, _Tick())

    def take(self, event: Any, now: float) -> None:
        """See `Target.take`."""
        if not isinstance(event, _Tick):
            self.pipeline.take(event, now)
            return
        if not self.is_stopped:
            self._tell(now)
            self._queue.push(now + STATUS_S, self, _Tick())

    def _follow(self, event: Any, now: float) -> None:
        if isinstance(event, Submit) and not event.offline:
            self.promiser.arrive(len(event.prompt_token_ids) // 4)
            self._has_changed = True
        self._has_changed |= self.promiser.follow()
        if self._has_changed and now - self._told_at >= LEAST_STATUS_S:
            self._tell(now)

    def _tell(self, now: float) -> None:
        self._told_at, self._has_changed = now, False
        if self._on_status is None or self.is_stopped:
            return
        promises = self.promiser.promises(now)
        ttft_slo, tpot_slo = self._targets
        is_ready = self.pipeline.scheduler.pipeline is not None
        status = InstanceStatus(
            self.name, is_ready, ttft_slo=ttft_slo, tpot_slo=tpot_slo, promises=promises
        )
        self._on_status(self, status, now)
