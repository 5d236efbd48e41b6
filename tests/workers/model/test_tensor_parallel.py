"""Tensor parallelism: families whose ranks answer together as the whole model, and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from workers.model import tensor_parallel
from workers.model.attention.interface import UnsupportedModelError
from workers.model.proof import tensor_proof
from workers.model.proof.admission import examine
from workers.model.tensor_parallel import Summed, TensorGroup

LONG = pytest.mark.long
# Separate and joined projections, norms of heads, tied heads, biases, experts, latent attention.
FAMILIES = [
    "llama",
    "qwen3",
    "phi3",
    "mixtral",
    *(
        pytest.param(name, marks=LONG)
        for name in (
            "cohere",
            "deepseek_v3",
            "gemma2",
            "gemma3_text",
            "glm4",
            "gpt_neox",
            "granite",
            "llama4_text",
            "mistral",
            "olmo2",
            "phi",
            "qwen2",
            "qwen3_moe",
            "starcoder2",
        )
    ),
]


def prove(family: str) -> None:
    """Compare the ranks of a skeleton with the whole of it."""
    config = CONFIG_MAPPING[family]()
    examine(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, is_divided=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_answer_as_the_whole_model(family: str) -> None:
    prove(family)


@pytest.mark.parametrize("family", ["gpt2", "opt", "stablelm"])
def test_a_family_without_a_plan_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="no tensor-parallel plan"):
        prove(family)


def not_summed(self: Summed, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
    """A rank that takes its own part for the whole."""
    return self.part(inputs) + 0 * self._group.all_reduce(self.part(inputs))


def test_a_plan_that_forgets_a_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Summed, "forward", not_summed)
    with pytest.raises(UnsupportedModelError, match="divided by its tensor-parallel plan"):
        prove("llama")


def without(style: str) -> Callable[[PreTrainedModel], dict[str, str]]:
    """The plan of a model, but for modules of this style."""
    return lambda model: {n: s for n, s in (model.tp_plan or {}).items() if s != style}


def test_a_plan_that_forgets_projections_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "plan_of", without("colwise"))
    with pytest.raises(UnsupportedModelError, match="divided by its tensor-parallel plan"):
        prove("llama")


def test_an_unknown_style_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {**LlamaConfig.base_model_tp_plan, "layers.*.mlp": "sequence_parallel"}
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", plan)
    with pytest.raises(UnsupportedModelError, match="sequence_parallel, which is not supported"):
        prove("llama")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "words"),
    [
        (4, 2, 4, "2 heads (num_key_value_heads), which 4 ranks"),
        (3, 3, 2, "3 heads (num_key_value_heads), which 2 ranks"),
    ],
)
def test_heads_must_be_shared_evenly(heads: int, kv_heads: int, size: int, words: str) -> None:
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=48)
    with pytest.raises(UnsupportedModelError) as raised:
        tensor_parallel.check_heads(config, size)
    assert words in str(raised.value)


@pytest.mark.parametrize("num_rows", [7, 8, 9])
def test_a_vocabulary_need_not_divide_by_the_number_of_ranks(num_rows: int) -> None:
    torch.manual_seed(1)
    embedding, head = nn.Embedding(num_rows, 4), nn.Linear(4, num_rows, bias=False)
    token_ids, hidden = torch.arange(num_rows)[None], torch.randn(1, 3, 4)

    def check(group: TensorGroup) -> None:
        width = -(-num_rows // group.size)
        mine = slice(group.rank * width, (group.rank + 1) * width)
        part, head_part = nn.Embedding(num_rows, 4), nn.Linear(4, num_rows, bias=False)
        part.weight = nn.Parameter(embedding.weight[mine])
        head_part.weight = nn.Parameter(head.weight[mine])
        with torch.inference_mode():
            found = tensor_parallel.VocabularyPart(part, group)(token_ids)
            logits = tensor_parallel.Gathered(head_part, group)(hidden)
            assert torch.equal(found, embedding(token_ids))
            assert torch.allclose(logits, head(hidden), atol=1e-6)
            assert logits.shape == (1, 3, num_rows)

    tensor_proof.run_ranks(check)


def test_an_error_of_one_rank_ends_the_others_and_is_raised() -> None:
    def fail(group: TensorGroup) -> None:
        if group.rank:
            raise KeyError("rank 1")
        group.all_reduce(torch.ones(1))

    with pytest.raises(KeyError, match="rank 1"):
        tensor_proof.run_ranks(fail)


def test_the_parts_of_all_ranks_have_the_parameters_of_the_whole() -> None:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    whole = LlamaForCausalLM(config)
    counts = [0, 0]

    def keep(group: TensorGroup) -> None:
        model = LlamaForCausalLM(config)
        model.load_state_dict(whole.state_dict())
        tensor_parallel.keep_part(model, group)
        counts[group.rank] = sum(p.numel() for p in model.parameters())

    tensor_proof.run_ranks(keep)
    norms = sum(p.numel() for n, p in whole.named_parameters() if "norm" in n)
    assert sum(counts) == whole.num_parameters() + norms


def gemma4(global_kv_heads: int) -> Any:
    """A config whose global layers have another number of KV heads than the others."""
    return CONFIG_MAPPING["gemma4_text"](
        num_hidden_layers=4,
        attention_k_eq_v=True,
        num_kv_shared_layers=0,
        num_attention_heads=12,
        num_key_value_heads=4,
        num_global_key_value_heads=global_kv_heads,
    )


def test_heads_may_differ_between_layers() -> None:
    tensor_parallel.check_heads(gemma4(2), 2)
    with pytest.raises(UnsupportedModelError, match=r"3 heads \(num_key_value_heads\), which 2 "):
        tensor_parallel.check_heads(gemma4(3), 2)


@pytest.mark.parametrize(
    ("whole", "part", "dtype", "is_refused"),
    [
        ((4, 8, 44), (4, 8, 22), torch.float32, True),
        ((4, 8, 44), (4, 8, 44), torch.float32, False),
        ((4, 8, 48), (4, 8, 24), torch.float32, False),
        ((4, 8, 24), (4, 8, 12), torch.bfloat16, True),
        ((4, 8, 30), (4, 8, 15), torch.float32, False),  # the whole model fails in transformers
        ((8, 44), (8, 22), torch.float32, False),
    ],
)
def test_parts_of_experts_have_rows_of_16_bytes(
    whole: tuple[int, ...], part: tuple[int, ...], dtype: torch.dtype, is_refused: bool
) -> None:
    tensors = [torch.zeros(shape, dtype=dtype) for shape in (whole, part)]
    if not is_refused:
        tensor_parallel._check_experts(*tensors, 2)
        return
    with pytest.raises(UnsupportedModelError, match=rf"experts of width {whole[-1]} cannot be"):
        tensor_parallel._check_experts(*tensors, 2)
