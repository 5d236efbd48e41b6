"""Counters since the start of the engine; they never decrease."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """The scheduler, the pool and the policy count here; `Stats` exports each counter.

    `prefix_queries` are tokens of admitted sequences, and `prefix_hits` those of them that were in
    the prefix cache. `recomputed_tokens` were computed before, and lost.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    switches: int = 0
    steals: int = 0
    preemptions: int = 0
    steps: int = 0
    restarts: int = 0
    poison_requests: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    topups: int = 0  # decode steps that prompts were added to, and the tokens of those prompts
    topup_tokens: int = 0
