"""POST /v1/completions: what the engine is asked, and the answer's golden body."""

from array import array
from pathlib import Path
from typing import Any

import pytest

from server.requests.engine_client import EngineClient
from server.requests.planning.plan import pack
from server.text.tokenizer import Tokenizer
from tests.server.templates import CHATML, chatty
from tests.server.world import (
    BEGIN,
    MAX_MODEL_LEN,
    MODEL,
    TOKENIZER,
    Daemon,
    byte_level_tokenizer,
    events,
    generated,
    saying,
    serving,
    silent,
)
from wire.messages import Finished, Sampling, Submit, ToServer

HI = TOKENIZER.encode("hi")


def submits(daemon: Daemon, **body: Any) -> list[Submit]:
    """What the engine received for one request."""
    before = len(daemon.engine.wait_for(Submit, 0))
    assert daemon.complete(**body).status_code == 200
    return daemon.engine.wait_for(Submit, before + 1)[before:]


def prompt_of(submit: Submit) -> list[int]:
    return array("i", submit.prompt_token_ids).tolist()


def texts(daemon: Daemon, **body: Any) -> list[tuple[int, str, str]]:
    choices = daemon.complete(**body).json()["choices"]
    return [(choice["index"], choice["text"], choice["finish_reason"]) for choice in choices]


def test_the_answer_has_openais_shape(daemon: Daemon) -> None:
    response = daemon.complete()
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": "hello world €",
                "logprobs": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "token_ids": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 7,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_openais_defaults_reach_the_engine(daemon: Daemon) -> None:
    (submit,) = submits(daemon)
    assert prompt_of(submit) == HI
    assert (submit.max_tokens, submit.min_tokens, submit.stop_token_ids) == (16, 0, (0,))
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)


def test_every_setting_reaches_the_engine(daemon: Daemon) -> None:
    (submit,) = submits(
        daemon,
        max_tokens=5,
        min_tokens=2,
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.25,
        seed=11,
        ignore_eos=True,
        stop_token_ids=[9, 7],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={"5": 2, "6": -3.5},
        allowed_token_ids=[5, 6],
        bad_words=["lo"],
        logprobs=2,
        prompt_logprobs=1,
    )
    assert (submit.max_tokens, submit.min_tokens, submit.stop_token_ids) == (5, 2, (7, 9))
    lo, space_lo = TOKENIZER.encode("lo"), TOKENIZER.encode(" lo")
    assert submit.sampling == Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.25,
        seed=11,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        bias_ids=pack([5, 6]),
        biases=array("f", [2, -3.5]).tobytes(),
        allowed_token_ids=pack([5, 6]),
        bad_words=submit.sampling.bad_words,
        num_logprobs=2,
        num_prompt_logprobs=1,
    )
    assert set(submit.sampling.bad_words) == {pack(lo), pack(space_lo)}


def test_an_own_stop_token_is_one_beside_the_models(daemon: Daemon) -> None:
    (submit,) = submits(daemon, stop_token_ids=[7, 0])
    assert submit.stop_token_ids == (0, 7)


@pytest.mark.parametrize("fields", [{"service_tier": "flex"}, {"priority": 1}])
def test_flexible_work_has_low_priority(daemon: Daemon, fields: dict[str, Any]) -> None:
    assert not submits(daemon)[0].offline
    assert not submits(daemon, service_tier="default", priority=-1)[0].offline
    assert submits(daemon, **fields)[0].offline


