"""The folder: what was saved is loaded unchanged, and damage is reported in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictor.checkpoint import PredictorError, load_encoder, load_predictor, save_predictor
from tests.predictor.world import FAMILIES, make_encoder, make_predictor, make_tokenizer

PROMPTS = ["short please", "long show me now", "", "what is this"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_predictor_predicts_as_the_saved_one_did(tmp_path: Path, family: str) -> None:
    first = load_predictor(make_predictor(tmp_path / "first", family))
    (tmp_path / "second").mkdir()
    save_predictor(first, tmp_path / "second", torch.float32)
    first = load_predictor(tmp_path / "first")
    second = load_predictor(tmp_path / "second")
    assert second.description == first.description
    assert second.predict(PROMPTS) == first.predict(PROMPTS)
    for one in first.predict(PROMPTS):
        assert one.length_class in (0, 1)
        assert 2 <= one.predicted_len <= 50
        assert 0 <= one.spread < 2


def test_weights_of_two_bytes_are_read_as_four(tmp_path: Path) -> None:
    predictor = load_predictor(make_predictor(tmp_path / "first"))
    (tmp_path / "small").mkdir()
    save_predictor(predictor, tmp_path / "small", torch.bfloat16)
    weights = load_file(tmp_path / "small" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    small = load_predictor(tmp_path / "small")
    assert {p.dtype for p in small.model.parameters()} == {torch.float32}
    assert len(small.predict(PROMPTS)) == len(PROMPTS)


def test_another_user_may_read_what_was_saved(tmp_path: Path) -> None:
    for path in make_predictor(tmp_path / "made").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def damage(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).write_bytes(b"\x10damaged")

    return do


def change(key: str, value: object) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        path = folder / "predictor.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return do


def lose_a_weight(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        weights = load_file(folder / name)
        weights.popitem()
        save_file(weights, folder / name, {"format": "pt"})

    return do


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (remove("predictor.json"), "is not a predictor: it has no predictor.json"),
        (remove("config.json"), "has no config.json"),
        (remove("model.safetensors"), "has no weights"),
        (remove("head.safetensors"), "head.safetensors: "),
        (remove("tokenizer.json"), "cannot load the encoder"),
        (damage("predictor.json"), "predictor.json: "),
        (damage("config.json"), "cannot load the encoder"),
        (damage("model.safetensors"), "cannot load the encoder"),
        (damage("head.safetensors"), "head.safetensors: "),
        (damage("tokenizer.json"), "cannot load the encoder"),
        (lose_a_weight("model.safetensors"), "1 weights are missing"),
        (lose_a_weight("head.safetensors"), "head.safetensors: "),
        (change("format", 2), "format 2, not 1"),
        (change("max_tokens", 0), "an invalid max_tokens or too few classes"),
        (change("pooling", "last"), "pooling"),
        (change("classes", {"edges": [5, 3], "means": [], "quantiles": []}), "predictor.json: "),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_in_one_line(
    tmp_path: Path, harm: Callable[[Path], None], problem: str
) -> None:
    folder = make_predictor(tmp_path / "made")
    harm(folder)
    with pytest.raises(PredictorError, match=re.escape(problem)) as caught:
        load_predictor(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match=r"there is no folder .*/nowhere"):
        load_predictor(tmp_path / "nowhere")


def test_an_encoder_smaller_than_its_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path, vocab_size=9)
    with pytest.raises(PredictorError, match="embeddings for 9 tokens, but its tokenizer has 10"):
        load_encoder(folder)
    assert len(make_tokenizer()) == 10
