"""The fields of the API, beside those of the official client: none is forgotten, none is new."""

from typing import Any

import pytest
from openai.types import batch_create_params, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from server.batches.batch_routes import CreateBatch
from server.body import Body
from server.chat_protocol import ChatRequest
from server.field_table import BEGIN, DOCUMENT, status_of, table
from server.protocol import CompletionRequest
from tests.server.world import MODEL, Daemon

CLIENTS = [
    (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
    (ChatRequest, chat_create_params.CompletionCreateParamsStreaming),
    (CreateBatch, batch_create_params.BatchCreateParams),
]
# A value of each field that is refused, which makes a difference.
REFUSED: dict[str, Any] = {
    "suffix": "x",
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "audio": {"voice": "alloy", "format": "mp3"},
    "web_search_options": {"search_context_size": "low"},
    "moderation": {"model": "x"},
}


@pytest.mark.parametrize(("body", "params"), CLIENTS)
def test_every_field_of_the_official_client_is_known(body: type[Body], params: Any) -> None:
    assert set(params.__annotations__) <= set(body.model_fields)


@pytest.mark.parametrize("body", [CompletionRequest, ChatRequest])
def test_what_is_called_refused_is(daemon: Daemon, body: type[Body]) -> None:
    path = "/v1/completions" if body is CompletionRequest else "/v1/chat/completions"
    own: dict[str, Any] = {"prompt": "hi"}
    if body is ChatRequest:
        own = {"messages": [{"role": "user", "content": "hi"}]}
    refused = [name for name, field in body.model_fields.items() if status_of(field) == "refused"]
    assert refused
    for name in refused:
        request = {"model": MODEL, name: REFUSED[name]} | own
        error = daemon.http.post(daemon.url + path, json=request).json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_the_document_has_the_present_table() -> None:
    assert BEGIN + table() in DOCUMENT.read_text(), "make api-table writes it"
