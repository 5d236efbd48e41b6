"""The model: probabilities never rise, prompts are cut on the left, padding changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from predictor.checkpoint import build, load_encoder
from predictor.model import OrdinalHead, Reader, longest_input, probabilities
from tests.predictor.world import FAMILIES, make_encoder, make_tokenizer


@given(st.integers(0, 1000), st.integers(2, 20), st.sampled_from([0.1, 10.0]))
def test_the_chance_of_more_never_rises_with_the_class(
    seed: int, num_classes: int, scale: float
) -> None:
    torch.manual_seed(seed)
    head = OrdinalHead(8, num_classes)
    for parameter in head.parameters():
        parameter.data.normal_(0, scale)
    logits = head(torch.randn(4, 8) * scale)
    assert logits.shape == (4, num_classes - 1)
    assert (logits.diff(dim=1) <= 0).all()
    chances = probabilities(logits.detach())
    assert (chances >= 0).all()
    assert chances.sum(axis=1) == pytest.approx(np.ones(4))


def test_probabilities_are_differences() -> None:
    logits = torch.tensor([[0.75, 0.25]], dtype=torch.float64).logit()
    assert probabilities(logits)[0].tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_the_last_tokens_of_a_long_prompt_are_read() -> None:
    reader = Reader(make_tokenizer(), max_tokens=5)
    assert reader.ids(["short long please show me now"]) == [[1, 7, 8, 9, 2]]
    reader = Reader(make_tokenizer(has_cls=False), max_tokens=2)
    assert reader.ids(["short long please show me now", "me"]) == [[8, 9], [8]]


def test_a_book_is_cut_before_it_is_tokenized() -> None:
    reader = Reader(make_tokenizer(has_cls=False), max_tokens=3)
    assert reader.ids(["now " * 100_000 + "short long me"]) == [[4, 5, 8]]


def test_a_prompt_of_no_tokens_is_one_of_padding() -> None:
    assert Reader(make_tokenizer(has_cls=False), 5).ids([""]) == [[0]]


def test_batches_are_padded_on_the_right() -> None:
    ids, mask = Reader(make_tokenizer(), 5).batch([[1, 4], [1, 5, 6, 2]])
    assert ids.tolist() == [[1, 4, 0, 0], [1, 5, 6, 2]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("has_cls", [True, False])
def test_a_prompt_s_logits_do_not_depend_on_the_batch(
    tmp_path: Path, family: str, has_cls: bool
) -> None:
    encoder, tokenizer, _ = load_encoder(make_encoder(tmp_path, family, has_cls=has_cls))
    limit = longest_input(encoder, 512)
    model = build(encoder, tokenizer, 4, limit).eval()
    assert model.pooling == ("first" if has_cls else "mean")
    reader = Reader(tokenizer, limit)
    rows = reader.ids(["short me", "long please show me now " * 20, "", "me"])
    assert max(map(len, rows)) == limit
    with torch.inference_mode():
        together = model(*reader.batch(rows))
        by_itself = torch.cat([model(*reader.batch([row])) for row in rows])
    assert together.shape == (4, 3)
    torch.testing.assert_close(together, by_itself, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "padding_id", "limit"),
    [("bert", 0, 40), ("distilbert", 0, 40), ("roberta", 1, 38), ("roberta", 0, 39)],
)
def test_no_prompt_is_longer_than_the_encoder_s_positions(
    tmp_path: Path, family: str, padding_id: int, limit: int
) -> None:
    folder = make_encoder(tmp_path, family, pad_token_id=padding_id)
    encoder, _, _ = load_encoder(folder)
    assert longest_input(encoder, 512) == limit
    assert longest_input(encoder, 7) == 7
