"""Log-probabilities of a completion: of its tokens, of an echoed prompt, whole and streamed."""

import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.openai.rendering.completion import CompletionRendering
from server.requests import generation, output_coalescing
from tests.server.world import MAX_MODEL_LEN, TOKENIZER, Daemon, events, generated, serving
from wire.messages import Finished, Generated, Logprobs, Scored, Submit, ToServer

HI, HELLO = TOKENIZER.encode("the"), TOKENIZER.encode("hello world")


def logprobs(indices: Sequence[int], tops: Sequence[tuple[int, float]]) -> Logprobs:
    """The same likeliest tokens at each position; the token that came has -3 - its index."""
    count = len(indices)
    return Logprobs(
        indices=array("i", indices).tobytes(),
        chosen=array("f", [-3.0 - index for index in indices]).tobytes(),
        ranks=array("i", [4] * count).tobytes(),
        num_tops=array("i", [len(tops)] * count).tobytes(),
        top_ids=array("i", [id_ for id_, _ in tops] * count).tobytes(),
        tops=array("f", [logprob for _, logprob in tops] * count).tobytes(),
    )


def scripted(submit: Submit) -> list[ToServer]:
    """A script: the prompt's scores in two parts if asked for, then "hello world" step by step."""
    sampling, id_ = submit.sampling, submit.sequence_id
    likeliest = [(5, -0.5), (6, -1.5)]
    out: list[ToServer] = []
    num_prompt_tokens = len(submit.prompt_token_ids) // 4
    if sampling.num_prompt_logprobs >= 0:
        tops = likeliest[: sampling.num_prompt_logprobs]
        parts = (range(1, 2), range(2, 99))
        ranges = (range(num_prompt_tokens)[part.start : part.stop] for part in parts)
        out += [Scored(id_, logprobs(positions, tops)) for positions in ranges if positions]
    for token_id in HELLO[: submit.max_tokens]:
        message = generated(id_, token_id)
        if sampling.num_logprobs >= 0:
            reported = logprobs([0], likeliest[: sampling.num_logprobs])
            message = Generated(message.sequence_ids, message.token_ids, reported)
        out.append(message)
    return [*out, Finished(id_, "length")]


