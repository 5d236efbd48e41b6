"""`tdpipe train-predictor`: fine-tunes an encoder to predict how long a model's answers will be."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from predictor.checkpoint import (
    DESCRIPTION,
    Description,
    Predictor,
    PredictorError,
    build,
    load_encoder,
    save_predictor,
    versions,
)
from predictor.classes import LengthClasses
from predictor.dataset import DataError, Requests, read_requests, split
from predictor.fitting import Rows, Settings, class_probabilities, fit
from predictor.model import Reader, longest_input
from predictor.report import Measured, draw, measure

MISUSED, INTERRUPTED = 2, 130
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main(argv: Sequence[str]) -> int:
    """Run the command; the exit code is 0, 2 for invalid input, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        head_lr=options.head_lr,
        patience=options.patience,
        seed=options.seed,
    )
    try:
        with written_atomically(options.out) as folder:
            requests = read_requests(options.data)
            predictor, measured = train(
                requests, options.encoder, settings, options.classes, options.max_tokens,
                options.device, DTYPES[options.dtype],
            )  # fmt: skip
            save(predictor, measured, folder, DTYPES[options.dtype])
    except (DataError, PredictorError, FloatingPointError, OSError) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    print("\n".join([*measured.lines(), f"written to {options.out}"]))
    return 0


def train(
    requests: Requests,
    encoder_folder: Path,
    settings: Settings,
    num_classes: int = 5,
    max_tokens: int = 512,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Predictor, Measured]:
    """Fine-tune a predictor on 60 % of the requests, and measure it on 20 % as a test set.

    It is measured after its weights are rounded to `dtype`, as they are saved. Raises `DataError`
    or `PredictorError`.
    """
    parts = split(requests, settings.seed)
    classes = LengthClasses.fit(parts.training.output_lens, num_classes)
    if len(classes) < 2:
        length = int(np.median(parts.training.output_lens))
        raise DataError(
            f"nearly all answers have the same length: use --predictor constant:{length}"
        )
    torch.manual_seed(settings.seed)
    encoder, tokenizer, has_weights = load_encoder(encoder_folder)
    if not has_weights:
        print(f"{encoder_folder} has no weights: the encoder starts with random weights")
    max_tokens = longest_input(encoder, max_tokens)
    model = build(encoder, tokenizer, len(classes), max_tokens).to(device)
    reader = Reader(tokenizer, max_tokens)
    training, validation, test = (
        Rows(reader.ids(part.prompts), classes.of(part.output_lens))
        for part in (parts.training, parts.validation, parts.test)
    )
    losses = fit(model, reader, training, validation, settings)
    model.to(dtype).float()
    common = int(np.bincount(training.classes).argmax())
    probabilities = class_probabilities(model, reader, test.ids, settings.batch_size)
    measured = measure(classes, probabilities, parts.test.output_lens, common, settings.seed)
    measured.figures["validation_losses"] = losses
    kept = {name: measured.figures[name] for name in ("accuracy", "baseline_accuracy")}
    description = Description(
        classes=classes,
        max_tokens=max_tokens,
        pooling=model.pooling,
        tokenizer=requests.tokenizer,
        accuracy=kept | {"sum_errors": measured.figures["sum_errors"]},
        versions=versions(),
    )
    return Predictor(model.to("cpu"), tokenizer, description), measured


def save(predictor: Predictor, measured: Measured, folder: Path, dtype: torch.dtype) -> None:
    """Write the predictor and its report into an existing folder."""
    save_predictor(predictor, folder, dtype)
    (folder / "report.json").write_text(json.dumps(measured.figures, indent=1) + "\n")
    draw(measured.figures, folder / "report.png")


@contextmanager
def written_atomically(out: Path) -> Iterator[Path]:
    """A temporary folder that replaces `out` if the block succeeds, and is removed otherwise.

    Raises `PredictorError` if `out` is not a predictor or cannot be written.
    """
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not is_empty and not (out / DESCRIPTION).is_file():
        raise PredictorError(f"{out} exists and is not a predictor; it is not overwritten")
    if not out.absolute().parent.is_dir():
        raise PredictorError(f"the parent folder of {out} does not exist")
    partial = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        yield partial
        _replace(out.absolute(), partial)
    except OSError as error:
        raise PredictorError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(out: Path, new: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    paper = Settings()
    parser = argparse.ArgumentParser(
        prog="tdpipe train-predictor",
        description="Fine-tune an encoder to predict how long a served model's answers will be.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="finished requests, from `tdpipe collect`")
    add("--encoder", type=Path, required=True, help="folder of an encoder, such as BERT-base")
    add("--out", type=Path, required=True, help="folder to write, for --predictor")
    add("--classes", type=_two_or_more, default=5, help="length classes [5, as in the paper]")
    add("--epochs", type=_count, default=paper.epochs, help="maximum epochs [%(default)s]")
    add("--batch-size", type=_count, default=paper.batch_size, help="prompts [%(default)s]")
    add("--lr", type=_rate, default=paper.lr, help="learning rate of the encoder [%(default)s]")
    add("--head-lr", type=_rate, default=paper.head_lr, help="that of the head [%(default)s]")
    add("--max-tokens", type=_count, default=512, help="number of last prompt tokens to read [512]")
    add(
        "--patience",
        type=_count,
        default=paper.patience,
        help="epochs without a lower validation loss before training stops [%(default)s]",
    )
    add("--seed", type=int, default=paper.seed, help="of split, weights and order [%(default)s]")
    add("--threads", type=_count, help="CPU threads [torch's default]")
    add("--device", choices=("cpu", "cuda"), default=_device(), help="[a GPU if there is one]")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the saved weights [float32]")
    return parser


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _count(text: str) -> int:
    return _at_least(1, text)


def _two_or_more(text: str) -> int:
    return _at_least(2, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least {least}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
