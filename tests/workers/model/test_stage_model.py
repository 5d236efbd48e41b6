"""The stage's model, against its slow twins: the whole model, and transformers' own attention."""

import functools
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from configs.config import EngineConfig
from tests.checkpoints import FAMILIES, NUM_LAYERS, VOCABULARY, make_checkpoint
from tests.kernels import shared_library
from tests.workers.stages import load_stage
from tests.workers.world import CPU, Ground, History
from workers.model.attention.backends import Backend
from workers.model.attention.interface import UnsupportedModelError
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend
from workers.model.batch import StepBatch
from workers.model.fused.native import NativeOperations
from workers.model.kv_cache import KvCache, LayerShape
from workers.model.layer_split import PartitionError
from workers.model.packed.linears import pack_for_onednn
from workers.model.stage_model import StageModel, describe, split

SUPPORTED = sorted(set(FAMILIES) - {"bloom"})
BLOCK_SIZE = 4
# The distance to transformers' own logits, as part of the largest: rounding, not another answer. In
# bf16 rounding may send a token to another expert (gpt_oss: 0.12 at one of 10 places, others 0.02).
CLOSE = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}
CLOSE_WITH_EXPERTS = {"float32": 1e-5, "bfloat16": 0.3, "float16": 0.3}
PLAIN = PlainBackend()
EXPERTS = {"mixtral", "qwen3_moe", "gpt_oss", "phimoe", "llama4_text"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that makes each family's checkpoint once."""
    return functools.cache(lambda family: make_checkpoint(tmp_path_factory.mktemp(family), family))


def make_stages(
    model: Path, split_by_hand: tuple[int, ...] | None, **settings: Any
) -> list[StageModel]:
    """All stages of a pipeline, in one process."""
    if split_by_hand is not None:
        settings |= {"pipeline_parallel_size": len(split_by_hand), "layer_split": split_by_hand}
    config = EngineConfig.of(model=str(model), device="cpu", **settings)
    return [load_stage(config, stage) for stage in range(config.pipeline.pipeline_parallel_size)]


def make_caches(stages: list[StageModel], ground: Ground) -> list[KvCache]:
    """A cache for each stage, shaped as a probe finds it."""
    caches = []
    for stage in stages:
        probe = stage.probe(2)
        assert list(probe.shapes) == list(stage.layers)
        cache = KvCache(probe.shapes, ground.num_blocks, ground.block_size, stage.dtype, CPU)
        for keys_and_values in cache.layers.values():
            for tensor in keys_and_values:
                tensor.fill_(float("nan"))
        caches.append(cache)
    return caches


def forward(
    stages: list[StageModel],
    caches: list[KvCache],
    batch: StepBatch,
    backend: Backend = PLAIN,
) -> Tensor:
    """One step through all stages."""
    passed: Tensor | None = None
    for stage, cache in zip(stages, caches, strict=True):
        step = backend.step(cache, batch)
        ids, positions = batch.token_ids, batch.position_ids
        passed = stage.forward(ids, positions, batch.output_at, step, passed)
        if not stage.is_last:
            assert passed.shape == (batch.num_tokens, stage.output_width)
            assert passed.dtype == stage.dtype
    assert passed is not None
    return passed


def mixed_steps(ground: Ground) -> Iterator[tuple[list[History], StepBatch]]:
    """Prefill, chunks and decodes side by side; yields the sampling sequences, and the batch."""
    tokens = random.Random(3)

    def draw(count: int) -> list[int]:
        return [tokens.randrange(3, VOCABULARY) for _ in range(count)]

    short, middle, long = (ground.sequence(draw(n), spare=8) for n in (3, 30, 45))
    for shares in (
        [(short, 3), (middle, 30), (long, 20)],
        [(short, 1), (long, 18), (middle, 1)],
        [(long, 7), (short, 1)],
        [(middle, 1)],
        [(middle, 1), (short, 1), (long, 1)],
    ):
        batch = ground.batch(shares)
        sampling = [s for s, _ in shares if s.fed == len(s.token_ids)]
        yield sampling, batch
        for sequence in sampling:
            sequence.token_ids.extend(draw(1))


@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        # In bf16 the router of Phi-MoE sends a token to another expert at most places.
        *product([name for name in SUPPORTED if name != "phimoe"], ["bfloat16"]),
        *product(SUPPORTED, ["float32"]),
        ("gpt_oss", "float16"),  # transformers keeps its norms in fp32
        ("qwen3", "float16"),
    ],
)
def test_the_stages_together_are_the_whole_model(
    family: str, dtype: str, *, is_native: bool, checkpoints: Any
) -> None:
    path = checkpoints(family)
    close = (CLOSE_WITH_EXPERTS if family in EXPERTS else CLOSE)[dtype]
    if family == "gemma4_text":
        close *= 3  # its scores are not scaled, so softmax is steep
    grounds = [Ground(BLOCK_SIZE, seed=seed) for seed in range(3)]  # blocks scattered otherwise
    pipelines = [make_stages(path, s, dtype=dtype) for s in ((4,), (3, 1), (1, 2, 1))]
    backend: Backend = PLAIN
    if is_native:
        library = shared_library()
        backend = NativeBackend(library)
        for stage in chain(*pipelines):
            stage.fuse(NativeOperations(library))
        packed = sum(stage.pack_linears(library) for stages in pipelines for stage in stages)
        assert packed > 0
    caches = [make_caches(p, g) for p, g in zip(pipelines, grounds, strict=True)]
    reference = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    for steps in zip(*(mixed_steps(ground) for ground in grounds), strict=True):
        logits = [
            forward(p, c, batch, backend)
            for p, c, (_, batch) in zip(pipelines, caches, steps, strict=True)
        ]
        sampling = steps[0][0]
        assert logits[0].shape == (len(sampling), VOCABULARY)
        for other in logits[1:]:
            assert torch.equal(logits[0], other)
        for got, sequence in zip(logits[0], sampling, strict=True):
            with torch.inference_mode():
                want = reference(torch.tensor([sequence.token_ids])).logits[0, -1]
            off = (got - want).abs().max() / want.abs().max()
            assert off < close, f"{off:.1e} after {len(sequence.token_ids)} tokens"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_stages_packed_for_onednn_are_those_of_torch(family: str, checkpoints: Any) -> None:
    path = checkpoints(family)
    results = []
    for is_packed in (False, True):
        ground = Ground(BLOCK_SIZE)
        stages = make_stages(path, (2, 2), dtype="float32")
        if is_packed:
            assert all(pack_for_onednn(stage.module) > 0 for stage in stages)
        caches = make_caches(stages, ground)
        results.append([forward(stages, caches, batch) for _, batch in mixed_steps(ground)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_stage_holds_its_own_layers_and_no_others(family: str, checkpoints: Any) -> None:
    path = checkpoints(family)
    (whole,) = make_stages(path, (4,))
    stages = make_stages(path, (1, 2, 1))
    held = [dict(stage._model.named_parameters()) for stage in stages]
    everything = dict(whole._model.named_parameters())
    for stage, parameters in zip(stages, held, strict=True):
        # `model.layers.2.mlp...`: the first number in a name is its layer.
        numbers = [[int(p) for p in name.split(".") if p.isdigit()] for name in parameters]
        assert {found[0] for found in numbers if found} == set(stage.layers)
        assert all(torch.equal(everything[name], p) for name, p in parameters.items())
    # Nothing is missing, and nothing held twice but the embedding that the head is tied to.
    assert set().union(*held) == set(everything)
    twice = sum(s.num_parameters for s in stages) - whole.num_parameters
    embedding = whole._model.get_input_embeddings().weight.numel()
    assert twice == (embedding if whole.config.tie_word_embeddings else 0)


@pytest.mark.parametrize("is_tied", [False, True])
def test_shards_and_one_file_load_alike_tied_or_not(is_tied: bool, tmp_path: Path) -> None:
    results = []
    for name, shard_size in (("one", "5GB"), ("many", "100KB")):
        path = make_checkpoint(
            tmp_path / name, "llama", shard_size=shard_size, tie_word_embeddings=is_tied
        )
        assert (len(list(path.glob("*.safetensors"))) == 1) == (name == "one")
        ground = Ground(BLOCK_SIZE)
        stages = make_stages(path, (2, 2), dtype="float32")
        caches = make_caches(stages, ground)
        results.append([forward(stages, caches, batch) for _, batch in mixed_steps(ground)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_single_token_gets_the_same_logits_as_in_a_batch(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    stages = make_stages(path, (2, 2), dtype="bfloat16")
    logits = []
    for num_others in (0, 3):
        ground = Ground(BLOCK_SIZE)
        caches = make_caches(stages, ground)
        sequence = ground.sequence([5, 6, 7])
        others = [ground.sequence([9 + n] * 8) for n in range(num_others)]
        prefill = [(s, len(s.token_ids) - 1) for s in [*others, sequence]]
        forward(stages, caches, ground.batch(prefill))
        batch = ground.batch([*((s, 1) for s in others), (sequence, 1)])
        logits.append(forward(stages, caches, batch)[-1])
    assert torch.equal(*logits)


def test_a_step_without_sampling_rows_has_no_logits(tmp_path: Path) -> None:
    stages = make_stages(make_checkpoint(tmp_path, "llama"), (2, 2))
    ground = Ground(BLOCK_SIZE)
    caches = make_caches(stages, ground)
    logits = forward(stages, caches, ground.batch([(ground.sequence([5] * 6), 4)]))
    assert logits.shape == (0, VOCABULARY)


def test_a_layer_s_shape_is_learnt_from_the_model_itself(tmp_path: Path) -> None:
    stages = make_stages(make_checkpoint(tmp_path, "qwen3"), (1, 3))
    shapes = make_caches(stages, Ground())[1].layers
    assert {keys.shape[1:] for keys, _ in shapes.values()} == {(2, BLOCK_SIZE, 32)}
    assert LayerShape(2, 32, 32).values_per_token == 128


def test_the_dtype_is_the_checkpoint_s_unless_one_is_asked_for(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    assert make_stages(path, (4,))[0].dtype == torch.float32
    assert make_stages(path, (4,), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_without_a_split_the_head_and_the_embedding_are_weighed(tmp_path: Path) -> None:
    # One layer has about 37 thousand parameters, embedding and head each 640 thousand.
    path = make_checkpoint(tmp_path, "llama", vocab_size=10_000, num_hidden_layers=8)
    config = EngineConfig.of(model=str(path), pipeline_parallel_size=3)
    ranges = split(config.model, config.pipeline, AutoConfig.from_pretrained(path))
    assert ranges == [range(1), range(1, 7), range(7, 8)]


def test_a_split_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    with pytest.raises(PartitionError, match="the model has 4"):
        make_stages(path, (4, 4))
    with pytest.raises(PartitionError, match="4 layers cannot be split into 5"):
        make_stages(path, None, pipeline_parallel_size=5)


def test_a_family_without_our_attention_is_refused_by_name(checkpoints: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="bloom models cannot be served"):
        make_stages(checkpoints("bloom"), (2, 2))


def as_pickle(model: Path, **extra: Any) -> Path:
    """The checkpoint with its weights as torch.save writes them, and with `extra` in it."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights | extra, model / "pytorch_model.bin")
    return model


def test_pickled_weights_are_read_if_asked_for(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "llama")
    (expected,) = make_stages(model, (NUM_LAYERS,))
    as_pickle(model)
    first, second = make_stages(model, (1, NUM_LAYERS - 1), load_format="pt")
    assert first.num_parameters + second.num_parameters == expected.num_parameters
    for mine, theirs in zip(
        [*first.layer_modules, *second.layer_modules], expected.layer_modules, strict=True
    ):
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight, theirs.state_dict()[name])


class Program:
    """A program that a pickle may hold in place of weights."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    model = as_pickle(make_checkpoint(tmp_path / "model", "llama"), extra=Program(trace))
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert trace.exists(), "the test's own program does nothing"
    trace.unlink()
    with pytest.raises(Exception, match=r"(?i)weights.only|unpickl"):
        make_stages(model, (NUM_LAYERS,), load_format="pt")
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_beside_the_weights_is_not_run_unless_asked_for(kind: str, tmp_path: Path) -> None:
    model, trace = make_checkpoint(tmp_path / "model", "llama"), tmp_path / "trace"
    (model / "custom.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Custom: ...\n"
    )
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {kind: "custom.Custom"}
    (model / "config.json").write_text(json.dumps(config))
    with suppress(ValueError):  # where transformers has classes of its own for the family
        make_stages(model, (NUM_LAYERS,))
    config["model_type"] = "a_family_of_its_own"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load"):
        make_stages(model, (NUM_LAYERS,))
    assert not trace.exists()


def test_a_tensor_that_is_nowhere_is_named(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    file = path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    config = EngineConfig.of(model=str(path), layer_split=(2, 2))
    assert load_stage(config, 0).layers == range(2)  # none of its own is missing
    with pytest.raises(ValueError, match=r"lacks 1 tensors, e\.g\. model\.layers\.3\.mlp\.up_proj"):
        load_stage(config, 1)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("more", [16, -16])
@pytest.mark.parametrize("tied", [False, True])
def test_resized_embeddings_beside_an_old_config_are_named(
    stage: int, more: int, tied: bool, tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path, "llama", tie_word_embeddings=tied)
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        tensors[name] = tensors[name].repeat(2, 1)[: VOCABULARY + more].contiguous()
    save_file(tensors, file, {"format": "pt"})
    config = EngineConfig.of(model=str(path), layer_split=(2, 2))
    shapes = rf"\({VOCABULARY + more}, 64\) in the checkpoint, and \({VOCABULARY}, 64\)"
    with pytest.raises(ValueError, match=rf"weight has the shape {shapes} according to config"):
        load_stage(config, stage)


def test_a_stage_tells_how_many_token_ids_it_has(tmp_path: Path) -> None:
    stages = make_stages(make_checkpoint(tmp_path, "llama", vocab_size=333), (1, 1, 2))
    assert [stage.vocab_size for stage in stages] == [333] * 3
    stages[0].module.get_input_embeddings().num_embeddings = 341  # as Mllama's
    assert StageModel(stages[0].module, stages[0].layers).vocab_size == 341


def test_a_stage_describes_itself(tmp_path: Path) -> None:
    first, last = make_stages(make_checkpoint(tmp_path, "llama"), (1, 3))
    assert describe(first).startswith("embedding + layers 0-0, 0.1 M parameters")
    assert describe(last).startswith("layers 1-3 + head")
    assert (first.max_model_len, first.output_width) == (1024, 64)
    assert first.config.num_hidden_layers == NUM_LAYERS


def test_with_virtual_stages_the_layers_are_split_into_more_parts(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama", num_hidden_layers=8)
    config = EngineConfig.of(model=str(path), pipeline_parallel_size=2, virtual_pipeline_size=2)
    ranges = split(config.model, config.pipeline, AutoConfig.from_pretrained(path))
    assert ranges == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    parts = [load_stage(config, part) for part in range(4)]
    assert [part.layers for part in parts] == ranges
    ends = [(part.is_first, part.is_last) for part in parts]
    assert ends == [(True, False), (False, False), (False, False), (False, True)]
    by_hand = config.replaced(layer_split=(3, 1, 2, 2))
    assert load_stage(by_hand, 2).layers == range(4, 6)
    too_many = config.replaced(virtual_pipeline_size=5)
    with pytest.raises(PartitionError, match="8 layers cannot be split into 10"):
        load_stage(too_many, 0)
