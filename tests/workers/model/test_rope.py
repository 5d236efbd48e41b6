"""All RoPE types across the original length, in mixed company, against transformers' `generate`."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from configs.config import EngineConfig
from tests.checkpoints import FAMILIES, VOCABULARY, make_checkpoint
from tests.workers.scheduled import ScheduledPipeline
from tests.workers.stages import load_stage
from tests.workers.world import CPU
from workers.model.attention.interface import UnsupportedModelError
from workers.model.rope import DynamicNtk
from workers.model.stage_model import StageModel

ORIGINAL = 48
MAX_TOKENS = 20
# Below, at and above the original length, and outputs that cross it.
LENGTHS = (1, 20, 40, 44, 47, 48, 49, 100, 150)


def long_factors(count: int) -> dict[str, Any]:
    """LongRoPE with two sets of `count` factors that give clearly different answers."""
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0 + 0.1 * i for i in range(count)],
        "long_factor": [1.5 + 0.5 * i for i in range(count)],
    }


THETA = {"rope_theta": 10_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
PROPORTIONAL = {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
LINEAR = {"rope_type": "linear", "factor": 4.0}
PHIMOE = long_factors(8) | {"short_mscale": 1.1, "long_mscale": 1.6}
BY_LAYER_TYPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e6},
    "full_attention": long_factors(8) | THETA,
}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "llama-default": ("llama", 192, {"rope_type": "default"}),
    "llama-linear": ("llama", ORIGINAL, LINEAR),
    "llama-dynamic": ("llama", ORIGINAL, DYNAMIC),
    "llama-yarn": ("llama", ORIGINAL, YARN),
    "llama-longrope": ("llama", 192, long_factors(8)),
    "llama-longrope-factor": ("llama", ORIGINAL, long_factors(8) | {"factor": 4.0}),
    "llama-llama3": ("llama", 192, LLAMA3),
    "llama-proportional": ("llama", 96, PROPORTIONAL),
    "qwen2-yarn": ("qwen2", ORIGINAL, YARN | {"attention_factor": 1.3, "truncate": False}),
    "qwen3-dynamic": ("qwen3", ORIGINAL, DYNAMIC),
    "phi-partial-dynamic": ("phi", ORIGINAL, DYNAMIC | {"partial_rotary_factor": 0.5}),
    "gpt_neox-partial-longrope": (
        "gpt_neox",
        192,
        long_factors(2) | {"partial_rotary_factor": 0.25},
    ),
    "gpt_oss-yarn": ("gpt_oss", 192, YARN),
    "gemma3-by-layer-type": ("gemma3_text", 192, BY_LAYER_TYPE),
    "olmo3-by-layer-type": (
        "olmo3",
        ORIGINAL,
        BY_LAYER_TYPE | {"sliding_attention": DYNAMIC | THETA},
    ),
    "phi3-longrope": ("phi3", 192, long_factors(8)),
    "phi3-default": ("phi3", 192, {"rope_type": "default"}),
    "phi3-partial": ("phi3", 192, long_factors(4) | {"partial_rotary_factor": 0.5}),
    "phimoe-longrope": ("phimoe", 192, PHIMOE),
}


# What the families need that `tests.checkpoints` does not have.
FURTHER: dict[str, dict[str, Any]] = {
    "olmo3": FAMILIES["gemma3_text"],
    "phi3": {"num_key_value_heads": 2, "original_max_position_embeddings": ORIGINAL},
    "phimoe": {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": None},
}


def make(folder: Path, case: str) -> Path:
    """The checkpoint of a case."""
    family, longest, parameters = CASES[case]
    changes = {"max_position_embeddings": longest} | FURTHER.get(family, {})
    if not any(isinstance(each, dict) for each in parameters.values()):
        parameters = THETA | parameters
    return make_checkpoint(folder, family, rope_parameters=parameters, **changes)


def make_stages(model: Path, num_stages: int) -> list[StageModel]:
    """All stages, in fp32."""
    config = EngineConfig.of(
        model=str(model), device="cpu", dtype="float32", pipeline_parallel_size=num_stages
    )
    return [load_stage(config, stage) for stage in range(num_stages)]


def reference(whole: Any, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], Tensor]:
    """Tokens and logits of `generate`, by a fresh copy: dynamic RoPE keeps state in the model."""
    with torch.inference_mode():
        found = copy.deepcopy(whole).generate(
            torch.tensor([list(prompt)]),
            max_new_tokens=max_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)


def draw(lengths: Sequence[int], seed: int = 3) -> list[list[int]]:
    """Random prompts of these lengths."""
    tokens = random.Random(seed)
    return [[tokens.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def check(
    model: Path, pipeline: ScheduledPipeline, prompts: list[list[int]], max_tokens: int
) -> None:
    """Whether each sequence has the tokens and logits of `generate`."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    whole.generation_config.eos_token_id = None
    for number, prompt in enumerate(prompts):
        want, logits = reference(whole, prompt, max_tokens)
        name = f"prompt of {len(prompt)}"
        assert pipeline.outputs[number] == want, name
        got = torch.stack(pipeline.logits[number])
        off = (got - logits[-len(got) :]).abs().max() / logits.abs().max()
        assert off < 1e-5, f"{name}: {off:.1e}"


