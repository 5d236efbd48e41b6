"""The longest sequence, by config: RoPE scaling extends it as in vLLM."""

from typing import Any

import pytest
from transformers import AutoConfig

from workers.model.context_length import context_length

THETA = {"rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEFAULT = {"rope_type": "default"}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("family", "longest", "parameters", "want"),
    [
        ("llama", 512, DEFAULT, 512),
        ("llama", 512, {"rope_type": "linear", "factor": 4.0}, 2048),
        ("llama", 512, {"rope_type": "dynamic", "factor": 2.5}, 1280),
        ("qwen2", 256, YARN, 1024),
        ("qwen2", 1024, YARN, 1024),  # the config already has the length after scaling
        ("qwen2", 256, {"rope_type": "yarn", "factor": 4.0}, 1024),  # an original by default
        ("llama", 512, LLAMA3 | {"original_max_position_embeddings": 64}, 512),
        ("llama", 512, LONGROPE | {"original_max_position_embeddings": 64}, 512),
        ("llama", 64, LONGROPE | {"original_max_position_embeddings": 64, "factor": 4.0}, 256),
        ("llama", 512, LONGROPE | {"original_max_position_embeddings": 64, "factor": 4.0}, 512),
        (
            "olmo3",
            256,
            {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}},
            1024,
        ),
        ("gpt2", 512, {"rope_type": "linear", "factor": 4.0}, 512),  # it has no RoPE
        ("gemma3_text", 512, {"rope_type": "linear", "factor": 8.0}, 512),
    ],
)
def test_scaling_extends_the_longest_sequence(
    family: str, longest: int, parameters: dict[str, Any], want: int
) -> None:
    if "rope_type" in parameters:
        parameters = parameters | THETA
    config = AutoConfig.for_model(
        family,
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=longest,
        rope_parameters=parameters,
    )
    assert context_length(config).tokens == want


def test_the_reason_names_the_original_length_and_the_factor() -> None:
    config = AutoConfig.for_model(
        "llama", max_position_embeddings=256, rope_parameters=YARN | THETA
    )
    assert context_length(config).reason == (
        "original_max_position_embeddings 256 x factor 4 of its yarn RoPE"
    )
    config = AutoConfig.for_model("gpt2", n_positions=77)
    assert context_length(config).tokens == 77
    assert context_length(config).reason == "max_position_embeddings 77"


def test_a_model_without_a_limit_has_a_million_tokens() -> None:
    assert context_length(AutoConfig.for_model("bloom")).tokens == 1 << 20
