"""The status of a pipeline: what a daemon tells people who watch it, as JSON lines.

`GET /pipeline/status` sends it to the page at `/` and to `tdpipe top`. The first one of a stream
has the samples of the last 30 s; each later one has what is new.
"""

from typing import Literal

import msgspec

from wire.promises import Phase

KEPT_S = 30.0
"""So many seconds are shown."""
State = Literal["starting", "loading", "ready", "restarting", "engine lost", "draining"]


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """The figures at one moment; `at` is in seconds of the server's clock.

    Sequences that are `waiting` have no KV, `live` ones have. `queued` ones have no first token
    yet. `generated_per_s` and `prompt_per_s` are tokens of the last second; prompts count when the
    engine accepts them.
    """

    at: float
    state: State
    phase: Phase = "prefill"
    waiting: int = 0
    live: int = 0
    queued: int = 0
    open_requests: int = 0
    kv_usage: float = 0.0
    generated_per_s: float = 0.0
    prompt_per_s: float = 0.0


class Steps(msgspec.Struct, frozen=True):
    """Steps that stages have run, as columns; times in seconds of the server's clock.

    `phases` has a letter for each: p(refill), d(ecode) or m(ixed).
    """

    stages: list[int] = []
    step_ids: list[int] = []
    phases: str = ""
    num_rows: list[int] = []
    num_tokens: list[int] = []
    began_at: list[float] = []
    ended_at: list[float] = []


class StageFigures(msgspec.Struct, frozen=True):
    """A stage; it has reported its steps until `reported_at`.

    `bubble` is the part of the last 30 s with work in which it had no step, or None without any, or
    if its times are not exact (on GPUs, they are with `exact_times` only).
    """

    stage: int
    reported_at: float
    bubble: float | None = None


class Quantiles(msgspec.Struct, frozen=True):
    """The median and the 95th percentile of the last 30 s, in seconds."""

    p50: float
    p95: float


class PipelineStatus(msgspec.Struct, frozen=True):
    """One status: the figures of now, and the samples and steps since the previous one.

    `first_token_s` is the time to the first token, and `per_token_s` the mean time between the
    tokens of a sequence, of sequences that ended. Counters are since the start of the engine.
    """

    at: float
    models: tuple[str, ...]
    version: str
    policy: str
    state: State
    num_stages: int
    reason: str = ""
    exact_times: bool = True
    kv_tokens: int = 0
    stages: tuple[StageFigures, ...] = ()
    first_token_s: Quantiles | None = None
    per_token_s: Quantiles | None = None
    switches: int = 0
    preemptions: int = 0
    restarts: int = 0
    samples: tuple[Sample, ...] = ()
    steps: Steps = Steps()
