"""The request fields of `/v1/responses`, and the chat request that they stand for.

Reference: https://platform.openai.com/docs/api-reference/responses/create. Nothing is stored: what
needs an earlier response is refused with an error that names the field.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from server.grammar.grammars import JsonSchemaFormat, ResponseFormat
from server.http.bodies.body import Body, ListOf, parse
from server.http.bodies.unknown_fields import IGNORED as IGNORED_FIELDS
from server.http.bodies.unknown_fields import UnknownFields
from server.http.errors import invalid
from server.openai.fields.chat import (
    AllowedToolNames,
    AllowedTools,
    ChatRequest,
    NamedTool,
    ToolName,
)
from server.openai.fields.conversation import (
    IGNORED,
    MAX_TOOLS,
    UNSUPPORTED,
    FunctionDefinition,
    Tool,
)
from server.openai.fields.response_items import Input, messages_of
from server.openai.fields.sampling import (
    LOW_PRIORITY,
    UNSUPPORTED_SAMPLING,
    Resume,
    SamplingFields,
    StreamOptions,
)

LOGPROBS = "message.output_text.logprobs"
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
Summary = Literal["auto", "concise", "detailed"]
ResponseTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]


class FunctionTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]
    allowed_callers: list[Any] | None = Field(None, description=IGNORED)
    defer_loading: bool | None = Field(None, description=IGNORED)
    output_schema: dict[str, Any] | None = Field(None, description=IGNORED)
    is_async: bool | None = Field(None, alias="async", description=IGNORED)


class NamedFunction(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class AllowedFunctions(Body):
    """The functions that may be called, and whether one must."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: ListOf[NamedFunction] = Field(min_length=1)


def _check_type(value: object, path: str, *types: str) -> None:
    """Raise `ApiError` (400) for a tool that is no function."""
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in types:
        path = f"{path}.type"
        message = (
            f"Invalid value for '{path}': '{kind}'. This server supports only tools of the type "
            "'function'."
        )
        raise invalid(message, path, "invalid_value")


def _check_tools(tools: object, path: str = "tools") -> object:
    if isinstance(tools, list):
        for index, tool in enumerate(tools):
            _check_type(tool, f"{path}[{index}]", "function")
    return tools


def _check_choice(choice: object) -> object:
    _check_type(choice, "tool_choice", "function", "allowed_tools")
    if isinstance(choice, dict):
        _check_tools(choice.get("tools"), "tool_choice.tools")
    return choice


FunctionTools = Annotated[ListOf[FunctionTool], BeforeValidator(_check_tools)]
FunctionChoice = Annotated[
    Literal["none", "auto", "required"]
    | Annotated[NamedFunction | AllowedFunctions, Field(discriminator="type")],
    BeforeValidator(_check_choice),
]


class TextFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, min_length=1, max_length=64, description="of json_schema")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of json_schema")
    strict: bool | None = Field(
        None,
        description="true: refuse keywords that cannot be enforced; false: skip them [false]",
    )
    description: str | None = Field(None, description=IGNORED)

    def as_chat(self) -> ResponseFormat:
        """The `response_format` of chat."""
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        if self.schema_ is None or self.name is None:
            missing = f"text.format.{'schema' if self.schema_ is None else 'name'}"
            message = f"Missing required parameter: '{missing}'."
            raise invalid(message, missing, "missing_required_parameter")
        wanted = JsonSchemaFormat(name=self.name, schema=self.schema_, strict=self.strict)
        return ResponseFormat(type=self.type, json_schema=wanted)


class TextConfig(Body):
    """Options of the answer's text."""

    format: TextFormat | None = Field(None, description="[text]")
    verbosity: Verbosity | None = Field(None, description=IGNORED)


class ReasoningConfig(Body):
    """Options of the reasoning."""

    effort: ReasoningEffort | None = Field(
        None, description="passed to the chat template; none: no reasoning, if it supports that"
    )
    summary: Summary | None = Field(None, description="ignored: the whole reasoning is returned")
    generate_summary: Summary | None = Field(None, description=IGNORED)
    context: Literal["auto", "current_turn", "all_turns"] | None = Field(
        None, description="ignored: the chat template decides"
    )
    mode: str | None = Field(None, description=IGNORED)


class ResponseStreamOptions(StreamOptions):
    """What a stream contains besides its text."""

    include_usage: bool = Field(
        False, description="tdpipe's: ignored: the last event always has the usage"
    )


