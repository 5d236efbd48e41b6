"""Admission: a family is served in stages only after its stages have answered as the whole model.

A skeleton of the checkpoint's class is cut into stages, in one process, and fed prompts in chunks
and single tokens of several sequences side by side. The logits are compared with those of the whole
skeleton, fed as transformers' `generate` feeds it.
"""

import copy
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import BrokenBarrierError
from typing import get_args

import msgspec
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from configs.schema.model import ModelConfig
from daemon.version import VERSION
from workers.device.upload import upload_to
from workers.model import partitioning, stage_model, structure, tensor_parallel
from workers.model.attention import interface
from workers.model.attention.interface import UnsupportedModelError
from workers.model.attention.plain import PlainBackend
from workers.model.batch import HostBatch, Rows, send
from workers.model.kv_cache import KvCache
from workers.model.proof import skeleton, tensor_proof
from workers.model.stage_model import StageModel
from workers.model.structure import NUM_TOKENS, Structure, Trace, layers_of
from workers.model.tensor_parallel import TensorGroup

FOLDER = "families"
BLOCK_SIZE = 7
# Largest accepted difference of logits, as a part of the largest one. Rounding in fp32 makes 1e-6
# of it, or 3e-4 where softmax has large scores (Gemma 3n); a forgotten multiplier or norm, 1e-2.
TOLERANCE = 2e-3
NEAR_TIE = 1e-5
CPU = torch.device("cpu")

log = logging.getLogger("tdpipe")


@dataclass(slots=True, frozen=True)
class Exam:
    """What is fed: the lengths of prompts, and how many tokens of each sequence in each step."""

    prompts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens that is fed of each sequence."""
        return [sum(counts) for counts in zip(*self.steps, strict=True)]


AT_START = Exam((41, 9, 1), ((25, 9, 0), (16, 1, 1), (1, 1, 1), (1, 0, 1), (0, 1, 1)))


def admit(config: ModelConfig, data_dir: Path | None = None, ranks_per_stage: int = 1) -> Structure:
    """Find the structure of a checkpoint's family, and prove it; a proof is kept in `data_dir`.

    With several ranks per stage, the family's tensor-parallel plan is proven too.

    Raises `UnsupportedModelError` with the family's name and the reason where stages do not answer
    as the whole model does, and `ValueError` for a config that cannot be read.
    """
    model_class, model_config = stage_model.class_of(stage_model.read_config(config), config)
    is_divided = ranks_per_stage > 1
    if data_dir is None:
        return examine(model_class, model_config, is_divided=is_divided)
    versions = f"{VERSION} {torch.__version__} {transformers.__version__}"
    settings = f"{versions} {model_class.__name__} {model_config.to_json_string()}"
    if is_divided:
        settings += " tensor parallel"
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    path = data_dir / FOLDER / f"{model_config.model_type}-{key}.json"
    if (kept := _kept(path)) is not None:
        return kept
    began_at = time.monotonic()
    found = examine(model_class, model_config, is_divided=is_divided)
    took_s = time.monotonic() - began_at
    log.info("stages of %s answer as the whole model (%.1f s)", model_config.model_type, took_s)
    _keep(path, found)
    return found


def examine(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, is_divided: bool = False
) -> Structure:
    """Find the structure of a model class with this config, and prove it; see `admit`."""
    try:
        whole = whole_of(model_class, config)
        found = _find_structure(whole)
        reference = generate(whole, AT_START)
        for layers in splits(whole):
            compare([_stage(whole, found, part) for part in layers], reference, AT_START)
        if is_divided:
            _examine_ranks(whole, found, reference)
    except Exception as error:  # of any model's code
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if not isinstance(error, UnsupportedModelError):
            reason = f"{type(error).__name__}: {reason}"
        raise UnsupportedModelError(
            f"{config.model_type} models cannot be served: {reason}"
        ) from error
    return found


def _kept(path: Path) -> Structure | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Structure)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s is proven again: %s", path, error)
        return None


def _keep(path: Path, found: Structure) -> None:
    """Write the proof atomically: all stages of a pipeline write the same one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
            file.write(msgspec.json.encode(found))
        os.replace(file.name, path)
    except OSError as error:
        log.warning("the proof cannot be kept in %s for the next start: %s", path, error)


