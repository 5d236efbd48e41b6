"""The input items of `/v1/responses`, and the conversation that they stand for.

Reference: https://platform.openai.com/docs/api-reference/responses. Items of other types (calls of
OpenAI's own tools, references to stored items) and parts other than texts are refused; the error
has the path of their type.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, ValidationInfo

from server.http.bodies.body import Body, ListOf
from server.http.bodies.field_errors import explain
from server.http.errors import ApiError, invalid
from server.openai.fields.conversation import (
    IGNORED,
    MAX_MESSAGES,
    RETURNED,
    CalledFunction,
    ChatMessage,
    ToolCall,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]
_TEXT_TYPES = ("input_text", "output_text")


class ResultText(Body):
    """A part of a function's result."""

    type: Literal["input_text", "output_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=IGNORED)


class MessageText(ResultText):
    """A part of a message."""

    annotations: list[Any] | None = Field(None, description=IGNORED)
    logprobs: list[Any] | None = Field(None, description=IGNORED)
    parsed: Any = Field(None, description=RETURNED)


class MessageRefusal(Body):
    """A refusal in an assistant's message; it is treated as text."""

    type: Literal["refusal"]
    refusal: str


def _as_parts(content: object) -> object:
    """A text as one part, and refusals as texts."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    if not isinstance(content, list):
        return content
    return [
        _as_text(part) if isinstance(part, dict) and part.get("type") == "refusal" else part
        for part in content
    ]


def _as_text(refusal: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in refusal.items() if name != "refusal"}
    return others | {"type": "output_text", "text": refusal.get("refusal")}


_Texts = Annotated[
    ListOf[MessageText],
    BeforeValidator(_as_parts, json_schema_input_type=str | ListOf[MessageText | MessageRefusal]),
]
_ResultTexts = Annotated[
    ListOf[ResultText],
    BeforeValidator(_as_parts, json_schema_input_type=str | ListOf[ResultText]),
]


class MessageItem(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Texts
    id: str | None = Field(None, description=IGNORED)
    status: ItemStatus | None = Field(None, description=IGNORED)
    phase: Literal["commentary", "final_answer"] | None = Field(None, description=IGNORED)


class FunctionCallItem(Body):
    """A function call that the model has written."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = Field(None, description=IGNORED)
    status: ItemStatus | None = Field(None, description=IGNORED)
    namespace: str | None = Field(None, description=IGNORED)
    caller: Any = Field(None, description=IGNORED)
    is_async: bool | None = Field(None, alias="async", description=IGNORED)
    parsed_arguments: Any = Field(None, description=RETURNED)


class FunctionCallOutputItem(Body):
    """The result of a function call."""

    type: Literal["function_call_output"]
    call_id: str
    output: _ResultTexts
    id: str | None = Field(None, description=IGNORED)
    status: ItemStatus | None = Field(None, description=IGNORED)
    name: str | None = Field(None, description=IGNORED)
    namespace: str | None = Field(None, description=IGNORED)
    caller: Any = Field(None, description=IGNORED)


class ReasoningText(Body):
    """A part of a reasoning, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """The reasoning before a message or a call."""

    type: Literal["reasoning"]
    content: ListOf[ReasoningText] = Field([])
    summary: ListOf[ReasoningText] = Field([], description="used if there is no content")
    encrypted_content: str | None = Field(None, description=IGNORED)
    id: str | None = Field(None, description=IGNORED)
    status: ItemStatus | None = Field(None, description=IGNORED)

    @property
    def text(self) -> str:
        """The reasoning; empty where only the server that encrypted it could read it."""
        return "\n".join(part.text for part in self.content or self.summary)


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
_ITEMS: Mapping[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}


def _read_input(given: object, info: ValidationInfo) -> list[Item]:
    """Read each item as its type says, so that errors are about this type and name the item."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        message = "Invalid type for 'input': expected a string or an array of items."
        raise invalid(message, "input", "invalid_type")
    if not 0 < len(given) <= MAX_MESSAGES:
        message = f"'input' must have 1 to {MAX_MESSAGES} items, not {len(given)}."
        raise invalid(message, "input", "invalid_value")
    return [_read_item(item, index, info.context) for index, item in enumerate(given)]


Input = Annotated[
    ListOf[Item], PlainValidator(_read_input, json_schema_input_type=str | ListOf[Item])
]


def messages_of(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """Return the conversation that the instructions and the items stand for.

    Reasoning, message and calls in this order are one message of the assistant.
    """
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _answer(messages, "content", "tool_calls")["content"] = _content(item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _content(item.content)})
            case FunctionCallItem():
                _answer(messages).setdefault("tool_calls", []).append(_call(item))
            case FunctionCallOutputItem():
                output = _content(item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
            case ReasoningItem(text=text) if text:
                taken = ("reasoning_content", "content", "tool_calls")
                _answer(messages, *taken)["reasoning_content"] = text
    return [ChatMessage.model_validate(message) for message in messages]


def _answer(messages: list[dict[str, Any]], *taken: str) -> dict[str, Any]:
    """The last message if it is the assistant's and has none of the fields `taken`, or a new one.

    A call belongs to the message before it, since models write both in one answer.
    """
    if not messages or messages[-1]["role"] != "assistant" or any(map(messages[-1].get, taken)):
        messages.append({"role": "assistant"})
    return messages[-1]


def _content(parts: Sequence[ResultText]) -> str | list[dict[str, str]]:
    if len(parts) == 1:
        return parts[0].text
    return [{"type": "text", "text": part.text} for part in parts]


def _call(item: FunctionCallItem) -> ToolCall:
    function = CalledFunction(name=item.name, arguments=item.arguments)
    return ToolCall(id=item.call_id, function=function)


def _read_item(value: object, index: int, context: Any) -> Item:
    path = f"input[{index}]"
    if not isinstance(value, dict):
        message = f"Invalid type for '{path}': expected an object."
        raise invalid(message, path, "invalid_type")
    kind = value.get("type")
    if kind is None:
        kind = "message" if "role" in value else "item_reference"
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise _unknown_item(kind, f"{path}.type")
    for field in ("content", "output"):
        _check_parts(kind, value.get(field), f"{path}.{field}")
    try:
        return _ITEMS[kind].model_validate(value, context=context)
    except ValidationError as error:
        raise explain(error, value, {}, ("input", index)) from error


def _unknown_item(kind: object, path: str) -> ApiError:
    if kind == "item_reference":
        words = (
            "this server stores nothing, so send the item itself instead of a reference to it; "
            "clients that refer to stored items do this if 'store' is false"
        )
    else:
        words = f"this server takes items of the types {', '.join(_ITEMS)}, not '{kind}'"
    return invalid(f"Invalid value for '{path}': {words}.", path, "invalid_value")


def _check_parts(item_type: str, parts: object, path: str) -> None:
    """Raise `ApiError` (400) for a part that is no text."""
    if item_type == "reasoning" or not isinstance(parts, list):
        return
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_TYPES or (kind == "refusal" and item_type == "message"):
            continue
        where = f"{path}[{index}]" + (".type" if isinstance(part, dict) else "")
        message = (
            f"Invalid value for '{where}': expected one of {', '.join(_TEXT_TYPES)}, got "
            f"'{kind}': this server accepts no images, audio or files."
        )
        raise invalid(message, where, "invalid_value")
