"""The protocol: the bodies of `/v1/completions` and `/v1/models`, and errors that name the field.

Reference: https://platform.openai.com/docs/api-reference/completions. Fields of vLLM beyond it are
marked. A field that we cannot honour is refused unless it has its neutral value.
"""

from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ApiError, invalid

MAX_CHOICES = 128
MAX_SEQUENCES = 4096  # prompts x n of one request
MAX_STOP_STRINGS = 64
DEFAULT_MAX_TOKENS = 16


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    """What a stream tells beside its text."""

    include_usage: bool = Field(False, description="end with a chunk that holds the usage")


class CompletionRequest(_Body):
    """The body of POST /v1/completions."""

    model: str
    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="text, texts, token ids, or lists of token ids"
    )
    max_tokens: int | None = Field(
        None, ge=0, description=f"[{DEFAULT_MAX_TOKENS}, cut to what the model has room for]"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31, description="vLLM's; -1 or 0 is all tokens")
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] = Field([], description="text that ends a choice, itself left out")
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = Field(False, description="vLLM's: generate max_tokens whatever comes")
    min_tokens: int = Field(0, ge=0, description="vLLM's: do not stop before")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=2, description="vLLM's; 1 is none")
    min_p: float = Field(0.0, ge=0, le=1, description="vLLM's")
    logit_bias: dict[str, float] = Field({}, description="added to the logits of token ids")
    stop_token_ids: list[int] = Field([], description="vLLM's: tokens that end a choice")
    allowed_token_ids: list[int] = Field([], description="vLLM's: no other token is picked")
    bad_words: list[str] = Field([], description="vLLM's: never generated")
    expected_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="ours: how long an answer you expect, for the scheduler"
    )
    user: str | None = Field(None, description="accepted and ignored")

    best_of: int | None = Field(None, description="only 1 or n")
    logprobs: int | None = Field(None, description="not supported")
    suffix: str | None = Field(None, description="not supported")

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class Usage(BaseModel):
    """Tokens of the prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(BaseModel):
    """One choice; prompt `i`'s choice `j` has the index `i * n + j`."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """The answer of POST /v1/completions, and the shape of each chunk of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tdpipe"
    max_model_len: int | None = Field(description="longest prompt + output in tokens, once known")
    tokenizer_fingerprint: str = Field(description="the same for the same vocabulary")


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """What went wrong, in words and in codes."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def parse_completion(body: bytes) -> CompletionRequest:
    """The request in `body`; null stands for the default. Raises `ApiError` (400)."""
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(values, dict):
        raise invalid("The JSON body of your request must be an object.")
    try:
        given = {field: value for field, value in values.items() if value is not None}
        request = CompletionRequest.model_validate(given)
    except ValidationError as error:
        raise _explain(error) from error
    _check_neutral(request)
    _check_combinations(request)
    return request


def _explain(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    unknown = [str(p["loc"][-1]) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        message = f"Unrecognized request argument{plural} supplied: {', '.join(unknown)}"
        return invalid(message, unknown[0], "unknown_parameter")
    problem = problems[0]
    field = str(problem["loc"][0])
    if problem["type"] == "missing":
        message = f"Missing required parameter: '{_path(problem['loc'])}'."
        return invalid(message, field, "missing_required_parameter")
    if field == "prompt":
        message = (
            "Invalid type for 'prompt': expected a string, an array of strings, an array of token "
            "ids or an array of such arrays."
        )
        return invalid(message, field, "invalid_type")
    text = problem["msg"][0].lower() + problem["msg"][1:]
    code = "invalid_type" if problem["type"].endswith("_type") else "invalid_value"
    return invalid(f"Invalid value for '{_path(problem['loc'])}': {text}.", field, code)


def _path(location: tuple[int | str, ...]) -> str:
    """The field's own path; pydantic adds the union's member that was tried."""
    if location[0] in ("stop", "prompt"):
        return str(location[0])
    return ".".join(str(part) for part in location)


_NEUTRAL: dict[str, Any] = {
    "logprobs": None,
    "suffix": "",
}


def _check_neutral(request: CompletionRequest) -> None:
    for field, neutral in _NEUTRAL.items():
        if getattr(request, field) not in (None, neutral):
            raise invalid(f"'{field}' is not supported here.", field, "unsupported_parameter")
    if request.best_of not in (None, 1, request.n):
        message = "'best_of' is not supported here unless it is 1 or equal to 'n'."
        raise invalid(message, "best_of", "unsupported_parameter")


def _check_combinations(request: CompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
        )
    if "" in request.stop_strings:
        raise invalid("'stop' must not hold an empty string.", "stop", "invalid_value")
    if len(request.stop_strings) > MAX_STOP_STRINGS:
        raise invalid(f"'stop' holds more than {MAX_STOP_STRINGS} strings.", "stop")
    max_tokens = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if request.min_tokens > max_tokens:
        raise invalid("'min_tokens' is greater than 'max_tokens'.", "min_tokens", "invalid_value")
