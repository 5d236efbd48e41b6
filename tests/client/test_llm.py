"""The offline interface without an engine: what is refused before anything is started."""

import threading
from typing import Any

import pytest
from pydantic import ValidationError

import tdpipe
from client.llm import LLM
from client.sampling_params import SamplingParams
from configs.loader import ConfigError


def test_it_is_imported_from_the_public_module() -> None:
    assert tdpipe.LLM is LLM
    assert tdpipe.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="LLLM"):
        _ = tdpipe.LLLM  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pipeline_parallel_sise": 2}, "pipeline_parallel_sise"),
        ({"pipeline_parallel_size": 0}, "pipeline_parallel_size"),
        ({"dtype": "int3"}, "dtype"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LLM("some/model", **settings)


def test_it_works_only_inside_its_block() -> None:
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        LLM("some/model").generate("hi")
    assert "tdpipe" not in {thread.name for thread in threading.enumerate()}


def test_params_for_another_number_of_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="params for 1 of 2 prompts"):
        LLM("some/model").generate(["a", "b"], [SamplingParams()])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 3}, "less than or equal to 2"),
        ({"max_tokens": -1}, "greater than or equal to 0"),
        ({"temprature": 1}, "temprature"),
        ({"stream": True}, "stream is for requests over HTTP"),
        ({"model": "x"}, "model is for requests over HTTP"),
    ],
)
def test_invalid_params_are_refused_when_they_are_created(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        SamplingParams(**fields)


def test_params_become_the_fields_of_a_request() -> None:
    params = SamplingParams(n=2, temperature=0, logit_bias={5: 1.0}, stop=["a"], max_tokens=None)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert params.fields() == neutral | {
        "n": 2,
        "temperature": 0.0,
        "logit_bias": {"5": 1.0},
        "stop": ["a"],
    }
    # Not the model's own defaults, which apply only without params, as in vLLM.
    assert SamplingParams().fields() == neutral | {"temperature": 1.0}


@pytest.mark.parametrize(
    "prompt", [{"text": "a"}, [{"prompt": "a", "prompt_token_ids": [1]}], [{}], [["a"]]]
)
def test_an_invalid_prompt_is_a_value_error(prompt: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        LLM("some/model").generate(prompt)


def test_params_must_not_be_dictionaries() -> None:
    with pytest.raises(ValueError, match="SamplingParams, not dict"):
        LLM("some/model").generate("hi", {"temperature": 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [{"content": "x"}, {"role": "assistant", "tool_calls": [{"id": "a"}]}, {"role": "me"}],
)
def test_an_invalid_message_is_a_value_error(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        LLM("some/model").chat([message])
