"""The load client from its command line, against a scripted server."""

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
from simulator.workloads.make_workload import make_workload
from tests.bench.world import Answer, Script, piece, serving, whole_answer


def good(_: dict[str, Any]) -> Answer:
    return Answer(whole_answer("a", "b", "c"))


def run(script: Script, *arguments: str, has_metrics: bool = True) -> tuple[int, list[Any]]:
    """One load against the script; its exit code and the bodies that the server received."""
    with serving(script, has_metrics=has_metrics) as server:
        code = load.main(["--url", server.url, *arguments])
        return code, server.bodies


def test_every_request_of_the_workload_is_asked_as_it_is(tmp_path: Path) -> None:
    code, bodies = run(good, "--workload", "fixed:5:4:3", "--json", f"{tmp_path}/out.json")
    assert code == 0
    asked = sorted((tuple(body["prompt"]), body["max_tokens"]) for body in bodies)
    assert asked == sorted((r.prompt, r.max_tokens) for r in make_workload("fixed:5:4:3"))
    for body in bodies:
        assert body["model"] == "little"
        assert body["stream_options"] == {"include_usage": True}
        assert (body["stream"], body["ignore_eos"], body["temperature"]) == (True, True, 0.0)


def test_natural_ends_are_asked_in_openai_s_own_fields() -> None:
    _, bodies = run(good, "--workload", "demo:2")
    fields = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert {frozenset(body) for body in bodies} == {frozenset(fields)}


def test_the_json_holds_everything(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run(
        good,
        "--workload",
        "fixed:5:4:3",
        "--request-rate",
        "inf",
        "--seed",
        "7",
        "--json",
        f"{out}",
    )
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
    code, bodies = run(script, *workload, "--json", f"{out}")
    assert (code, len(bodies)) == (130, 3)
    assert "2 ok, 3 failed (interrupted)" in capsys.readouterr().out
    assert json.loads(out.read_bytes())["ending"] == "interrupted"


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
        (["--workload", "fixed:1:1:1", "--json", "/no/such/out.json"], "folder that exists"),
        (["--workload", "fixed:1:1:1", "--url", "nowhere"], "not like http"),
        ([], "--workload"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_before_anything_is_asked(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(good) as server:
        code = _code_of(["--url", server.url, *arguments])
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
        assert load.main(["--url", url, "--workload", "demo:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no daemon at {url}: ")
    assert error.count("\n") == 1
