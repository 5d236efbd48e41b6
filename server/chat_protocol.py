"""The protocol of `/v1/chat/completions`: what a request may hold, and the shapes of its answers.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
Every field of the reference is supported, accepted and ignored where that changes nothing that a
client could see, or refused in words.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.body import Body, parse
from server.errors import invalid
from server.protocol import Usage
from server.sampling_fields import SamplingFields

MAX_MESSAGES = 16_384
MAX_TOOLS = 256
IGNORED = "accepted and ignored"
UNSUPPORTED = "not supported"


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _only_text(content: object) -> object:
    """Say in words what is wrong with a content before pydantic says it in its own."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise PydanticCustomError("content_type", "expected a string or an array of text parts")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            continue
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "content_part",
                "expected a text part, got '{kind}': this server reads no images, audio or files",
                {"kind": str(kind)},
            )
    return [
        {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
        for part in content
    ]


Content = Annotated[str | list[TextPart], BeforeValidator(_only_text)]


class CalledFunction(Body):
    """A function that the assistant has called."""

    name: str
    arguments: str = Field(description="JSON, as the model has written it")
    parsed_arguments: Any = Field(None, description=IGNORED)


class ToolCall(Body):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description=IGNORED)


class ChatMessage(Body):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, description="of an assistant")
    tool_call_id: str | None = Field(None, description="of a tool: the call that this answers")
    refusal: str | None = Field(None, description="of an assistant")
    reasoning_content: str | None = Field(None, description="vLLM's: of an assistant")
    reasoning: str | None = Field(None, description="vLLM's: the same by another name")
    annotations: list[Any] | None = Field(None, description=IGNORED)
    parsed: Any = Field(None, description=IGNORED)
    audio: None = Field(None, description=UNSUPPORTED)
    function_call: None = Field(None, description="not supported: use tool_calls")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = None
        if self.role != "assistant" and self.content is None:
            missing = "content"
        elif self.role == "tool" and self.tool_call_id is None:
            missing = "tool_call_id"
        elif self.role == "function" and self.name is None:
            missing = "name"
        elif self.role == "assistant" and self.content is self.refusal is None:
            missing = None if self.tool_calls or self._thoughts else "content"
        if missing is not None:
            text = "a message of the role '{role}' needs '{missing}'"
            raise PydanticCustomError("incomplete", text, {"role": self.role, "missing": missing})
        if self.tool_calls is not None and self.role != "assistant":
            text = "only an assistant's message has 'tool_calls'"
            raise PydanticCustomError("tool_calls", text)
        return self

    @property
    def _thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        kept = {"role", "content", "name", "tool_calls", "tool_call_id"}
        message = self.model_dump(include=kept, exclude_none=True)
        if self.content is None and self.refusal is not None:
            message["content"] = self.refusal
        if self.role == "assistant":
            message.setdefault("content", "")
            if self._thoughts:
                message["reasoning_content"] = self._thoughts
        if not message.get("tool_calls", True):
            del message["tool_calls"]
        return message


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema [no parameters]")
    strict: bool | None = Field(None, description="arguments of forced calls always are")


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class ToolName(Body):
    """A function by name."""

    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: ToolName


class AllowedToolNames(Body):
    """The tools that may be called, and whether one must."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedTools(Body):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolNames


class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    expected: ClassVar[dict[str, str]] = {
        "stop": "a string or an array of strings",
        "tool_choice": (
            "'none', 'auto', 'required', a function "
            '({"type": "function", "function": {"name": ...}}) or allowed tools'
        ),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="reasoning included [as many as the model has room for]"
    )
    max_tokens: int | None = Field(None, ge=1, description="the same by its old name")
    logprobs: bool = Field(False, description="tell each token's log-probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="tell so many likeliest tokens with each token"
    )
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = Field(
        None, description="[auto where there are tools]"
    )
    parallel_tool_calls: bool = Field(True, description="whether several calls may come")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        Field(None, description="told to the chat template; none: no reasoning, where it has that")
    )

    # vLLM's.
    add_generation_prompt: bool | None = Field(
        None, description="vLLM's: begin the assistant's message [unless the final one goes on]"
    )
    continue_final_message: bool = Field(False, description="vLLM's: go on with the last message")
    echo: bool = Field(False, description="vLLM's: begin with the message that is continued")
    chat_template: str | None = Field(
        None, description="vLLM's: only with --trust-request-chat-template"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="vLLM's: variables for the template, e.g. enable_thinking"
    )
    documents: list[dict[str, Any]] | None = Field(None, description="vLLM's: for the template")
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
    modalities: list[Literal["text"]] | None = Field(None, description="only text")

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

    @property
    def begins_message(self) -> bool:
        """Whether the prompt ends with the begin of an assistant's message."""
        given = self.add_generation_prompt
        return not self.continue_final_message if given is None else given

    @property
    def continued(self) -> str:
        """The beginning of the answer, where the last message is that."""
        content = self.messages[-1].content or ""
        if not self.continue_final_message:
            return ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


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
    if request.continue_final_message and request.add_generation_prompt:
        message = (
            "'continue_final_message' and 'add_generation_prompt' exclude each other: the answer "
            "either goes on with the last message or begins one."
        )
        raise invalid(message, "continue_final_message")
    if request.prompt_logprobs is not None and request.stream:
        message = "'prompt_logprobs' are not told in a stream."
        raise invalid(message, "prompt_logprobs", "unsupported_parameter")
    return request


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
