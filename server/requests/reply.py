"""The reply: one request, ready to be generated, and how its endpoint shows it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from server.requests.deadline import NO_DEADLINE, Deadline
from server.requests.generation import Generation, Piece, num_logprobs


class Rendering(Protocol):
    """How one endpoint shows a generation: as the events of a stream, or collected as a whole."""

    reply_id: str

    def opening(self) -> bytes:
        """The events that need nothing of the engine."""

    def chunk(self, piece: Piece) -> bytes:
        """The events of one piece."""

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The event that follows the last choice where the usage was asked for."""

    def take(self, piece: Piece) -> None:
        """Collect a piece of a whole answer."""

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The collected answer's JSON."""


@dataclass(frozen=True)
class Reply:
    """A request that has passed every check; nothing is submitted before it is generated.

    Whoever generates it keeps the deadline.
    """

    generation: Generation
    rendering: Rendering
    stream: bool = False
    include_usage: bool = False
    deadline: Deadline = NO_DEADLINE

    async def whole(self) -> bytes:
        """Generate to the end; the JSON of the answer.

        Raises `ApiError`: 503 without an engine, 429 when the queue is full, 500 when it is lost,
        408 when its time is over.
        """
        self.generation.wait_for_ends()
        async with self.deadline.kept(), self.generation as generation:
            total = 0
            while generation.num_unfinished:
                pieces = await generation.next_pieces()
                told = num_logprobs(pieces)
                await generation.render(told, partial(self._take, pieces))
                total += told
            return await generation.render(total, partial(self.rendering.whole, generation.usage()))

    def _take(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self.rendering.take(piece)


class Endpoint(Protocol):
    """What turns bodies into replies."""

    path: str

    async def prepare(self, body: bytes, *, offline: bool = False) -> Reply:
        """The reply to one request; `offline` work gives way to all other.

        Raises `ApiError`: 4xx for what the client got wrong, 429 where the queue is full already,
        503 before there was an engine, 408 when its time is over.
        """
