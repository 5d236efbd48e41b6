"""What a decision costs: `Scheduler.handle` per micro-batch, at two lengths of the queue.

`python -m benchmarks.decision_cost`. The scheduler of each policy serves 1,000 live sequences in
micro-batches of about 128 rows, with so many more waiting that the KV cache has no room for. Steps
return at once, so nothing but the scheduler is timed: encoding and sockets come on top.
"""

import argparse
import gc
import statistics
from array import array
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from configs.schema import EngineConfig
from engine.messages import StageCosts, StageReady, Step, StepDone, Submit
from engine.policies import POLICIES
from engine.scheduler import Scheduler

NUM_STAGES = 8
PROMPT, OUTPUT = 64, 400
BLOCK_SIZE = 16
# A stair every 128 tokens, as on a GPU.
COSTS = StageCosts(
    tuple(n + d for n in range(128, 2049, 128) for d in (-127, 0)),
    tuple(0.004 + 0.0006 * (n // 128) for n in range(128, 2049, 128) for _ in (0, 1)),
    1e-7,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each policy and length of the queue."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision_cost", description=__doc__)
    parser.add_argument("--live", type=int, default=1000, help="sequences that hold KV [1000]")
    parser.add_argument("--steps", type=int, default=2000, help="steps timed [2000]")
    options = parser.parse_args(argv)
    print("| policy | waiting | rows per step | median, us | p99, us | mean, us |")
    print("|---|--:|--:|--:|--:|--:|")
    for policy in POLICIES:
        for waiting in (100, 10_000):
            rows, seconds = time_decisions(policy, options.live, waiting, options.steps)
            micro = sorted(1e6 * s for s in seconds)
            print(
                f"| {policy} | {waiting:,} | {rows:.0f} | {statistics.median(micro):.0f} "
                f"| {micro[len(micro) * 99 // 100]:.0f} | {statistics.fmean(micro):.0f} |"
            )
    return 0


def time_decisions(
    policy: str, num_live: int, num_waiting: int, num_steps: int
) -> tuple[float, list[float]]:
    """Mean rows per step, and the seconds that each returning step was decided upon in."""
    config = EngineConfig.model_validate(
        {
            "policy": policy,
            "pipeline_parallel_size": NUM_STAGES,
            "block_size": BLOCK_SIZE,
            "max_num_seqs": -(-num_live // NUM_STAGES),
        }
    )
    blocks_each = -(-(PROMPT + OUTPUT) // BLOCK_SIZE)
    scheduler, in_flight = Scheduler(config), deque[Step]()
    for stage in range(NUM_STAGES):
        scheduler.handle(StageReady(stage, 1, num_live * blocks_each, 2048, COSTS), 0.0)
    for sequence_id in range(num_live + num_waiting):
        submit = Submit(sequence_id, bytes(4 * PROMPT), OUTPUT, predicted_len=OUTPUT, offline=True)
        _launch(scheduler.handle(submit, 0.0), in_flight)
    seconds, num_rows, now = [], 0, 0.0
    gc.collect()
    gc.freeze()
    warm_up = num_steps // 2
    for number in range(warm_up + num_steps):
        step, now = in_flight.popleft(), now + 0.01
        done = StepDone(step.epoch, step.step_id, array("i", [7] * sum(step.samples)).tobytes())
        began_at = perf_counter()
        answer = scheduler.handle(done, now)
        if number >= warm_up:
            seconds.append(perf_counter() - began_at)
            num_rows += len(step.samples)
        _launch(answer, in_flight)
    return num_rows / num_steps, seconds


def _launch(answer: Sequence[object], in_flight: deque[Step]) -> None:
    in_flight.extend(message for message in answer if isinstance(message, Step))


if __name__ == "__main__":
    raise SystemExit(main())
