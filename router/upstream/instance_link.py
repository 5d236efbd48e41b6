"""The link to one instance: its connections, and its last status."""

import time
from typing import Any

from router.upstream.pool import Pool
from wire.instance_status import InstanceStatus


class InstanceLink:
    """What the process knows of an instance; `name` is its URL.

    It is `known_since` it was added, on the clock of the fleets.
    """

    def __init__(self, name: str, pool: Pool) -> None:
        self.name, self.pool = name, pool
        self.status: InstanceStatus | None = None
        self.heard_at: float | None = None
        self.known_since = 0.0
        self.is_lost = self.is_released = self.is_leaving = False
        self.reason = "it has sent no status yet"
        self.num_open = 0

    @staticmethod
    def would_serve(status: InstanceStatus) -> bool:
        """Whether an instance with this status takes requests."""
        return status.ready and not status.draining

    @property
    def is_up(self) -> bool:
        """Whether it takes requests."""
        if self.status is None or self.is_lost or self.is_leaving:
            return False
        return self.would_serve(self.status)

    @property
    def state(self) -> str:
        """Its state in a word."""
        if self.is_released:
            return "released"
        if self.status is None or self.is_lost:
            return "lost" if self.is_lost else "unknown"
        if self.is_leaving:
            return "leaving"
        if self.status.draining:
            return "draining"
        return "up" if self.status.ready else "not ready"

    def report(self, status: InstanceStatus) -> None:
        """Take a status."""
        self.status, self.heard_at = status, time.monotonic()
        self.is_lost = self.is_released = False
        self.reason = ""

    def lose(self, reason: str) -> None:
        """Note that it does not answer."""
        self.is_lost, self.reason = True, reason
        self.pool.close()

    def release(self) -> None:
        """Note that it is left to other routers; what it is answering goes on."""
        self.is_lost = self.is_released = True
        self.reason = "it was left to other routers"

    def close(self) -> None:
        """Close its idle connections."""
        self.pool.close()

    def describe(self) -> dict[str, Any]:
        """Its state for people, as JSON-ready values."""
        status = self.status
        age_s = None if self.heard_at is None else round(time.monotonic() - self.heard_at, 3)
        described: dict[str, Any] = {
            "url": self.name,
            "state": self.state,
            "reason": self.reason or None,
            "status_age_s": age_s,
            "open_requests": self.num_open,
            "models": list(status.models) if status else [],
        }
        if status is not None:
            promises = status.promises
            described |= {
                "ttft_slo": status.ttft_slo,
                "tpot_slo": status.tpot_slo,
                "phase": promises.phase,
                "pending_prefill_s": round(promises.pending_prefill_s, 3),
                "mean_slack_s": round(promises.mean_slack_s, 3),
                "num_waiting": promises.num_waiting,
                "num_decoding": promises.num_decoding,
                "free_kv_tokens": promises.free_kv_tokens,
                "kv_tokens": promises.kv_tokens,
            }
        return described
