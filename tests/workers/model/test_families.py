"""Families that docs/models.md calls exact are admitted; loaded checkpoints are exact too."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from benchmarks import families
from benchmarks.families import BEGIN, DOCS, END, Result, compare_checkpoint, exam_of, table
from workers.model.attention.interface import UnsupportedModelError


def exact_in_docs() -> list[str]:
    """The types that the documentation lists as exact."""
    text = (Path(__file__).parents[3] / DOCS).read_text()
    found = re.search(r"^Exact: (.*)\.$", text[text.index(BEGIN) : text.index(END)], re.MULTILINE)
    return found[1].split(", ") if found else []


EXACT = exact_in_docs()

HEADS = {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 300}
ROPE = {"rope_theta": 1e4}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("gemma2", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "no biases": ("qwen2", {"attention_bias": False}),
    "heads of an odd size": ("qwen3", {"head_dim": 24}),
    "large heads": ("llama", {"head_dim": 160}),
    "MQA": ("llama", {"num_key_value_heads": 1}),
    "MHA": ("mistral", {"num_key_value_heads": 4}),
    "window": ("mistral", {"sliding_window": 4096}),
    "windows of some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},
    ),
    "soft caps": ("gemma2", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "no soft caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, **ROPE}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, **ROPE}}),
    "yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                **ROPE,
            },
            "max_position_embeddings": 2048,
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
                **ROPE,
            },
            "max_position_embeddings": 4096,
        },
    ),
    "partial rotation": ("phi", {"rope_parameters": {"partial_rotary_factor": 0.5, **ROPE}}),
    "one dense layer first": ("deepseek_v3", {"first_k_dense_replace": 1, "q_lora_rank": None}),
    "no shared KV": ("gemma4_text", {"num_kv_shared_layers": 0, "num_hidden_layers": 12}),
    "keys that are values": ("gemma4_text", {"attention_k_eq_v": True, "num_kv_shared_layers": 0}),
}


def test_the_docs_list_many_families() -> None:
    assert len(EXACT) >= 110
    assert set(EXACT) <= set(families.families())


@pytest.mark.parametrize("family", EXACT)
def test_a_family_that_docs_call_exact_is_admitted(family: str) -> None:
    families.admit(family)


@pytest.mark.parametrize("family", ["bloom", "falcon", "mamba", "qwen3_next", "deepseek_v32"])
def test_a_family_without_paged_attention_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{family} models cannot be served: "):
        families.admit(family)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loaded_checkpoint_is_exact_whatever_its_config(name: str, tmp_path: Path) -> None:
    family, settings = VARIANTS[name]
    known = AutoConfig.for_model(family).to_dict().keys()
    heads = {name: value for name, value in HEADS.items() if name in known}
    compare_checkpoint(tmp_path, family, exam_of((1, 40, 130), 4), heads | settings)


def test_multipliers_are_changed_and_other_numbers_are_not() -> None:
    config = families.config_of("granite")
    assert config.embedding_multiplier == config.residual_multiplier == families.FACTOR
    assert config.rms_norm_eps == AutoConfig.for_model("granite").rms_norm_eps


def test_the_exam_feeds_each_prompt_in_chunks_and_the_same_number_of_tokens() -> None:
    exam = exam_of((1, 64, 200), 5)
    fed = [length - prompt for length, prompt in zip(exam.lengths, exam.prompts, strict=True)]
    assert fed == [5] * 3
    assert max(map(max, exam.steps)) == families.CHUNK


def test_the_table_groups_what_is_refused_by_the_reason() -> None:
    text = table(
        [
            Result("a", "exact"),
            Result("b", "refused", "layer 0 keeps no KV"),
            Result("c", "refused", "layer 7 keeps no KV"),
            Result("d", "silent", "differs | much"),
        ]
    )
    assert "Exact: a." in text
    assert "| a layer keeps no KV | b, c |" in text
    assert r"| **silent**: differs \| much | d |" in text
    assert "| different without a word | 1 |" in text
