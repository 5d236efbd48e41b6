"""POST /v1/completions: from the client's body to a plan for the engine, and back to an answer."""

import time

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.answer import Answer
from server.connection import read_body
from server.drain import Drain
from server.engine_client import EngineClient
from server.errors import ApiError, invalid, no_such_model
from server.generation import Generation
from server.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.plan import Plan
from server.protocol import (
    DEFAULT_MAX_TOKENS,
    MAX_SEQUENCES,
    Completion,
    CompletionRequest,
    ErrorBody,
    parse_completion,
)
from server.tokenizer import Tokenizer

SSE_TYPE = "text/event-stream"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number, for the access log


class Completions:
    """The route and what it needs: from body to answer."""

    def __init__(
        self,
        model: str,
        client: EngineClient,
        tokenizer: Tokenizer,
        metrics: Metrics,
        predictor: LengthPredictor,
        drain: Drain,
        max_num_queued: int,
    ) -> None:
        self._predictor = predictor
        self._model = model
        self._client = client
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._drain = drain
        self._max_num_queued = max_num_queued

    def router(self) -> APIRouter:
        """The route as FastAPI takes it."""
        router = APIRouter()
        router.add_api_route(
            "/v1/completions",
            self.create,
            methods=["POST"],
            summary="Complete a text",
            description="OpenAI's text completion with vLLM's extensions.",
            response_model=None,
            responses={
                200: {"model": Completion, "content": {SSE_TYPE: {}}},
                "4XX": {"model": ErrorBody},
                "5XX": {"model": ErrorBody},
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/CompletionRequest"}
                        }
                    },
                }
            },
        )
        return router

    async def create(self, request: Request) -> Response:
        """The answer to one request; it submits to the engine only when it is sent."""
        arrived_at = time.monotonic()
        try:
            self._drain.check()
            body = parse_completion(await read_body(request))
            if body.model != self._model:
                raise no_such_model(body.model)
            prompts = await self._read_prompts(body)
            plan = self._plan(body, prompts)
        except ApiError:
            self._metrics.requests.labels("refused").inc()
            raise
        except ClientDisconnect:
            self._metrics.requests.labels("disconnect").inc()
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        generation = Generation(
            plan,
            self._client,
            self._tokenizer,
            self._metrics,
            self._predictor,
            self._max_num_queued,
            arrived_at,
        )
        echoes = self._echoes(body, prompts) if body.echo else []
        return Answer(body, generation, echoes, self._metrics, self._drain)

    async def _read_prompts(self, body: CompletionRequest) -> list[list[int]]:
        """Each prompt's token ids. Raises `ApiError` (400, or 503 while there is no engine)."""
        if body.max_tokens != 0:
            self._client.check_ready()
        prompts = _as_list(body.prompt)
        if len(prompts) * body.n > MAX_SEQUENCES:
            message = f"Too many completions: prompts x n must not exceed {MAX_SEQUENCES}."
            raise invalid(message, "prompt", "invalid_value")
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        token_ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if not prompts or not all(prompts):
            raise invalid("The prompt must not be empty.", "prompt", "invalid_value")
        self._check_vocabulary(token_ids)
        token_ids += await self._tokenizer.encode_all(texts)
        if not all(token_ids):
            raise invalid("The prompt must hold at least one token.", "prompt", "invalid_value")
        return token_ids

    def _check_vocabulary(self, prompts: list[list[int]]) -> None:
        vocab_size = self._tokenizer.vocab_size
        for prompt in prompts:
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                wrong = next(id_ for id_ in prompt if not 0 <= id_ < vocab_size)
                message = f"Token id {wrong} is outside the vocabulary (0 to {vocab_size - 1})."
                raise invalid(message, "prompt", "invalid_value")

    def _plan(self, body: CompletionRequest, prompts: list[list[int]]) -> Plan:
        return Plan(
            prompts=prompts,
            n=body.n,
            max_tokens=[self._room(len(prompt), body.max_tokens) for prompt in prompts],
            min_tokens=body.min_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=max(body.top_k, 0),
            seed=body.seed,
            stop_strings=body.stop_strings,
            stop_token_ids=() if body.ignore_eos else self._tokenizer.eos_token_ids,
            expected_tokens=body.expected_tokens,
        )

    def _room(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens the answer may have. Raises `ApiError` (400) when they do not fit."""
        ready = self._client.ready
        if ready is None:  # and so not even admitted, unless no token is asked for
            return DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
        wanted = 1 if max_tokens is None else max_tokens
        room = ready.max_model_len - num_prompt_tokens
        if wanted > room:
            message = (
                f"This model's maximum context length is {ready.max_model_len} tokens, however you "
                f"requested {num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in your "
                f"prompt; {wanted} for the completion). Please reduce your prompt; or completion "
                "length."
            )
            param = "prompt" if room < 1 else "max_tokens"
            raise invalid(message, param, "context_length_exceeded")
        return min(DEFAULT_MAX_TOKENS, room) if max_tokens is None else max_tokens

    def _echoes(self, body: CompletionRequest, prompts: list[list[int]]) -> list[str]:
        """For each choice the text of its prompt."""
        texts = [
            given
            if isinstance(given, str)
            else self._tokenizer.decode(ids, skip_special_tokens=False)
            for given, ids in zip(_as_list(body.prompt), prompts, strict=True)
        ]
        return [text for text in texts for _ in range(body.n)]


def _as_list(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt or several, as several."""
    if isinstance(prompt, str):
        return [prompt]
    token_ids = [part for part in prompt if isinstance(part, int)]
    return [token_ids] if token_ids else [part for part in prompt if not isinstance(part, int)]
