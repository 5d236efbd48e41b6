"""Statuses of instances for the tests of the router's core."""

from typing import Any

from router.decisions.instance import Instance
from router.decisions.messages import Handler
from wire.instance_status import SLACK_QUANTILES, InstanceStatus, PrefillCosts, Promises

COSTS = PrefillCosts((1, 1000), (0.1, 1.0), token_s=0.001, num_stages=1)
"""A prompt of 1,000 tokens takes a second, alone and among others."""


def status(name: str = "a", *, slack_s: float | None = None, **promises: Any) -> InstanceStatus:
    """A ready instance with targets of 5 s and 0.1 s, and KV for 100,000 tokens."""
    given = {"free_kv_tokens": 100_000, "kv_tokens": 100_000, "costs": COSTS, **promises}
    if slack_s is not None:
        quantiles = (slack_s,) * len(SLACK_QUANTILES)
        given |= {"slack_s": quantiles, "projected_slack_s": quantiles, "mean_slack_s": slack_s}
    return InstanceStatus(name, ready=True, ttft_slo=5.0, tpot_slo=0.1, promises=Promises(**given))


def instance(name: str = "a", *, at: float = 0.0, **promises: Any) -> Instance:
    """An instance that has sent such a status."""
    made = Instance(Handler(name))
    made.report(status(name, **promises), at)
    return made