class ResponsesRequest(SamplingFields):
    """The body of POST /v1/responses."""

    unsupported = UNSUPPORTED_SAMPLING | {
        "messages": "use 'input'",
        "reasoning_effort": "use 'reasoning' with 'effort'",
    }

    expected: ClassVar[dict[str, str]] = {
        "stop": "a string or an array of strings",
        "tool_choice": (
            "'none', 'auto', 'required', a function "
            '({"type": "function", "name": ...}) or allowed tools'
        ),
    }

    input: Input = Field(description="a text, or the items of a conversation")
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: int | None = Field(
        None, ge=1, description="including reasoning [what fits the model's context]"
    )
    tools: FunctionTools = Field([], max_length=MAX_TOOLS, description="only functions")
    tool_choice: FunctionChoice | None = Field(None, description="[auto]")
    parallel_tool_calls: bool | None = Field(
        None,
        description="allow several calls in one answer [true; false if tool_choice is required]",
    )
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: ListOf[
        Literal[
            "message.output_text.logprobs",
            "reasoning.encrypted_content",
            "web_search_call.action.sources",
            "web_search_call.results",
            "code_interpreter_call.outputs",
            "computer_call_output.output.image_url",
            "file_search_call.results",
            "message.input_image.image_url",
        ]
    ] = Field(
        [],
        description="the first is supported; the others have no effect: reasoning is returned in "
        "clear text, and the rest does not occur",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description=f"with each token, if include has {LOGPROBS}"
    )
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="auto has no effect: nothing is dropped, a longer input gets 400"
    )
    metadata: (
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None
    ) = Field(None, max_length=16, description="returned: up to 16 strings of 512 characters")
    service_tier: ResponseTier = Field("auto", description=LOW_PRIORITY)  # type: ignore[assignment]
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="vLLM's: variables for the template, e.g. enable_thinking"
    )

    # In the reference of chat, not in that of responses.
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="vLLM's")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="vLLM's")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="vLLM's")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024, description="vLLM's: added to the logits of token ids"
    )
    stop: str | ListOf[str] = Field(
        [], description="vLLM's: strings that end the answer, which are not returned"
    )
    n: int = Field(1, ge=1, le=1, description="tdpipe's: only 1")

    # Accepted without effect; some are returned.
    store: bool = Field(False, description="accepted and ignored: nothing is stored")
    background: bool = Field(False, description="only false")
    max_tool_calls: int | None = Field(None, description="ignored, it is for OpenAI's own tools")
    safety_identifier: str | None = Field(None, description=IGNORED)
    prompt_cache_key: str | None = Field(None, description=IGNORED)
    prompt_cache_retention: str | None = Field(None, description=IGNORED)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=IGNORED)
    access_programs: dict[str, Any] | None = Field(None, description=IGNORED)
    image: dict[str, Any] | None = Field(None, description=IGNORED)

    # Not supported.
    previous_response_id: Any = Field(None, description=UNSUPPORTED)
    conversation: Any = Field(None, description=UNSUPPORTED)
    prompt: Any = Field(None, description=UNSUPPORTED)
    context_management: Any = Field(None, description=UNSUPPORTED)
    moderation: Any = Field(None, description=UNSUPPORTED)
    response_format: Any = Field(None, description="tdpipe's: not supported: use text.format")
    max_tokens: Any = Field(None, description="tdpipe's: not supported: use max_output_tokens")
    max_completion_tokens: Any = Field(
        None, description="tdpipe's: not supported: use max_output_tokens"
    )
    prompt_logprobs: Any = Field(None, description="vLLM's: not supported")
    return_token_ids: Any = Field(None, description="vLLM's: not supported")

    @property
    def returns_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return LOGPROBS in self.include

    def as_chat(self) -> ChatRequest:
        """The chat request with the same answer. Raises `ApiError` (400)."""
        shared = (SamplingFields.model_fields.keys() & self.model_fields_set) - _REFUSED.keys()
        values: dict[str, Any] = {name: getattr(self, name) for name in shared}
        values |= {
            "messages": messages_of(self.instructions, self.input),
            "max_completion_tokens": self.max_output_tokens,
            "tools": [_as_tool(tool) for tool in self.tools],
            "tool_choice": _as_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "chat_template_kwargs": self.chat_template_kwargs,
            "logprobs": self.returns_logprobs,
            "top_logprobs": self.top_logprobs,
        }
        if self.text is not None and self.text.format is not None:
            values["response_format"] = self.text.format.as_chat()
        if self.reasoning is not None:
            values["reasoning_effort"] = self.reasoning.effort
        # Every value has been validated already, as a field of this class or by its own class.
        chat = ChatRequest.model_construct(set(values), **values)
        if self.is_resumable:
            chat.make_resumable()
        return chat


_STATELESS = "this server stores no {}: send the whole conversation as 'input'"
_REFUSED = {
    "previous_response_id": _STATELESS.format("responses"),
    "conversation": _STATELESS.format("conversations"),
    "background": "it stores no responses that could be fetched later",
    "prompt": "this server stores no prompts",
    "context_management": "this server does not shorten conversations",
    "moderation": "this server has no moderation",
    "response_format": "use 'text.format'",
    "max_tokens": "use 'max_output_tokens'",
    "max_completion_tokens": "use 'max_output_tokens'",
    "prompt_logprobs": "use /v1/chat/completions",
    "return_token_ids": "use /v1/chat/completions",
}


def parse_responses(body: bytes, unknown: UnknownFields = IGNORED_FIELDS) -> ResponsesRequest:
    """The request in `body`. Raises `ApiError` (400)."""
    request = parse(ResponsesRequest, body, unknown)
    for field, instead in _REFUSED.items():
        if getattr(request, field):
            message = f"'{field}' is not supported here: {instead}."
            raise invalid(message, field, "unsupported_parameter")
    if request.tdpipe_resume is not None:
        _check_resume(request, request.tdpipe_resume)
    return request


def _check_resume(request: ResponsesRequest, resume: Resume) -> None:
    """Raise `ApiError` (400) for a response that cannot be resumed."""
    if request.returns_logprobs:
        # The last event repeats the log-probabilities of all tokens, and the tokens are all we get.
        message = "A response with log-probabilities cannot be resumed."
        raise invalid(message, "tdpipe_resume", "unsupported_parameter")
    if any(choice.finished for choice in resume.choices):
        message = "A response that has finished cannot be resumed: its last event follows at once."
        raise invalid(message, "tdpipe_resume", "invalid_value")


def _as_tool(tool: FunctionTool) -> Tool:
    function = FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return Tool(type="function", function=function)


def _as_choice(choice: Any) -> Any:
    match choice:
        case NamedFunction():
            return _as_named(choice)
        case AllowedFunctions():
            names = AllowedToolNames(mode=choice.mode, tools=[*map(_as_named, choice.tools)])
            return AllowedTools(type="allowed_tools", allowed_tools=names)
        case _:
            return choice


def _as_named(choice: NamedFunction) -> NamedTool:
    return NamedTool(type="function", function=ToolName(name=choice.name))
