"""The driver acts as the engine for real stages, to measure them as they run in service.

It starts the stages through torchrun, as the supervisor does, sends plans to them, and reads the
begin and end of every step on every stage from their heartbeats.
"""

import shutil
import subprocess
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from configs import loader
from configs.config import Config
from daemon.processes import child_process
from daemon.processes.process_exits import signal_name
from wire.messages import FromStage, Heartbeat, StageReady, StepDone
from wire.sockets import Hub
from workers.profiling.dummy_run import DummyRun, make_step
from workers.profiling.stage_fingerprint import StageFingerprint

STOP_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.1
# Tokens of a step that only fills the cache.
FILL_TOKENS = 512


class DriverError(Exception):
    """The stages cannot be measured; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A finished dummy run, with its begin and end on each stage (host's monotonic clock)."""

    dummy_run: DummyRun
    began_at: tuple[float, ...]
    ended_at: tuple[float, ...]

    def seconds(self, stage: int) -> float:
        """The seconds that the dummy run took on the stage."""
        return self.ended_at[stage] - self.began_at[stage]


class Driver:
    """Runs real stages during a `with` block, and ends all their processes after it.

    Entering the block waits for all stages, and raises `DriverError` with the reason if a stage
    cannot start.
    """

    def __init__(self, config: Config) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tdpipe-profile-"))
        # The stages must not be restarted while they are measured.
        self._config = config.replaced(
            runtime_dir=self._folder, stage_endpoint=None, max_restarts=0, exact_times=True
        )
        self.num_stages = config.pipeline.pipeline_parallel_size
        self.ready: list[StageReady] = []
        self.fingerprints: list[StageFingerprint] = []
        self._hub: Hub[FromStage] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._spans: list[dict[int, tuple[float, float]]] = [{} for _ in range(self.num_stages)]
        self._done: set[int] = set()
        self._next_id = 0

    @property
    def pid(self) -> int | None:
        """The process id of torchrun, the parent of the stages."""
        return self._process.pid if self._process else None

    @property
    def cache_tokens(self) -> int:
        """The number of tokens that fit in the KV cache of every stage."""
        return min(stage.num_blocks for stage in self.ready) * self._config.cache.block_size

    @property
    def max_model_len(self) -> int:
        """The length in tokens of the longest sequence that model, settings and cache allow."""
        limit = self._config.model.max_model_len or self.ready[0].max_model_len
        return min(limit, self.ready[0].max_model_len, self.cache_tokens)

    def __enter__(self) -> Self:
        try:
            loader.save(self._config, self._folder)
            self._hub = Hub(self._config.runtime.stage_address, FromStage)
            self._process = child_process.start(
                "workers", str(self._folder), "0", num_threads=self._config.pipeline.num_threads
            )
            self._wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stages by SIGTERM, then by SIGKILL."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._hub is not None:
            self._hub.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, dummy_runs: Iterable[DummyRun], in_flight: int) -> Iterator[Timed]:
        """Run the dummy runs in order, `in_flight` at a time, and yield their times in order.

        Raises `DriverError` if a stage fails, or if no step completes for too long.
        """
        waiting = iter(dummy_runs)
        sent: deque[tuple[int, DummyRun]] = deque()
        self._done.clear()
        first_id, moved_at = self._next_id, time.monotonic()
        is_over = False
        while not is_over or sent:
            while not is_over and self._next_id - first_id - len(self._done) < in_flight:
                dummy_run = next(waiting, None)
                if dummy_run is None:
                    is_over = True
                else:
                    sent.append((self._send(dummy_run), dummy_run))
            if self._hear():
                moved_at = time.monotonic()
            while sent and all(sent[0][0] in spans for spans in self._spans):
                step_id, dummy_run = sent.popleft()
                began_at, ended_at = zip(*(s.pop(step_id) for s in self._spans), strict=True)
                yield Timed(dummy_run, began_at, ended_at)
                moved_at = time.monotonic()
            self._check(moved_at + self._config.pipeline.distributed_timeout_seconds, "the steps")

    def fill(self, num_tokens: int) -> None:
        """Write `num_tokens` tokens of the KV cache.

        Reading memory that was never written takes no time, which would distort the measurement.
        """
        size = self._config.cache.block_size
        rows = max(1, min(self._config.scheduler.max_num_batched_tokens, FILL_TOKENS) // size)
        blocks = range(0, -(-min(num_tokens, self.cache_tokens) // size), rows)
        dummy_runs = (DummyRun("prefill", (0,) * rows, (size,) * rows, block) for block in blocks)
        for _ in self.run(dummy_runs, self.num_stages):
            pass

    def _wait_ready(self) -> None:
        ends_at = time.monotonic() + self._config.pipeline.stage_start_timeout
        while len(self.ready) < self.num_stages:
            self._hear()
            self._check(ends_at, "the start of the stages")
        self.ready.sort(key=lambda ready: ready.stage)
        self.fingerprints = [StageFingerprint.load(self._folder, s) for s in range(self.num_stages)]

    def _send(self, dummy_run: DummyRun) -> int:
        assert self._hub is not None
        step_id, self._next_id = self._next_id, self._next_id + 1
        num_blocks = min(stage.num_blocks for stage in self.ready)
        epoch = self.ready[0].epoch
        plan = make_step(
            dummy_run, self._config.cache.block_size, num_blocks, epoch=epoch, step_id=step_id
        )
        for stage in range(self.num_stages):
            if not self._hub.send(f"stage-{stage}", plan):
                raise DriverError(f"stage {stage} is gone")
        return step_id

    def _hear(self) -> bool:
        """Receive the messages of the stages; returns whether one was `StepDone`."""
        assert self._hub is not None
        self._hub.socket.poll(int(POLL_INTERVAL_S * 1000))
        was_step = False
        for _, message in self._hub.drain():
            if isinstance(message, StageReady):
                self.ready.append(message)
            elif isinstance(message, StepDone):
                self._done.add(message.step_id)
                was_step = True
            elif isinstance(message, Heartbeat):
                self._take_spans(message)
        return was_step

    def _take_spans(self, beat: Heartbeat) -> None:
        ids, began, ended = array("q"), array("d"), array("d")
        for numbers, packed in (
            (ids, beat.step_ids),
            (began, beat.began_at),
            (ended, beat.ended_at),
        ):
            numbers.frombytes(packed)
        for step_id, began_at, ended_at in zip(ids, began, ended, strict=True):
            self._spans[beat.stage][step_id] = (began_at, ended_at)

    def _check(self, ends_at: float, what: str) -> None:
        assert self._process is not None
        failure = child_process.reported_failure(self._folder)
        if failure is None and self._process.poll() is not None:
            failure = child_process.reported_failure(self._folder) or _how(self._process.returncode)
        if failure is None and time.monotonic() > ends_at:
            failure = f"{what} took too long"
        if failure is not None:
            raise DriverError(failure)


def _how(code: int) -> str:
    name = f"were killed by {signal_name(-code)}" if code < 0 else f"ended with code {code}"
    return f"the stages {name}"
