"""Scripted stages: answer every step at once or after a while, without a model.

A token depends only on its position, so the reader of a stream can check it.
`python -m benchmarks.scripted_stages RUNTIME_DIR STEP_MS`.
"""

import os
import sys
import time
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zmq

from configs import loader
from daemon.processes import child_process
from wire.messages import Heartbeat, StageReady, Step, StepDone, ToStage
from wire.sockets import Spoke

NUM_BLOCKS = 1 << 16
MAX_MODEL_LEN = 4096
BEAT_S = 0.25
# A prime, so that no two sequences have equal tokens at the same time by chance.
PERIOD = 61
FIRST_ID = 300


def token_at(position: int) -> int:
    """Return the token at a position of every sequence."""
    return FIRST_ID + position % PERIOD


def tokens_of(step: Step) -> bytes:
    """Return one token for each row that samples, packed as int32."""
    starts = np.frombuffer(step.start_positions, np.int32)
    counts = np.frombuffer(step.num_tokens, np.int32)
    samples = np.frombuffer(step.samples, np.uint8) > 0
    positions = (starts + counts)[samples]
    tokens: bytes = (FIRST_ID + positions % PERIOD).astype(np.int32).tobytes()
    return tokens


def main(folder: Path, step_s: float) -> None:
    """Run until killed."""
    child_process.tie_to_parent()
    config = loader.load_saved(folder)
    num_stages = config.pipeline.pipeline_parallel_size
    stages = [
        Spoke[ToStage](
            config.runtime.stage_address, f"stage-{stage}", ToStage, config.runtime.secret
        )
        for stage in range(num_stages)
    ]
    for stage, spoke in enumerate(stages):
        spoke.send(StageReady(stage, 1, NUM_BLOCKS, MAX_MODEL_LEN))
    poller = zmq.Poller()
    for spoke in stages:
        poller.register(spoke.socket, zmq.POLLIN)
    num_steps, beaten_at = 0, 0.0
    while True:
        now = time.monotonic()
        if now - beaten_at >= BEAT_S:
            beaten_at = now
            _beat(stages, num_steps)
        poller.poll(int(BEAT_S * 1000))
        for spoke in stages[:-1]:
            for _ in spoke.drain():
                pass
        # Only what has arrived by now: more will follow, and heartbeats must be sent.
        num_steps += _answer(stages[-1], list(stages[-1].drain()), step_s)


def _answer(last: Spoke[ToStage], messages: Iterable[ToStage], step_s: float) -> int:
    num_steps = 0
    for step in messages:
        if not isinstance(step, Step):
            continue
        if step_s:
            time.sleep(step_s)
        last.send(StepDone(step.epoch, step.step_id, tokens_of(step)))
        num_steps += 1
    return num_steps


def _beat(stages: list[Spoke[ToStage]], num_steps: int) -> None:
    nothing = array("q").tobytes()
    for stage, spoke in enumerate(stages):
        beat = Heartbeat(
            stage, 1, os.getpid(), num_steps, num_steps, 0.0, time.monotonic(), nothing
        )
        spoke.send(beat)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) / 1000)
