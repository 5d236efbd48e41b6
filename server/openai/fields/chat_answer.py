"""The shapes of the answers of `/v1/chat/completions`, as the document has them.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.openai.fields.completion import Usage

FinishReason = Literal["stop", "length", "tool_calls"]
NEVER = "content_filter and function_call never come"


class CompletionTokensDetails(BaseModel):
    """Of the answers' tokens."""

    reasoning_tokens: int = Field(description="tags included")


class ChatUsage(Usage):
    """Tokens, and how many of them are reasoning."""

    completion_tokens_details: CompletionTokensDetails | None = Field(
        None, description="where the model marks its reasoning"
    )


class FunctionCall(BaseModel):
    """The function of a call."""

    name: str
    arguments: str = Field(description="as the model has written them: JSON, unless cut off")


class FunctionToolCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(BaseModel):
    """What is new of a call's function."""

    name: str | None = Field(None, description="with the call's first part")
    arguments: str


class FunctionToolCallDelta(BaseModel):
    """What is new of a call; the first part has all fields."""

    index: int
    id: str | None = Field(None, description="with the call's first part")
    type: Literal["function"] | None = Field(None, description="with the call's first part")
    function: FunctionCallDelta


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None = Field(description="null where there is nothing but calls or reasoning")
    refusal: None = Field(None, description="always null")
    annotations: list[Any] = Field([], description="always empty")
    reasoning_content: str | None = Field(None, description="vLLM's: where the model marks it")
    reasoning: str | None = Field(None, description="vLLM's: reasoning_content by another name")
    tool_calls: list[FunctionToolCall] | None = Field(None, description="where there are any")


class Delta(BaseModel):
    """What is new of an answer."""

    role: Literal["assistant"] | None = Field(None, description="of a choice's first chunk")
    content: str | None = None
    reasoning_content: str | None = Field(None, description="vLLM's: where the model marks it")
    reasoning: str | None = Field(None, description="vLLM's: reasoning_content by another name")
    tool_calls: list[FunctionToolCallDelta] | None = None


class TokenLogprob(BaseModel):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """The token that came, and the likeliest."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of all tokens of a choice."""

    content: list[ChosenLogprob]
    refusal: None = Field(None, description="always null")


class _ChatChoiceHead(BaseModel):
    index: int
    logprobs: ChatLogprobs | None = Field(None, description="where asked for")
    stop_reason: str | int | None = Field(
        None, description="vLLM's: the stop string or the named stop token that ended it"
    )
    token_ids: list[int] | None = Field(None, description="vLLM's: where asked for")


class ChatChoice(_ChatChoiceHead):
    """One answer."""

    message: AssistantMessage
    finish_reason: FinishReason = Field(description=NEVER)


class ChatChunkChoice(_ChatChoiceHead):
    """What is new of one answer."""

    delta: Delta
    finish_reason: FinishReason | None = Field(description=f"of its last chunk; {NEVER}")


class _ChatHead(BaseModel):
    id: str
    created: int = Field(description="Unix seconds")
    model: str = Field(description="the first of its names")
    service_tier: Literal["default", "flex"] | None = Field(
        None,
        description="the one it had, where one was asked for; never auto, scale, priority or fast",
    )
    system_fingerprint: str = Field(description="the same for the same software and model")
    prompt_token_ids: list[int] | None = Field(None, description="vLLM's: where asked for")


class ChatCompletion(_ChatHead):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: ChatUsage
    prompt_logprobs: list[dict[str, Any] | None] | None = Field(
        None, description="vLLM's: where asked for"
    )


class ChatCompletionChunk(_ChatHead):
    """An event of a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="none beside the usage")
    usage: ChatUsage | None = Field(
        None, description="of the last chunk, where include_usage asks for it; null before"
    )
