"""The official `openai` client against the server."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server.world import MODEL, Daemon, serving


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion(client: openai.OpenAI) -> None:
    completion = client.completions.create(model=MODEL, prompt="hi", n=2, seed=1, max_tokens=20)
    assert [choice.text for choice in completion.choices] == ["hello world €"] * 2
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 14


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    *chunks, last = client.completions.create(
        model=MODEL, prompt="hi", stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello world €"
    assert last.usage is not None
    assert last.usage.total_tokens == 9


def test_our_extensions(client: openai.OpenAI) -> None:
    extra = {"top_k": 3, "ignore_eos": True, "min_tokens": 2}
    completion = client.completions.create(model=MODEL, prompt="hi", max_tokens=3, extra_body=extra)
    assert completion.choices[0].finish_reason == "length"


def test_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "tdpipe"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=MODEL, prompt="hi", max_tokens=1000)
    assert wrong.value.code == "context_length_exceeded"


def test_a_full_queue_is_the_clients_rate_limit(tmp_path: Path) -> None:
    with (
        serving(tmp_path, max_num_queued_reqs=1) as daemon,
        openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.completions.create(model=MODEL, prompt="hi", n=2)
