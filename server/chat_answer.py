"""The shapes of the answers of `/v1/chat/completions`, as the document has them.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.protocol import Usage


class ToldFunction(BaseModel):
    """The function of a call."""

    name: str
    arguments: str


class ToldCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: ToldFunction


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    annotations: list[Any] = []
    reasoning_content: str | None = Field(None, description="vLLM's: where the model marks it")
    reasoning: str | None = Field(None, description="vLLM's: the same")
    tool_calls: list[ToldCall] | None = None


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
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None = Field(
        None, description="vLLM's: the stop string or the named stop token that ended it"
    )
    token_ids: list[int] | None = Field(None, description="vLLM's")


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default", "flex"] | None = Field(None, description="where asked for")
    system_fingerprint: str | None
    prompt_logprobs: list[dict[str, Any] | None] | None = Field(None, description="vLLM's")
    prompt_token_ids: list[int] | None = Field(None, description="vLLM's")
