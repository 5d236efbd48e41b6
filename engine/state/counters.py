"""Counters of the engine since its start; they only grow."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Counted by the scheduler, the pool and the policy; exported as fields of `Stats`."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    switches: int = 0
    steals: int = 0
    preemptions: int = 0
    steps: int = 0
    restarts: int = 0
    poison_requests: int = 0
