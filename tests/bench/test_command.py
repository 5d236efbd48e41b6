"""`tdpipe bench` from its command line, against a scripted server."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import command as load
from bench.options import make_parser
from simulator.workloads.make_workload import make_workload
from tests.bench.world import DONE, Answer, Script, chunk, piece, serving, usage, whole_answer


def good(_: dict[str, Any]) -> Answer:
    return Answer(whole_answer("a", "b", "c"))


def run(script: Script, *arguments: str, has_metrics: bool = True) -> tuple[int, list[Any]]:
    """One load against the script; its exit code and the bodies that the server received."""
    with serving(script, has_metrics=has_metrics) as server:
        code = load.main([server.url, *arguments])
        return code, server.bodies


def test_every_request_of_the_workload_is_asked_as_it_is() -> None:
    code, bodies = run(good, "--workload", "fixed:5:4:3", "--prompts", "token-ids")
    assert code == 0
    asked = sorted((tuple(body["prompt"]), body["max_tokens"]) for body in bodies)
    assert asked == sorted((r.prompt, r.max_tokens) for r in make_workload("fixed:5:4:3"))
    for body in bodies:
        assert body["model"] == "little"
        assert body["stream_options"] == {"include_usage": True}
        assert (body["stream"], body["ignore_eos"], body["temperature"]) == (True, True, 0.0)


def test_any_server_gets_words_of_the_right_length_by_its_own_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, bodies = run(good, "--workload", "fixed:2:24:3")
    assert code == 0
    assert [len(body["prompt"].split()) for body in bodies] == [10, 10]  # 2 each, 4 around
    assert "words of 2.00 tokens" in capsys.readouterr().out


def test_a_chat_is_measured_by_its_chunks(tmp_path: Path) -> None:
    def script(_: dict[str, Any]) -> Answer:
        head = chunk(role="assistant", content="")
        return Answer([head, chunk(content="a"), chunk("stop", content="b"), usage(9, 2), DONE])

    out = tmp_path / "out.json"
    with serving(script) as server:
        arguments = ["--workload", "fixed:2:10:2", "--endpoint", "/v1/chat/completions"]
        assert load.main([server.url, *arguments, "--output", f"{out}"]) == 0
        assert server.paths == ["/v1/chat/completions"] * 2
    summary = json.loads(out.read_bytes())["summary"]
    assert (summary["num_output_tokens"], summary["num_pieces"]) == (4, 4)
    assert summary["tokens_counted_by"] == "usage"


def test_a_dataset_s_lines_go_where_they_say(tmp_path: Path) -> None:
    dataset = tmp_path / "own.jsonl"
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}]}
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"prompt": "hello", "max_tokens": 5, "top_p": 0.5},
    ]
    dataset.write_text("\n".join(map(json.dumps, lines)))
    with serving(good) as server:
        code = load.main([server.url, "--dataset-path", f"{dataset}", "--max-concurrency", "1"])
        assert code == 0
        assert server.paths == ["/v1/chat/completions", "/v1/completions"]
        chat, completion = server.bodies
    assert (chat["model"], chat["messages"]) == ("other", body["messages"])
    assert completion["model"] == "little"
    assert (completion["prompt"], completion["max_tokens"], completion["top_p"]) == (
        "hello",
        5,
        0.5,
    )


def test_a_key_and_headers_are_sent_and_in_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--api-key", "sesame-1", "--header", "x-team=blue", "--output", f"{out}"]
    with serving(good) as server:
        assert load.main([server.url, "--workload", "fixed:1:4:4", *arguments]) == 0
        assert all("authorization: Bearer sesame-1\r\n" in head for head in server.heads)
        assert all("x-team: blue\r\n" in head for head in server.heads)
    assert "sesame-1" not in out.read_text() + capsys.readouterr().out


def test_the_key_is_that_of_the_daemon_s_or_of_openai_s_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TDPIPE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert make_parser().parse_args([]).address.headers == ("authorization: Bearer theirs",)
    monkeypatch.setenv("TDPIPE_API_KEY", "ours,another")
    assert make_parser().parse_args([]).address.headers == ("authorization: Bearer ours",)


def test_warm_up_requests_are_not_measured_and_not_repeated(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    code, bodies = run(
        good, "--workload", "fixed:3:40:3", "--num-warmups", "2", "--output", f"{out}"
    )
    assert (code, len(bodies)) == (0, 5)
    assert len({body["prompt"] for body in bodies}) == 5
    assert json.loads(out.read_bytes())["summary"]["num_requests"] == 3


def test_goodput_is_reported_for_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    targets = ("--goodput", "ttft:60000", "tpot:0.000001")
    code, _ = run(good, "--workload", "fixed:4:4:3", *targets)
    assert code == 0
    printed = capsys.readouterr().out
    assert "0.0% of all requests met the targets" in printed
    assert "100.0% TTFT <= 60000 ms" in printed


def test_a_server_without_usage_is_counted_by_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    script = Answer([piece("a"), piece("b", "stop"), DONE])
    code, _ = run(lambda _: script, "--workload", "fixed:2:4:3")
    assert code == 0
    assert "4 output, counted by pieces" in capsys.readouterr().out


def test_natural_ends_are_asked_in_openai_s_own_fields() -> None:
    _, bodies = run(good, "--workload", "demo:2")
    fields = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert {frozenset(body) for body in bodies} == {frozenset(fields)}


def test_the_files_hold_everything(tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    load_options = ("--workload", "fixed:5:4:3", "--request-rate", "inf", "--seed", "7")
    run(good, *load_options, "--output", f"{out}", "--plot", f"{picture}")
    report = json.loads(out.read_bytes())
    assert report["ending"] == "finished"
    assert report["settings"]["workload"] == "fixed:5:4:3"
    assert (report["settings"]["seed"], report["settings"]["request_rate"]) == (7, "inf")
    assert report["server"] == {"model": "little", "max_model_len": 64, "version": "1.2.3"}
    assert {"cpu", "num_cores"} <= set(report["machine"])
    assert {"python", "torch"} <= set(report["versions"])
    assert (report["summary"]["num_ok"], report["summary"]["num_output_tokens"]) == (5, 15)
    assert report["daemon"]["stages"][0]["stage"] == 0
    assert len(report["requests"]) == 5
    for request in report["requests"]:
        assert request["error"] is None
        assert len(request["itl_s"]) == 2
        assert None not in (request["ttft_s"], request["tpot_s"], request["e2e_s"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    run(good, *load_options, "--output", f"{out}", "--plot", f"{picture}")
    assert json.loads(out.read_bytes())["started_at"] >= report["started_at"]


def test_a_file_of_something_else_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "out.json"
    precious.write_text("precious")
    code, bodies = run(good, "--workload", "fixed:1:1:1", "--output", f"{precious}")
    assert (code, bodies, precious.read_text()) == (2, [], "precious")
    assert "another command wrote it" in capsys.readouterr().err


def test_the_table_has_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    run(good, "--workload", "fixed:5:4:3")
    table = capsys.readouterr().out
    assert "5 ok, 0 failed" in table
    for word in ("TTFT", "TPOT", "ITL", "E2E", "p99", "output tokens/s", "bubble ratio"):
        assert word in table
    assert "exactly right" not in table


def test_a_server_of_another_make_is_measured_without_the_daemon_s_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _ = run(good, "--workload", "fixed:1:1:1", has_metrics=False)
    assert code == 0
    assert "bubble ratio" not in capsys.readouterr().out


def test_right_answers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {request.prompt: request.answer for request in make_workload("demo:8")}
    spoilt = next(iter(tasks))

    def script(body: dict[str, Any]) -> Answer:
        answer = tasks[body["prompt"]] or ""
        return Answer(whole_answer(*answer, "" if body["prompt"] != spoilt else "!"))

    code, _ = run(script, "--workload", "demo:8")
    assert code == 0
    assert "7 of 8 exactly right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer([b'{"error": {"message": "full"}}'], status=429), "HTTP 429: full"),
        (Answer([piece("a")]), "no whole answer"),
        (Answer([piece("a")], has_end=False), "the connection was closed"),
    ],
)
def test_a_failed_request_is_reported_and_fails_the_run(
    answer: Answer, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [Answer(whole_answer("a")), answer, answer]
    code, _ = run(lambda _: answers.pop(0), "--workload", "fixed:3:1:1", "--max-concurrency", "1")
    assert code == 1
    printed = capsys.readouterr().out
    assert "1 ok, 2 failed" in printed
    assert f"2 x {error}" in printed


def test_ctrl_c_ends_the_run_with_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = _interrupting_at(3)
    out = tmp_path / "out.json"
    workload = ("--workload", "fixed:5:1:1", "--max-concurrency", "1")
    code, bodies = run(script, *workload, "--output", f"{out}")
    assert (code, len(bodies)) == (130, 3)
    assert "2 ok, 3 failed (interrupted)" in capsys.readouterr().out
    assert json.loads(out.read_bytes())["ending"] == "interrupted"


def test_ctrl_c_during_the_warm_up_ends_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = ("--max-concurrency", "1", "--num-warmups", "4")
    code, bodies = run(_interrupting_at(2), "--workload", "fixed:5:1:1", *limits)
    assert (code, len(bodies)) == (130, 2)
    assert "TTFT" not in capsys.readouterr().out


def _interrupting_at(number: int) -> Callable[[dict[str, Any]], Answer]:
    """Answers, but at this request it presses Ctrl-C and holds the connection meanwhile."""
    num_asked = 0

    def script(_: dict[str, Any]) -> Answer:
        nonlocal num_asked
        num_asked += 1
        if num_asked == number:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return good({})

    return script


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workload", "other:5"], "unknown workload"),
        (["--workload", "fixed:1:1:1", "--model", "big"], "no model 'big'"),
        (["--workload", "fixed:1:1:1", "--request-rate", "0"], "not above 0"),
        (["--workload", "fixed:1:1:1", "--request-rate", "x"], "--request-rate"),
        (["--workload", "fixed:1:1:1", "--scale", "inf"], "not finite"),
        (["--workload", "fixed:1:1:1", "--max-concurrency", "0"], "whole number"),
        (["--workload", "fixed:1:1:1", "--output", "/no/such/out.json"], "/no/such/out.json"),
        (["--workload", "fixed:1:1:1", "--plot", "out.txt"], "must end in one of .png"),
        (["--workload", "fixed:1:1:1", "--base-url", "nowhere"], "not like http"),
        (["--workload", "fixed:1:1:1", "--dataset-path", "x"], "either --workload or"),
        (["--dataset-path", "/no/such/file"], "cannot read"),
        (["--goodput", "ttft=5"], "not like ttft:500"),
        (["--extra-body", "[]"], "not a JSON object"),
        (["--metric-percentiles", "50,101"], "from 0 to 100"),
        (["--api-key", "a\nb"], "printable ASCII"),
        (["--header", "x"], "not like NAME=VALUE"),
        (["--prompts", "token-ids", "--endpoint", "/v1/chat/completions"], "token-ids needs"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_before_anything_is_asked(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(good) as server:
        code = _code_of([server.url, *arguments])
        assert (code, server.bodies) == (2, [])
    *_, line = capsys.readouterr().err.splitlines()
    assert "error: " in line
    assert reason in line


def _code_of(arguments: list[str]) -> object:
    try:
        return load.main(arguments)
    except SystemExit as end:
        return end.code


def test_a_missing_daemon_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert load.main([url, "--workload", "demo:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tdpipe: error: no server at {url}: ")
    assert error.count("\n") == 1
