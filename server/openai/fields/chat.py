"""The request fields of `/v1/chat/completions`.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
Every field of the reference is supported, accepted and ignored if it has no visible effect, or
refused with an error that names it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from server.http.bodies.body import Body, ListOf, parse
from server.http.bodies.unknown_fields import IGNORED as IGNORED_UNKNOWN
from server.http.bodies.unknown_fields import UnknownFields
from server.http.errors import invalid
from server.openai.fields.conversation import (
    FUNCTIONS_ONLY,
    IGNORED,
    MAX_MESSAGES,
    UNSUPPORTED,
    Messages,
    TemplateFields,
)
from server.openai.fields.sampling import UNSUPPORTED_SAMPLING, SamplingFields


class ToolName(Body):
    """A function by name."""

    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ToolName
    custom: None = Field(None, description=FUNCTIONS_ONLY)


class AllowedToolNames(Body):
    """The tools that may be called, and whether one must."""

    mode: Literal["auto", "required"]
    tools: ListOf[NamedTool] = Field(min_length=1)


class AllowedTools(Body):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolNames


# Discriminated by type, so that errors are those of the chosen variant only.
ChosenTools = Annotated[NamedTool | AllowedTools, Field(discriminator="type")]


class ChatRequest(SamplingFields, TemplateFields):
    """The body of POST /v1/chat/completions."""

    unsupported = UNSUPPORTED_SAMPLING | {
        "best_of": "use 'n'",
        "prompt": "use 'messages'",
        "system": "use a message of the role 'system'",
        "instructions": "use a message of the role 'system'",
    }

    expected: ClassVar[dict[str, str]] = {
        "stop": "a string or an array of strings",
        "tool_choice": (
            "'none', 'auto', 'required', a function "
            '({"type": "function", "function": {"name": ...}}) or allowed tools'
        ),
    }

    messages: Messages = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="including reasoning [what fits the model's context]"
    )
    max_tokens: int | None = Field(
        None, ge=1, description="deprecated name of max_completion_tokens"
    )
    logprobs: bool = Field(False, description="return each token's log-probability")
    top_logprobs: int | None = Field(
        None, ge=-1, description="return so many most likely tokens with each token; -1: all"
    )
    tool_choice: Literal["none", "auto", "required"] | ChosenTools | None = Field(
        None, description="[auto if there are tools]"
    )
    parallel_tool_calls: bool | None = Field(
        None,
        description="allow several calls in one answer [true; false if tool_choice is required]",
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        Field(
            None, description="passed to the chat template; none: no reasoning, if it supports that"
        )
    )

    # vLLM's.
    echo: bool = Field(
        False, description="vLLM's: begin the answer with the message that it continues"
    )
    documents: ListOf[dict[str, Any]] | None = Field(
        None, description="vLLM's: passed to the template"
    )
    add_special_tokens: bool = Field(
        False, description="vLLM's: add the tokenizer's special tokens; templates have their own"
    )
    include_reasoning: bool = Field(True, description="vLLM's: return the reasoning")
    thinking_token_budget: int | None = Field(
        None, ge=0, description="vLLM's: maximum tokens of reasoning; then the model must answer"
    )

    # Accepted without effect.
    metadata: dict[str, Any] | None = Field(None, description=IGNORED)
    store: bool = Field(False, description="accepted and ignored: nothing is stored")
    safety_identifier: str | None = Field(None, description=IGNORED)
    prompt_cache_key: str | None = Field(None, description=IGNORED)
    prompt_cache_retention: str | None = Field(None, description=IGNORED)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=IGNORED)
    prediction: dict[str, Any] | None = Field(None, description=IGNORED)
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=IGNORED)
    modalities: ListOf[Literal["text"]] | None = Field(None, description="only text")

    # Not supported.
    functions: list[Any] | None = Field(None, description="not supported: use tools")
    function_call: Any = Field(None, description="not supported: use tool_choice")
    audio: Any = Field(None, description=UNSUPPORTED)
    web_search_options: Any = Field(None, description=UNSUPPORTED)
    moderation: Any = Field(None, description=UNSUPPORTED)

    @property
    def answer_tokens(self) -> int | None:
        """The answer's token limit, if the client sets one."""
        named = self.max_completion_tokens
        return self.max_tokens if named is None else named

    @property
    def num_logprobs(self) -> int:
        """The number of most likely tokens to return with each token; -1: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else -1


_REFUSED = {
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "audio": "this server supports only text",
    "web_search_options": "this server has no web search",
    "moderation": "this server has no moderation",
}


def parse_chat(body: bytes, unknown: UnknownFields = IGNORED_UNKNOWN) -> ChatRequest:
    """The request in `body`. Raises `ApiError` (400)."""
    request = parse(ChatRequest, body, unknown)
    for field, instead in _REFUSED.items():
        if getattr(request, field):
            message = f"'{field}' is not supported here: {instead}."
            raise invalid(message, field, "unsupported_parameter")
    request.check(request.answer_tokens)
    if request.top_logprobs is not None and not request.logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise invalid(message, "top_logprobs")
    if request.prompt_logprobs is not None and request.stream:
        message = "'prompt_logprobs' cannot be streamed."
        raise invalid(message, "prompt_logprobs", "unsupported_parameter")
    return request
