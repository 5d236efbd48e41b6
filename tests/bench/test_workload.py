"""The calls of workloads: text or token ids, of lengths that the server's model can hold."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.call import Call
from bench.filler_text import FillerText
from bench.options import make_parser
from bench.workload import (
    calls_of_dataset,
    calls_of_workload,
    make_requests,
    probe_fields,
    with_arrivals,
)
from simulator.workloads.make_workload import make_workload
from simulator.workloads.request import WorkloadError


def options(*arguments: str) -> Any:
    return make_parser().parse_args(arguments)


def calls(*arguments: str, max_model_len: int | None = None) -> tuple[list[Call], int]:
    parsed = options(*arguments)
    filler = FillerText(tokens_per_word=2.0)
    return calls_of_workload(make_requests(parsed, 0), parsed, filler, max_model_len)


def test_random_prompts_are_words_unless_token_ids_are_asked_for() -> None:
    made, _ = calls("--workload", "fixed:3:10:5")
    assert [len(call.fields["prompt"].split()) for call in made] == [5, 5, 5]
    made, _ = calls("--workload", "fixed:3:10:5", "--prompts", "token-ids")
    assert [call.fields["prompt"] for call in made] == [
        request.prompt for request in make_workload("fixed:3:10:5")
    ]


def test_a_chat_gets_the_words_as_a_message() -> None:
    made, _ = calls("--workload", "fixed:1:10:5", "--endpoint", "/v1/chat/completions")
    (message,) = made[0].fields["messages"]
    assert (message["role"], len(message["content"].split())) == ("user", 5)


def test_requests_that_the_model_cannot_hold_are_shortened_and_counted() -> None:
    made, num_shortened = calls("--workload", "fixed:4:900:200", max_model_len=1000)
    assert num_shortened == 4
    assert {(len(c.fields["prompt"].split()), c.fields["max_tokens"]) for c in made} == {(375, 200)}
    made, num_shortened = calls("--workload", "fixed:4:100:2000", max_model_len=1000)
    assert num_shortened == 4
    assert {(len(c.fields["prompt"].split()), c.fields["max_tokens"]) for c in made} == {(50, 475)}
    assert calls("--workload", "fixed:4:100:20", max_model_len=1000)[1] == 0


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 100),
        (["--num-prompts", "7"], 7),
        (["--workload", "alpaca", "--num-prompts", "7"], 7),
        (["--workload", "sharegpt:9"], 9),
        (["--workload", "sharegpt:9", "--num-prompts", "7"], 7),
        (["--workload", "fixed:9:2:2", "--num-prompts", "7"], 7),
    ],
)
def test_the_number_of_requests_may_be_in_either_option(arguments: list[str], count: int) -> None:
    assert len(make_requests(options(*arguments), 0)) == count


def test_lengths_are_forced_unless_the_server_does_not_know_how() -> None:
    forced, _ = calls("--workload", "fixed:1:4:4")
    assert forced[0].fields["ignore_eos"] is True
    natural, _ = calls("--workload", "fixed:1:4:4", "--no-ignore-eos")
    assert "ignore_eos" not in natural[0].fields
    assert probe_fields(options()) == {"ignore_eos": True}
    assert probe_fields(options("--no-ignore-eos")) == {}


def test_further_fields_are_in_every_body_and_in_the_probes() -> None:
    extra = ("--extra-body", '{"top_p": 0.5}', "--temperature", "0.7", "--model", "m")
    made, _ = calls("--workload", "fixed:1:4:4", *extra)
    expected = {"top_p": 0.5, "temperature": 0.7, "model": "m"}
    assert expected.items() <= made[0].fields.items()
    assert expected.items() <= probe_fields(options(*extra)).items()


def test_a_dataset_is_read_with_the_options(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in "abc"))
    parsed = options("--dataset", str(path), "--num-prompts", "2", "--output-len", "9")
    assert [dict(call.fields) for call in calls_of_dataset(parsed)] == [
        {"prompt": "a", "max_tokens": 9},
        {"prompt": "b", "max_tokens": 9},
    ]
    assert probe_fields(parsed) == {}


def test_arrivals_follow_the_rate_and_do_not_replace_those_of_a_file() -> None:
    made, _ = calls("--workload", "fixed:50:2:2")
    times = [call.arrival_s for call in with_arrivals(made, 10.0, 1.0, seed=0)]
    assert times == sorted(times)  # type: ignore[type-var]
    assert 2.0 < (times[-1] or 0.0) < 12.0
    assert with_arrivals(made, None, 1.0, seed=0) == made
    with pytest.raises(WorkloadError, match="leave out --request-rate"):
        with_arrivals([Call("/v1/completions", arrival_s=1.0)], 10.0, 1.0, seed=0)


def test_conversations_are_only_for_the_simulator() -> None:
    with pytest.raises(WorkloadError, match="only for the simulator"):
        make_requests(options("--workload", "chat:2:2:4:4"), 0)
