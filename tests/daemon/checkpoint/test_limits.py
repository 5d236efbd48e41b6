"""The limits of a checkpoint: settings beyond them are named, and what is uncertain is no limit."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from configs.config import Config
from daemon.checkpoint.gguf_header import read_header
from daemon.checkpoint.limits import CheckpointLimits
from daemon.start_error import StartError
from tests.gguf_files import HEADS, KV_HEADS, LAYERS, write_gguf
from workers.model.context_length import context_length

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def refusal(config: dict[str, Any], **settings: Any) -> str:
    """The line about settings that the model cannot have."""
    with pytest.raises(StartError) as found:
        CheckpointLimits.of_config(config).check(Config.of(**settings))
    return str(found.value)


def test_settings_at_the_limits_are_accepted() -> None:
    for settings in (
        {"pipeline_parallel_size": 6},
        {"pipeline_parallel_size": 3, "virtual_pipeline_size": 2},
        {"tensor_parallel_size": 2},
        {"layer_split": "2,4"},
        {"max_model_len": 2048},
    ):
        CheckpointLimits.of_config(LLAMA).check(Config.of(**settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"pipeline_parallel_size": 7},
            "pipeline_parallel_size 7: 6 layers cannot be split into 7 stages; at most 6",
        ),
        (
            {"pipeline_parallel_size": 2, "virtual_pipeline_size": 4},
            "pipeline_parallel_size 2 x virtual_pipeline_size 4: 6 layers cannot be split into 8 "
            "virtual stages",
        ),
        ({"layer_split": "4,4"}, "layer_split 4,4 names 8 layers, the model has 6"),
        (
            {"tensor_parallel_size": 4},
            r"tensor_parallel_size 4: the model has 2 heads (num_key_value_heads), which 4 ranks",
        ),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size 3"),
        (
            {"max_model_len": 2049},
            "max_model_len 2049 is more than the model's own limit of 2048 tokens",
        ),
    ],
)
def test_a_setting_beyond_a_limit_is_named_with_both_numbers(
    settings: dict[str, Any], words: str
) -> None:
    assert words in refusal(LLAMA, **settings)


def test_the_sizes_of_a_text_model_inside_a_larger_one_count() -> None:
    config = {"model_type": "gemma3", "num_hidden_layers": 99, "text_config": LLAMA}
    assert "6 layers" in refusal(config, pipeline_parallel_size=7)


def test_older_names_of_the_number_of_layers_count() -> None:
    assert "12 layers" in refusal({"n_layer": 12}, pipeline_parallel_size=13)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": None}, {"num_hidden_layers": "six"}])
def test_what_a_config_does_not_say_is_no_limit(config: dict[str, Any]) -> None:
    wanted = Config.of(pipeline_parallel_size=200, tensor_parallel_size=64, max_model_len=10**9)
    CheckpointLimits.of_config(config).check(wanted)


@pytest.mark.parametrize(
    ("rope", "is_limited"),
    [
        ({}, True),
        ({"rope_scaling": None}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, True),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, True),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, False),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, True),
    ],
)
def test_scaled_rotary_embeddings_are_left_to_the_stages(
    rope: dict[str, Any], *, is_limited: bool
) -> None:
    assert CheckpointLimits.of_config(LLAMA | rope).max_tokens == (2048 if is_limited else None)


def test_the_limit_is_the_one_of_the_stages() -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 256}
    for rope in (None, llama3):
        config = LLAMA | {"rope_scaling": rope}
        stages = context_length(LlamaConfig(**config)).tokens
        assert CheckpointLimits.of_config(config).max_tokens == stages


def test_a_gguf_file_has_the_same_limits(tmp_path: Path) -> None:
    limits = CheckpointLimits.of_gguf(read_header(write_gguf(tmp_path / "model.gguf")))
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    assert limits == CheckpointLimits(LAYERS, heads, 512)


def test_layers_that_only_predict_further_tokens_are_not_counted(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", settings={"llama.nextn_predict_layers": 1})
    assert CheckpointLimits.of_gguf(read_header(file)).num_layers is None
