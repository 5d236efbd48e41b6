"""The bound: the shortest time in which any schedule could serve a workload on a node.

A policy cannot be faster, even if it knows all lengths, arrivals and costs in advance. So bound /
makespan is the share of the possible speed that a policy has reached. The bound is the largest of
three, and each of them follows from what every schedule has to do:

**One request.** A token can be fed only after the previous one has been sampled. A request with an
output of o tokens therefore takes o turns, one after the other, and each turn is at least a step on
every stage and a hop after it. The first turn ends after the whole prompt has been fed.

**All tokens.** A stage runs one step at a time, so the makespan is at least the sum of its step
times. Let a step feed T tokens and let its rows read K tokens of KV. Then it takes f(T) + a K, with
the staircase f and the overhead in f. Choose prices with

    f(T) + a K >= beta + alpha T + gamma K    for every T >= 1 and K >= 0.

The sum over all steps is at least beta J + alpha (all tokens) + gamma (all reads), whatever the
steps are. With beta = 0, alpha is the cost of the cheapest token on the staircase. J is the fewest
steps: o turns of the longest request, and between two of them at least one other step, or else the
stage is idle until the row has passed the other stages, which takes longer than beta.

**All tokens in the KV cache.** The rows of a step hold the KV of their sequences while the step
passes through the stages. At any moment the steps on all stages together hold at most the capacity
C, so the sum over all steps of (time on all stages x tokens held) is at most C x makespan. A decode
row that reads k tokens holds k + 1. With any lambda >= 0, both sums together give

    makespan (1 + lambda C) >= sum of [f(T) + a K + lambda (T + K) (F(T) + A K)]

with F and A of all stages together. Prices that support this function from below give a bound as
above; lambda = 0 is the case of an ample cache. More rows per step make tokens cheaper but hold
more, and this is where the capacity limits the rows.

Any prices that fulfil the inequality give a valid bound; a search finds good ones. The inequality
is checked for every T up to the last point of the profile (later steps are multiples of it), and
for K in closed form. The remaining details are chosen so that no schedule can escape:

  - a preempted sequence feeds its tokens again instead of reading them, so gamma <= alpha;
  - a chunk of a prompt that is in flight with earlier chunks counts as holding only itself;
  - requests that arrive at t or later cannot be served earlier: the bound holds for them, from t;
  - the pipeline fills before the first step of a stage and drains after its last one.

With v virtual stages per stage, steps overlap in more ways, and less can be said: a stage waits for
a slice of the first step only, a prompt's chunks may follow each other from slice to slice, and
between two turns of the longest request there may be a slice of another step instead of a step.

Not counted are the rounding of KV to blocks, the settings of the scheduler, and everything that a
policy does not know in advance, above all the output lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.arrival import Arrival
from simulator.pipeline import Node
from wire.messages import StageCosts

Floats = NDArray[np.float64]

# The search for prices: points per price in a round, and rounds, each over a finer grid.
_GRID, _ROUNDS = 7, 6
# The square root of the largest part of lambda C in 1 + lambda C.
_MOST_HOLD = 0.97


@dataclass(frozen=True, slots=True)
class Bound:
    """Lower bounds of the makespan, in seconds since the run began.

    `request_s` is the time of the slowest request by itself, `tokens_s` that of all tokens with an
    unlimited KV cache, and `kv_s` that of all tokens in the KV cache of the node.
    """

    request_s: float
    tokens_s: float
    kv_s: float

    @property
    def makespan_s(self) -> float:
        """The largest of the three."""
        return max(self.request_s, self.tokens_s, self.kv_s)

    @property
    def limit(self) -> str:
        """The name of the largest of the three."""
        if self.request_s >= max(self.tokens_s, self.kv_s):
            return "the slowest request"
        return "the KV cache" if self.kv_s > self.tokens_s else "the tokens"


def bound_of(
    node: Node, block_size: int, arrivals: Sequence[Arrival], cached: Sequence[int] | None = None
) -> Bound:
    """The shortest time in which the arrivals can be served on an initially empty node.

    `cached[i]` is the number of tokens at the begin of prompt i, less than all, whose KV may exist
    because another request has the same tokens: they need not be fed, and their blocks are shared.
    """
    work = _Work.of(arrivals, np.zeros(len(arrivals)) if cached is None else np.array(cached))
    pipeline = _Pipeline(node, node.num_blocks * block_size, int(work.lengths.max()))
    prices = [_Prices(pipeline, stage, work) for stage in pipeline.different.values()]
    tokens_s = max(_search(stage, most_hold=0.0) for stage in prices)
    kv_s = max(_search(stage, most_hold=_MOST_HOLD) for stage in prices)
    return Bound(_requests_s(pipeline, work), tokens_s, max(tokens_s, kv_s))


class _Work(NamedTuple):
    """What the requests need, in order of arrival; arrays [requests], in tokens.

    `lengths` is the last length that is fed. `fed` tokens are fed at least; `reads` is the KV that
    decode rows read of the request's own tokens, and `shared_reads` that of cached tokens. `pairs`
    counts, for each token of the prompt, the tokens before it.
    """

    arrived_at: Floats
    prompts: Floats
    outputs: Floats
    cached: Floats
    lengths: Floats
    fed: Floats
    reads: Floats
    shared_reads: Floats
    pairs: Floats

    @classmethod
    def of(cls, arrivals: Sequence[Arrival], cached: Floats) -> "_Work":
        """The work of the arrivals, of which `cached` tokens need not be fed."""
        columns = np.array([(a.at_s, a.num_prompt_tokens, a.output_len) for a in arrivals], float)
        order = columns[:, 0].argsort(kind="stable")
        arrived_at, prompts, outputs = columns[order].T
        cached = cached[order]
        decoded = outputs - 1
        return cls(
            arrived_at,
            prompts,
            outputs,
            cached,
            prompts + decoded,
            prompts - cached + decoded,
            decoded * (prompts - cached) + decoded * (decoded - 1) / 2,
            cached * outputs,
            (prompts * (prompts - 1) - cached * (cached - 1)) / 2,
        )


class _Stage(NamedTuple):
    """The costs of a stage: seconds of steps of 1, 2, ... tokens, and of the other terms."""

    seconds: Floats
    kv_s: float
    row_s: float
    pair_s: float


class _Pipeline:
    """The costs of all stages, for steps of 1, 2, ... tokens.

    Steps of up to `num_sizes` tokens are considered one by one; the axis of the arrays is longer
    if a sequence is. If it `grows`, a longer step takes a multiple of the last one.
    """

    def __init__(self, node: Node, capacity: int, longest: int) -> None:
        last_point = max(costs.num_tokens[-1] for costs in node.costs)
        is_flat = any(len(costs.num_tokens) == 1 for costs in node.costs)
        self.capacity = capacity
        self.num_sizes = capacity if is_flat else min(capacity, last_point)
        self.grows = self.num_sizes < capacity
        self.num_slices, self.num_stages = node.num_slices, len(node.costs)
        self.overhead_s, self.hop_s = node.num_slices * node.overhead_s, node.hop_s
        axis = np.arange(1, max(self.num_sizes, longest, last_point) + 1)
        self.different = {
            costs: _Stage(
                _linear_s(costs, axis) + self.overhead_s,
                costs.kv_s_per_token,
                costs.row_s,
                costs.pair_s,
            )
            for costs in node.costs
        }
        stages = [self.different[costs] for costs in node.costs]
        self.ends = stages[0], stages[-1]
        self.least_s = sum(float(stage.seconds.min()) for stage in stages)
        self.total = _Stage(
            np.sum([stage.seconds for stage in stages], axis=0),
            sum(stage.kv_s for stage in stages),
            sum(stage.row_s for stage in stages),
            sum(stage.pair_s for stage in stages),
        )

    def others_s(self, stage: _Stage) -> float:
        """The least time that a row needs on all other stages, with the hops of a turn."""
        return self.least_s - float(stage.seconds.min()) + self.num_stages * self.hop_s

    def fill_s(self, stage: _Stage) -> float:
        """The least time before the first step of a stage and after its last one, in sum."""
        slices_s = (self.least_s - float(stage.seconds.min())) / self.num_slices
        return slices_s + self.num_stages * self.hop_s


def _linear_s(costs: StageCosts, num_tokens: NDArray[np.int64]) -> Floats:
    """The staircase, as in `CostModel`."""
    last, last_s = costs.num_tokens[-1], costs.seconds[-1]
    seconds: Floats = np.interp(num_tokens, costs.num_tokens, costs.seconds)
    if len(costs.num_tokens) > 1:
        seconds = np.where(num_tokens > last, last_s * num_tokens / last, seconds)
    return seconds


def _requests_s(pipeline: _Pipeline, work: _Work) -> float:
    """The end of the request that would end last if each had the node for itself."""
    total = pipeline.total
    # A step with a row of n new tokens has n tokens or more.
    at_least = np.minimum.accumulate(total.seconds[::-1])[::-1]
    axis = np.arange(1, len(at_least) + 1)
    turn_s = total.row_s + pipeline.num_stages * pipeline.hop_s
    # Of n tokens, a turn may read some and feed the others again.
    turns = np.minimum.accumulate(at_least - total.kv_s * axis) + total.kv_s * axis + turn_s
    until = np.concatenate(([0.0], turns.cumsum()))
    decode_s = until[work.lengths.astype(int)] - until[work.prompts.astype(int)]
    # The first (or last) stage runs all chunks of the prompt, the others at least one of them.
    token_s = max(_cheapest_s(pipeline, stage) for stage in pipeline.ends)
    others_s = at_least - token_s * axis if pipeline.num_slices == 1 else np.zeros(len(axis))
    prompts = np.minimum.accumulate(others_s) + token_s * axis + turn_s
    prompt_s = prompts[(work.prompts - work.cached).astype(int) - 1]
    return float((work.arrived_at + prompt_s + decode_s).max())


def _cheapest_s(pipeline: _Pipeline, stage: _Stage) -> float:
    """Seconds of the cheapest token, in a step of any size."""
    seconds = stage.seconds[: pipeline.num_sizes]
    cheapest = float((seconds / np.arange(1, len(seconds) + 1)).min())
    if pipeline.grows:  # the longest steps have no overhead per token
        return min(cheapest, float(seconds[-1] - pipeline.overhead_s) / len(seconds))
    return cheapest


def _search(prices: "_Prices", most_hold: float) -> float:
    """The largest bound that a search finds; `most_hold` 0 leaves out the KV cache."""
    low, high = np.zeros(3), np.array([1.0, 1.0, most_hold])
    best_s, best = 0.0, low
    for _ in range(_ROUNDS):
        axes = [np.unique(np.linspace(a, b, _GRID)) for a, b in zip(low, high, strict=True)]
        for point in product(*axes):
            seconds = prices.bound_s(*map(float, point))
            if seconds > best_s:
                best_s, best = seconds, np.array(point)
        # The next grid lies between the neighbours of the best point.
        steps = (high - low) / (_GRID - 1)
        low, high = np.maximum(low, best - steps), np.minimum(high, best + steps)
    return best_s


class _Prices:
    """The bound of all tokens on one stage, for given prices."""

    def __init__(self, pipeline: _Pipeline, stage: _Stage, work: _Work) -> None:
        num_sizes = pipeline.num_sizes
        tokens = np.arange(1, num_sizes + 1, dtype=float)
        seconds, total_s = stage.seconds[:num_sizes], pipeline.total.seconds[:num_sizes]
        saved_s = np.zeros(num_sizes)
        if pipeline.grows:
            # m times the last step: m times its seconds without overhead, and one overhead.
            overhead_s = pipeline.overhead_s
            tokens, saved_s = np.append(tokens, num_sizes), np.append(saved_s, overhead_s)
            seconds = np.append(seconds, seconds[-1] - overhead_s)
            total_s = np.append(total_s, total_s[-1] - pipeline.num_stages * overhead_s)
        self._stage, self._tokens, self._seconds, self._saved_s = stage, tokens, seconds, saved_s
        self._total_s, self._total_kv_s = total_s, pipeline.total.kv_s
        self._capacity, self._fill_s = pipeline.capacity, pipeline.fill_s(stage)
        self._others_s, self._num_slices = pipeline.others_s(stage), pipeline.num_slices
        self._least_s = float(stage.seconds.min())
        self._arrived_at = work.arrived_at
        # Sums over a request and all that arrive later.
        columns = (work.fed, work.reads, work.shared_reads, work.pairs, work.outputs)
        self._later = [column[::-1].cumsum()[::-1] for column in columns]
        self._turns = np.maximum.accumulate(work.outputs[::-1])[::-1]

    def bound_s(self, step_share: float, read_share: float, hold_share: float) -> float:
        """The bound in seconds. The shares, from 0 to 1, choose beta, gamma and lambda."""
        stage, capacity = self._stage, self._capacity
        # Squares: the best values are often small.
        hold = hold_share**2 / (1 - hold_share**2) / capacity
        step_s = step_share * self._least_s
        # In a full cache of the longest steps, one more token read costs `most_s` more.
        most_s = hold * (float(self._total_s[-1]) + 2 * self._total_kv_s * capacity)
        read_s = stage.kv_s + read_share**2 * most_s
        token_s = self._token_s(step_s, read_s, hold)
        if token_s < 0:
            return 0.0
        read_s = min(read_s, token_s)
        shared_s = min(stage.kv_s, read_s)
        fed, reads, shared_reads, pairs, rows = self._later
        seconds = (
            token_s * fed
            + read_s * reads
            + shared_s * shared_reads
            + min(stage.pair_s, shared_s) * pairs
            + stage.row_s * rows
            + step_s * self._turns
            + min(step_s / self._num_slices, self._others_s) * (self._turns - 1)
            + self._fill_s
        )
        return float((self._arrived_at + seconds / (1 + hold * capacity)).max())

    def _token_s(self, step_s: float, read_s: float, hold: float) -> float:
        """The highest price of a token beside the other prices: the minimum over all steps."""
        # The cost of a step is quadratic in K: constant + slope K + curve K^2.
        constant = self._seconds + hold * self._tokens * self._total_s
        constant -= np.maximum(0.0, step_s - self._saved_s)
        slope = self._stage.kv_s - read_s + hold * (self._total_s + self._total_kv_s * self._tokens)
        curve = hold * self._total_kv_s
        most = self._capacity - self._tokens
        reads = np.where(slope < 0, most, 0.0)
        if curve > 0:
            reads = np.clip(-slope / (2 * curve), 0.0, most)
        return float(((constant + (slope + curve * reads) * reads) / self._tokens).min())