def test_a_prompt_is_truncated_from_its_beginning(daemon: Daemon) -> None:
    long = [9] * 99 + [5]
    (submit,) = submits(daemon, prompt=long, truncate_prompt_tokens=3)
    assert prompt_of(submit) == [9, 9, 5]
    (submit,) = submits(daemon, prompt=long, truncate_prompt_tokens=-1)
    assert prompt_of(submit) == long[-MAX_MODEL_LEN + 1 :]
    (submit,) = submits(daemon, prompt=long, truncate_prompt_tokens=-1, max_tokens=10)
    assert prompt_of(submit) == long[-MAX_MODEL_LEN + 10 :]
    echoed = daemon.complete(prompt="the quick", truncate_prompt_tokens=2, echo=True).json()
    last = TOKENIZER.decode(TOKENIZER.encode("the quick")[-2:])
    assert echoed["choices"][0]["text"] == last + "hello world €"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", [HI]),
        (["hi", "the"], [HI, TOKENIZER.encode("the")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_a_prompt_may_be_text_or_tokens_one_or_many(
    daemon: Daemon, prompt: Any, expected: list[list[int]]
) -> None:
    assert [prompt_of(submit) for submit in submits(daemon, prompt=prompt)] == expected


def test_each_of_n_choices_draws_with_a_seed_of_its_own(daemon: Daemon) -> None:
    seeds = [s.sampling.seed for s in submits(daemon, prompt=["hi", "the"], n=2, seed=2**64 - 1)]
    assert seeds == [2**64 - 1, 0, 2**64 - 1, 0]
    drawn = [s.sampling.seed for s in submits(daemon, prompt=["hi", "hi"], n=2)]
    assert len(set(drawn)) == 4


def test_choices_of_many_prompts_are_in_order(tmp_path: Path) -> None:
    def repeat_prompt_and_seed(submit: Submit) -> list[ToServer]:
        seed = TOKENIZER.encode(str(submit.sampling.seed))
        tokens = [*prompt_of(submit), *seed]
        return [generated(submit.sequence_id, *tokens), Finished(submit.sequence_id, "length")]

    with serving(tmp_path, repeat_prompt_and_seed) as daemon:
        expected = [(0, "hi3"), (1, "hi4"), (2, "the3"), (3, "the4")]
        found = texts(daemon, prompt=["hi", "the"], n=2, seed=3)
        assert [choice[:2] for choice in found] == expected
        usage = daemon.complete(prompt=["hi", "the"], n=2, seed=3).json()["usage"]
        num_prompt_tokens = len(HI) + len(TOKENIZER.encode("the"))
        assert usage["prompt_tokens"] == num_prompt_tokens
        assert usage["completion_tokens"] == 2 * num_prompt_tokens + 4


def test_the_default_length_is_cut_to_the_longest_sequence(daemon: Daemon) -> None:
    lengths = [s.max_tokens for s in submits(daemon, prompt=[[9] * 60, [9] * 63, [9]])]
    assert lengths == [4, 1, 16]


def test_a_prompt_and_answer_may_fill_the_context_exactly(daemon: Daemon) -> None:
    assert daemon.complete(prompt=[9] * 60, max_tokens=4).status_code == 200
    assert MAX_MODEL_LEN == 64


def test_echo_puts_the_prompt_first(daemon: Daemon) -> None:
    assert texts(daemon, echo=True) == [(0, "hihello world €", "stop")]
    found = texts(daemon, echo=True, prompt=[HI, TOKENIZER.encode("the")], max_tokens=1)
    assert found == [(0, "hihello", "length"), (1, "thehello", "length")]


def test_no_token_asked_for_needs_no_engine(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon:
        assert texts(daemon, max_tokens=0) == [(0, "", "length")]
        found = texts(daemon, prompt=["hi", "the"], max_tokens=0, echo=True)
        assert found == [(0, "hi", "length"), (1, "the", "length")]
        assert daemon.complete(max_tokens=0).json()["usage"]["completion_tokens"] == 0
        assert not daemon.engine.wait_for(Submit, 0)


@pytest.mark.parametrize("stop", ["world", ["xyz", "wor", "lo world"]])
def test_a_stop_string_ends_the_text_before_it(daemon: Daemon, stop: str | list[str]) -> None:
    assert texts(daemon, stop=stop) == [(0, "hello ", "stop")]


def ending(daemon: Daemon, **body: Any) -> tuple[str, str | int | None]:
    (choice,) = daemon.complete(**body).json()["choices"]
    return choice["text"], choice["stop_reason"]


def test_the_stop_string_that_ended_a_choice_is_returned(daemon: Daemon) -> None:
    assert ending(daemon) == ("hello world €", None)
    assert ending(daemon, stop=["world", "xyz"]) == ("hello ", "world")
    included = {"stop": "world", "include_stop_str_in_output": True}
    assert ending(daemon, **included) == ("hello world", "world")


def test_the_stop_token_that_ended_a_choice_is_returned(tmp_path: Path) -> None:
    world = TOKENIZER.encode(" world")

    def stopping(submit: Submit) -> list[ToServer]:
        return [generated(submit.sequence_id, *HI, *world), Finished(submit.sequence_id, "stop")]

    own: dict[str, Any] = {"stop_token_ids": world[-1:]}
    before = TOKENIZER.decode([*HI, *world[:-1]])
    with serving(tmp_path, stopping) as daemon:
        assert ending(daemon, **own) == (before, world[-1])
        assert ending(daemon, **own, include_stop_str_in_output=True) == ("hi world", world[-1])


def test_special_tokens_are_shown_if_asked_for(tmp_path: Path) -> None:
    def begin_in_the_middle(submit: Submit) -> list[ToServer]:
        return [generated(submit.sequence_id, *HI, 1, *HI), Finished(submit.sequence_id, "length")]

    with serving(tmp_path, begin_in_the_middle) as daemon:
        assert texts(daemon)[0][1] == "hihi"
        assert texts(daemon, skip_special_tokens=False)[0][1] == f"hi{BEGIN}hi"


def test_a_stop_string_before_min_tokens_is_text(daemon: Daemon) -> None:
    assert texts(daemon, stop="hello", min_tokens=1)[0][1] == ""
    assert texts(daemon, stop="hello", min_tokens=2) == [(0, "hello world €", "stop")]
    assert texts(daemon, stop="hello world", min_tokens=2) == [(0, "hello", "stop")]


def test_what_resembled_a_stop_string_is_not_lost(daemon: Daemon) -> None:
    assert texts(daemon, stop="€uro") == [(0, "hello world €", "stop")]


def test_an_end_token_that_is_ignored_has_no_text(tmp_path: Path) -> None:
    def end_in_the_middle(submit: Submit) -> list[ToServer]:
        tokens = (*HI, 0, *HI)
        return [generated(submit.sequence_id, *tokens), Finished(submit.sequence_id, "length")]

    with serving(tmp_path, end_in_the_middle) as daemon:
        assert texts(daemon, ignore_eos=True) == [(0, "hihi", "length")]


def test_an_end_token_has_no_text_even_where_it_is_a_common_one(tmp_path: Path) -> None:
    newline = TOKENIZER.encode("\n")[0]
    tokenizer = Tokenizer(byte_level_tokenizer(), end_token_ids={"config.json": (newline,)})
    with serving(tmp_path, saying("hello"), tokenizer=tokenizer) as daemon:
        response = daemon.complete().json()
        assert response["choices"][0]["text"] == "hello"
        assert response["usage"]["completion_tokens"] == len(TOKENIZER.encode("hello")) + 1


def test_half_a_character_at_the_end_is_shown_as_broken(daemon: Daemon) -> None:
    assert texts(daemon, max_tokens=5) == [(0, "hello world \ufffd", "length")]


def test_a_full_queue_is_429(tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": "hi", "n": 2, "stream": True}
    with (
        serving(tmp_path, silent, max_num_queued_reqs=2) as daemon,
        daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body),
    ):
        first, second = daemon.engine.wait_for(Submit, 2)
        response = daemon.complete()
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        # A first token frees a place in the queue.
        daemon.engine.script = saying("hello")
        daemon.engine.send(generated(first.sequence_id, *HI))
        daemon.wait_until(lambda: daemon.client.num_queued == 1)
        assert daemon.complete().status_code == 200
        daemon.engine.send(Finished(second.sequence_id, "length"))
        daemon.wait_until(lambda: daemon.client.num_queued == 0)


def test_more_than_the_queue_holds_is_429_that_no_retry_helps(tmp_path: Path) -> None:
    with serving(tmp_path, silent, max_num_queued_reqs=2) as daemon:
        response = daemon.complete(n=3)
        assert response.status_code == 429
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
        assert not daemon.engine.wait_for(Submit, 0)


def test_before_the_engine_is_ready_it_is_503(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello"), ready=False) as daemon:
        response = daemon.complete()
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["type"] == "server_error"


class Losing(Tokenizer):
    """Loses the engine while it reads a prompt."""

    client: EngineClient

    def encode(self, text: str) -> list[int]:
        self.client.ready = None
        return super().encode(text)

    encode_plain = encode


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("completions", {"prompt": "hi"}, 503),
        ("completions", {"prompt": "hi", "max_tokens": 5}, 503),
        ("completions", {"prompt": "hi", "max_tokens": 0, "echo": True}, 200),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, 503),
    ],
)
def test_an_engine_that_is_lost_while_the_prompt_is_read_is_503(
    tmp_path: Path, path: str, body: dict[str, Any], status: int
) -> None:
    tokenizer: Any = chatty(CHATML)
    with serving(tmp_path, saying("hello"), tokenizer=tokenizer) as daemon:
        tokenizer.__class__, tokenizer.client = Losing, daemon.client
        url = f"{daemon.url}/v1/{path}"
        assert daemon.http.post(url, json={"model": MODEL} | body).status_code == status


@pytest.mark.parametrize("stop", [BEGIN, f"hello{BEGIN}", f"{BEGIN}\nfoo"])
@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_may_contain_a_special_token(
    stop: str, skips: bool, include: bool, tmp_path: Path
) -> None:
    fields = {
        "stop": stop,
        "skip_special_tokens": skips,
        "include_stop_str_in_output": include,
        "max_tokens": 60,
    }
    told = f"say hello{BEGIN}\nfoo bar"
    with serving(tmp_path, saying(told)) as daemon:
        shown = told.partition(stop)[0] + stop * include
        assert texts(daemon, **fields) == [(0, shown, "stop")]
        assert ending(daemon, **fields) == (shown, stop)
        parts = [event["choices"][0] for event in events(daemon.complete(stream=True, **fields))]
    assert "".join(part["text"] for part in parts) == shown
    assert (parts[-1]["finish_reason"], parts[-1]["stop_reason"]) == ("stop", stop)


@pytest.mark.parametrize("begin", [False, True], ids=["BOS is known", "BOS is added"])
def test_an_empty_text_is_the_beginning_of_a_text(tmp_path: Path, begin: bool) -> None:
    tokenizer = Tokenizer(byte_level_tokenizer(begin=begin))
    with serving(tmp_path, saying("hello"), tokenizer=tokenizer) as daemon:
        assert [prompt_of(submit) for submit in submits(daemon, prompt="")] == [[1]]
        assert prompt_of(submits(daemon, prompt=["", "hi"])[0]) == [1]
        assert daemon.complete(prompt="", echo=True).json()["choices"][0]["text"] == "hello"
        assert daemon.complete(prompt=[]).status_code == 400
        assert daemon.complete(prompt=[[]]).status_code == 400


def test_an_empty_text_is_refused_where_texts_have_no_beginning(tmp_path: Path) -> None:
    wrapped = byte_level_tokenizer()
    wrapped.bos_token = None
    with serving(tmp_path, tokenizer=Tokenizer(wrapped)) as daemon:
        for prompt in ("", ["hi", ""]):
            response = daemon.complete(prompt=prompt)
            assert response.status_code == 400
            assert "must not be empty" in response.json()["error"]["message"]


def test_text_prompts_may_be_without_special_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level_tokenizer(begin=True))
    with serving(tmp_path, saying("hello"), tokenizer=tokenizer) as daemon:
        assert prompt_of(submits(daemon)[0]) == [1, *HI]
        assert prompt_of(submits(daemon, add_special_tokens=False)[0]) == HI


def test_a_top_p_of_0_is_greedy(daemon: Daemon) -> None:
    (submit,) = submits(daemon, top_p=0, temperature=1.5)
    assert (submit.sampling.temperature, submit.sampling.top_p) == (0.0, 0.0)
    (submit,) = submits(daemon, top_p=0.1, temperature=1.5)
    assert submit.sampling.temperature == 1.5


def test_a_prompt_may_be_cut_at_either_side(daemon: Daemon) -> None:
    asks: dict[str, Any] = {"prompt": [5, 6, 7, 8], "truncate_prompt_tokens": 3}
    assert prompt_of(submits(daemon, **asks)[0]) == [6, 7, 8]
    assert prompt_of(submits(daemon, **asks, truncation_side="left")[0]) == [6, 7, 8]
    assert prompt_of(submits(daemon, **asks, truncation_side="right")[0]) == [5, 6, 7]
    assert daemon.complete(**asks, truncation_side="middle").status_code == 400
