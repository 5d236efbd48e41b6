"""The fields of a conversation: its messages and tools, and options of the chat template.

Reference: https://platform.openai.com/docs/api-reference/chat; vLLM's fields beyond it are marked.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from server.http.bodies.body import Body, ListOf, counted_first
from server.http.bodies.field_errors import described
from server.http.errors import invalid

MAX_MESSAGES = 16_384
MAX_TOOLS = 256
IGNORED = "accepted and ignored"
UNSUPPORTED = "not supported"
FUNCTIONS_ONLY = "not supported: tools are functions"
TEXT_ONLY = "this server accepts only text"
CONTINUES = "use 'continue_final_message'"
RETURNED = "tdpipe's: ignored; clients send it back with messages that they received"


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, exclude=True, description=IGNORED)


class RefusalPart(Body):
    """A refusal in an assistant's content; it is treated as text."""

    type: Literal["refusal"]
    refusal: str


_PART = '{"type": "text", "text": ...}'


def _only_text(content: object) -> object:
    """Refuse a content with a clearer error than pydantic's; turn refusals into texts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        text = "expected a string or an array of text parts, got {given}"
        raise PydanticCustomError("content_type", text, {"given": described(content)})
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            text = "expected a text part, {example}, got {given}"
            context = {"example": _PART, "given": described(part), "at": (index,)}
            raise PydanticCustomError("content_part_type", text, context)
        kind = part.get("type", "text")
        if kind not in ("text", "refusal"):
            text = "expected 'text', got {given}: this server accepts no images, audio or files"
            context = {"given": described(kind), "at": (index, "type")}
            raise PydanticCustomError("content_part", text, context)
    return [
        {"type": "text", "text": part["refusal"]}
        if part.get("type") == "refusal" and isinstance(part.get("refusal"), str)
        else part
        for part in content
    ]


Content = Annotated[
    str | ListOf[TextPart],
    BeforeValidator(_only_text, json_schema_input_type=str | ListOf[TextPart | RefusalPart]),
]


class _OfFunction(Body):
    """Base of objects with the only supported type of tool."""

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind != "function":
            text = "this server supports only tools of the type 'function', not '{kind}'"
            raise PydanticCustomError("only_functions", text, {"kind": kind, "at": ("type",)})
        return values


class CalledFunction(Body):
    """A function that the assistant has called."""

    name: str
    arguments: str = Field(description="JSON, as the model wrote it")
    parsed_arguments: Any = Field(None, description=RETURNED)


class ToolCall(_OfFunction):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    custom: None = Field(None, description=FUNCTIONS_ONLY)
    index: int | None = Field(None, description=RETURNED)


class ChatMessage(Body):
    """One message of the conversation."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "audios": TEXT_ONLY,
        "images": TEXT_ONLY,
        "videos": TEXT_ONLY,
        "partial": CONTINUES,
        "prefix": CONTINUES,
    }

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: ListOf[ToolCall] | None = Field(None, description="of an assistant")
    tool_call_id: str | None = Field(
        None, description="of a tool: the id of the call that it answers"
    )
    refusal: str | None = Field(None, description="of an assistant")
    reasoning_content: str | None = Field(None, description="vLLM's: of an assistant")
    reasoning: str | None = Field(None, description="vLLM's: reasoning_content by another name")
    annotations: list[Any] | None = Field(None, description=RETURNED)
    parsed: Any = Field(None, description=RETURNED)
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
            context = {"role": self.role, "missing": missing, "at": (missing,)}
            raise PydanticCustomError("incomplete", text, context)
        if self.tool_calls is not None and self.role != "assistant":
            text = "only an assistant's message has 'tool_calls'"
            raise PydanticCustomError("tool_calls", text, {"at": ("tool_calls",)})
        return self

    @property
    def _thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning

    def for_template(self) -> dict[str, Any]:
        """The message in the shape that chat templates expect."""
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

    unsupported: ClassVar[Mapping[str, str]] = {"input_schema": "the schema is 'parameters'"}

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema [no parameters]")
    strict: bool | None = Field(None, description="forced calls always follow the schema")


class Tool(_OfFunction):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition
    custom: None = Field(None, description=FUNCTIONS_ONLY)


Messages = Annotated[ListOf[ChatMessage], counted_first(MAX_MESSAGES)]


@dataclass(frozen=True)
class Conversation:
    """The input of the chat template. Messages and tools have the API's shapes.

    `template` is the request's own, `variables` are passed to the template by name. `num_bytes` is
    the size of the request's body; without it, the conversation is treated as long.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None
    documents: Sequence[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    num_bytes: int | None = None


class TemplateFields(Body):
    """Tools and options of the chat template."""

    tools: ListOf[Tool] = Field([], max_length=MAX_TOOLS)
    add_generation_prompt: bool | None = Field(
        None, description="vLLM's: begin the assistant's message [unless it continues the last]"
    )
    continue_final_message: bool = Field(False, description="vLLM's: continue the last message")
    chat_template: str | None = Field(
        None, description="vLLM's: only with --trust-request-chat-template"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="vLLM's: variables for the template, e.g. enable_thinking"
    )

    def conversation(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[dict[str, Any]] | None,
        num_bytes: int,
    ) -> Conversation:
        """The conversation, from a body of `num_bytes`. Raises `ApiError` (400)."""
        begins = self.add_generation_prompt
        if self.continue_final_message and begins:
            message = (
                "'continue_final_message' and 'add_generation_prompt' exclude each other: the "
                "answer either continues the last message or begins a new one."
            )
            raise invalid(message, "continue_final_message", "invalid_value")
        check_variables(self.chat_template_kwargs)
        return Conversation(
            messages=[message.for_template() for message in messages],
            tools=tools,
            add_generation_prompt=not self.continue_final_message if begins is None else begins,
            continue_final_message=self.continue_final_message,
            template=self.chat_template,
            variables=self.chat_template_kwargs,
            num_bytes=num_bytes,
        )


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raise `ApiError` (400) where `chat_template_kwargs` would replace reserved names."""
    taken = sorted(_reserved_names() & variables.keys())
    if taken:
        message = f"'chat_template_kwargs' must not hold '{taken[0]}'."
        raise invalid(message, "chat_template_kwargs", "invalid_value")


@lru_cache(maxsize=1)
def _reserved_names() -> frozenset[str]:
    from transformers import PreTrainedTokenizerBase

    arguments = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset(arguments) | {"messages", "conversations"}
