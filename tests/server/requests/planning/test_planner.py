"""The planner: what a request asks of the engine, and what is too much to ask."""

import threading
from pathlib import Path

import pytest

from server.requests.planning.plan import pack
from server.text.tokenizer import Tokenizer
from tests.server.world import Daemon, saying, serving
from wire.messages import Submit

# 256 words of 128 tokens, each in two spellings: 1/4 MiB.
LONG_WORDS = [f"{i:0128}" for i in range(256)]


@pytest.mark.parametrize("n", [65, 128])
def test_lists_that_are_too_much_for_so_many_copies_are_refused(n: int, daemon: Daemon) -> None:
    response = daemon.complete(bad_words=LONG_WORDS, n=n)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "bad_words"
    assert error["message"] == f"'bad_words' is too large for {n} completions."


def test_the_copies_of_several_prompts_count_together(daemon: Daemon) -> None:
    response = daemon.complete(bad_words=LONG_WORDS, prompt=["hi"] * 20, n=4)
    assert response.status_code == 400
    assert "80 completions" in response.json()["error"]["message"]


def test_a_list_that_names_a_token_again_and_again_is_no_longer_for_it(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        assert daemon.complete(allowed_token_ids=[6, 5] * 50_000, n=64).status_code == 200
        for submit in daemon.engine.wait_for(Submit, 64):
            assert isinstance(submit, Submit)
            assert submit.sampling.allowed_token_ids == pack([5, 6])


@pytest.mark.parametrize(
    ("words", "thread"), [(LONG_WORDS, "long texts"), (LONG_WORDS[:15], "server")]
)
def test_long_lists_of_words_are_spelt_off_the_event_loop(
    words: list[str], thread: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    encode = Tokenizer.encode_plain

    def encode_plain(self: Tokenizer, text: str) -> list[int]:
        threads.add(threading.current_thread().name)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode_plain", encode_plain)
    with serving(tmp_path, saying("hello")) as daemon:
        assert daemon.complete(bad_words=words).status_code == 200
        (submit,) = daemon.engine.wait_for(Submit, 1)
    assert len(submit.sampling.bad_words) == 2 * len(words)
    assert threads == {thread}


def test_long_lists_are_taken_for_few(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        assert daemon.complete(bad_words=LONG_WORDS, n=2).status_code == 200
