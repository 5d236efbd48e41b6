"""Promises: what the scheduler of an instance owes its requests, and what it can spare."""

from typing import Literal

import msgspec

Phase = Literal["prefill", "decode", "mixed"]

SLACK_QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The quantiles of the slack that a status has, ascending."""


class PrefillCosts(msgspec.Struct, frozen=True):
    """What prompts cost the slowest stage, in seconds.

    A prompt of `num_tokens` tokens (ascending) takes `seconds`, if it is fed alone; they are
    interpolated in between. Among others, it takes `token_s` for each token and `pair_s` for each
    pair of a token with itself or an earlier one. The first token of the answer is there after
    about `num_stages` times as many.
    """

    num_tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    token_s: float = 0.0
    pair_s: float = 0.0
    num_stages: int = 1


class Promises(msgspec.Struct, frozen=True):
    """What the scheduler of an instance has promised, in seconds and KV tokens.

    `slot_prefill_s` are the seconds to prefill all online requests that have arrived since the last
    prefill slot ended, each alone, and `pending_prefill_s` those that are left, together, if
    nothing else runs; beside decoding, they take `prefill_stretch` times as long.

    The slack of a decoding request is `tokens so far x tpot_slo - seconds since its first token`:
    so long its next token can be delayed without missing the target. `slack_s` has the quantiles
    `SLACK_QUANTILES` of the slack of all decoding online requests, and is empty without any;
    `mean_slack_s` is the mean. `projected_slack_s` has the quantiles of the slack that they are
    expected to have at their end, if nothing interrupts them, of those that are expected to meet
    the target at all. `turn_s` are the seconds between two
    tokens of a decoding request, by the cost model, `turn_s_per_row` the seconds that another
    decoding request adds, and `lone_turn_s` the seconds if there were only one.

    The `num_offline` open offline requests hold `offline_kv_tokens`, and are preempted for online
    ones; `num_offline_waiting` of them have no token yet.
    """

    phase: Phase = "decode"
    slot_prefill_s: float = 0.0
    pending_prefill_s: float = 0.0
    prefill_stretch: float = 1.0
    num_waiting: int = 0
    num_decoding: int = 0
    num_offline: int = 0
    num_offline_waiting: int = 0
    slack_s: tuple[float, ...] = ()
    mean_slack_s: float = 0.0
    projected_slack_s: tuple[float, ...] = ()
    turn_s: float = 0.0
    turn_s_per_row: float = 0.0
    lone_turn_s: float = 0.0
    free_kv_tokens: int = 0
    kv_tokens: int = 0
    offline_kv_tokens: int = 0
    costs: PrefillCosts = PrefillCosts()
