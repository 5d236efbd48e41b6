"""The tokenizer's routes: /tokenize and /detokenize, in vLLM's shapes.

Reference: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from server.body import Body, parse
from server.chat_template import ChatTemplate, Conversation, check_variables
from server.connection import read_body
from server.conversation_fields import MAX_MESSAGES, MAX_TOOLS, ChatMessage, Tool
from server.document import BODY_FAILURES, failures, takes
from server.engine_client import EngineClient
from server.errors import invalid
from server.planner import Planner
from server.sampling_fields import TokenId
from server.tokenizer import Tokenizer
from server.tool_choice import ToolChoice

_CHARACTERS_PER_TOKEN = 4


class TokenizeRequest(Body):
    """The body of POST /tokenize: a text, or a conversation as the model's template puts it."""

    model: str | None = None
    prompt: str | None = Field(None, description="a text")
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        max_length=MAX_MESSAGES,
        description="a conversation, in the place of a text",
    )
    add_special_tokens: bool | None = Field(
        None,
        description="put the model's special tokens around it [true; for messages false, because "
        "templates write them]",
    )
    return_token_strs: bool = Field(False, description="tell the tokens as the vocabulary has them")
    add_generation_prompt: bool | None = Field(
        None,
        description="messages: with the answer's beginning [true, but for continue_final_message]",
    )
    continue_final_message: bool = Field(False, description="messages: without the last one's end")
    chat_template: str | None = Field(None, description="messages: in the place of the model's")
    chat_template_kwargs: dict[str, Any] = Field({}, description="messages: more for the template")
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, description="messages: the model's tools")


class Tokenized(BaseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int | None = Field(description="longest prompt + output in tokens, once known")
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


class Detokenized(BaseModel):
    """The answer of POST /detokenize."""

    prompt: str


class Tokenization:
    """The two routes."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        planner: Planner,
        template: ChatTemplate,
        max_body_bytes: int,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._planner = planner
        self._template = template
        self._max_body_bytes = max_body_bytes

    def router(self) -> APIRouter:
        """The routes as FastAPI takes them."""
        router = APIRouter()
        for path, route, request, response, summary in (
            ("/tokenize", self.tokenize, TokenizeRequest, Tokenized, "A text's tokens"),
            ("/detokenize", self.detokenize, DetokenizeRequest, Detokenized, "Tokens' text"),
        ):
            router.add_api_route(
                path,
                route,
                methods=["POST"],
                summary=summary,
                response_model=None,
                responses={200: {"model": response}, **failures(*BODY_FAILURES, 404, 429)},
                openapi_extra=takes(request),
            )
        return router

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or a conversation."""
        body = await read_body(request, self._max_body_bytes)
        asked = parse(TokenizeRequest, body)
        self._check_model(asked.model)
        token_ids = await self._encode(asked, len(body))
        names: list[str] | None = None
        if asked.return_token_strs:
            names = await self._tokenizer.run(
                len(token_ids), lambda: self._tokenizer.names(token_ids)
            )
        ready = self._client.ready
        return _json(
            {
                "count": len(token_ids),
                "max_model_len": ready.max_model_len if ready else None,
                "tokens": token_ids,
                "token_strs": names,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens, special ones included."""
        body = await read_body(request, self._max_body_bytes)
        asked = parse(DetokenizeRequest, body)
        self._check_model(asked.model)
        self._planner.check_ids("tokens", asked.tokens)
        num_characters = len(asked.tokens) * _CHARACTERS_PER_TOKEN
        text = await self._tokenizer.run(
            num_characters, lambda: self._tokenizer.decode(asked.tokens, skip_special_tokens=False)
        )
        return _json({"prompt": text})

    def _check_model(self, model: str | None) -> None:
        if model is not None:
            self._planner.check_model(model)

    async def _encode(self, asked: TokenizeRequest, num_bytes: int) -> list[int]:
        text = asked.prompt
        if (text is None) == (asked.messages is None):
            raise invalid("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
        if text is None:
            return await self._template.render(
                _conversation(asked, num_bytes), add_special_tokens=bool(asked.add_special_tokens)
            )
        (token_ids,) = await self._tokenizer.encode_all(
            [text], add_special_tokens=asked.add_special_tokens is not False
        )
        return token_ids


def _conversation(asked: TokenizeRequest, num_bytes: int) -> Conversation:
    """Raises `ApiError` (400)."""
    begins = asked.add_generation_prompt
    if asked.continue_final_message and begins:
        message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
        raise invalid(message, "continue_final_message", "invalid_value")
    check_variables(asked.chat_template_kwargs)
    return Conversation(
        messages=[message.for_template() for message in asked.messages or ()],
        tools=ToolChoice(shown=tuple(asked.tools)).for_template(),
        add_generation_prompt=not asked.continue_final_message if begins is None else begins,
        continue_final_message=asked.continue_final_message,
        template=asked.chat_template,
        variables=asked.chat_template_kwargs,
        num_bytes=num_bytes,
    )


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
