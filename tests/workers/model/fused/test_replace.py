"""Whole models with fused parts, and with parts whose kernels fail."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.config import EngineConfig
from tests.checkpoints import NUM_LAYERS, make_checkpoint
from tests.workers.model.fused.broken import Broken
from tests.workers.stages import load_stage
from tests.workers.world import CPU, Ground
from workers import loading
from workers.kernels import triton_support
from workers.kernels.library import Library
from workers.model.attention.plain import PlainBackend
from workers.model.fused.native import NativeOperations
from workers.model.fused.operations import FusedOperations
from workers.model.kv_cache import KvCache
from workers.model.stage_model import StageModel

# Norms of a layer beside its MLP: two, and in Gemma 2 around both parts, in Qwen 3 of heads too.
NORMS = {"llama": 2, "gemma2": 4, "qwen3": 4}
PROMPTS = ([5, 6, 7], [30, 31, 32, 33, 34])


def count_fused(family: str) -> int:
    """The norms and MLPs of a whole small model, with the last norm."""
    return NUM_LAYERS * (NORMS[family] + 1) + 1


def load_whole(model: Path) -> StageModel:
    """The model as one stage."""
    config = EngineConfig.of(model=str(model), dtype="float32", pipeline_parallel_size=1)
    return load_stage(config, 0)


def generate(stage: StageModel, count: int) -> list[list[int]]:
    """The prompts with the tokens of greedy decoding."""
    ground = Ground()
    cache = KvCache(stage.probe(2).shapes, ground.num_blocks, ground.block_size, stage.dtype, CPU)
    sequences = [ground.sequence(prompt, spare=count) for prompt in PROMPTS]
    shares = [(sequence, len(sequence.token_ids)) for sequence in sequences]
    for _ in range(count):
        batch = ground.batch(shares)
        step = PlainBackend().step(cache, batch)
        logits = stage.forward(batch.token_ids, batch.position_ids, batch.output_at, step)
        for sequence, token in zip(sequences, logits.argmax(-1).tolist(), strict=True):
            sequence.token_ids.append(token)
        shares = [(sequence, 1) for sequence in sequences]
    return [sequence.token_ids for sequence in sequences]


def generate_by_transformers(model: Path, count: int) -> list[list[int]]:
    """The same by transformers' own model, without a cache."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    sequences = [list(prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        for sequence in sequences * count:
            sequence.append(int(reference(torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequences


@pytest.mark.parametrize("family", NORMS)
def test_a_fused_model_generates_what_transformers_generates(
    operations: FusedOperations, family: str, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and not isinstance(operations, NativeOperations):
        pytest.skip("tests/workers/test_gpu.py does the same on the GPU")
    model = make_checkpoint(tmp_path, family)
    stage = load_whole(model)
    assert stage.fuse(operations) == count_fused(family)
    assert generate(stage, 4) == generate_by_transformers(model, 4)
    assert stage._rotary.is_used


def test_parts_whose_kernels_fail_stay_with_one_warning_of_each_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_checkpoint(tmp_path, "llama")
    stage = load_whole(model)
    assert stage.fuse(Broken()) == 0
    assert generate(stage, 2) == generate_by_transformers(model, 2)
    assert [record.message for record in caplog.records] == [
        f"the {part} not fused: RuntimeError: no kernel"
        for part in ("norms are", "gated MLPs are", "rotary embedding is")
    ]


def no_library() -> Library:
    """CPU kernels, which a GPU does not ask for."""
    raise AssertionError


@pytest.mark.parametrize("backend", ["auto", "triton", "flashinfer", "plain"])
def test_stages_on_gpus_are_fused_by_triton_unless_all_is_plain(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    found = Broken()
    monkeypatch.setattr("workers.model.fused.triton.TritonOperations", lambda: found)
    stage, fused_by = load_whole(make_checkpoint(tmp_path, "llama")), []
    monkeypatch.setattr(stage, "fuse", lambda operations: fused_by.append(operations) or 3)
    config = EngineConfig.of(model=str(tmp_path), attention_backend=backend)
    gpu = torch.device("cuda")
    monkeypatch.setattr(triton_support, "age", lambda _: None)
    said = loading._use_kernels(stage, config, gpu, no_library)
    is_plain = backend == "plain"
    assert said == ("" if is_plain else "; 3 norms and MLPs fused")
    assert fused_by == ([] if is_plain else [found])
    monkeypatch.setattr(triton_support, "age", lambda _: "it is too old")
    assert loading._use_kernels(stage, config, gpu, no_library) == ""
