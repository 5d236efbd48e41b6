"""Token ids beyond the embedding: refused with the token's name wherever a request may name one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from server.text.tokenizer import Tokenizer
from tests.server.templates import CHATML, QWEN
from tests.server.world import MODEL, Daemon, byte_level_tokenizer, saying, serving, stats
from wire.messages import EngineReady

ROWS = 282
PLAIN, SPECIAL = "[PAD]", "<image_soft_token>"


def wide_tokenizer(template: str = CHATML) -> Tokenizer:
    """A tokenizer with tokens that the model has no rows for."""
    tokenizer = byte_level_tokenizer()
    assert len(tokenizer) == ROWS
    tokenizer.add_tokens([AddedToken(PLAIN, special=False), AddedToken(SPECIAL, special=True)])
    tokenizer.chat_template = template
    return Tokenizer(tokenizer, vocab_size=ROWS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving(tmp_path_factory.mktemp("wide"), saying("hi"), tokenizer=wide_tokenizer()) as it:
        yield it


def chat(daemon: Daemon, **body: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]} | body
    return daemon.http.post(f"{daemon.url}/v1/chat/completions", json=body)


def check_refused(response: Any, param: str, token: str, token_id: int) -> None:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"] == (
        f"'{param}' contains the token '{token}' (id {token_id}), which is out of vocabulary: "
        f"the model has only {ROWS} token ids (0 to {ROWS - 1})."
    )
    assert (error["param"], error["code"]) == (param, "invalid_value")


@pytest.mark.parametrize("token", [PLAIN, SPECIAL])
@pytest.mark.parametrize("text", ["{}", "one {} two", "{}{}"])
@pytest.mark.parametrize("more", [{}, {"echo": True, "max_tokens": 0}, {"prompt_logprobs": 0}])
def test_a_text_with_such_a_token_is_refused(
    token: str, text: str, more: dict[str, Any], wide: Daemon
) -> None:
    token_id = ROWS + [PLAIN, SPECIAL].index(token)
    prompt = text.replace("{}", token)
    check_refused(wide.complete(prompt=prompt, **more), "prompt", token, token_id)
    check_refused(wide.complete(prompt=["hello", prompt], **more), "prompt", token, token_id)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_message_with_such_a_token_is_refused(role: str, wide: Daemon) -> None:
    messages = [{"role": role, "content": f"a {SPECIAL} b"}, {"role": "user", "content": "hi"}]
    check_refused(chat(wide, messages=messages), "messages", SPECIAL, ROWS + 1)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("prompt", [5, ROWS]),
        ("prompt", [[5], [6, ROWS]]),
        ("allowed_token_ids", [5, ROWS]),
        ("stop_token_ids", [5, ROWS]),
        ("logit_bias", {"5": 1.0, str(ROWS): -1.0}),
        ("bad_words", ["hello", PLAIN]),
        ("bad_words", [f"hello {PLAIN}"]),
    ],
)
def test_a_field_with_such_a_token_is_refused(param: str, value: Any, wide: Daemon) -> None:
    check_refused(wide.complete(**{param: value}), param, PLAIN, ROWS)
    if param != "prompt":
        check_refused(chat(wide, **{param: value}), param, PLAIN, ROWS)


def test_a_stop_string_may_be_the_text_of_such_a_token(wide: Daemon) -> None:
    assert wide.complete(stop=[PLAIN, SPECIAL]).status_code == 200


def test_a_text_may_contain_part_of_such_a_token(wide: Daemon) -> None:
    assert wide.complete(prompt=f"{SPECIAL[:-1]} {PLAIN[1:]}").status_code == 200


def test_a_token_that_is_cut_off_does_not_matter(wide: Daemon) -> None:
    assert wide.complete(prompt=f"{PLAIN} hello", truncate_prompt_tokens=1).status_code == 200


def test_ids_that_the_tokenizer_has_can_be_decoded(wide: Daemon) -> None:
    post = wide.http.post
    tokens = post(f"{wide.url}/tokenize", json={"prompt": f"a{SPECIAL}"}).json()["tokens"]
    assert tokens[-1] == ROWS + 1
    assert (
        post(f"{wide.url}/detokenize", json={"tokens": tokens}).json()["prompt"].endswith(SPECIAL)
    )
    response = post(f"{wide.url}/detokenize", json={"tokens": [ROWS + 2]})
    assert response.status_code == 400
    assert (
        "token id 284, which is out of vocabulary: the model has only 284"
        in response.json()["error"]["message"]
    )


def test_a_grammar_that_needs_such_a_token_is_refused(wide: Daemon) -> None:
    grammar = {"grammar": f'start: "a" <[{ROWS}]>'}
    response = wide.complete(structured_outputs=grammar)
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert f"needs the token '{PLAIN}' (id {ROWS}), and the model has only {ROWS} token" in message


@pytest.mark.parametrize("rows", [ROWS, ROWS + 2])
def test_a_forced_call_needs_the_rows_of_its_tags(rows: int, tmp_path: Path) -> None:
    wrapper = byte_level_tokenizer()
    wrapper.add_tokens([AddedToken(tag, special=True) for tag in ("<tool_call>", "</tool_call>")])
    wrapper.chat_template = QWEN
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    tokenizer = Tokenizer(wrapper, vocab_size=rows)
    with serving(tmp_path, saying("hi"), tokenizer=tokenizer) as daemon:
        response = chat(daemon, tools=[tool], tool_choice="required", truncate_prompt_tokens=9)
    if rows == ROWS:
        assert response.status_code == 400
        error = response.json()["error"]["message"]
        assert f"needs the token '<tool_call>' (id {ROWS}), and the model has only {ROWS}" in error
    else:
        assert response.status_code == 200, response.text


def test_the_rows_that_the_stages_report_count(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hi"), ready=False, tokenizer=wide_tokenizer()) as daemon:
        engine = daemon.engine
        engine.ready = EngineReady(2, 40, 16, 64, vocab_size=ROWS + 1)
        engine.send(stats(), engine.ready)
        daemon.wait_until(lambda: daemon.client.is_ready)
        assert daemon.complete(prompt=PLAIN).status_code == 200
        response = daemon.complete(prompt=SPECIAL)
        assert response.status_code == 400
        assert f"only {ROWS + 1} token ids" in response.json()["error"]["message"]
