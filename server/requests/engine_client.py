"""The engine client: the server's connection to the engine, and the engine's last messages.

The client passes each burst of tokens to their sequences. After a restart of the engine, it
resubmits every open sequence with the output so far, so that HTTP clients notice only a pause. If
no engine connects in time, every open sequence ends with an error, so that no request waits for
ever.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Iterable

from server.http.errors import unavailable
from server.requests.logprobs import unpack
from server.requests.open_sequence import OpenSequence, QueueTotals
from server.requests.output_coalescing import Inbox, OutputCoalescer
from wire.histogram import TOKEN_S, Histogram
from wire.messages import (
    Abort,
    EngineReady,
    Expect,
    Finished,
    FromServer,
    Generated,
    Hello,
    Milestone,
    PrefixHit,
    ReportedSteps,
    Scored,
    Stats,
    ToServer,
    WatchSteps,
)
from wire.sockets import Spoke

TICK_S = 0.25
SILENCE_S = 1.5
HELLO_TICKS = 2

logger = logging.getLogger("tdpipe")


class EngineClient:
    """Communicates with the engine; all methods must be called from one asyncio loop.

    `ready` is the last `EngineReady` (None if there was none), `stats` the last `Stats`. If many
    streams are open, the tokens of a stream are coalesced for up to `max_stream_interval` seconds.
    The client waits `patience_s` seconds for a lost engine. `secret` is the cluster secret. The
    `listeners` are called with each `Stats` and `EngineReady` that has become the last one, and
    `on_steps` with each answer to `ask_steps`.
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
        self.inter_token_latency = Histogram(TOKEN_S)
        self.listeners: list[Callable[[Stats | EngineReady], None]] = []
        self.on_steps: Callable[[ReportedSteps], None] = lambda _: None
        self._became_ready = asyncio.Event()
        self._spoke: Spoke[ToServer] = Spoke(endpoint, "server", ToServer, secret)
        self._arrival = asyncio.Event()
        self._open: dict[int, OpenSequence] = {}
        self._coalescer = OutputCoalescer(max_stream_interval)
        # Ids start at the time, so that a new server never receives the tokens of a dead one.
        self._next_id = time.time_ns() // 1000
        self._ticks = 0
        self._silent_ticks = 0
        self._patience_s = patience_s
        self._lost = False
        # The number of our last Hello, and whether the engine has acknowledged it. The engine
        # forgets everything that it received earlier, and we ignore messages that it sent earlier.
        self._hello = 0
        self._is_introduced = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to an engine process."""
        return self.stats is not None and not self._lost

    @property
    def is_ready(self) -> bool:
        """Whether the engine would schedule a sequence that is submitted now at once."""
        stats = self.stats
        return self.is_connected and stats is not None and stats.ready and self._is_introduced

    @property
    def num_queued(self) -> int:
        """The number of sequences without a first token, excluding offline work."""
        return self.queue.num_sequences + self.low_priority_queue.num_sequences

    @property
    def num_queued_tokens(self) -> int:
        """The number of prompt tokens of the queued sequences."""
        return self.queue.num_tokens + self.low_priority_queue.num_tokens

    def check_known(self) -> None:
        """Raise `ApiError` (503) before the first pipeline was ready, but not if it was lost."""
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
        """Return a new inbox for one request."""
        return Inbox(self._coalescer)

    def next_ids(self, count: int) -> int:
        """Return the first of `count` consecutive ids that no sequence has had before."""
        self._next_id += count
        return self._next_id - count

    def submit(self, sequence: OpenSequence) -> None:
        """Send the sequence to the engine; its `finish` is called in any case, also on failure."""
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
        """Drop the sequence immediately, here and in the engine."""
        if self._forget(sequence):
            self._send_if_known(Abort(sequence.sequence_id))

    def ask_steps(self, message: WatchSteps) -> None:
        """Ask the engine for steps that the stages have reported."""
        self._send_if_known(message)

    def fail_all(self, reason: str) -> None:
        """End every open sequence with an error, and abort it in case the engine still has it."""
        for sequence in list(self._open.values()):
            self._send_if_known(Abort(sequence.sequence_id))
            self._close(sequence, reason)
        self._coalescer.end_burst()

    async def run(self) -> None:
        """Receive messages until cancelled."""
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
        """Send if the engine has acknowledged our Hello; it receives everything else after that."""
        return self._send(message) if self._is_introduced else True

    def _send(self, message: FromServer) -> bool:
        sent = self._spoke.send(message)
        # A send may consume the socket's readiness signal, so check for arrivals.
        self._arrival.set()
        return sent

    def _dispatch(self, burst: Iterable[ToServer]) -> None:
        now = time.monotonic()
        for message in burst:
            if not self._is_introduced and not isinstance(message, Stats | EngineReady):
                continue  # about sequences that the engine is about to forget
            if isinstance(message, Generated):
                self._on_generated(message, now)
            elif isinstance(message, Finished):
                self._on_finished(message)
            elif isinstance(message, Stats):
                self._on_stats(message, now)
            elif isinstance(message, PrefixHit):
                self._on_prefix_hit(message)
            elif isinstance(message, Scored):
                self._on_scored(message)
            elif isinstance(message, ReportedSteps):
                self.on_steps(message)
            elif isinstance(message, Milestone):
                self._on_milestone(message)
            else:
                self._on_ready(message)
        self._coalescer.end_burst()

    def _on_generated(self, message: Generated, now: float) -> None:
        sequence_ids = array("q", message.sequence_ids)
        token_ids = array("i", message.token_ids)
        latencies_s: list[float] = []
        for sequence_id, token_id in zip(sequence_ids, token_ids, strict=True):
            sequence = self._open.get(sequence_id)
            if sequence is None:
                continue
            if sequence.first_token_at is None:
                sequence.put_first_token(token_id, now)
            else:
                latencies_s.append(now - sequence.last_token_at)
                sequence.put_token(token_id)
            sequence.last_token_at = now
        self.inter_token_latency.observe_all(latencies_s)
        if message.logprobs is not None:
            for index, logprobs in unpack(message.logprobs, token_ids):
                sequence = self._open.get(sequence_ids[index])
                if sequence is not None:
                    sequence.logprobs.append(logprobs)
        self.num_generated += len(sequence_ids)

    def _on_prefix_hit(self, message: PrefixHit) -> None:
        sequence = self._open.get(message.sequence_id)
        if sequence is not None and not sequence.output_ids:  # else: a new engine resumed it
            sequence.num_cached_tokens = message.num_tokens

    def _on_scored(self, message: Scored) -> None:
        sequence = self._open.get(message.sequence_id)
        if sequence is not None:
            sequence.put_scores(unpack(message.logprobs, sequence.prompt_token_ids))

    def _on_milestone(self, message: Milestone) -> None:
        sequence = self._open.get(message.sequence_id)
        if sequence is not None and sequence.marks is not None:
            sequence.marks.append((message.kind, message.at))

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
        self._note_ready()
        self._tell(message)

    def _on_ready(self, message: EngineReady) -> None:
        if not self._hello or message.hello != self._hello:
            return  # a response to an earlier Hello
        self.ready = message
        if not self._is_introduced:
            self._is_introduced = True
            for sequence in list(self._open.values()):
                self._send_submit(sequence)
        self._note_ready()
        self._tell(message)

    def _tell(self, message: Stats | EngineReady) -> None:
        for listener in self.listeners:
            listener(message)

    def _meet(self) -> None:
        """Introduce the server to a new engine process."""
        self.num_engines_lost += 1
        if self._open:
            logger.warning("a new engine process: resubmitting %d sequences", len(self._open))
        for sequence in self._open.values():
            if sequence.marks is not None:
                sequence.marks.append(("engine_lost", self.stats_at))
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
        """Detect silence in ticks, so that time in which this loop was blocked does not count."""
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
        """Return whether there is an engine that may not have received our Hello."""
        may_receive = self.stats is None or self._lost or self.stats.ready
        return not self._is_introduced and (may_receive or not self._hello)

    def _lose(self) -> None:
        logger.warning("the engine has stopped answering; open requests wait for it")
        self._lost = True
        self._note_ready()

    def _close(self, sequence: OpenSequence, reason: str) -> None:
        if self._forget(sequence):
            sequence.finish(Finished(sequence.sequence_id, "error", reason))

    def _forget(self, sequence: OpenSequence) -> bool:
        """Forget a sequence, and return whether it was open."""
        if self._open.pop(sequence.sequence_id, None) is None:
            return False
        sequence.leave_queue()
        return True
