"""The response models of `/v1/chat/completions`, as documented.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.openai.fields.completion import Usage

FinishReason = Literal["stop", "length", "tool_calls"]
NEVER = "content_filter and function_call do not occur"


class CompletionTokensDetails(BaseModel):
    """Details of the answers' tokens."""

    reasoning_tokens: int = Field(description="including tags")


class ChatUsage(Usage):
    """Token counts, with reasoning tokens counted separately."""

    completion_tokens_details: CompletionTokensDetails | None = Field(
        None, description="if the model marks its reasoning"
    )


class FunctionCall(BaseModel):
    """The function of a call."""

    name: str
    arguments: str = Field(description="as the model wrote them: JSON, unless truncated")


class FunctionToolCall(BaseModel):
    """A tool call by the model."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(BaseModel):
    """New parts of a call's function."""

    name: str | None = Field(None, description="in the call's first part")
    arguments: str


class FunctionToolCallDelta(BaseModel):
    """New parts of a call; the first part has all fields."""

    index: int
    id: str | None = Field(None, description="in the call's first part")
    type: Literal["function"] | None = Field(None, description="in the call's first part")
    function: FunctionCallDelta


class AssistantMessage(BaseModel):
    """The answer's message."""

    role: Literal["assistant"]
    content: str | None = Field(description="null if there are only calls or reasoning")
    refusal: None = Field(None, description="always null")
    annotations: list[Any] = Field([], description="always empty")
    reasoning_content: str | None = Field(None, description="vLLM's: if the model marks it")
    reasoning: str | None = Field(None, description="vLLM's: reasoning_content by another name")
    tool_calls: list[FunctionToolCall] | None = Field(None, description="if there are any")


class Delta(BaseModel):
    """New parts of an answer."""

    role: Literal["assistant"] | None = Field(None, description="in a choice's first chunk")
    content: str | None = None
    reasoning_content: str | None = Field(None, description="vLLM's: if the model marks it")
    reasoning: str | None = Field(None, description="vLLM's: reasoning_content by another name")
    tool_calls: list[FunctionToolCallDelta] | None = None


class TokenLogprob(BaseModel):
    """A candidate token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    """The sampled token, and the most likely ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of all tokens of a choice."""

    content: list[ChosenLogprob]
    refusal: None = Field(None, description="always null")


class _ChatChoiceHead(BaseModel):
    index: int
    logprobs: ChatLogprobs | None = Field(None, description="if requested")
    stop_reason: str | int | None = Field(
        None, description="vLLM's: the stop string, or the id of stop_token_ids, that ended it"
    )
    token_ids: list[int] | None = Field(None, description="vLLM's: if requested")


class ChatChoice(_ChatChoiceHead):
    """One answer."""

    message: AssistantMessage
    finish_reason: FinishReason = Field(description=NEVER)


class ChatChunkChoice(_ChatChoiceHead):
    """New parts of one answer."""

    delta: Delta
    finish_reason: FinishReason | None = Field(description=f"in its last chunk; {NEVER}")


class _ChatHead(BaseModel):
    id: str
    created: int = Field(description="Unix seconds")
    model: str = Field(description="the model's first name")
    service_tier: Literal["default", "flex"] | None = Field(
        None,
        description="the tier used, if one was requested; never auto, scale, priority or fast",
    )
    system_fingerprint: str = Field(description="equal for equal software and model")
    prompt_token_ids: list[int] | None = Field(None, description="vLLM's: if requested")


class ChatCompletion(_ChatHead):
    """The answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: ChatUsage
    prompt_logprobs: list[dict[str, Any] | None] | None = Field(
        None, description="vLLM's: if requested"
    )


class ChatCompletionChunk(_ChatHead):
    """An event of a stream of /v1/chat/completions."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="empty in the chunk with the usage")
    usage: ChatUsage | None = Field(
        None, description="in the last chunk, if include_usage is set; null before"
    )