@pytest.fixture(params=["inline", "in threads", "token by token"])
def daemon(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "in threads":
        monkeypatch.setattr(generation, "MAX_INLINE_LOGPROBS", 0)
    if request.param == "token by token":
        monkeypatch.setattr(output_coalescing, "MANY_TOKENS", 1)
    with serving(tmp_path, scripted) as daemon:
        yield daemon


def text_of(token_id: int) -> str:
    return TOKENIZER.pieces.text(token_id)


def whole(daemon: Daemon, **body: Any) -> Any:
    response = daemon.complete(prompt="the quick", max_tokens=len(HELLO), **body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_each_token_has_its_log_probability_and_the_likeliest(daemon: Daemon) -> None:
    found = whole(daemon, logprobs=2)["logprobs"]
    texts = [text_of(id_) for id_ in HELLO]
    assert found["tokens"] == texts
    assert "".join(texts) == "hello world"
    assert found["token_logprobs"] == [-3.0] * len(HELLO)
    assert found["top_logprobs"] == [{text_of(5): -0.5, text_of(6): -1.5, t: -3.0} for t in texts]
    assert found["text_offset"] == [len("".join(texts[:i])) for i in range(len(texts))]


def test_no_likeliest_tokens_leave_the_one_that_came(daemon: Daemon) -> None:
    found = whole(daemon, logprobs=0)["logprobs"]
    assert found["top_logprobs"] == [{text_of(id_): -3.0} for id_ in HELLO]


def test_an_echoed_prompt_is_scored_but_for_its_first_token(daemon: Daemon) -> None:
    prompt = TOKENIZER.encode("the quick")
    choice = whole(daemon, logprobs=1, echo=True)
    found = choice["logprobs"]
    assert choice["text"] == "the quickhello world"
    assert found["tokens"] == [text_of(id_) for id_ in (*prompt, *HELLO)]
    scores = [-3.0 - position for position in range(1, len(prompt))]
    assert found["token_logprobs"] == [None, *scores, *[-3.0] * len(HELLO)]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][1] == {text_of(5): -0.5, text_of(prompt[1]): -4.0}
    assert found["text_offset"][len(prompt)] == len("the quick")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_may_be_scored_and_nothing_generated(daemon: Daemon, stream: bool) -> None:
    body = {"prompt": ["the quick", "the"], "max_tokens": 0, "echo": True, "logprobs": 0}
    response = daemon.complete(**body, stream=stream)
    reported = events(response) if stream else [response.json()]
    prompts = [TOKENIZER.encode("the quick"), TOKENIZER.encode("the")]
    for index, text in enumerate(["the quick", "the"]):
        parts = [c for event in reported for c in event["choices"] if c["index"] == index]
        assert "".join(part["text"] for part in parts) == text
        assert parts[-1]["finish_reason"] == "length"
        scores = [score for part in parts for score in part["logprobs"]["token_logprobs"]]
        assert len(scores) == len(prompts[index])
    assert daemon.engine.wait_for(Submit)[0].max_tokens == 1


def test_a_stream_returns_the_same_as_a_whole_answer(daemon: Daemon) -> None:
    body = {"logprobs": 1, "echo": True, "return_token_ids": True, "prompt_logprobs": 1}
    expected = whole(daemon, **body)
    response = daemon.complete(prompt="the quick", max_tokens=len(HELLO), stream=True, n=2, **body)
    chunks = [c for event in events(response) for c in event["choices"] if c["index"] == 1]
    assert "".join(chunk["text"] for chunk in chunks) == expected["text"]
    for key, column in expected["logprobs"].items():
        assert [part for chunk in chunks for part in chunk["logprobs"][key]] == column
    assert [id_ for chunk in chunks for id_ in chunk["token_ids"]] == expected["token_ids"]
    assert chunks[0]["prompt_token_ids"] == expected["prompt_token_ids"]
    assert chunks[0]["prompt_logprobs"] == expected["prompt_logprobs"]


def test_vllms_prompt_logprobs_name_tokens_by_id(daemon: Daemon) -> None:
    prompt = TOKENIZER.encode("the quick")
    choice = whole(daemon, prompt_logprobs=2)
    first, second, *_ = choice["prompt_logprobs"]
    assert first is None
    assert len(choice["prompt_logprobs"]) == len(prompt)
    assert second == {
        "5": {"logprob": -0.5, "rank": 1, "decoded_token": text_of(5)},
        "6": {"logprob": -1.5, "rank": 2, "decoded_token": text_of(6)},
        str(prompt[1]): {"logprob": -4.0, "rank": 4, "decoded_token": text_of(prompt[1])},
    }
    assert choice["logprobs"] is None


def test_token_ids_are_returned_if_asked_for(daemon: Daemon) -> None:
    choice = whole(daemon, return_token_ids=True)
    assert choice["token_ids"] == HELLO
    assert choice["prompt_token_ids"] == TOKENIZER.encode("the quick")
    assert whole(daemon)["token_ids"] is None


def test_what_cannot_happen_has_a_number_that_json_knows(tmp_path: Path) -> None:
    def impossible(submit: Submit) -> list[ToServer]:
        message = generated(submit.sequence_id, HELLO[0])
        reported = logprobs([0], [(5, float("-inf"))])
        return [
            Generated(message.sequence_ids, message.token_ids, reported),
            Finished(submit.sequence_id, "length"),
        ]

    with serving(tmp_path, impossible) as daemon:
        (choice,) = daemon.complete(logprobs=1, max_tokens=1).json()["choices"]
        assert choice["logprobs"]["top_logprobs"][0][text_of(5)] == -9999.0


def test_offsets_count_characters_and_parts_of_one_are_bytes(tmp_path: Path) -> None:
    euro = TOKENIZER.encode_plain("€")
    assert len(euro) == 3

    def split_character(submit: Submit) -> list[ToServer]:
        out: list[ToServer] = []
        for token_id in (*HELLO[:1], *euro, *HELLO[:1]):
            message = generated(submit.sequence_id, token_id)
            reported = logprobs([0], [(id_, -1.0) for id_ in euro])
            out.append(Generated(message.sequence_ids, message.token_ids, reported))
        return [*out, Finished(submit.sequence_id, "length")]

    hello = text_of(HELLO[0])
    with serving(tmp_path, split_character) as daemon:
        (choice,) = daemon.complete(prompt="the €", echo=False, logprobs=3).json()["choices"]
        found = choice["logprobs"]
        assert choice["text"] == f"{hello}€{hello}"
        parts = ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
        assert found["tokens"] == [hello, *parts, hello]
        begin = len(hello)
        assert found["text_offset"] == [0, begin, begin, begin, begin + 1]
        assert set(found["top_logprobs"][0]) == {*parts, hello}
        (choice,) = daemon.complete(logprobs=0, return_tokens_as_token_ids=True).json()["choices"]
        assert choice["logprobs"]["tokens"][0] == f"token_id:{HELLO[0]}"


def test_an_echo_returns_what_it_asks_for(daemon: Daemon) -> None:
    choice = whole(daemon, echo=True, logprobs=2, prompt_logprobs=1)
    assert len(choice["logprobs"]["top_logprobs"][1]) == 3
    assert len(choice["prompt_logprobs"][1]) == 2
    choice = whole(daemon, echo=True, logprobs=1, prompt_logprobs=2)
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2
    assert len(choice["prompt_logprobs"][1]) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_asked_for_returns_the_prompts_tokens(daemon: Daemon, stream: bool) -> None:
    body = {"prompt": "the quick", "max_tokens": 0, "return_token_ids": True, "echo": True}
    response = daemon.complete(**body, stream=stream)
    (choice,) = (events(response)[0] if stream else response.json())["choices"]
    assert choice["text"] == "the quick"
    assert choice["prompt_token_ids"] == TOKENIZER.encode("the quick")
    assert choice["token_ids"] == []


def test_scores_that_arrive_again_after_a_loss_are_taken_once(tmp_path: Path) -> None:
    def stuttering(submit: Submit) -> list[ToServer]:
        reported = scripted(submit)
        return [*(message for message in reported if isinstance(message, Scored)), *reported]

    with serving(tmp_path, scripted) as daemon:
        expected = whole(daemon, prompt_logprobs=1)["prompt_logprobs"]
        daemon.engine.script = stuttering
        assert whole(daemon, prompt_logprobs=1)["prompt_logprobs"] == expected


@pytest.mark.parametrize("limit", [0, 10**6])
@pytest.mark.parametrize("stream", [False, True])
def test_many_logprobs_are_rendered_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stream: bool, limit: int
) -> None:
    threads: set[str] = set()
    render = CompletionRendering._of_prompt

    def of_prompt(self: CompletionRendering, piece: generation.Piece) -> dict[str, Any]:
        threads.add(threading.current_thread().name)
        return render(self, piece)

    monkeypatch.setattr(CompletionRendering, "_of_prompt", of_prompt)
    monkeypatch.setattr(generation, "MAX_INLINE_LOGPROBS", limit)
    with serving(tmp_path, scripted) as daemon:
        whole_or_not = {"stream": stream, "prompt_logprobs": 2, "max_tokens": 2}
        assert daemon.complete(prompt="the quick", **whole_or_not).status_code == 200
    assert threads == {"long answers" if limit == 0 else "server"}


