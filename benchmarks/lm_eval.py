"""The demo model's tasks under lm-evaluation-harness: `make lm-eval`.

The command starts a daemon and runs the harness against it with its `local-completions` model and
lists of token ids. The harness compares the log-probabilities of given answers (echo with
logprobs), and checks generated answers. The given answers are the right one and three others of the
same kind of task. `lm_eval` must be installed at `--harness`.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.daemon_run import serving
from configs.schema.model import DEMO_MODEL
from demo.tasks import Task, held_out

NUM_CHOICES = 4
# The tasks from which the wrong answers are taken.
NUM_OTHERS = 200
MODEL = "tdpipe-demo"


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return held-out tasks, each with its answer among other answers of the same kind."""
    tasks = held_out(count + NUM_OTHERS, seed)
    answers: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        answers[task.name].append(task.answer)
    rng = random.Random(seed)
    return [
        document
        for task in tasks[:count]
        if (document := _document(task, answers, rng)) is not None
    ]


def task_files(folder: Path, count: int) -> None:
    """Write the harness's input: the documents and two tasks on them."""
    lines = [json.dumps(document) for document in documents(count)]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "target_delimiter": "",
    }
    choice = common | {
        "task": "tdpipe_demo_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    generate = common | {
        "task": "tdpipe_demo_generate",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 512, "temperature": 0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (choice, generate):
        # JSON is also YAML.
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task, indent=1))


def _document(
    task: Task, answers: dict[str, list[str]], rng: random.Random
) -> dict[str, Any] | None:
    others = sorted({answer for answer in answers[task.name] if answer != task.answer})
    if len(others) < NUM_CHOICES - 1:
        return None
    choices = [task.answer, *rng.sample(others, NUM_CHOICES - 1)]
    rng.shuffle(choices)
    return {"prompt": task.prompt, "choices": choices, "right": choices.index(task.answer)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run both tasks and print the harness's own table; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lm_eval", description=__doc__)
    parser.add_argument("--harness", default="lm_eval", help="the command [lm_eval]")
    parser.add_argument("--documents", type=int, default=200, help="[200]")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-lm-eval-") as name:
        folder = Path(name)
        task_files(folder, options.documents)
        with serving(DEMO_MODEL, 2, [], folder / "daemon") as url:
            arguments = {
                "model": MODEL,
                "base_url": f"{url}/v1/completions",
                "tokenizer": str(DEMO_MODEL),
                "tokenized_requests": True,
                "num_concurrent": 8,
            }
            command = [options.harness, "run", "--model=local-completions", "--batch_size=4"]
            command += ["--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
            command += ["--tasks", "tdpipe_demo_choice,tdpipe_demo_generate"]
            command += ["--include_path", str(folder)]
            return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
