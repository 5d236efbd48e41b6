"""/v1/responses: answers conversations as chat does, in the words of the Responses API."""

import re

from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import ApiError
from server.openai.fields.responses import ResponsesRequest, parse_responses
from server.openai.rendering.responses import ResponsesRendering
from server.openai.routes.chat import ConversationPlanner
from server.openai.routes.endpoint import Endpoint
from server.requests.admission import Admission
from server.requests.engine_client import EngineClient
from server.requests.generation import Generations
from server.requests.planning.plan import Plan
from server.requests.planning.planner import Planner
from server.requests.reply import Rendering
from server.text.tokenizer import Tokenizer

# Names of chat's fields in errors, and of the fields here that they come from.
_RENAMED = (
    (re.compile(r"(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"^messages.*"), "input"),
    (re.compile(r"^response_format\b(\.json_schema)?"), "text.format"),
    (re.compile(r"^max(_completion)?_tokens$"), "max_output_tokens"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
)


class Responses(Endpoint[ResponsesRequest]):
    """The endpoint of responses; nothing is stored."""

    path = "/v1/responses"

    def __init__(
        self,
        client: EngineClient,
        admission: Admission,
        planner: Planner,
        generations: Generations,
        conversations: ConversationPlanner,
        tokenizer: Tokenizer,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        super().__init__(client, admission, planner, generations, unknown_fields)
        self._conversations = conversations
        self._tokenizer = tokenizer

    def _parse(self, body: bytes) -> ResponsesRequest:
        return parse_responses(body, self._unknown_fields)

    def _num_sequences(self, fields: ResponsesRequest) -> int:  # noqa: ARG002
        return 1

    def _needs_engine(self, fields: ResponsesRequest) -> bool:  # noqa: ARG002
        return True

    async def _plan(
        self, fields: ResponsesRequest, num_bytes: int, *, offline: bool
    ) -> tuple[Plan, Rendering]:
        try:
            chat = self._planner.with_logprobs(fields.as_chat(), "top_logprobs")
            chat.check(chat.answer_tokens)
            planned = await self._conversations.plan(chat, num_bytes, offline=offline)
        except ApiError as error:
            raise error.renamed(in_own_words) from error
        rendering = ResponsesRendering(fields, planned.plan, self._tokenizer, planned.new_parser)
        return planned.plan, rendering


def in_own_words(field: str) -> str:
    """Return the name of a field of chat in this endpoint."""
    for pattern, name in _RENAMED:
        field = pattern.sub(name, field)
    return field
