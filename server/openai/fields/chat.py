"""The protocol of `/v1/chat/completions`: what a request may hold.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
Every field of the reference is supported, accepted and ignored where that changes nothing that a
client could see, or refused in words.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from server.http.body import Body, ListOf, parse
from server.http.errors import invalid
from server.openai.fields.conversation import (
    FUNCTIONS_ONLY,
    IGNORED,
    MAX_MESSAGES,
    UNSUPPORTED,
    Messages,
    TemplateFields,
)
from server.openai.fields.sampling import SamplingFields


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


# By its type: else what is wrong with one would be called unknown to the other.
ChosenTools = Annotated[NamedTool | AllowedTools, Field(discriminator="type")]


class ChatRequest(SamplingFields, TemplateFields):
    """The body of POST /v1/chat/completions."""

    expected: ClassVar[dict[str, str]] = {
        "stop": "a string or an array of strings",
        "tool_choice": (
            "'none', 'auto', 'required', a function "
            '({"type": "function", "function": {"name": ...}}) or allowed tools'
        ),
    }

    messages: Messages = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="reasoning included [as many as the model has room for]"
    )
    max_tokens: int | None = Field(None, ge=1, description="the same by its old name")
    logprobs: bool = Field(False, description="tell each token's log-probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="tell so many likeliest tokens with each token"
    )
    tool_choice: Literal["none", "auto", "required"] | ChosenTools | None = Field(
        None, description="[auto where there are tools]"
    )
    parallel_tool_calls: bool = Field(True, description="whether several calls may come")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        Field(None, description="told to the chat template; none: no reasoning, where it has that")
    )

    # vLLM's.
    echo: bool = Field(False, description="vLLM's: begin with the message that is continued")
    documents: ListOf[dict[str, Any]] | None = Field(None, description="vLLM's: for the template")
    add_special_tokens: bool = Field(
        False, description="vLLM's: also those that the tokenizer adds; templates have their own"
    )
    include_reasoning: bool = Field(True, description="vLLM's: tell the reasoning")

    # What makes no difference here.
    metadata: dict[str, Any] | None = Field(None, description=IGNORED)
    store: bool = Field(False, description="accepted and ignored: nothing is stored")
    safety_identifier: str | None = Field(None, description=IGNORED)
    prompt_cache_key: str | None = Field(None, description=IGNORED)
    prompt_cache_retention: str | None = Field(None, description=IGNORED)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=IGNORED)
    prediction: dict[str, Any] | None = Field(None, description=IGNORED)
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=IGNORED)
    modalities: ListOf[Literal["text"]] | None = Field(None, description="only text")

    # What we cannot do.
    functions: list[Any] | None = Field(None, description="not supported: use tools")
    function_call: Any = Field(None, description="not supported: use tool_choice")
    audio: Any = Field(None, description=UNSUPPORTED)
    web_search_options: Any = Field(None, description=UNSUPPORTED)
    moderation: Any = Field(None, description=UNSUPPORTED)

    @property
    def answer_tokens(self) -> int | None:
        """How many tokens the answer may have at most, if the client says."""
        named = self.max_completion_tokens
        return self.max_tokens if named is None else named

    @property
    def num_logprobs(self) -> int:
        """So many likeliest tokens are told with each token; -1: nothing is."""
        return (self.top_logprobs or 0) if self.logprobs else -1


_REFUSED = {
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "audio": "this server speaks text",
    "web_search_options": "this server searches nothing",
    "moderation": "this server moderates nothing",
}


def parse_chat(body: bytes) -> ChatRequest:
    """The request in `body`. Raises `ApiError` (400)."""
    request = parse(ChatRequest, body)
    for field, instead in _REFUSED.items():
        if getattr(request, field):
            message = f"'{field}' is not supported here: {instead}."
            raise invalid(message, field, "unsupported_parameter")
    request.check(request.answer_tokens)
    if request.top_logprobs is not None and not request.logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise invalid(message, "top_logprobs")
    if request.prompt_logprobs is not None and request.stream:
        message = "'prompt_logprobs' are not told in a stream."
        raise invalid(message, "prompt_logprobs", "unsupported_parameter")
    return request
