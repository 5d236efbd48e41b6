"""The reply: a prepared request, and the rendering of its output."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from server.http.errors import ApiError
from server.requests.deadline import NO_DEADLINE, Deadline
from server.requests.generation import Generation, Piece


class Rendering(Protocol):
    """Renders the generations of one endpoint, as the events of a stream or as a whole answer."""

    reply_id: str

    def opening(self) -> bytes:
        """Return the events that need no output of the engine."""

    def chunk(self, piece: Piece) -> bytes:
        """Return the events of one piece."""

    def skip(self, piece: Piece) -> None:
        """Take a piece whose events the client has already, instead of its `chunk`."""

    def closing(self, usage: dict[str, Any]) -> bytes:
        """Return the events that end a stream after the last piece, given the token counts."""

    def failure(self, error: ApiError) -> bytes:
        """Return the events that end a stream that has failed."""

    def take(self, piece: Piece) -> None:
        """Collect a piece of a whole answer."""

    def whole(self, usage: dict[str, Any]) -> bytes:
        """Return the JSON of the collected answer."""


@dataclass(frozen=True)
class Reply:
    """A request that has passed every check; entering its `generation` submits it.

    The code that runs the generation keeps the deadline.
    """

    generation: Generation
    rendering: Rendering
    stream: bool = False
    deadline: Deadline = NO_DEADLINE

    async def whole(self) -> bytes:
        """Generate to the end, and return the JSON of the answer.

        Raises `ApiError`: 500 if the engine gives up on the request, 408 at its deadline.
        """
        self.generation.wait_for_ends()
        async with self.deadline.kept(), self.generation as generation:
            num_logprobs = 0
            async for piece in generation:
                await generation.render(piece.num_logprobs, partial(self.rendering.take, piece))
                num_logprobs += piece.num_logprobs
            finish = partial(self.rendering.whole, generation.usage())
            return await generation.render(num_logprobs, finish)
