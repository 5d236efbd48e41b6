"""Training: it learns what can be learned, is reproducible, and stops when nothing is gained."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from predictor import fitting
from predictor.checkpoint import build, load_encoder
from predictor.fitting import Rows, Settings, batches, class_probabilities, fit, mean_loss
from predictor.model import LengthModel, Reader
from tests.predictor.world import make_encoder, make_lines

FAST = Settings(epochs=8, batch_size=16, lr=1e-2, head_lr=1e-2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder's folder."""
    return make_encoder(tmp_path / "encoder")


def world(folder: Path) -> tuple[LengthModel, Reader, Rows, Rows]:
    """Model, reader and two parts of requests: class 1 is "long"."""
    torch.manual_seed(0)
    encoder, tokenizer, _ = load_encoder(folder)
    reader = Reader(tokenizer, 40)
    lines = make_lines(160)
    ids = reader.ids([line["prompt"] for line in lines])
    classes = np.array([int(line["output_len"] > 5) for line in lines])
    parts = [Rows(ids[own], classes[own]) for own in (slice(0, 120), slice(120, 160))]
    return build(encoder, tokenizer, 3, 40), reader, parts[0], parts[1]


def test_what_a_word_says_is_learned(folder: Path) -> None:
    model, reader, training, validation = world(folder)
    before = mean_loss(model, reader, validation, 16)
    losses = fit(model, reader, training, validation, FAST)
    assert min(losses) < before / 4
    probabilities = class_probabilities(model, reader, validation.ids, 16)
    assert (probabilities.argmax(axis=1) == validation.classes).all()


def test_the_weights_are_those_of_the_best_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.5, 0.3, 0.4, 0.35, 0.1])
    real, seen = fitting.mean_loss, []

    def scripted(*arguments: object) -> float:
        seen.append(real(*arguments))  # type: ignore[arg-type]
        return next(losses)

    monkeypatch.setattr(fitting, "mean_loss", scripted)
    model, reader, training, validation = world(folder)
    losses = fit(model, reader, training, validation, Settings(epochs=9, patience=2))
    assert losses == [0.5, 0.3, 0.4, 0.35]
    assert mean_loss(model, reader, validation, 32) == pytest.approx(seen[1])


def test_the_same_seed_gives_the_same_weights(folder: Path) -> None:
    trained = []
    for seed in (1, 1, 2):
        model, reader, training, validation = world(folder)
        fit(model, reader, training, validation, Settings(epochs=1, seed=seed))
        trained.append(torch.cat([p.detach().ravel() for p in model.parameters()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_a_loss_of_nan_is_an_error(folder: Path) -> None:
    model, reader, training, validation = world(folder)
    next(model.head.parameters()).data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="lower --lr"):
        fit(model, reader, training, validation, Settings(epochs=1))


def test_batches_hold_every_row_once_and_rows_of_like_length() -> None:
    rng = np.random.default_rng(0)
    rows = Rows([[1] * int(n) for n in rng.integers(1, 100, 500)], np.zeros(500, dtype=np.int64))
    cut = list(batches(rows, 32, rng))
    assert Counter(i for batch in cut for i in batch) == Counter(range(500))
    assert all(len(batch) <= 32 for batch in cut)
    spans = [max(own) - min(own) for own in ([len(rows.ids[i]) for i in b] for b in cut)]
    assert max(spans) < 20


def test_probabilities_come_in_the_order_of_the_rows(folder: Path) -> None:
    model, reader, training, _ = world(folder)
    together = class_probabilities(model, reader, training.ids, 7)
    each = [class_probabilities(model, reader, [row], 1)[0] for row in training.ids]
    np.testing.assert_allclose(together, np.array(each), atol=1e-5)
