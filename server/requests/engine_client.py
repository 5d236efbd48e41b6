"""The engine client: the server's connection to the engine, and the engine's last messages.

It distributes each burst of tokens to the sequences they belong to. When the engine is restarted,
it resubmits every open sequence with the output so far: clients notice only a pause. When no engine
comes back in time, every open sequence ends with an error, so that no request waits for ever.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from server.http.errors import unavailable
from server.requests.logprobs import unpack
from server.requests.open_sequence import OpenSequence, QueueTotals
from server.requests.output_coalescing import Inbox, OutputCoalescer
from wire.messages import (
    Abort,
    EngineReady,
    Expect,
    Finished,
    FromServer,
    Generated,
    Hello,
    Scored,
    Stats,
    ToServer,
)
from wire.sockets import Spoke

TICK_S = 0.25
SILENCE_S = 1.5
HELLO_TICKS = 2

logger = logging.getLogger("tdpipe")


@dataclass(frozen=True)
class StageWork:
    """A stage's busy seconds when the pipeline was last ready, the base of its bubble ratio."""

    since: float
    busy_s: dict[int, float]


class EngineClient:
    """Talks to the engine from one asyncio loop; all methods belong to that loop.

    `ready` is the last EngineReady (None: never), `stats` the last Stats. Where many streams are
    open, a stream's tokens are coalesced for up to `max_stream_interval` seconds. A lost engine is
    waited for for `patience_s` seconds. The `secret` is the cluster's.
    """

    def __init__(
        self,
        endpoint: str,
        max_stream_interval: float = 0.0,
        patience_s: float = 600.0,
        secret: str | None = None,
    ) -> None:
        self.ready: EngineReady | None = None
        self.stats: Stats | None = None
        self.stats_at = 0.0
        self.ticked_at = time.monotonic()
        self.queue = QueueTotals()
        self.low_priority_queue = QueueTotals()
        self.num_generated = 0
        self.num_engines_lost = 0
        self.work_at_ready: StageWork | None = None
        self._became_ready = asyncio.Event()
        self._spoke: Spoke[ToServer] = Spoke(endpoint, "server", ToServer, secret)
        self._arrival = asyncio.Event()
        self._open: dict[int, OpenSequence] = {}
        self._coalescer = OutputCoalescer(max_stream_interval)
        # A server that takes over from a dead one must not be handed the dead one's tokens.
        self._next_id = time.time_ns() // 1000
        self._ticks = 0
        self._silent_ticks = 0
        self._patience_s = patience_s
        self._lost = False
        # The number of our last Hello, and whether the engine has acknowledged it. The engine
        # forgets what it received before; messages that it sent before are ignored.
        self._hello = 0
        self._is_introduced = False

    @property
    def is_connected(self) -> bool:
        """Whether the engine's process is there."""
        return self.stats is not None and not self._lost

    @property
    def is_ready(self) -> bool:
        """Whether a sequence submitted now would be scheduled at once."""
        stats = self.stats
        return self.is_connected and stats is not None and stats.ready and self._is_introduced

    @property
    def num_queued(self) -> int:
        """Sequences without a first token, offline work excluded."""
        return self.queue.num_sequences + self.low_priority_queue.num_sequences

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of their prompts."""
        return self.queue.num_tokens + self.low_priority_queue.num_tokens

    def check_known(self) -> None:
        """Raise `ApiError` (503) before the first pipeline was ready; a lost one is waited for."""
        if self.ready is None:
            raise unavailable(
                "The model is not ready yet. Please retry shortly.", "model_not_ready"
            )

    def check_ready(self) -> None:
        """Raise `ApiError` (503) unless `is_ready`."""
        self.check_known()
        if not self.is_ready:
            raise unavailable("The model is being restarted. Requests wait.", "model_not_ready")

    async def wait_ready(self) -> None:
        """Wait until `is_ready`, which may become false again."""
        while not self.is_ready:
            await self._became_ready.wait()

    def inbox(self) -> Inbox[OpenSequence]:
        """An inbox for one request."""
        return Inbox(self._coalescer)

    def next_ids(self, count: int) -> int:
        """The first of `count` consecutive ids that no sequence had before."""
        self._next_id += count
        return self._next_id - count

    def submit(self, sequence: OpenSequence) -> None:
        """Send the sequence to the engine; its `finish` is called in any case."""
        self._open[sequence.sequence_id] = sequence
        sequence.enter_queue()
        self._send_submit(sequence)

    def expect(self, message: Expect) -> None:
        """Send the engine a better length prediction for a sequence that is still open."""
        sequence = self._open.get(message.sequence_id)
        if sequence is not None:
            sequence.expect(message.predicted_len, message.spread)
            self._send_if_known(message)

    def abort(self, sequence: OpenSequence) -> None:
        """Drop the sequence here and in the engine, at once."""
        if self._forget(sequence):
            self._send_if_known(Abort(sequence.sequence_id))

    def fail_all(self, reason: str) -> None:
        """End every open sequence with an error, and abort it in case the engine still has it."""
        for sequence in list(self._open.values()):
            self._send_if_known(Abort(sequence.sequence_id))
            self._close(sequence, reason)
        self._coalescer.end_burst()

    async def run(self) -> None:
        """Receive until cancelled."""
        ticker = asyncio.create_task(self._tick())
        loop = asyncio.get_running_loop()
        loop.add_reader(self._spoke.socket.fileno(), self._arrival.set)
        try:
            while True:
                self._dispatch(self._spoke.drain())
                await asyncio.sleep(0)
                await self._arrival.wait()
                self._arrival.clear()
        finally:
            ticker.cancel()
            self.fail_all("The server is shutting down.")
            loop.remove_reader(self._spoke.socket.fileno())
            self._spoke.close()

    def _send_submit(self, sequence: OpenSequence) -> None:
        if not self._send_if_known(sequence.resubmission()):
            self._close(sequence, "The engine does not accept messages.")

    def _send_if_known(self, message: FromServer) -> bool:
        """Send to an engine that knows us; another one receives everything once it does."""
        return self._send(message) if self._is_introduced else True

    def _send(self, message: FromServer) -> bool:
        sent = self._spoke.send(message)
        # A send may consume the socket's readiness signal: check for arrivals.
        self._arrival.set()
        return sent

    def _dispatch(self, burst: Iterable[ToServer]) -> None:
        now = time.monotonic()
        for message in burst:
            if not self._is_introduced and not isinstance(message, Stats | EngineReady):
                continue  # about sequences that it is about to forget
            if isinstance(message, Generated):
                self._on_generated(message, now)
            elif isinstance(message, Finished):
                self._on_finished(message)
            elif isinstance(message, Stats):
                self._on_stats(message, now)
            elif isinstance(message, Scored):
                self._on_scored(message)
            else:
                self._on_ready(message)
        self._coalescer.end_burst()

    def _on_generated(self, message: Generated, now: float) -> None:
        sequence_ids = array("q", message.sequence_ids)
        token_ids = array("i", message.token_ids)
        for sequence_id, token_id in zip(sequence_ids, token_ids, strict=True):
            sequence = self._open.get(sequence_id)
            if sequence is None:
                continue
            sequence.last_token_at = now
            if sequence.first_token_at is None:
                sequence.put_first_token(token_id, now)
            else:
                sequence.put_token(token_id)
        if message.logprobs is not None:
            for index, logprobs in unpack(message.logprobs, token_ids):
                sequence = self._open.get(sequence_ids[index])
                if sequence is not None:
                    sequence.logprobs.append(logprobs)
        self.num_generated += len(sequence_ids)

    def _on_scored(self, message: Scored) -> None:
        sequence = self._open.get(message.sequence_id)
        if sequence is not None:
            sequence.put_scores(unpack(message.logprobs, sequence.prompt_token_ids))

    def _on_finished(self, message: Finished) -> None:
        sequence = self._open.get(message.sequence_id)
        if sequence is not None:
            self._forget(sequence)
            sequence.finish(message)

    def _on_stats(self, message: Stats, now: float) -> None:
        before = self.stats
        self._silent_ticks = 0
        if before is not None and message.engine != before.engine:
            self._meet()
        self._lost = False
        self.stats, self.stats_at = message, now
        if self.is_ready and self.work_at_ready is None:
            busy_s = {stage.stage: stage.busy_s for stage in message.stages}
            self.work_at_ready = StageWork(now, busy_s)
        self._note_ready()

    def _on_ready(self, message: EngineReady) -> None:
        if not self._hello or message.hello != self._hello:
            return  # an answer to an earlier Hello
        self.ready = message
        self.work_at_ready = None
        if not self._is_introduced:
            self._is_introduced = True
            for sequence in list(self._open.values()):
                self._send_submit(sequence)
        self._note_ready()

    def _meet(self) -> None:
        """Introduce the server to a new engine process."""
        self.num_engines_lost += 1
        if self._open:
            logger.warning("a new engine process: resubmitting %d sequences", len(self._open))
        self._is_introduced = False
        self._greet()

    def _greet(self) -> None:
        self._hello += 1
        self._send(Hello(self._hello))

    def _note_ready(self) -> None:
        if self.is_ready:
            self._became_ready.set()
        else:
            self._became_ready.clear()

    async def _tick(self) -> None:
        """Detect silence, counted in ticks: time in which this loop was blocked does not count."""
        while True:
            self.ticked_at = time.monotonic()
            self._ticks += 1
            self._silent_ticks += 1
            silent_s = self._silent_ticks * TICK_S
            if self.is_connected and silent_s > SILENCE_S:
                self._lose()
            if self._open and silent_s > self._patience_s:
                self.fail_all("The engine has stopped answering.")
            if self._ticks % HELLO_TICKS == 1 and self._has_to_introduce_itself():
                self._greet()
            await asyncio.sleep(TICK_S)

    def _has_to_introduce_itself(self) -> bool:
        """Whether there is an engine that does not know us, or may not have received our Hello."""
        may_receive = self.stats is None or self._lost or self.stats.ready
        return not self._is_introduced and (may_receive or not self._hello)

    def _lose(self) -> None:
        logger.warning("the engine has stopped answering; open requests wait for it")
        self._lost = True
        self.work_at_ready = None
        self._note_ready()

    def _close(self, sequence: OpenSequence, reason: str) -> None:
        if self._forget(sequence):
            sequence.finish(Finished(sequence.sequence_id, "error", reason))

    def _forget(self, sequence: OpenSequence) -> bool:
        """Whether the sequence was open until now."""
        if self._open.pop(sequence.sequence_id, None) is None:
            return False
        sequence.leave_queue()
        return True
