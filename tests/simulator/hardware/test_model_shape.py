"""Models of all families have the published numbers of parameters."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.hardware.model_shape import ModelShapeError, known_models, read_shape, shape_of

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
TINY_MIXTURE = TINY_LLAMA | {
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("model", "billions", "kv_bytes_per_token"),
    [
        ("llama2-7b", 6.74, 524_288),
        ("llama2-13b", 13.02, 819_200),
        ("llama2-70b", 68.98, 327_680),
        ("llama3-8b", 8.03, 131_072),
        ("llama3-70b", 70.55, 327_680),
        ("qwen2.5-7b", 7.62, 57_344),
        ("qwen2.5-14b", 14.77, 196_608),
        ("qwen2.5-32b", 32.76, 262_144),
        ("qwen2.5-72b", 72.71, 327_680),
        ("qwen3-30b-a3b", 30.53, 98_304),
        ("mixtral-8x7b", 46.70, 131_072),
        ("opt-125m", 0.125, 36_864),
    ],
)
def test_a_known_model_has_the_published_parameters_and_kv(
    model: str, billions: float, kv_bytes_per_token: int
) -> None:
    shape = read_shape(model)
    assert shape.num_parameters / 1e9 == pytest.approx(billions, rel=2e-3)
    assert shape.kv_bytes_per_token == kv_bytes_per_token
    assert shape.weight_bytes == 2 * shape.num_parameters


def test_every_included_model_can_be_read() -> None:
    assert [read_shape(model).name for model in known_models()] == known_models()


def test_a_dense_model_has_no_experts() -> None:
    shape = read_shape("llama2-13b")
    assert shape.expert_parameters == shape.num_experts == shape.experts_per_token == 0


@pytest.mark.parametrize(("model", "billions"), [("mixtral-8x7b", 12.9), ("qwen3-30b-a3b", 3.35)])
def test_tokens_of_a_mixture_use_only_their_own_experts(model: str, billions: float) -> None:
    shape = read_shape(model)
    unused = shape.expert_parameters * (1 - shape.experts_per_token / shape.num_experts)
    assert (shape.num_parameters - unused) / 1e9 == pytest.approx(billions, rel=5e-3)


def test_matrices_are_counted_once_and_by_kind() -> None:
    shape = shape_of(TINY_LLAMA, "tiny")
    attention, mlp = 32 * (32 + 16 + 16 + 32), 3 * 32 * 48
    assert shape.layer_parameters == 2 * (attention + mlp)
    assert shape.head_parameters == 32 * 100
    assert shape.layer_width == 2 * (64 + 48 + 48 + 64 + 3 * 80)


def test_the_width_of_a_mixture_counts_the_experts_of_one_token() -> None:
    shape = shape_of(TINY_MIXTURE, "tiny")
    router, attention = 8 + 32, 64 + 48 + 48 + 64
    gate_and_up, down = 2 * 48 + 32, 48 + 32
    assert shape.expert_parameters == 2 * 8 * 3 * 32 * 48
    assert shape.layer_width == 2 * (attention + router + 2 * (gate_and_up + down))


def test_tied_embeddings_are_counted_once() -> None:
    loose, tied = (shape_of(TINY_LLAMA | {"tie_word_embeddings": tie}, "") for tie in (False, True))
    assert loose.num_parameters - tied.num_parameters == 32 * 100
    assert tied.head_parameters == loose.head_parameters == 32 * 100


def test_latent_attention_stores_the_keys_and_values_of_all_heads() -> None:
    config = TINY_LLAMA | {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    }
    shape = shape_of(config, "tiny")
    assert (shape.num_kv_heads, shape.key_dim, shape.value_dim) == (4, 32, 16)
    assert shape.expert_parameters == 4 * 3 * 32 * 16  # only of the second layer


@pytest.mark.parametrize("name", ["tiny", "tiny/config.json"])
def test_a_folder_and_its_config_are_the_same_model(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    assert read_shape(str(tmp_path / name)) == shape_of(TINY_LLAMA, "tiny")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "model_type"),
        ({"model_type": "no-such-family"}, "no-such-family"),
        ({"model_type": "t5"}, "t5"),
        (TINY_LLAMA | {"hidden_size": "wide"}, "hidden_size"),
        (TINY_LLAMA | {"num_attention_heads": 5}, "attention heads"),
        (TINY_LLAMA | {"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_an_unsupported_config_is_refused_in_one_line(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelShapeError, match=reason) as caught:
        read_shape(str(path))
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_json_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelShapeError, match=r"config\.json"):
        read_shape(str(tmp_path))


def test_a_folder_without_a_config_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelShapeError, match=r"config\.json"):
        read_shape(str(tmp_path))


def test_an_unknown_model_is_refused_with_the_known_names() -> None:
    with pytest.raises(ModelShapeError, match="llama2-13b"):
        read_shape("llama9")
