"""A converted GGUF file, against what transformers itself loads from it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from daemon.checkpoint.gguf_file import Conversion
from daemon.checkpoint.gguf_header import GgufError, read_header
from tests.gguf_files import LAYERS, reference, write_gguf
from tests.workers.model.test_stage_model import forward, make_caches, make_stages, mixed_steps
from tests.workers.world import Ground
from workers import gguf_conversion

TEXTS = ["What is 23 plus 45?\n", "Häuser  é 日本 <|end|>red fox", " a\t\tb", "<|pad|>1234567"]


def convert(file: Path, folder: Path, dtype: str = "auto") -> Conversion:
    """Convert in this process."""
    conversion = Conversion.of(file, dtype, folder)
    gguf_conversion.convert(conversion)
    assert conversion.is_done()
    return conversion


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        *((kind, "float32", "float32") for kind in ("Q8_0", "Q4_1", "Q5_0")),
        ("F32", "auto", "float32"),
        ("F16", "auto", "float16"),
        ("BF16", "auto", "bfloat16"),
        ("Q8_0", "auto", "bfloat16"),
        ("Q4_0", "float16", "float16"),
    ],
)
def test_the_stages_are_the_model_that_transformers_loads_from_the_file(
    kind: str, dtype: str, expected: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "model.gguf", kind)
    conversion = convert(file, tmp_path, dtype)
    assert conversion.report()["dtype"] == expected
    assert conversion.report()["warnings"] == []
    whole = reference(file, getattr(torch, expected))
    ground = Ground(4)
    stages = make_stages(conversion.folder, (1, LAYERS - 1), dtype=dtype)
    caches = make_caches(stages, ground)
    assert {stage.dtype for stage in stages} == {getattr(torch, expected)}
    close = 1e-5 if expected == "float32" else 0.05
    for sampling, batch in mixed_steps(ground):
        logits = forward(stages, caches, batch)
        for got, sequence in zip(logits, sampling, strict=True):
            with torch.inference_mode():
                want = whole(torch.tensor([sequence.token_ids])).logits[0, -1]
            assert (got - want).abs().max() / want.abs().max() < close
    weights = dict(whole.named_parameters())
    for stage in stages:
        for name, weight in stage.module.named_parameters():
            assert torch.equal(weight, weights[name]), name


def test_the_tokenizer_is_that_of_the_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    kept = AutoTokenizer.from_pretrained(convert(file, tmp_path).folder)
    own: Any = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=str(file))
    assert [kept(text)["input_ids"] for text in TEXTS] == [own(text)["input_ids"] for text in TEXTS]
    assert kept.eos_token_id == own.eos_token_id == 0
    asked = [{"role": "user", "content": "Count."}]
    assert kept.apply_chat_template(asked) == own.apply_chat_template(asked)


def test_a_file_is_converted_again_when_it_or_its_precision_changes(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    first = convert(file, tmp_path)
    written = (first.folder / "model.safetensors").stat().st_mtime_ns
    convert(file, tmp_path)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written
    os.utime(file, (1, 1))
    assert not first.is_done()
    assert convert(file, tmp_path).folder == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns != written
    assert not Conversion.of(file, "float32", tmp_path).is_done()


def test_an_interrupted_conversion_is_begun_anew(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    conversion = Conversion.of(file, "auto", tmp_path)
    partial = conversion.folder.with_name(f"{conversion.folder.name}.partial")
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    convert(file, tmp_path)
    assert not partial.exists()


def test_a_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", without="blk.2.ffn_up.weight")
    with pytest.raises(GgufError, match=r"lacks 1 tensors.*LlamaForCausalLM.*layers\.2\.mlp\.up"):
        convert(file, tmp_path)


def test_a_file_that_ends_within_a_tensor_is_truncated(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    last = max(tensor.offset for tensor in read_header(file).tensors.values())
    file.write_bytes(file.read_bytes()[: last + 100])
    with pytest.raises(GgufError, match="is truncated: it ends within"):
        convert(file, tmp_path)


def test_a_family_that_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    length = (5).to_bytes(8, "little")
    file.write_bytes(file.read_bytes().replace(length + b"llama", length + b"clamp", 1))
    with pytest.raises(GgufError, match=r"transformers cannot read .*clamp"):
        convert(file, tmp_path)


def test_what_transformers_does_not_read_is_told(tmp_path: Path) -> None:
    scaled = {"llama.rope.scaling.type": "linear"}
    conversion = convert(write_gguf(tmp_path / "model.gguf", settings=scaled), tmp_path)
    (warning,) = conversion.report()["warnings"]
    assert "does not read its RoPE scaling (llama.rope.scaling.type)" in warning


def test_a_full_disk_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(GgufError, match=r"GB in bfloat16, .* --data-dir names another"):
        convert(file, tmp_path)
