"""The tool choice: which tools the prompt shows, and which the model may or must call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from server.grammar.schema_keywords import check_patterns, enforceable
from server.http.errors import invalid
from server.openai.fields.chat import AllowedTools, ChatRequest, NamedTool
from server.openai.fields.conversation import Tool

# Nested objects and arrays; the grammar library allows 128 levels, including the call's own.
MAX_SCHEMA_DEPTH = 120
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_NOTHING_ELSE = _NO_PARAMETERS | {"additionalProperties": False}


@dataclass(frozen=True)
class ToolChoice:
    """The prompt shows the tools in `shown`; the model may call the tools in `allowed`.

    With `is_forced`, the model must call at least one of the allowed tools, and with `is_named`
    exactly the one that is allowed, once.
    """

    shown: tuple[Tool, ...] = ()
    allowed: tuple[Tool, ...] = ()
    is_forced: bool = False
    is_named: bool = False

    def several(self, wanted: bool | None) -> bool:
        """Return whether an answer may have several calls; `wanted` is `parallel_tool_calls`.

        Without it, a forced answer has one call: nothing but the grammar ends it, and some models
        would repeat the call up to the limit of tokens.
        """
        if self.is_named:
            return False
        return not self.is_forced if wanted is None else wanted

    @property
    def schemas(self) -> list[tuple[str, dict[str, Any]]]:
        """The functions that may be called, with the schemas of their parameters."""
        return [
            (tool.function.name, enforceable(tool.function.parameters or _NOTHING_ELSE))
            for tool in self.allowed
        ]

    def for_template(self) -> list[dict[str, Any]] | None:
        """The shown tools in the shape that chat templates expect; None if there are none."""
        return [_described(tool) for tool in self.shown] or None


def tool_choice(request: ChatRequest) -> ToolChoice:
    """Return the request's tool choice.

    Raises `ApiError` (400) if the request names tools that it does not define, or tools that cannot
    be called.

    With "none" the prompt does not show the tools, because the model could not call them anyway.
    """
    tools, choice = tuple(request.tools), request.tool_choice
    _check_names(tools)
    for index, tool in enumerate(tools):
        _check_parameters(parameters_param(index), tool)
    if choice == "none" or (choice in (None, "auto") and not tools):
        return ToolChoice()
    if not tools:
        message = "'tool_choice' is only allowed when 'tools' are specified."
        raise invalid(message, "tool_choice")
    if isinstance(choice, NamedTool):
        return ToolChoice(tools, _of_names(tools, [choice]), is_forced=True, is_named=True)
    if isinstance(choice, AllowedTools):
        allowed = _of_names(tools, choice.allowed_tools.tools)
        return ToolChoice(allowed, allowed, is_forced=choice.allowed_tools.mode == "required")
    return ToolChoice(tools, tools, is_forced=choice == "required")


def parameters_param(index: int) -> str:
    """Return the path that errors use to name the schema of a tool of the request."""
    return f"tools[{index}].function.parameters"


def _check_names(tools: tuple[Tool, ...]) -> None:
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise invalid(f"'tools' has two functions named '{twice}'.", "tools", "invalid_value")


def _check_parameters(param: str, tool: Tool) -> None:
    """Check that the schema allows an object, because a call's arguments always are one."""
    schema = tool.function.parameters or {}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        message = (
            f"Invalid schema for function '{tool.function.name}': the type of its parameters must "
            f'be "object", not {msgspec.json.encode(kind).decode()}.'
        )
        raise invalid(message, param, "invalid_function_parameters")
    if _is_too_deep(schema):
        message = f"'{param}' is nested more than {MAX_SCHEMA_DEPTH} levels deep."
        raise invalid(message, param, "invalid_function_parameters")
    if tool.function.strict:
        check_patterns(schema, param)


def _is_too_deep(schema: Mapping[str, Any]) -> bool:
    """Check the depth level by level, because recursion could exceed the stack."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        inner = (
            part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
            for part in level
        )
        level = [part for parts in inner for part in parts]
    return any(isinstance(part, dict | list) for part in level)


def _of_names(tools: tuple[Tool, ...], named: list[NamedTool]) -> tuple[Tool, ...]:
    by_name = {tool.function.name: tool for tool in tools}
    names = [choice.function.name for choice in named]
    missing = next((name for name in names if name not in by_name), None)
    if missing is not None:
        message = f"'tool_choice' names '{missing}', which is not among the 'tools'."
        raise invalid(message, "tool_choice", "invalid_value")
    return tuple(by_name[name] for name in dict.fromkeys(names))


def _described(tool: Tool) -> dict[str, Any]:
    """Return the tool with all fields, in the order that models have seen in training."""
    function = tool.function
    described = {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or _NO_PARAMETERS,
    }
    return {"type": "function", "function": described}
