"""The quality of a predictor, for single requests and for sums over groups of requests.

A KV plan depends only on the sums, in which the errors of single requests cancel (TD-Pipe, section
4.4).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from predictor.classes import Floats, Ints, LengthClasses

GROUP_SIZES = (32, 64, 128, 256)
_NUM_DRAWS = 500


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured figures, as in `report.json`."""

    figures: dict[str, Any]

    def lines(self) -> list[str]:
        """A summary in lines of text."""
        figures = self.figures
        lines = [
            f"accuracy {figures['accuracy']:.3f} over {figures['num_requests']} requests "
            f"(always the most common class: {figures['baseline_accuracy']:.3f})",
            "confusion (rows: real class, columns: predicted)",
            *("  " + " ".join(f"{count:5d}" for count in row) for row in figures["confusion"]),
        ]
        for size, error in figures["sum_errors"].items():
            lines.append(
                f"error of the sum over {size:>3} requests: mean {100 * error['mean']:.2f} %, "
                f"p95 {100 * error['p95']:.2f} %"
            )
        return lines


def measure(
    classes: LengthClasses,
    probabilities: Floats,
    output_lens: Ints,
    common_class: int,
    seed: int = 0,
) -> Measured:
    """Compare the predicted class probabilities [requests, K] with the real lengths.

    The baseline always predicts `common_class`, the most common class of the training part. Groups
    are drawn at random, without repetition within a group; group sizes above the number of requests
    are omitted.
    """
    real, guessed = classes.of(output_lens), probabilities.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (real, guessed), 1)
    predicted = classes.mixture(probabilities).means
    class_means = np.array(classes.means)[guessed]
    figures = {
        "num_requests": len(real),
        "num_classes": len(classes),
        "accuracy": float(np.mean(real == guessed)),
        "baseline_accuracy": float(np.mean(real == common_class)),
        "confusion": confusion.tolist(),
        "sum_errors": _sum_errors(predicted, output_lens, seed),
        # The paper predicts the mean of the most likely class; we predict the mean of the mixture.
        "sum_errors_of_class_means": _sum_errors(class_means, output_lens, seed),
        "mean_absolute_error": float(np.mean(np.abs(predicted - output_lens))),
        "mean_output_len": float(np.mean(output_lens)),
    }
    return Measured(figures)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures: confusion, and the error of sums by group size."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(np.array(figures["confusion"]), cmap="Blues")
    left.set(
        title=f"classes, accuracy {figures['accuracy']:.2f}", xlabel="predicted", ylabel="real"
    )
    for name, label in (
        ("sum_errors", "mixture's mean"),
        ("sum_errors_of_class_means", "class's mean"),
    ):
        errors = figures[name]
        sizes = [int(size) for size in errors]
        means = [100 * error["mean"] for error in errors.values()]
        line = right.plot(sizes, means, marker="o", label=f"{label}: mean")[0]
        tails = [100 * error["p95"] for error in errors.values()]
        right.plot(sizes, tails, marker="v", ls=":", color=line.get_color(), label=f"{label}: p95")
    right.set(title="error of the summed lengths", xlabel="requests in a group", ylabel="%")
    right.set_ylim(bottom=0)
    if figures["sum_errors"]:
        right.legend()
    figure.savefig(path, dpi=80)


def _sum_errors(predicted: Floats, real: Ints, seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    errors: dict[str, dict[str, float]] = {}
    for size in GROUP_SIZES:
        if size > len(real):
            break
        draws = [rng.permutation(len(real))[:size] for _ in range(_NUM_DRAWS)]
        each = [abs(predicted[own].sum() / real[own].sum() - 1.0) for own in draws]
        errors[str(size)] = {"mean": float(np.mean(each)), "p95": float(np.quantile(each, 0.95))}
    return errors
