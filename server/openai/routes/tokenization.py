"""The routes of the tokenizer: /tokenize, /detokenize and /tokenizer_info, in vLLM's format.

Reference: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api
"""

from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from server.chat.chat_template import ChatTemplate
from server.chat.tool_choice import ToolChoice
from server.http.bodies.body import Body, ListOf, parse
from server.http.bodies.body_reader import BodyMemory
from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import invalid
from server.http.openapi import BODY_FAILURES, TOKENS, failures, takes
from server.openai.fields.conversation import MAX_MESSAGES, Messages, TemplateFields
from server.openai.fields.sampling import TokenId
from server.requests.engine_client import EngineClient
from server.requests.planning.planner import Planner
from server.text.tokenizer import Tokenizer

_CHARACTERS_PER_TOKEN = 4


class TokenizeRequest(TemplateFields):
    """The body of POST /tokenize: a text, or a conversation as the model's template puts it."""

    model: str | None = None
    prompt: str | None = Field(None, description="a text")
    messages: Messages | None = Field(
        None,
        min_length=1,
        max_length=MAX_MESSAGES,
        description="a conversation, instead of a text",
    )
    add_special_tokens: bool | None = Field(
        None,
        description="put the model's special tokens around it [true; for messages false, because "
        "templates write them]",
    )
    return_token_strs: bool = Field(
        False, description="return the tokens as the vocabulary spells them"
    )


class Tokenized(BaseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int | None = Field(description="longest prompt + output in tokens, once known")
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: str | None = None
    tokens: ListOf[TokenId]


class Detokenized(BaseModel):
    """The answer of POST /detokenize."""

    prompt: str


class Tokenization:
    """The routes; /tokenizer_info only where a setting asks for it."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        planner: Planner,
        template: ChatTemplate,
        body_memory: BodyMemory,
        unknown_fields: UnknownFields = IGNORED,
        *,
        shows_info: bool = False,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._planner = planner
        self._template = template
        self._body_memory = body_memory
        self._unknown_fields = unknown_fields
        self._shows_info = shows_info

    def router(self) -> APIRouter:
        """Return the routes as a FastAPI router."""
        router = APIRouter(tags=[TOKENS])
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
        if self._shows_info:
            router.add_api_route(
                "/tokenizer_info", self.info, summary="The tokenizer's configuration"
            )
        return router

    async def info(self) -> dict[str, Any]:
        """The tokenizer's configuration, with `tokenizer_class` and `chat_template`."""
        return self._tokenizer.info()

    async def tokenize(self, request: Request) -> Response:
        """The tokens of a text or a conversation."""
        async with self._body_memory.body(request) as body:
            asked = parse(TokenizeRequest, body, self._unknown_fields)
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
        decode = partial(self._tokenizer.decode, skip_special_tokens=False)
        async with self._body_memory.body(request) as body:
            asked = parse(DetokenizeRequest, body, self._unknown_fields)
            self._check_model(asked.model)
            self._planner.token_ids.check_decodable("tokens", asked.tokens)
            num_characters = len(asked.tokens) * _CHARACTERS_PER_TOKEN
            text = await self._tokenizer.run(num_characters, partial(decode, asked.tokens))
        return _json({"prompt": text})

    def _check_model(self, model: str | None) -> None:
        if model is not None:
            self._planner.check_model(model)

    async def _encode(self, asked: TokenizeRequest, num_bytes: int) -> list[int]:
        text = asked.prompt
        if (text is None) == (asked.messages is None):
            raise invalid("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
        if text is None:
            tools = ToolChoice(shown=tuple(asked.tools)).for_template()
            return await self._template.render(
                asked.conversation(asked.messages or [], tools, num_bytes),
                add_special_tokens=bool(asked.add_special_tokens),
            )
        (token_ids,) = await self._tokenizer.encode_all(
            [text], add_special_tokens=asked.add_special_tokens is not False
        )
        return token_ids


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
