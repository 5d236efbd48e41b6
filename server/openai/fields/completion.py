"""The request and response models of `/v1/completions` and `/v1/models`.

Reference: https://platform.openai.com/docs/api-reference/completions; vLLM's fields beyond it are
marked. A field that is not supported is refused unless it has its neutral value.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from server.grammar.grammars import ResponseFormat
from server.http.bodies.body import ListOf, parse
from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import invalid
from server.openai.fields.sampling import (
    LOW_PRIORITY,
    UNSUPPORTED_SAMPLING,
    SamplingFields,
    ServiceTier,
)

DEFAULT_MAX_TOKENS = 16
MAX_SEQUENCES = 4096  # prompts x n of one request


def check_num_sequences(number: int) -> None:
    """Raise `ApiError` (400) when one request asks for too many sequences."""
    if number > MAX_SEQUENCES:
        message = f"Too many completions: prompts x n must not exceed {MAX_SEQUENCES}."
        raise invalid(message, "prompt", "invalid_value")


def _not_too_many(prompt: object) -> object:
    """Count prompts before they are validated."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int | float):
        check_num_sequences(len(prompt))
    return prompt


Prompt = Annotated[
    str | ListOf[str] | ListOf[int] | ListOf[ListOf[int]], BeforeValidator(_not_too_many)
]


_FOR_CHAT = "conversations and tools are for /v1/chat/completions"


class CompletionRequest(SamplingFields):
    """The body of POST /v1/completions."""

    unsupported = UNSUPPORTED_SAMPLING | {
        "max_completion_tokens": "use 'max_tokens'",
        "messages": _FOR_CHAT,
        "tools": _FOR_CHAT,
        "functions": _FOR_CHAT,
    }

    expected: ClassVar[dict[str, str]] = {
        "prompt": "a string, an array of strings, an array of token ids or an array of such arrays",
        "stop": "a string or an array of strings",
    }

    prompt: Prompt = Field(description="text, texts, token ids, or lists of token ids")
    max_tokens: int | None = Field(
        None, ge=0, description=f"[{DEFAULT_MAX_TOKENS}, or less if the model's context ends]"
    )
    logprobs: int | None = Field(
        None,
        ge=-1,
        description="return each token's log-probability, and so many most likely tokens; -1: all",
    )
    echo: bool = Field(False, description="return the prompt too, scored if logprobs is set")
    add_special_tokens: bool = Field(
        True, description="vLLM's: add the tokenizer's special tokens to text prompts"
    )
    best_of: int | None = Field(None, description="only 1 or n")
    response_format: ResponseFormat | None = Field(None, description="vLLM's: the answer's form")
    service_tier: ServiceTier = Field("auto", description=f"tdpipe's: {LOW_PRIORITY}")
    suffix: str | None = Field(None, description="not supported")

    @property
    def has_text_prompts(self) -> bool:
        """Whether prompts were given as text, not as tokens."""
        first = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return isinstance(first, str)

    @property
    def only_scores(self) -> bool:
        """Whether the prompt's tokens are scored and no token is generated."""
        return self.max_tokens == 0 and self.scores_prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are scored."""
        return self.prompt_logprobs is not None or (self.echo and self.logprobs is not None)

    @property
    def num_prompt_logprobs(self) -> int:
        """The number of most likely tokens to return with each prompt token; -1: no logprobs.

        With `echo`, `logprobs` applies to the prompt too.
        """
        if not self.scores_prompt:
            return -1
        return max(self.prompt_logprobs or 0, (self.echo and self.logprobs) or 0)


class PromptTokensDetails(BaseModel):
    """How the prompts' tokens were computed."""

    cached_tokens: int = Field(description="found in the prefix cache")


class Usage(BaseModel):
    """Token counts: of all prompts, each counted once, and of all choices."""

    prompt_tokens: int = Field(description="of all prompts, each counted once")
    completion_tokens: int = Field(description="of all choices")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a choice's tokens, as parallel lists; null for a prompt's first."""

    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for a prompt's first token")
    top_logprobs: list[dict[str, float] | None] = Field(
        description="the most likely ones and the chosen one, by their texts"
    )
    text_offset: list[int] = Field(description="in characters of the choice's text")


class _CompletionChoiceHead(BaseModel):
    index: int = Field(description="prompt i's choice j has the index i x n + j")
    text: str
    logprobs: CompletionLogprobs | None = Field(None, description="if requested")
    stop_reason: str | int | None = Field(
        None, description="vLLM's: the stop string, or the id of stop_token_ids, that ended it"
    )
    prompt_logprobs: list[dict[str, Any] | None] | None = Field(
        None, description="vLLM's: if requested"
    )
    prompt_token_ids: list[int] | None = Field(None, description="vLLM's: if requested")
    token_ids: list[int] | None = Field(None, description="vLLM's: if requested")


class CompletionChoice(_CompletionChoiceHead):
    """One choice."""

    finish_reason: Literal["stop", "length"] = Field(description="content_filter does not occur")


class CompletionChunkChoice(_CompletionChoiceHead):
    """New parts of one choice."""

    finish_reason: Literal["stop", "length"] | None = Field(
        description="in its last chunk; content_filter does not occur"
    )


class _CompletionHead(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int = Field(description="Unix seconds")
    model: str = Field(description="the model's first name")
    system_fingerprint: str = Field(description="equal for equal software and model")


class Completion(_CompletionHead):
    """The answer of POST /v1/completions."""

    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(_CompletionHead):
    """An event of a stream of /v1/completions."""

    choices: list[CompletionChunkChoice] = Field(description="empty in the chunk with the usage")
    usage: Usage | None = Field(
        None, description="in the last chunk, if include_usage is set; null before"
    )


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when the server started, in Unix seconds")
    owned_by: str = Field("tdpipe", description="always tdpipe")
    root: str = Field(description="vLLM's: the model's first name, of which `id` may be an alias")
    parent: None = Field(None, description="vLLM's: always null: there are no adapters")
    max_model_len: int | None = Field(
        description="vLLM's: longest prompt + output in tokens, once known"
    )
    tokenizer_fingerprint: str = Field(description="tdpipe's: equal for equal vocabularies")


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


def parse_completion(body: bytes, unknown: UnknownFields = IGNORED) -> CompletionRequest:
    """The request in `body`. Raises `ApiError` (400)."""
    request = parse(CompletionRequest, body, unknown)
    if request.suffix:
        raise invalid("'suffix' is not supported here.", "suffix", "unsupported_parameter")
    if request.best_of not in (None, 1, request.n):
        message = "'best_of' is not supported here unless it is 1 or equal to 'n'."
        raise invalid(message, "best_of", "unsupported_parameter")
    request.check(DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens)
    return request
