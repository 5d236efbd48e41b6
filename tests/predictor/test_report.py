"""The report: figures checked by hand."""

from pathlib import Path

import numpy as np
import pytest

from predictor.classes import LengthClasses
from predictor.report import draw, measure

CLASSES = LengthClasses.fit([10] * 50 + [1000] * 50, 5)


def test_accuracy_and_confusion_are_counted() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    figures = measure(
        CLASSES, probabilities, np.array([10, 10, 1000, 1000]), common_class=0
    ).figures
    assert figures["accuracy"] == 0.75
    assert figures["baseline_accuracy"] == 0.5
    assert figures["confusion"] == [[2, 0], [1, 1]]
    assert figures["num_requests"] == 4
    assert figures["sum_errors"] == {}


def test_the_error_of_a_sum_is_relative_and_cancels() -> None:
    probabilities = np.tile([0.5, 0.5], (64, 1))
    lens = np.array([10, 1000] * 32)
    errors = measure(CLASSES, probabilities, lens, 0).figures["sum_errors"]
    assert list(errors) == ["32", "64"]
    assert errors["64"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert errors["32"]["p95"] > errors["32"]["mean"] > 0


def test_the_paper_s_prediction_is_reported_beside_ours() -> None:
    probabilities = np.tile([0.6, 0.4], (32, 1))
    figures = measure(CLASSES, probabilities, np.full(32, 10), 0).figures
    assert figures["sum_errors_of_class_means"]["32"]["mean"] == 0.0
    assert figures["sum_errors"]["32"]["mean"] == pytest.approx(0.4 * 99)


def test_the_same_seed_draws_the_same_groups() -> None:
    rng = np.random.default_rng(0)
    probabilities, lens = rng.dirichlet([1, 1], 100), rng.choice([10, 1000], 100)
    first, again, other = (
        measure(CLASSES, probabilities, lens, 0, seed).figures for seed in (1, 1, 2)
    )
    assert first == again
    assert first["sum_errors"] != other["sum_errors"]


def test_the_lines_report_the_figures() -> None:
    probabilities = np.tile([0.6, 0.4], (32, 1))
    text = "\n".join(measure(CLASSES, probabilities, np.full(32, 10), 0).lines())
    assert "accuracy 1.000 over 32 requests (always the most common class: 1.000)" in text
    assert "error of the sum over  32 requests: mean 3960.00 %" in text


@pytest.mark.parametrize("count", [4, 64])
def test_there_is_a_picture(tmp_path: Path, count: int) -> None:
    probabilities = np.tile([0.6, 0.4], (count, 1))
    draw(measure(CLASSES, probabilities, np.full(count, 10), 0).figures, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
