"""The cost of a decision: `Scheduler.handle` per micro-batch, at two lengths of the queue.

`python -m benchmarks.virtual.decision_cost`. The scheduler of each policy serves 1,024 live
sequences in micro-batches of 128 rows, with 100 and with 10,000 more waiting. Steps return at once,
so only the scheduler is timed; encoding and sockets are not included.
"""

import argparse
import gc
import statistics
from array import array
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from configs.config import EngineConfig
from engine.policies.registry import POLICIES
from engine.scheduler import Scheduler
from wire.messages import Sampling, StageCosts, StageReady, Step, StepDone, Submit

NUM_STAGES = 8
PROMPT, OUTPUT = 64, 400
BLOCK_SIZE = 16
# The time of a step rises every 128 tokens, and is constant in between, as on a GPU.
COSTS = StageCosts(
    tuple(n + d for n in range(128, 2049, 128) for d in (-127, 0)),
    tuple(0.004 + 0.0006 * (n // 128) for n in range(128, 2049, 128) for _ in (0, 1)),
    1e-7,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each policy and length of the queue."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.decision_cost", description=__doc__
    )
    parser.add_argument("--live", type=int, default=1024, help="sequences that hold KV [1024]")
    parser.add_argument(
        "--steps", type=int, default=2000, help="number of steps that are timed [2000]"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="above 0: the tokens are sampled [0]"
    )
    options = parser.parse_args(argv)
    print("| policy | waiting | rows per step | median, us | p99, us | mean, us |")
    print("|---|--:|--:|--:|--:|--:|")
    for policy in POLICIES:
        for waiting in (100, 10_000):
            rows, seconds = time_decisions(
                policy, options.live, waiting, options.steps, options.temperature
            )
            micro = sorted(1e6 * s for s in seconds)
            print(
                f"| {policy} | {waiting:,} | {rows:.0f} | {statistics.median(micro):.0f} "
                f"| {micro[len(micro) * 99 // 100]:.0f} | {statistics.fmean(micro):.0f} |"
            )
    return 0


class Steady:
    """A scheduler with this many live and waiting sequences, for which steps return at once."""

    def __init__(
        self, policy: str, num_live: int, num_waiting: int, temperature: float = 0.0
    ) -> None:
        config = EngineConfig.of(
            policy=policy,
            pipeline_parallel_size=NUM_STAGES,
            block_size=BLOCK_SIZE,
            max_num_seqs=num_live,
        )
        blocks_each = -(-(PROMPT + OUTPUT) // BLOCK_SIZE)
        self.scheduler = Scheduler(config)
        self._in_flight: deque[Step] = deque()
        self._now = 0.0
        for stage in range(NUM_STAGES):
            self._handle(StageReady(stage, 1, num_live * blocks_each, 2048, COSTS))
        for sequence_id in range(num_live + num_waiting):
            sampling = Sampling(temperature)
            prompt = bytes(4 * PROMPT)
            self._handle(
                Submit(sequence_id, prompt, OUTPUT, sampling, predicted_len=OUTPUT, offline=True)
            )

    def next_event(self) -> tuple[StepDone, int]:
        """Return the event that completes the oldest step, and the number of rows of the step."""
        step = self._in_flight.popleft()
        self._now += 0.01
        token_ids = array("i", [7] * sum(step.samples)).tobytes()
        return StepDone(step.epoch, step.step_id, token_ids), len(step.samples)

    def decide(self, event: StepDone) -> float:
        """Seconds that the scheduler took to answer."""
        began_at = perf_counter()
        answer = self.scheduler.handle(event, self._now)
        seconds = perf_counter() - began_at
        self._in_flight.extend(message for message in answer if isinstance(message, Step))
        return seconds

    def _handle(self, event: StageReady | Submit) -> None:
        answer = self.scheduler.handle(event, self._now)
        self._in_flight.extend(message for message in answer if isinstance(message, Step))


def time_decisions(
    policy: str, num_live: int, num_waiting: int, num_steps: int, temperature: float = 0.0
) -> tuple[float, list[float]]:
    """Mean rows per step, and the seconds of each decision on a returned step."""
    steady = Steady(policy, num_live, num_waiting, temperature)
    gc.collect()
    gc.freeze()
    seconds, num_rows, warm_up = [], 0, num_steps // 2
    for number in range(warm_up + num_steps):
        event, rows = steady.next_event()
        took_s = steady.decide(event)
        if number >= warm_up:
            seconds.append(took_s)
            num_rows += rows
    return num_rows / num_steps, seconds


if __name__ == "__main__":
    raise SystemExit(main())
