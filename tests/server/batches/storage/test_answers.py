"""Answer files: complete lines are kept and torn lines are cut off, at every byte."""

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from server.batches.storage.answer_writer import AnswerWriter
from server.batches.storage.answers import (
    Answers,
    DamagedAnswersError,
    LineAnswer,
    answered,
    check_is_answers,
    not_run,
)
from server.openai.fields.batch import OutputLine
from tests.server.batches.world import by_custom_id

BODY = (
    b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7},"text":"\\n\xe2\x82\xac"}'
)


def success(custom_id: str) -> LineAnswer:
    """An answer of seven tokens."""
    return answered(custom_id, 200, "cmpl-1", BODY)


def failure(custom_id: str) -> LineAnswer:
    """The answer of a refused request."""
    return answered(custom_id, 400, "req_1", b'{"error":{"message":"no"}}')


def write(output: Path, errors: Path, *answers: LineAnswer) -> None:
    """Write answers, and leave the files as after a kill."""
    opened = Answers(output, errors)
    opened.append(answers)
    opened.close()


def test_successes_and_failures_go_to_their_files_in_openais_shape(tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    write(output, errors, success("a"), failure("b"), not_run("c", "batch_expired", "too late"))
    (good,) = by_custom_id(output.read_text()).values()
    assert good.keys() == {"id", "custom_id", "response", "error"}
    assert good["response"] == {
        "status_code": 200,
        "request_id": "cmpl-1",
        "body": json.loads(BODY),
    }
    bad = by_custom_id(errors.read_text())
    assert bad["b"]["response"]["status_code"] == 400
    assert bad["b"]["error"] is None
    assert bad["c"]["response"] is None
    assert bad["c"]["error"] == {"code": "batch_expired", "message": "too late"}


@pytest.mark.parametrize("answer", [success("a"), failure("b"), not_run("c", "batch_expired", "")])
def test_the_api_knows_every_field_of_a_line(answer: LineAnswer) -> None:
    assert OutputLine.model_validate_json(answer.line).model_dump() == json.loads(answer.line)


def test_tokens_of_reasoning_are_summed_up(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    details = {"completion_tokens_details": {"reasoning_tokens": 2}}
    body = json.dumps({"usage": usage | details}).encode()
    answers = Answers(tmp_path / "output", tmp_path / "errors")
    answers.append(
        [answered(custom_id, 200, "cmpl-1", body) for custom_id in "ab"] + [success("c")]
    )
    assert answers.usage().output_tokens_details.reasoning_tokens == 4
    assert answers.usage().output_tokens == 12
    answers.close()


def test_a_body_with_line_breaks_is_still_one_line(tmp_path: Path) -> None:
    body = json.dumps({"text": "a\nb"}, indent=2).encode()
    write(tmp_path / "o", tmp_path / "e", answered("a", 200, "cmpl-1", body))
    (line,) = (tmp_path / "o").read_text().splitlines()
    assert json.loads(line)["response"]["body"] == {"text": "a\nb"}


def test_a_cut_at_any_byte_of_the_last_line_loses_only_that_line(tmp_path: Path) -> None:
    whole, path, errors = tmp_path / "whole", tmp_path / "output", tmp_path / "errors"
    write(whole, errors, *(success(f"r{i}") for i in range(3)))
    content = whole.read_bytes()
    last = len(content) - len(content.splitlines(keepends=True)[-1])
    for size in range(last, len(content) + 1):
        path.write_bytes(content[:size])
        opened = Answers(path, errors)
        answered_ids = opened.custom_ids.sorted()
        num_whole = 3 if size == len(content) else 2
        assert [f"r{i}" in answered_ids for i in range(3)] == [True, True, num_whole == 3]
        assert opened.counts(3).completed == num_whole
        assert opened.usage().total_tokens == 7 * num_whole
        opened.append([success(f"r{i}") for i in range(num_whole, 4)])
        opened.close()
        assert by_custom_id(path.read_text()).keys() == {"r0", "r1", "r2", "r3"}


@pytest.mark.parametrize("hole", [b"\0" * 4096, b"\0" * 10 + b"\n", b"{}\n", b"nonsense\n"])
def test_leftovers_of_a_power_failure_are_cut_off(hole: bytes, tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    write(output, errors, success("a"))
    good = output.read_bytes()
    output.write_bytes(good + hole + good.replace(b'"a"', b'"b"'))
    opened = Answers(output, errors)
    opened.append([success("b")])
    opened.close()
    assert by_custom_id(output.read_text()).keys() == {"a", "b"}


def test_opening_is_idempotent(tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    write(output, errors, success("a"), failure("b"))
    before = output.read_bytes(), errors.read_bytes()
    write(output, errors)
    assert (output.read_bytes(), errors.read_bytes()) == before


def test_both_kinds_may_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    write(path, path, success("a"), failure("b"))
    opened = Answers(path, path)
    counts = opened.counts(5)
    opened.close()
    assert (counts.completed, counts.failed, counts.total) == (1, 1, 5)
    assert by_custom_id(path.read_text()).keys() == {"a", "b"}


def test_a_write_that_fails_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    opened = Answers(output, errors)
    opened.append([success("a")])
    write_, calls = os.write, []

    def full_disk(file: int, data: bytes) -> int:
        calls.append(file)
        if len(calls) == 1:
            return write_(file, bytes(data[:20]))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        with pytest.raises(OSError, match="No space"):
            opened.append([success("b")])
    opened.append([success("c")])
    opened.close()
    assert by_custom_id(output.read_text()).keys() == {"a", "c"}


async def _write_in_groups(output: Path, errors: Path) -> None:
    async with AnswerWriter(output, errors) as writer:
        await asyncio.gather(*(writer.add(success(f"r{i}")) for i in range(100)))
        assert (await writer.progress(100)).counts.completed == 100
        cancelled = [asyncio.create_task(writer.add(success(f"s{i}"))) for i in range(50)]
        await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()


def test_answers_of_cancelled_callers_are_written_once(tmp_path: Path) -> None:
    output, errors = tmp_path / "output", tmp_path / "errors"
    asyncio.run(_write_in_groups(output, errors))
    wanted = {f"r{i}" for i in range(100)} | {f"s{i}" for i in range(50)}
    assert by_custom_id(output.read_text()).keys() == wanted


def test_reported_tokens_are_those_of_the_reported_answers(tmp_path: Path) -> None:
    async def work() -> None:
        async with AnswerWriter(tmp_path / "output", tmp_path / "errors") as writer:
            reporting = [
                asyncio.create_task(each)
                for i in range(50)
                for each in (writer.add(success(f"r{i}")), writer.progress(50))
            ]
            reported = [each for each in await asyncio.gather(*reporting) if each is not None]
            assert [p.usage.total_tokens for p in reported] == [
                7 * p.counts.completed for p in reported
            ]
            assert (await writer.progress(50)).counts.completed == 50

    asyncio.run(work())


def test_cancelling_waits_until_the_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open, closed = threading.Event(), list[Answers]()

    class SlowAnswers(Answers):
        def __init__(self, output: Path, errors: Path) -> None:
            assert may_open.wait(10)
            super().__init__(output, errors)

        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr("server.batches.storage.answer_writer.Answers", SlowAnswers)

    async def work() -> None:
        writer = AnswerWriter(tmp_path / "output", tmp_path / "errors")
        entering = asyncio.create_task(writer.__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
            assert not entering.done()
        may_open.set()
        with pytest.raises(asyncio.CancelledError):
            await entering

    asyncio.run(work())
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        (b"", True),
        (b'{"id":"ba', True),
        (success("a").line, True),
        (success("a").line + success("b").line[:40], True),
        (b"hello\n", False),
        (b"\0\0\0", False),
        (success("a").line + b"hello\n" + success("b").line, False),
        (success("a").line[:40] + b"\n" + success("b").line, False),
    ],
)
def test_a_file_with_other_contents_is_refused(
    content: bytes, is_ours: bool, tmp_path: Path
) -> None:
    path = tmp_path / "output"
    path.write_bytes(content)
    if is_ours:
        check_is_answers(path)
    else:
        with pytest.raises(DamagedAnswersError):
            check_is_answers(path)
    assert path.read_bytes() == content
