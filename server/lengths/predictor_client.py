"""The predictor client: the server's connection to the encoder that predicts lengths.

Requests do not wait for the encoder. A prediction may arrive late or never: if too many questions
are open, further ones are not sent, and open questions expire.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from wire.predictor_messages import Answer, Ask
from wire.sockets import Spoke

# The maximum number of open prompts, and how long a question stays open.
MAX_OPEN_PROMPTS = 8192
QUESTION_TIMEOUT_S = 30.0
SWEEP_S = 1.0


@dataclass(slots=True)
class _Open:
    """A question that has not been answered yet."""

    num_prompts: int
    asked_at: float
    take: Callable[[Answer, float], None]


class PredictorClient:
    """Asks the encoder; all methods must be called from one asyncio loop."""

    def __init__(self, endpoint: str) -> None:
        self.num_open_prompts = 0
        # Nothing is queued: for a predictor that is gone, each request would take 8 KiB for ever.
        self._spoke: Spoke[Answer] = Spoke(endpoint, "server", Answer, queues_ahead=False)
        self._open: dict[int, _Open] = {}
        self._next_id = time.time_ns()
        self._arrival = asyncio.Event()

    def ask(self, prompts: tuple[str, ...], take: Callable[[Answer, float], None]) -> int | None:
        """Ask about prompts; `take` is called with the answer and the seconds that it took.

        Returns the question's id for `forget`, or None if too many prompts are open or no predictor
        is connected.
        """
        if self.num_open_prompts + len(prompts) > MAX_OPEN_PROMPTS:
            return None
        self._next_id += 1
        is_sent = self._spoke.send(Ask(self._next_id, prompts))
        self._arrival.set()  # the send may have consumed the socket's readiness signal
        if not is_sent:
            return None
        self.num_open_prompts += len(prompts)
        self._open[self._next_id] = _Open(len(prompts), time.monotonic(), take)
        return self._next_id

    def forget(self, request_id: int) -> None:
        """Drop a question. Unknown ids are ignored."""
        question = self._open.pop(request_id, None)
        if question is not None:
            self.num_open_prompts -= question.num_prompts

    async def run(self) -> None:
        """Receive predictions until cancelled."""
        loop = asyncio.get_running_loop()
        sweeper = asyncio.create_task(self._sweep())
        loop.add_reader(self._spoke.socket.fileno(), self._arrival.set)
        try:
            while True:
                for answer in self._spoke.drain():
                    self._take(answer)
                await self._arrival.wait()
                self._arrival.clear()
        finally:
            sweeper.cancel()
            loop.remove_reader(self._spoke.socket.fileno())
            self._spoke.close()

    def _take(self, answer: Answer) -> None:
        question = self._open.get(answer.request_id)
        if question is not None and len(answer.predicted_lens) == question.num_prompts:
            self.forget(answer.request_id)
            question.take(answer, time.monotonic() - question.asked_at)

    async def _sweep(self) -> None:
        """Drop questions that a dead predictor has not answered."""
        while True:
            await asyncio.sleep(SWEEP_S)
            too_late = time.monotonic() - QUESTION_TIMEOUT_S
            for request_id in [i for i, q in self._open.items() if q.asked_at < too_late]:
                self.forget(request_id)
