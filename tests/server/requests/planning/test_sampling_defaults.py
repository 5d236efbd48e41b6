"""Sampling defaults: the model's generation_config.json, for requests that leave fields out."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from configs.schema.model import ModelConfig
from server.requests.planning.sampling_defaults import (
    SamplingDefaults,
    SamplingDefaultsError,
    load_sampling_defaults,
)
from server.text.tokenizer import TokenizerError, load_tokenizer
from tests.server.openai.chatting import submitted as chat_submitted
from tests.server.templates import CHATML, chatty
from tests.server.world import Daemon, save_model, saying, serving
from wire.messages import Submit

SUGGESTED = {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "min_p": 0.05,
    "repetition_penalty": 1.05,
}


def write(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def load(folder: Path, generation_config: str = "auto") -> SamplingDefaults:
    return load_sampling_defaults(
        ModelConfig(model=str(folder), generation_config=generation_config)
    )


def submitted(daemon: Daemon, **body: Any) -> Submit:
    before = len(daemon.engine.wait_for(Submit, 0))
    response = daemon.complete(**body)
    assert response.status_code == 200, response.text
    (submit,) = daemon.engine.wait_for(Submit, before + 1)[before:]
    assert isinstance(submit, Submit)
    return submit


def sampling_of(submit: Submit) -> dict[str, float]:
    return {name: getattr(submit.sampling, name) for name in SUGGESTED}


def test_the_defaults_of_the_model_are_read_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, **SUGGESTED, max_new_tokens=2048, do_sample=False, eos_token_id=3, top_h=1)
    with caplog.at_level(logging.INFO, "tdpipe"):
        assert load(tmp_path) == SamplingDefaults(SUGGESTED, 2048)
    assert caplog.messages == [
        "sampling defaults: temperature 0.7, top_p 0.8, top_k 20, min_p 0.05, repetition_penalty "
        "1.05, at most 2048 output tokens (by generation_config.json; --generation-config vllm "
        "takes the API's)"
    ]


@pytest.mark.parametrize("values", [{}, {"do_sample": False}, {"temperature": None}])
def test_a_file_without_defaults_leaves_those_of_the_api(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tdpipe"):
        assert load(write(tmp_path, **values)) == SamplingDefaults()
    assert caplog.messages == [
        "sampling defaults: those of the API (generation_config.json has none)"
    ]


def test_vllm_ignores_the_file_except_for_its_end_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(save_model(tmp_path), temperature=7, eos_token_id=9)
    with caplog.at_level(logging.INFO, "tdpipe"):
        assert load(tmp_path, "vllm") == SamplingDefaults()
    assert caplog.messages == ["sampling defaults: those of the API (--generation-config vllm)"]
    config = ModelConfig(model=str(tmp_path), generation_config="vllm")
    assert load_tokenizer(config).eos_token_ids[0] == 9


def test_a_folder_replaces_the_models_file(tmp_path: Path) -> None:
    write(save_model(tmp_path / "model"), temperature=0.5, eos_token_id=9)
    other = write(tmp_path / "other", top_k=5, eos_token_id=8)
    assert load(tmp_path / "model", str(other)) == SamplingDefaults({"top_k": 5})
    config = ModelConfig(model=str(tmp_path / "model"), generation_config=str(other))
    assert load_tokenizer(config).eos_token_ids[0] == 8


@pytest.mark.parametrize("named", ["nowhere", "."])
def test_a_folder_without_the_file_is_named(named: str, tmp_path: Path) -> None:
    folder = str(tmp_path / named)
    words = f"^--generation-config is auto, vllm or a folder with a .*, and {folder} is none"
    with pytest.raises(TokenizerError, match=words):
        load(save_model(tmp_path / "model"), folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", 2.5), ("temperature", -1), ("temperature", "hot"), ("top_p", -1)),
        *(("top_p", 1.5), ("top_k", -2), ("top_k", 0.5), ("min_p", 2), ("repetition_penalty", 0)),
        *(("max_new_tokens", 0), ("max_new_tokens", [5]), ("temperature", {})),
    ],
)
def test_a_value_that_no_request_may_have_is_one_line(
    name: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(SamplingDefaultsError) as raised:
        load(write(tmp_path, **{name: value}))
    words = str(raised.value)
    assert words.startswith(f"generation_config.json: {name} {value!r}: ")
    assert "\n" not in words


def test_requests_override_the_defaults_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "model", **SUGGESTED)
    with serving(tmp_path, saying("hi")) as daemon:
        assert sampling_of(submitted(daemon)) == SUGGESTED
        assert sampling_of(submitted(daemon, temperature=None)) == SUGGESTED
        own = {"temperature": 1.0, "top_k": 0}
        assert sampling_of(submitted(daemon, **own)) == SUGGESTED | own
        assert sampling_of(submitted(daemon, temperature=0, top_p=1)) == (
            SUGGESTED | {"temperature": 0.0, "top_p": 1.0}
        )


def test_vllm_takes_the_defaults_of_the_api(tmp_path: Path) -> None:
    write(tmp_path / "model", **SUGGESTED, max_new_tokens=2)
    with serving(tmp_path, saying("hi"), generation_config="vllm") as daemon:
        submit = submitted(daemon)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sampling_of(submit) == neutral | {"temperature": 1.0}
    assert submit.max_tokens == 16


def test_the_limit_of_tokens_holds_for_every_request(tmp_path: Path) -> None:
    write(tmp_path / "model", max_new_tokens=9)
    tokenizer = chatty(CHATML, "<|im_start|>", "<|im_end|>")
    with serving(tmp_path, saying("hi"), tokenizer=tokenizer) as daemon:
        assert submitted(daemon).max_tokens == 9
        assert submitted(daemon, max_tokens=12, min_tokens=12).max_tokens == 9
        assert submitted(daemon, max_tokens=5).max_tokens == 5
        short = {"truncate_prompt_tokens": 4}
        assert chat_submitted(daemon, **short).max_tokens == 9
        assert chat_submitted(daemon, **short, max_completion_tokens=5).max_tokens == 5


def test_chats_have_the_defaults_too(tmp_path: Path) -> None:
    write(tmp_path / "model", **SUGGESTED)
    with serving(tmp_path, saying("hi"), tokenizer=chatty(CHATML)) as daemon:
        submit = chat_submitted(daemon, truncate_prompt_tokens=4, top_p=0.5)
    assert sampling_of(submit) == SUGGESTED | {"top_p": 0.5}
