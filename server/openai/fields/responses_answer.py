"""The response models of `/v1/responses`, as documented.

Reference: https://platform.openai.com/docs/api-reference/responses/object and
https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from server.openai.fields.chat_answer import ChosenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ENDED = "incomplete if the answer was cut off in it"
COVERED = "tdpipe's: of a resumable stream, the tokens since the last delta that has some"


class ReasoningPart(BaseModel):
    """The text of a reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ResponseReasoning(BaseModel):
    """The reasoning before a message or a call."""

    type: Literal["reasoning"] = Field(description="only these types of items")
    id: str
    status: ItemStatus
    summary: list[Any] = Field(description="always empty: the content is the whole reasoning")
    content: list[ReasoningPart]
    encrypted_content: None = Field(description="always null: nothing is encrypted")


class OutputTextPart(BaseModel):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(description="always empty")
    logprobs: list[ChosenLogprob] = Field(description="empty unless include asks for them")


class ResponseMessage(BaseModel):
    """A message."""

    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextPart]


class ResponseFunctionCall(BaseModel):
    """A function call by the model."""

    type: Literal["function_call"]
    id: str
    status: ItemStatus
    call_id: str = Field(description="to be sent back with the result")
    name: str
    arguments: str = Field(description="as the model wrote them: JSON, unless truncated")


OutputItem = ResponseReasoning | ResponseMessage | ResponseFunctionCall


class InputTokensDetails(BaseModel):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(description="0 where they are not counted")
    cache_write_tokens: int = Field(description="always 0")


class OutputTokensDetails(BaseModel):
    """Details of the answer's tokens."""

    reasoning_tokens: int = Field(description="including tags")


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why the answer is incomplete."""

    reason: Literal["max_output_tokens"] = Field(
        description="only this: max_messages, content_filter and steered do not occur"
    )


class ResponseFailure(BaseModel):
    """Why the answer failed."""

    code: Literal["server_error"] = Field(description="only this")
    message: str


class ResponseObject(BaseModel):
    """The answer of POST /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Unix seconds")
    completed_at: int | None = Field(description="null unless completed")
    status: Literal["in_progress", "completed", "incomplete", "failed"] = Field(
        description="failed only in streams; cancelled and queued do not occur"
    )
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str = Field(description="only the first name of the served model")
    output: list[OutputItem]
    usage: ResponseUsage | None = Field(description="null until the answer has ended")
    background: Literal[False] = Field(description="always false")
    instructions: str | None = Field(description="of the request")
    max_output_tokens: int | None = Field(description="of the request")
    max_tool_calls: int | None = Field(description="of the request")
    metadata: dict[str, str] = Field(description="of the request")
    parallel_tool_calls: bool = Field(description="of the request")
    previous_response_id: None = Field(description="always null")
    prompt_cache_key: str | None = Field(description="of the request")
    reasoning: dict[str, Any] = Field(description="of the request; summary is null")
    safety_identifier: str | None = Field(description="of the request")
    service_tier: Literal["default", "flex"] = Field(
        description="the tier used; never auto, scale, priority, fast or ultrafast"
    )
    store: Literal[False] = Field(description="tdpipe's: always false")
    temperature: float = Field(description="the one that was used")
    text: dict[str, Any] = Field(description="of the request")
    tool_choice: str | dict[str, Any] = Field(description="of the request: none, auto, required")
    tools: list[dict[str, Any]] = Field(description="of the request")
    top_logprobs: int = Field(description="of the request")
    top_p: float = Field(description="the one that was used")
    truncation: Literal["disabled"] = Field(description="never auto")
    user: str | None = Field(description="of the request")


class _Event(BaseModel):
    sequence_number: int = Field(description="from 0")


class ResponseStateEvent(_Event):
    """The response at its begin and at its end."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class OutputItemEvent(_Event):
    """An item begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _ItemEvent(_Event):
    item_id: str
    output_index: int


class ContentPartEvent(_ItemEvent):
    """A part of an item begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Literal[0]
    part: ReasoningPart | OutputTextPart


class OutputTextDelta(_ItemEvent):
    """New text of a message."""

    type: Literal["response.output_text.delta"]
    content_index: Literal[0]
    delta: str
    logprobs: list[ChosenLogprob]
    token_ids: list[int] | None = Field(None, description=COVERED)


class OutputTextDone(_ItemEvent):
    """The whole text of a message."""

    type: Literal["response.output_text.done"]
    content_index: Literal[0]
    text: str
    logprobs: list[ChosenLogprob]


class ReasoningTextDelta(_ItemEvent):
    """New text of a reasoning."""

    type: Literal["response.reasoning_text.delta"]
    content_index: Literal[0]
    delta: str
    token_ids: list[int] | None = Field(None, description=COVERED)


class ReasoningTextDone(_ItemEvent):
    """The whole text of a reasoning."""

    type: Literal["response.reasoning_text.done"]
    content_index: Literal[0]
    text: str


class ArgumentsDelta(_ItemEvent):
    """New parts of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str
    token_ids: list[int] | None = Field(None, description=COVERED)


class ArgumentsDone(_ItemEvent):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ErrorEvent(_Event):
    """A failure, before the event `response.failed`."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


class ResponseStreamEvent(
    RootModel[
        Annotated[
            ResponseStateEvent
            | OutputItemEvent
            | ContentPartEvent
            | OutputTextDelta
            | OutputTextDone
            | ReasoningTextDelta
            | ReasoningTextDone
            | ArgumentsDelta
            | ArgumentsDone
            | ErrorEvent,
            Field(discriminator="type"),
        ]
    ]
):
    """An event of a stream of /v1/responses; the line `event:` has its type."""