def make_pipeline(model: Path, num_stages: int = 2, **settings: Any) -> ScheduledPipeline:
    """A pipeline with chunks of 32 tokens and a cache that is too small for all sequences.

    Outputs are longer than predicted, so that sequences must be preempted.
    """
    settings = {"max_num_batched_tokens": 32, "predicted_output_len": 1, "block_size": 4} | settings
    return ScheduledPipeline(make_stages(model, num_stages), 48, **settings)


@pytest.mark.parametrize("case", CASES)
def test_rope_is_that_of_generate_in_any_company(case: str, tmp_path: Path) -> None:
    model = make(tmp_path, case)
    pipeline = make_pipeline(model)
    assert all(stage.max_model_len == 192 for stage in pipeline.stages)
    prompts = draw(LENGTHS)
    for prompt in prompts:
        pipeline.submit(prompt, MAX_TOKENS)
    pipeline.run()
    assert pipeline.scheduler.counters.preemptions > 0
    check(model, pipeline, prompts, MAX_TOKENS)


# Phi-3 recomputes a sequence that outgrows the original length.
@pytest.mark.parametrize("case", ["llama-dynamic", "phi3-longrope"])
@pytest.mark.parametrize("policy", ["temporal", "separate", "hybrid"])
def test_the_policy_does_not_matter(case: str, policy: str, tmp_path: Path) -> None:
    model = make(tmp_path, case)
    pipeline = make_pipeline(model, 3, policy=policy)
    prompts = draw((3, 41, 48, 90))
    for prompt in prompts:
        pipeline.submit(prompt, 12)
    pipeline.run()
    check(model, pipeline, prompts, 12)


@pytest.mark.parametrize("case", ["llama-dynamic", "llama-longrope", "phi3-longrope"])
def test_lost_stages_and_a_new_engine_do_not_matter(case: str, tmp_path: Path) -> None:
    model = make(tmp_path, case)
    prompts = draw((41, 45, 48, 90))
    first, second = make_pipeline(model), make_pipeline(model, max_num_batched_tokens=17)
    for prompt in prompts:
        first.submit(prompt, 12)
    first.run(20)
    first.lose_stages()
    first.run(6)
    assert any(first.outputs.values())
    for number, prompt in enumerate(prompts):
        second.submit(prompt, 12, first.outputs[number])
    second.run()
    check(model, second, prompts, 12)


@pytest.mark.parametrize(("dim", "part"), [(4, 1.0), (16, 1.0), (128, 1.0), (16, 0.334)])
def test_dynamic_frequencies_are_those_of_transformers(dim: int, part: float) -> None:
    config = AutoConfig.for_model(
        "llama",
        hidden_size=dim,
        num_attention_heads=1,
        max_position_embeddings=100,
        rope_parameters=DYNAMIC | THETA | {"partial_rotary_factor": part},
    )
    rotary = LlamaRotaryEmbedding(config)
    lengths = torch.arange(1, 400)
    got = DynamicNtk(rotary, None)(lengths)
    for length, inv_freq in zip(lengths, got, strict=True):
        want, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, CPU, seq_len=length)
        assert torch.equal(inv_freq, want if length > 100 else rotary.original_inv_freq)


def test_a_dynamic_embedding_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = LlamaRotaryEmbedding(
        AutoConfig.for_model("llama", rope_parameters=DYNAMIC | {"rope_theta": 1e6})
    )
    DynamicNtk(rotary, None)
    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "dynamic", ROPE_INIT_FUNCTIONS["linear"])
    with pytest.raises(UnsupportedModelError, match=r"llama models .* dynamic RoPE"):
        DynamicNtk(rotary, None)
