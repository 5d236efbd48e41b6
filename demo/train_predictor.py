"""Trains the demo's length predictor: `python -m demo.train_predictor --out demo/predictor`.

The demo model answers training prompts, a small encoder learns the lengths of those answers, and
prompts held out of both trainings measure how good it is.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ModernBertConfig

from demo.answer_lengths import LONGEST_ANSWER, output_lens
from demo.tasks import Task, held_out, training_tasks
from predictor.checkpoint import Predictor, load_predictor
from predictor.classes import LengthClasses
from predictor.dataset import Requests
from predictor.fitting import Settings, class_probabilities
from predictor.report import measure
from predictor.train import save, train, written_atomically
from wire.vocabulary_fingerprint import fingerprint

LR = 1e-3  # from random weights, not a fine-tuning
_BATCH = 64
# Neither the tokenizer's nor the model's training used this seed.
_TASK_SEED = 1000


def main() -> None:
    """Ask, train, save, and measure on held-out prompts."""
    options = _options()
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    tasks = list(islice(training_tasks(_TASK_SEED), options.count))
    requests = ask_demo_model(options.model, tasks)
    print(f"{len(requests)} answers that end, in {time.monotonic() - began:.0f} s")
    settings = Settings(options.epochs, _BATCH, LR, LR, patience=options.epochs, seed=options.seed)
    with written_atomically(options.out) as folder, tempfile.TemporaryDirectory() as encoder:
        make_encoder(options.model, Path(encoder))
        predictor, measured = train(
            requests, Path(encoder), settings, options.classes, dtype=torch.bfloat16
        )
        save(predictor, measured, folder, torch.bfloat16)
    print("\n".join(measured.lines()))
    print(f"trained after {time.monotonic() - began:.0f} s")
    report_held_out(options.model, options.out, options.held_out)


def ask_demo_model(model: Path, tasks: Sequence[Task]) -> Requests:
    """The prompts and the lengths of the model's own answers, without those that do not end: their
    length would be the client's limit, which cannot be learned."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    answering = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    lens = np.array(output_lens(answering, tokenizer, tasks), dtype=np.int64)
    everything = Requests(
        tuple(task.prompt for task in tasks), lens, fingerprint(tokenizer.get_vocab())
    )
    return everything.take(np.flatnonzero(lens < LONGEST_ANSWER))


def make_encoder(model: Path, folder: Path) -> None:
    """An encoder of 755,000 weights, random ones, on the demo model's tokenizer.

    ModernBERT's relative positions and early norms learn to subtract numbers in a prompt twice as
    fast as BERT's of the same size (validation loss after 4 epochs 0.75 and 1.32).
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder)
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=512,
        global_attn_every_n_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=None,
        sep_token_id=None,
    )
    config.save_pretrained(folder)


def report_held_out(model: Path, folder: Path, count: int) -> None:
    """Add figures over held-out prompts, of the predictor as saved, to its `report.json`."""
    predictor = load_predictor(folder)
    asked = ask_demo_model(model, held_out(count, seed=1))
    figures = held_out_figures(predictor, asked)
    report = folder / "report.json"
    content: dict[str, Any] = json.loads(report.read_text())
    content["held_out"] = figures
    report.write_text(json.dumps(content, indent=1) + "\n")
    print(f"held out: {len(asked)} of {count} answers end")
    for name, value in figures.items():
        if name != "confusion":
            print(f"  {name}: {value}")


def held_out_figures(predictor: Predictor, asked: Requests) -> dict[str, Any]:
    """The report's figures, and the accuracy in the paper's 5 classes: whether the predicted length
    is in the same class as the real one."""
    reader, classes = predictor.reader, predictor.description.classes
    probabilities = class_probabilities(predictor.model, reader, reader.ids(asked.prompts), _BATCH)
    common = int(np.bincount(classes.of(asked.output_lens)).argmax())
    figures = measure(classes, probabilities, asked.output_lens, common).figures
    five = LengthClasses.fit(asked.output_lens, 5)
    predicted = np.rint(classes.mixture(probabilities).means)
    is_same = five.of(predicted) == five.of(asked.output_lens)
    figures["accuracy_in_5_classes"] = float(is_same.mean())
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("demo/model"))
    parser.add_argument("--out", type=Path, default=Path("demo/predictor"))
    parser.add_argument("--count", type=int, default=40_000, help="training prompts to ask")
    parser.add_argument("--held-out", type=int, default=1000, help="held-out prompts to ask")
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