def whole_of(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A skeleton that runs; its widths are less small where they depend on each other.

    Raises what the first attempt raises, if none runs.
    """
    errors = []
    for widths in get_args(skeleton.Widths):
        try:
            model = skeleton.make(model_class, config, widths)
            model(input_ids=torch.tensor([[3, 4]]), use_cache=False)
            return model
        except Exception as error:  # of any model's code
            errors.append(error)
    raise errors[0]


@torch.inference_mode()
def _find_structure(whole: PreTrainedModel) -> Structure:
    inputs = {
        "input_ids": 3 + torch.arange(NUM_TOKENS)[None],
        "position_ids": torch.arange(NUM_TOKENS)[None],
        "use_cache": False,
    }
    full = Trace()
    with full.of(whole):
        whole(**inputs)
    found = structure.of_trace(full)
    later = _copy(whole)
    num_layers = len(layers_of(later))
    if num_layers == 1:
        return found
    partitioning.cut(later, range(1, num_layers), found)
    hidden = structure.hidden_of(full.arguments[1])
    assert hidden is not None
    later.stage_port.received = hidden.movedim(found.token_dim, 0).flatten(1)
    lean = Trace()
    with lean.of(later):
        later(**inputs)
    return structure.with_carried(found, full, lean)


def splits(whole: PreTrainedModel) -> list[list[range]]:
    """Two stages, and three if there are layers for them."""
    layers = layers_of(whole)
    count, last = len(layers), structure.last_cut(layers)
    cuts = [sorted({min(last, count // 2)}), sorted({min(last, count // 2), count // 3})]
    ends = ([0, *(end for end in found if end), count] for found in cuts)
    return [[range(*pair) for pair in pairwise(found)] for found in ends]


@dataclass(slots=True, frozen=True)
class Reference:
    """What transformers generates: the tokens fed of each sequence, and logits by position."""

    tokens: list[list[int]]
    logits: list[dict[int, Tensor]]


@torch.inference_mode()
def generate(whole: PreTrainedModel, exam: Exam) -> Reference:
    """Let transformers continue random prompts."""
    draw = np.random.default_rng(5)
    vocab_size = whole.config.get_text_config().vocab_size
    whole.generation_config = GenerationConfig()  # without end tokens
    tokens, logits = [], []
    for num_fed, num_prompt in zip(exam.lengths, exam.prompts, strict=True):
        prompt = draw.integers(3, vocab_size, size=(1, num_prompt))
        found = whole.generate(
            torch.tensor(prompt),
            GenerationConfig(
                max_new_tokens=num_fed - num_prompt + 1,
                do_sample=False,
                use_cache=True,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            ),
        )
        tokens.append(found.sequences[0, :num_fed].tolist())
        logits.append({num_prompt - 1 + n: row[0] for n, row in enumerate(found.logits)})
    return Reference(tokens, logits)


def compare(stages: Sequence[StageModel], reference: Reference, exam: Exam) -> None:
    """Feed the tokens to stages.

    Raises `UnsupportedModelError` where their logits or the most likely tokens differ.
    """
    for (row, position), got in _logits_of_stages(stages, reference.tokens, exam):
        want = reference.logits[row][position]
        error = (got - want).abs().max() / want.abs().max()
        if not error <= TOLERANCE:  # NaN is an error too
            raise UnsupportedModelError(
                f"in {len(stages)} stages its logits differ from those of transformers by "
                f"{float(error):.2g} of the largest"
            )
        # One of two that are equal but for rounding may be either.
        if want.max() - want[got.argmax()] > NEAR_TIE * want.abs().max():
            raise UnsupportedModelError(
                f"in {len(stages)} stages another token is the most likely one"
            )


def _examine_ranks(whole: PreTrainedModel, found: Structure, reference: Reference) -> None:
    layers = range(len(layers_of(whole)))
    tensor_parallel.plan_of(whole)  # without one, nothing is divided

    def prove(group: TensorGroup) -> None:
        try:
            compare([_stage(whole, found, layers, group)], reference, AT_START)
        except (RuntimeError, UnsupportedModelError) as error:
            if isinstance(error, BrokenBarrierError):
                raise
            raise UnsupportedModelError(
                f"divided by its tensor-parallel plan: {str(error).partition(chr(10))[0]}"
            ) from error

    tensor_proof.run_ranks(prove)


def _stage(
    whole: PreTrainedModel, found: Structure, layers: range, group: TensorGroup | None = None
) -> StageModel:
    model = _copy(whole)
    model.set_attn_implementation(interface.NAME)
    partitioning.cut(model, layers, found)
    if group is not None:
        tensor_parallel.keep_part(model, group)
    return StageModel(model, layers)


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the weights."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def _logits_of_stages(
    stages: Sequence[StageModel], tokens: Sequence[Sequence[int]], exam: Exam
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """By sequence and position: chunks of prompts and single tokens of several sequences."""
    backend, blocks_per_row = PlainBackend(), -(-max(exam.lengths) // BLOCK_SIZE)
    caches = [
        KvCache(stage.probe(2).shapes, len(tokens) * blocks_per_row, BLOCK_SIZE, stage.dtype, CPU)
        for stage in stages
    ]
    fed = [0] * len(tokens)
    for counts in exam.steps:
        host, sampled = _batch(tokens, fed, counts, exam.prompts, blocks_per_row)
        batch = send(host, upload_to(CPU), backend.arrays)
        passed: Tensor | None = None
        for stage, cache in zip(stages, caches, strict=True):
            passed = stage.forward(
                batch.token_ids,
                batch.position_ids,
                batch.output_at,
                backend.step(cache, batch),
                passed,
                batch.rope_lens,
            )
        assert passed is not None
        yield from zip(sampled, passed, strict=True)


def _batch(
    tokens: Sequence[Sequence[int]],
    fed: list[int],
    counts: Sequence[int],
    prompts: Sequence[int],
    blocks_per_row: int,
) -> tuple[HostBatch, list[tuple[int, int]]]:
    """A step that feeds so many tokens of each sequence, and (sequence, position) of what samples.

    The blocks of a sequence lie in the cache in reverse order.
    """
    rows = [row for row, count in enumerate(counts) if count]
    starts = np.array([fed[row] for row in rows])
    for row in rows:
        fed[row] += counts[row]
    ends = np.array([fed[row] for row in rows])
    tables = [
        [(row + 1) * blocks_per_row - 1 - n for n in range(-(-fed[row] // BLOCK_SIZE))]
        for row in rows
    ]
    begins = np.concatenate([[0], np.cumsum(ends - starts)])
    samples = [n for n, row in enumerate(rows) if fed[row] >= prompts[row]]
    pairs = list(zip(rows, starts, ends, strict=True))
    positions = np.concatenate([np.arange(start, end) for _, start, end in pairs])
    host = HostBatch(
        np.array([token for row, start, end in pairs for token in tokens[row][start:end]]),
        positions,
        np.maximum(positions + 1, np.repeat([prompts[row] for row in rows], ends - starts)),
        begins[1:][samples] - 1,
        len(samples),
        Rows(
            begins,
            starts,
            np.concatenate([[0], np.cumsum([len(table) for table in tables])])[:-1],
            np.array([block for table in tables for block in table], np.int32),
            BLOCK_SIZE,
        ),
    )
    return host, [(rows[n], int(ends[n]) - 1) for n in samples]
