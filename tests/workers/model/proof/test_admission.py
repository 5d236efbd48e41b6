"""Admission: a family whose stages do not answer as the whole model is refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig
from transformers.models.llama import modeling_llama

from benchmarks import families
from configs.schema.model import ModelConfig
from tests.checkpoints import make_checkpoint
from workers.model.attention.interface import UnsupportedModelError
from workers.model.proof import admission
from workers.model.proof.admission import AT_START, admit, examine
from workers.model.structure import Structure


def config_of(**settings: Any) -> LlamaConfig:
    """A small Llama."""
    return LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )


class Wrapped(nn.Module):
    """A part of a model that changes what it returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class DoubledEmbedding(Wrapped):
    """Embeddings with a multiplier."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) * 2


class WithScaledEmbedding(LlamaForCausalLM):
    """What it does before its first layer must happen once."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.model.embed_tokens = DoubledEmbedding(self.model.embed_tokens)


class AddsEmbeddings(Wrapped):
    """A final norm that needs the embeddings, which the last stage does not have."""

    def __init__(self, inner: nn.Module, embedding: nn.Module) -> None:
        super().__init__(inner)
        embedding.register_forward_hook(self._keep)
        self.kept: Tensor | None = None

    def _keep(self, _: nn.Module, __: Any, embedded: Tensor) -> None:
        self.kept = embedded

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.kept is not None
        return self.inner(hidden + self.kept)


class WithSkippedLayers(LlamaForCausalLM):
    """Something besides the hidden states goes from the first stage to the last."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.model.norm = AddsEmbeddings(self.model.norm, self.model.embed_tokens)


class Averaging(Wrapped):
    """A part of a layer that mixes the tokens of a call: a state that is not KV."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) + hidden.cumsum(1)


class WithOwnState(LlamaForCausalLM):
    """Its layers look at other tokens without attention."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Averaging(layer.mlp)


class WithoutAttention(LlamaForCausalLM):
    """A layer without attention."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)

        class Nothing(nn.Module):
            def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
                return hidden_states, None

        self.model.layers[2].self_attn = Nothing()


@pytest.mark.parametrize("model_class", [LlamaForCausalLM, WithScaledEmbedding])
def test_what_stages_answer_as_the_whole_is_admitted(model_class: Any) -> None:
    found = examine(model_class, config_of())
    assert (found.token_dim, found.lead, found.carried) == (1, (1,), ())
    assert any("embed_tokens" in name for name in found.before)
    assert set(found.after) == {"model.norm", "lm_head"}


@pytest.mark.parametrize(
    ("model_class", "reason"),
    [
        (WithSkippedLayers, "in 2 stages its logits differ"),
        (WithOwnState, "differ from those of transformers"),
        (WithoutAttention, "layer 2 keeps no KV that can be paged"),
    ],
)
def test_what_they_do_not_is_refused_with_the_reason(model_class: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"llama models cannot be served: .*{reason}"):
        examine(model_class, config_of())


def test_a_failure_of_the_model_s_code_is_a_refusal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("it is\nbroken")

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", fail)
    with pytest.raises(UnsupportedModelError, match=r"cannot be served: RuntimeError: it is$"):
        examine(LlamaForCausalLM, config_of())


def test_the_settings_of_the_checkpoint_are_examined_not_those_of_the_family() -> None:
    names = {"granite": ("embedding_multiplier", 7.0), "phimoe": ("sliding_window", 100)}
    for family, (name, value) in names.items():
        families.admit(family, {name: value})


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The families that are examined, without examining them."""
    found: list[str] = []

    def count(_: Any, config: PretrainedConfig, *, is_divided: bool) -> Structure:
        found.append(config.model_type + " divided" * is_divided)
        return Structure(after=("model.norm",))

    monkeypatch.setattr(admission, "examine", count)
    return found


def test_a_proof_is_kept_for_the_same_config_and_versions(
    tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data_dir = make_checkpoint(tmp_path / "model", "llama"), tmp_path / "data"
    config = ModelConfig(model=str(model))
    first = admit(config, data_dir)
    assert admit(config, data_dir) == first
    assert examined == ["llama"]
    assert admit(config, data_dir, 2) == admit(config, data_dir, 4) == first
    assert examined == ["llama", "llama divided"]  # a plan is proven once, with two ranks
    examined.pop()
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    admit(config, data_dir)
    monkeypatch.setattr(admission, "VERSION", "0")
    admit(config, data_dir)
    assert examined == ["llama"] * 3


def test_a_damaged_proof_is_made_again(
    tmp_path: Path, examined: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    config = ModelConfig(model=str(make_checkpoint(tmp_path / "model", "llama")))
    admit(config, tmp_path)
    (kept,) = (tmp_path / admission.FOLDER).iterdir()
    kept.write_text("{")
    admit(config, tmp_path)
    assert examined == ["llama"] * 2
    assert f"{kept} is proven again" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, examined: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = ModelConfig(model=str(make_checkpoint(tmp_path / "model", "llama")))
    (tmp_path / "data").write_text("a file")
    admit(config, tmp_path / "data")
    assert examined == ["llama"]
    assert "cannot be kept" in caplog.text


def test_the_exam_has_chunks_beside_decodes_and_prompts_beyond_the_original_length() -> None:
    assert len(AT_START.prompts) == len(AT_START.steps[0]) == 3
    assert all(fed > prompt for fed, prompt in zip(AT_START.lengths, AT_START.prompts, strict=True))
    assert AT_START.steps[0][0] < AT_START.prompts[0]
    assert max(AT_START.prompts) > admission.skeleton.ORIGINAL_LENGTH
    assert max(AT_START.prompts) > 2 * admission.skeleton.WINDOW


def test_random_numbers_of_others_stay_as_they_were() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    examine(LlamaForCausalLM, config_of())
    assert torch.equal(torch.rand(1), wanted)
