"""An endpoint: turns a request's body into a reply that is ready to be generated.

The same code prepares requests over HTTP, lines of a batch, and prompts of the offline `LLM` class.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar, Generic, TypeVar

from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.openai.fields.sampling import SamplingFields
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planning.plan import Plan
from server.requests.planning.planner import Planner
from server.requests.reply import Rendering, Reply

Fields = TypeVar("Fields", bound=SamplingFields)


class Endpoint(ABC, Generic[Fields]):
    """One path of the API; subclasses parse its bodies and plan its requests."""

    path: ClassVar[str]

    def __init__(
        self,
        client: EngineClient,
        admission: Admission,
        planner: Planner,
        generations: Generations,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        self._client = client
        self._admission = admission
        self._planner = planner
        self._generations = generations
        self._unknown_fields = unknown_fields

    async def prepare(
        self, body: bytes, *, offline: bool = False, resumable: bool = False
    ) -> Reply:
        """Prepare the reply to one request; `offline` work is not counted in a queue.

        The events of a `resumable` stream have the tokens that they cover.

        No other task runs between the return of this function and an immediate submission, so an
        admitted request still fits into the queue.

        Raises `ApiError`: 4xx for an invalid request, 429 if the queue is full, 503 before the
        first pipeline was ready, 408 at the deadline of the request.
        """
        fields = self._parse(body)
        self._planner.check_model(fields.model)
        if resumable:
            fields.make_resumable()
        deadline = self._generations.deadline(fields.timeout, offline=offline)
        async with deadline.kept():
            num_sequences = self._num_sequences(fields)
            if self._needs_engine(fields):
                self._client.check_known()
                if not offline:
                    self._admission.check(num_sequences, low_priority=fields.low_priority)
            plan, rendering = await self._plan(fields, len(body), offline=offline)
            prompt = None if offline else self._generations.digest.hash_prompt(body)
            generation = self._generations.of(plan, prompt)
            for piece in generation.resume():
                await generation.render(piece.num_logprobs, partial(rendering.skip, piece))
            if plan.needs_engine and not offline:
                self._admission.check(
                    num_sequences, plan.num_prompt_tokens, low_priority=fields.low_priority
                )
        return Reply(generation, rendering, fields.stream, deadline)

    @abstractmethod
    def _parse(self, body: bytes) -> Fields:
        """Parse the fields of a body. Raises `ApiError` (400)."""

    @abstractmethod
    def _num_sequences(self, fields: Fields) -> int:
        """Return the number of requested sequences. Raises `ApiError` (400)."""

    @abstractmethod
    def _needs_engine(self, fields: Fields) -> bool:
        """Return whether the request asks for any token."""

    @abstractmethod
    async def _plan(
        self, fields: Fields, num_bytes: int, *, offline: bool
    ) -> tuple[Plan, Rendering]:
        """Return the plan and the rendering of its output; `num_bytes` is the size of the body.

        Raises `ApiError`.
        """
