"""The tool choice: which tools are shown, and which may or must be called."""

from typing import Any

import pytest

from server.chat.tool_choice import ToolChoice, tool_choice
from server.openai.fields.chat import ChatRequest

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "sub", "mul")]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def names(tools: Any) -> str:
    return " ".join(tool.function.name for tool in tools)


def chosen(choice: Any) -> ToolChoice:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
    return tool_choice(ChatRequest.model_validate(body | {"tool_choice": choice}))


@pytest.mark.parametrize(
    ("choice", "shown", "may", "must"),
    [
        (None, "add sub mul", "add sub mul", False),
        ("auto", "add sub mul", "add sub mul", False),
        ("none", "", "", False),
        ("required", "add sub mul", "add sub mul", True),
        (named("sub"), "add sub mul", "sub", True),
        (allowed("auto", "mul", "add"), "mul add", "mul add", False),
        (allowed("required", "mul", "mul"), "mul", "mul", True),
    ],
)
def test_the_choice_selects_the_shown_and_the_allowed_tools(
    choice: Any, shown: str, may: str, must: bool
) -> None:
    found = chosen(choice)
    assert (names(found.shown), names(found.allowed), found.is_forced) == (shown, may, must)
    assert {name for name, _ in found.schemas} == set(may.split())


def test_a_tool_without_parameters_is_described_with_none() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS[:1]}
    function = {
        "name": "add",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }
    assert tool_choice(ChatRequest.model_validate(body)).for_template() == [
        {"type": "function", "function": function}
    ]
