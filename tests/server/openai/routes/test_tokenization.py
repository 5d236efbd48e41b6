"""The tokenizer's routes: vLLM's shapes, and no text that is held against others."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.text import tokenizer as tokenizer_module
from server.text.tokenizer import MAX_INLINE_CHARACTERS, Tokenizer
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, byte_level_tokenizer, serving


def post(daemon: Daemon, path: str, **body: Any) -> httpx.Response:
    return daemon.http.post(daemon.url + path, json=body)


def test_a_text_comes_back_from_its_tokens(daemon: Daemon) -> None:
    text = "hello world € 日本"
    reported = post(daemon, "/tokenize", model=MODEL, prompt=text).json()
    assert reported["tokens"] == TOKENIZER.encode(text)
    assert reported["count"] == len(reported["tokens"])
    assert reported["max_model_len"] == 64
    assert reported["token_strs"] is None
    back = post(daemon, "/detokenize", model=MODEL, tokens=reported["tokens"])
    assert back.json() == {"prompt": text}


def test_tokens_are_returned_as_the_vocabulary_has_them(daemon: Daemon) -> None:
    reported = post(daemon, "/tokenize", prompt="hello hello", return_token_strs=True).json()
    assert reported["token_strs"] == ["hello", "Ġ", "hello"] or "".join(reported["token_strs"]) == (
        "helloĠhello"
    )
    assert len(reported["token_strs"]) == reported["count"]


def test_special_tokens_are_left_out_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_level_tokenizer(begin=True))
    with serving(tmp_path, tokenizer=tokenizer) as daemon:
        with_begin = post(daemon, "/tokenize", prompt="hi").json()["tokens"]
        plain = post(daemon, "/tokenize", prompt="hi", add_special_tokens=False).json()["tokens"]
        assert with_begin == [1, *plain]
        text = post(daemon, "/detokenize", tokens=with_begin).json()["prompt"]
        assert text == "<|begin|>hi"


def test_an_empty_text_has_no_tokens(daemon: Daemon) -> None:
    assert post(daemon, "/tokenize", prompt="").json()["count"] == 0
    assert post(daemon, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": 7}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [99999]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
    ],
)
def test_a_wrong_request_names_the_field(
    daemon: Daemon, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    response = post(daemon, path, **body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


def test_a_long_text_blocks_no_other_request_and_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_module, "NUM_THREADS", 1)
    monkeypatch.setattr(tokenizer_module, "MAX_WAITING_TEXTS", 0)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Tokenizer):
        def encode(self, text: str) -> list[int]:
            begun.set()
            assert go_on.wait(10)
            return super().encode(text)

    long_text = "x" * (MAX_INLINE_CHARACTERS + 1)
    reported: list[httpx.Response] = []
    with serving(tmp_path, tokenizer=Slow(byte_level_tokenizer())) as daemon:
        first = threading.Thread(
            target=lambda: reported.append(
                httpx.post(f"{daemon.url}/tokenize", json={"prompt": long_text})
            )
        )
        first.start()
        assert begun.wait(10)
        assert daemon.get("/v1/models").status_code == 200, "while it is being tokenized"
        refused = [post(daemon, "/tokenize", prompt=long_text), daemon.complete(prompt=long_text)]
        go_on.set()
        first.join()
        assert post(daemon, "/tokenize", prompt=long_text).status_code == 200
    for response in refused:
        assert response.status_code == 429
        assert response.headers["retry-after"]
    assert reported[0].json()["count"] > 0


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_conversation_is_tokenized_as_the_template_puts_it(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    messages = [{"role": "user", "content": "hi"}]
    with serving(tmp_path, chat_template=str(file)) as daemon:
        reported = post(daemon, "/tokenize", messages=messages).json()
        bare = post(daemon, "/tokenize", messages=messages, add_generation_prompt=False).json()
        both = post(
            daemon,
            "/tokenize",
            messages=messages,
            continue_final_message=True,
            add_generation_prompt=True,
        )
    assert reported["tokens"] == TOKENIZER.encode("[user]hi[assistant]")
    assert bare["tokens"] == TOKENIZER.encode("[user]hi")
    assert both.status_code == 400


def test_without_a_template_a_conversation_is_refused(daemon: Daemon) -> None:
    response = post(daemon, "/tokenize", messages=[{"role": "user", "content": "hi"}])
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"


def test_the_tokenizers_configuration_is_served_if_a_setting_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(tmp_path / "a") as daemon:
        assert daemon.get("/tokenizer_info").status_code == 404
        assert "/tokenizer_info" not in daemon.get("/openapi.json").json()["paths"]
    tokenizer = chatty(CHATML)
    with serving(
        tmp_path / "b", tokenizer=tokenizer, enable_tokenizer_info_endpoint=True
    ) as daemon:
        info = daemon.get("/tokenizer_info").json()
    assert info["chat_template"] == CHATML
    assert info["tokenizer_class"]
    assert info["eos_token"]
    assert not any(name.endswith(("_file", "_path")) for name in info)
