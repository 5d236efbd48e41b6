"""A call: what is sent for one request of a run, apart from the name of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from simulator.workloads.request import Request

Endpoint = Literal["/v1/completions", "/v1/chat/completions"]
COMPLETIONS: Endpoint = "/v1/completions"
CHAT: Endpoint = "/v1/chat/completions"
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)


@dataclass(frozen=True, slots=True)
class Call:
    """A request: its path, the fields of its body, when it arrives, and the right answer if known.

    `arrival_s` is in seconds since the run began; None: at its start.
    """

    endpoint: Endpoint
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrival_s: float | None = None
    answer: str | None = None

    @property
    def prompt(self) -> object:
        """What the model is given."""
        return self.fields.get("prompt", self.fields.get("messages"))

    def body(self, model: str, *, include_usage: bool = True) -> dict[str, Any]:
        """The body of the streamed request; `model` is for calls that name none themselves."""
        body = {"model": model, **self.fields, "stream": True}
        if include_usage:
            body["stream_options"] = {"include_usage": True}
        return body


def prompt_fields(endpoint: Endpoint, prompt: str | Sequence[int]) -> dict[str, Any]:
    """The prompt as the endpoint takes it. Raises `ValueError` for token ids in a chat."""
    if endpoint == COMPLETIONS:
        return {"prompt": prompt}
    if not isinstance(prompt, str):
        raise ValueError("a chat has no token ids")
    return {"messages": [{"role": "user", "content": prompt}]}


def call_of(
    request: Request, endpoint: Endpoint = COMPLETIONS, extra: Mapping[str, Any] | None = None
) -> Call:
    """The call of a workload's request, with `extra` fields."""
    fields: dict[str, Any] = {
        **prompt_fields(endpoint, request.prompt),
        "max_tokens": request.max_tokens,
        "temperature": 0.0,
    }
    # Only if they are needed: OpenAI itself does not accept these fields.
    if request.ignore_eos:
        fields["ignore_eos"] = True
    if request.expected_tokens is not None:
        fields["expected_tokens"] = request.expected_tokens
    return Call(endpoint, fields | dict(extra or {}), request.arrival_s, request.answer)
