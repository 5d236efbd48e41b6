"""/v1/batches through the official client, with a scripted engine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import BatchCreateParams, FileCreateParams

from server.metrics import BATCH_OUTCOMES
from tests.server.batches.world import (
    begin,
    chat_line,
    line,
    lines,
    official,
    read,
    wait_ended,
    wait_for,
)
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, saying, serving, stats
from wire.messages import Abort, EngineReady, Finished, Submit


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with official(daemon) as client:
        yield client


def test_a_batch_answers_every_custom_id_once(client: openai.OpenAI) -> None:
    batch = begin(client, lines(300, max_tokens=20), metadata={"night": "7"})
    assert batch.status == "validating"
    assert batch.expires_at == batch.created_at + 24 * 3600
    ended = wait_ended(client, batch.id)
    assert ended.status == "completed"
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 300, "completed": 300, "failed": 0}
    assert (ended.model, ended.metadata) == (MODEL, {"night": "7"})
    assert ended.error_file_id is None
    assert ended.usage is not None
    assert (ended.usage.input_tokens, ended.usage.output_tokens) == (600, 2100)
    times = [
        ended.created_at,
        ended.in_progress_at or 0,
        ended.finalizing_at or 0,
        ended.completed_at or 0,
    ]
    assert times == sorted(times)
    answers = read(client, ended.output_file_id)
    assert answers.keys() == {f"r{i}" for i in range(300)}
    answer = answers["r7"]
    assert answer["id"].startswith("batch_req_")
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    body = answer["response"]["body"]
    assert body["choices"][0]["text"] == "hello world €"
    assert answer["response"]["request_id"] == body["id"]


def test_requests_that_fail_are_in_the_error_file(client: openai.OpenAI) -> None:
    content = "\n".join([line("good"), line("long", max_tokens=1000), line("odd", n="one")])
    ended = wait_ended(client, begin(client, content).id)
    assert ended.status == "completed"
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
    assert read(client, ended.output_file_id).keys() == {"good"}
    errors = read(client, ended.error_file_id)
    assert errors.keys() == {"long", "odd"}
    response = errors["long"]["response"]
    assert response["status_code"] == 400
    assert response["body"]["error"]["code"] == "context_length_exceeded"
    assert errors["odd"]["response"]["body"]["error"]["param"] == "n"


def test_a_file_that_cannot_be_run_fails_with_the_lines_at_fault(client: openai.OpenAI) -> None:
    content = "\n".join([line("a"), "{broken", "", line("a"), line("b", model="other")])
    ended = wait_ended(client, begin(client, content).id)
    assert ended.status == "failed"
    assert ended.failed_at is not None
    assert ended.errors is not None
    assert ended.errors.data is not None
    assert [(error.line, error.code) for error in ended.errors.data] == [
        (2, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "model_not_found"),
    ]
    assert ended.output_file_id is None


def test_a_batch_may_consist_of_chats(tmp_path: Path) -> None:
    with (
        serving(tmp_path, saying("hello"), tokenizer=chatty(CHATML)) as daemon,
        official(daemon) as client,
    ):
        content = "\n".join([chat_line("a"), chat_line("b", top_logprobs=99)])
        ended = wait_ended(client, begin(client, content, endpoint="/v1/chat/completions").id)
        answer = read(client, ended.output_file_id)["a"]["response"]["body"]
        assert answer["choices"][0]["message"]["content"] == "hello"
        error = read(client, ended.error_file_id)["b"]["response"]["body"]["error"]
        assert error["param"] == "top_logprobs"
        assert ended.usage is not None
        assert ended.usage.total_tokens == answer["usage"]["total_tokens"]


def test_a_batch_may_consist_of_responses(tmp_path: Path) -> None:
    with (
        serving(tmp_path, saying("hello"), tokenizer=chatty(CHATML)) as daemon,
        official(daemon) as client,
    ):
        asked = {"model": MODEL, "input": "hi", "max_output_tokens": 5}
        request = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": asked}
        ended = wait_ended(client, begin(client, json.dumps(request), endpoint="/v1/responses").id)
        assert ended.status == "completed"
        (answer,) = read(client, ended.output_file_id).values()
    body = answer["response"]["body"]
    assert body["output"][0]["content"][0]["text"] == "hello"
    assert answer["response"]["request_id"] == body["id"]
    assert ended.usage is not None
    assert ended.usage.input_tokens == body["usage"]["input_tokens"] > 0
    assert ended.usage.output_tokens == body["usage"]["output_tokens"] == 2


def test_every_line_goes_to_the_batch_s_endpoint(client: openai.OpenAI) -> None:
    ended = wait_ended(client, begin(client, f"{line('a')}\n{chat_line('b')}").id)
    assert ended.errors is not None
    assert ended.errors.data is not None
    assert [(error.line, error.code) for error in ended.errors.data] == [(2, "invalid_url")]


def test_requests_of_a_batch_are_offline(client: openai.OpenAI, daemon: Daemon) -> None:
    wait_ended(client, begin(client, line("one")).id)
    assert daemon.engine.wait_for(Submit)[-1].offline
    daemon.complete()
    assert not daemon.engine.wait_for(Submit)[-1].offline


def test_requests_of_batches_have_their_own_metric(client: openai.OpenAI, daemon: Daemon) -> None:
    def counted() -> list[float]:
        labels = [f'{{model_name="little",outcome="{kind}"}}' for kind in BATCH_OUTCOMES]
        names = [f"tdpipe_batch_requests_total{each}" for each in labels]
        figures = dict(text.rsplit(" ", 1) for text in daemon.get("/metrics").text.splitlines())
        return [float(figures[name]) for name in names]

    before = counted()
    wait_ended(client, begin(client, f"{line('good')}\n{line('odd', n=0)}").id)
    assert [after - b for after, b in zip(counted(), before, strict=True)] == [1, 1, 0]


def test_open_batches_are_counted(tmp_path: Path) -> None:
    def num_open() -> float:
        page = daemon.get("/metrics").text
        (value,) = re.findall(r"^tdpipe_open_batches{.*} (\S+)$", page, re.MULTILINE)
        return float(value)

    with serving(tmp_path) as daemon, official(daemon) as client:
        assert num_open() == 0
        ids = [begin(client, line("one")).id for _ in range(2)]
        daemon.wait_until(lambda: num_open() == 2)
        for batch_id in ids:
            client.batches.cancel(batch_id)
        daemon.wait_until(lambda: num_open() == 0)


def test_an_empty_list_of_batches_has_no_ids(client: openai.OpenAI, daemon: Daemon) -> None:
    batch = begin(client, line("one"))
    wait_ended(client, batch.id)
    oldest = client.batches.list(limit=100).data[-1].id
    nothing = daemon.get(f"/v1/batches?after={oldest}").json()
    assert nothing == {"object": "list", "data": [], "has_more": False}
    newest = daemon.get("/v1/batches?limit=1").json()
    assert newest["data"] == [daemon.get(f"/v1/batches/{batch.id}").json()]
    assert newest["first_id"] == newest["last_id"] == batch.id


def test_batches_are_listed_in_pages_newest_first(client: openai.OpenAI) -> None:
    made = [begin(client, line("one")).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == made[::-1]
    page = client.batches.list(limit=2, after=made[-1])
    assert [batch.id for batch in page.data] == [made[-2], made[-3]]
    assert page.has_more
    for batch_id in made:
        wait_ended(client, batch_id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "9999d"}, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, "metadata." + "k" * 64 + "..."),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
        ),
        ({"extra_body": {"completion_window": 5}}, "completion_window"),
    ],
)
def test_an_invalid_batch_is_refused_by_its_field(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        begin(client, line("one"), **fields)
    assert refused.value.param == param


def test_unknown_files_and_batches_are_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.batches.create(
            input_file_id="file-0", endpoint="/v1/completions", completion_window="24h"
        )
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No batch found"):
            ask("batch_0")
    with pytest.raises(openai.NotFoundError):
        client.batches.list(after="batch_0")


def test_answer_files_expire_as_requested(client: openai.OpenAI) -> None:
    batch = begin(
        client, line("one"), output_expires_after={"anchor": "created_at", "seconds": 3600}
    )
    output_file_id = wait_ended(client, batch.id).output_file_id
    assert output_file_id is not None
    file = client.files.retrieve(output_file_id)
    assert file.purpose == "batch_output"
    assert file.filename == f"{batch.id}_output.jsonl"
    assert file.expires_at == file.created_at + 3600


def test_a_cancelled_batch_aborts_open_requests_and_keeps_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        batch = begin(client, lines(3))
        first, *rest = daemon.engine.wait_for(Submit, 3)
        daemon.engine.send(
            generated(first.sequence_id, *TOKENIZER.encode("hello")),
            Finished(first.sequence_id, "length"),
        )
        daemon.wait_until(lambda: len(_output_of(tmp_path)) == 1)
        assert client.batches.cancel(batch.id).status == "cancelling"
        aborted = {abort.sequence_id for abort in daemon.engine.wait_for(Abort, 2)}
        assert aborted == {submit.sequence_id for submit in rest}
        ended = wait_for(client, batch.id, "cancelled")
        assert ended.request_counts is not None
        assert ended.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 0}
        assert len(read(client, ended.output_file_id)) == 1
        assert ended.cancelling_at is not None
        assert ended.cancelled_at is not None
        assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_that_has_ended_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = wait_ended(client, begin(client, line("one")).id)
    with pytest.raises(openai.ConflictError, match="status 'completed'"):
        client.batches.cancel(batch.id)


def test_an_expired_batch_lists_the_requests_that_did_not_run(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        batch = begin(client, lines(3), completion_window="1s")
        (first, *_) = daemon.engine.wait_for(Submit, 3)
        daemon.engine.send(
            generated(first.sequence_id, *TOKENIZER.encode("hello")),
            Finished(first.sequence_id, "length"),
        )
        ended = wait_for(client, batch.id, "expired")
        assert daemon.engine.wait_for(Abort, 2)
        answered = read(client, ended.output_file_id)
        errors = read(client, ended.error_file_id)
        assert len(answered) == 1
        assert answered.keys() | errors.keys() == {"r0", "r1", "r2"}
        assert all(error["response"] is None for error in errors.values())
        assert {error["error"]["code"] for error in errors.values()} == {"batch_expired"}
        assert ended.request_counts is not None
        assert ended.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}


def test_requests_wait_for_the_engine_to_start(tmp_path: Path) -> None:
    with (
        serving(tmp_path, saying("hello"), ready=False) as daemon,
        official(daemon) as client,
    ):
        batch = begin(client, lines(5))
        wait_for(client, batch.id, "in_progress")
        daemon.engine.ready, daemon.engine.stats = EngineReady(2, 40, 16, 64), stats()
        daemon.engine.introduce()
        ended = wait_ended(client, batch.id)
        assert ended.request_counts is not None
        assert ended.request_counts.to_dict() == {"total": 5, "completed": 5, "failed": 0}


def test_the_number_of_open_requests_is_limited_by_the_setting(tmp_path: Path) -> None:
    with serving(tmp_path, batch_concurrency=4) as daemon, official(daemon) as client:
        batch = begin(client, lines(10))
        submits = daemon.engine.wait_for(Submit, 4)
        for answered in range(10):
            assert len(daemon.engine.wait_for(Submit, min(10, 4 + answered))) <= 4 + answered
            submits = daemon.engine.wait_for(Submit, answered + 1)
            daemon.engine.send(Finished(submits[answered].sequence_id, "length"))
        assert wait_ended(client, batch.id).status == "completed"


def test_a_batch_starts_when_the_last_request_of_the_previous_one_is_open(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, batch_concurrency=4) as daemon, official(daemon) as client:
        older, younger = (begin(client, lines(3, seed=seed)) for seed in (1, 2))
        seeds = [submit.sampling.seed for submit in daemon.engine.wait_for(Submit, 4)]
        assert seeds == [1, 1, 1, 2]
        daemon.engine.script = saying("hello")
        for submit in daemon.engine.wait_for(Submit, 4):
            daemon.engine.send(Finished(submit.sequence_id, "length"))
        for batch in (older, younger):
            assert wait_ended(client, batch.id).status == "completed"


def test_the_file_of_an_open_batch_cannot_be_deleted(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, official(daemon) as client:
        batch = begin(client, lines(1))
        with pytest.raises(openai.ConflictError, match=batch.id):
            client.files.delete(batch.input_file_id)
        client.batches.cancel(batch.id)
        wait_for(client, batch.id, "cancelled")
        assert client.files.delete(batch.input_file_id).deleted


def test_the_document_has_the_clients_fields(daemon: Daemon) -> None:
    document = json.loads(daemon.get("/openapi.json").text)
    schemas = document["components"]["schemas"]
    for name, model in (("Batch", openai.types.Batch), ("FileObject", openai.types.FileObject)):
        assert schemas[name]["properties"].keys() == model.model_fields.keys()
    wanted = BatchCreateParams.__annotations__.keys()
    assert schemas["CreateBatch"]["properties"].keys() == wanted
    form = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]
    fields = {field.split("[")[0] for field in form["schema"]["properties"]}
    assert fields == FileCreateParams.__annotations__.keys()


def _output_of(folder: Path) -> list[str]:
    """The answers written so far."""
    return [
        text_line
        for path in folder.glob(f"data/batches/{MODEL}/files/*")
        for text_line in path.read_text().splitlines()
        if text_line.startswith('{"id":"batch_req_')
    ]