@pytest.mark.parametrize("asks", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 1}])
def test_a_prompt_that_fills_the_context_can_be_scored(
    daemon: Daemon, asks: dict[str, Any]
) -> None:
    full = [9] * MAX_MODEL_LEN
    response = daemon.complete(prompt=full, max_tokens=0, **asks)
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 0
    for wrong in ({"prompt": [*full, 9], "max_tokens": 0}, {"prompt": full, "max_tokens": 1}):
        error = daemon.complete(**wrong, **asks).json()["error"]
        assert error["code"] == "context_length_exceeded"
    cut = daemon.complete(prompt=[*full, 8], max_tokens=0, truncate_prompt_tokens=-1, **asks)
    assert cut.json()["usage"]["prompt_tokens"] == MAX_MODEL_LEN


def test_minus_one_asks_for_all_tokens_within_the_limit(tmp_path: Path) -> None:
    def asked(daemon: Daemon, **body: Any) -> tuple[int, int]:
        assert daemon.complete(max_tokens=1, **body).status_code == 200
        sampling = daemon.engine.wait_for(Submit)[-1].sampling
        return sampling.num_logprobs, sampling.num_prompt_logprobs

    num_ids = TOKENIZER.num_ids
    for name in "abc":
        (tmp_path / name).mkdir()
    with serving(tmp_path / "a", scripted, max_logprobs=-1) as daemon:
        assert asked(daemon, logprobs=-1) == (num_ids, -1)
        assert asked(daemon, prompt_logprobs=-1) == (-1, num_ids)
        assert asked(daemon, logprobs=200) == (200, -1)
        found = daemon.complete(max_tokens=1, logprobs=-1).json()["choices"][0]["logprobs"]
        assert len(found["top_logprobs"][0]) == 3
    with serving(tmp_path / "b", scripted, max_logprobs=num_ids) as daemon:
        assert asked(daemon, logprobs=-1) == (num_ids, -1)
    with serving(tmp_path / "c", scripted, max_logprobs=num_ids - 1) as daemon:
        assert daemon.complete(logprobs=-1).json()["error"]["param"] == "logprobs"
        assert daemon.complete(prompt_logprobs=-1).json()["error"]["param"] == "prompt_logprobs"
        assert daemon.complete(logprobs=-2).status_code == 400


def test_log_probabilities_of_named_tokens_can_be_requested(daemon: Daemon) -> None:
    assert daemon.complete(logprobs=0, logprob_token_ids=[9, 5, 9]).status_code == 200
    sampling = daemon.engine.wait_for(Submit)[-1].sampling
    assert array("i", sampling.logprob_token_ids).tolist() == [9, 5]
    assert sampling.num_logprobs == 2
    for wrong, words in (
        ({"logprob_token_ids": [5]}, "only allowed when 'logprobs'"),
        ({"logprobs": 1, "logprob_token_ids": [9999]}, "token id 9999"),
        ({"logprobs": 1, "logprob_token_ids": list(range(21))}, "more than 20"),
    ):
        response = daemon.complete(**wrong)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "logprob_token_ids"
        assert words in response.json()["error"]["message"]
