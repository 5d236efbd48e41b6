"""lm-eval: log-probabilities and answers by `local-completions`, answers by the chat model."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.clients.scripts.checks import MODEL, URL, check, equal, holds, run

TIMEOUT_S = 85
DOCUMENTS = [
    {"question": f"The capital of {country} is", "choices": [" Paris", " Rome"], "right": right}
    for right, country in enumerate(["France", "Italy"])
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "right",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[right]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "temperature": 0},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def evaluate(kind: str, path: str, task: Mapping[str, object], *flags: str) -> dict[str, float]:
    """The results of one task under one of the harness's models."""
    with tempfile.TemporaryDirectory(prefix="tdpipe-lm-eval-") as name:
        folder = Path(name)
        lines = [json.dumps(document) for document in DOCUMENTS]
        (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
        files = {"data_files": {"test": str(folder / "documents.jsonl")}}
        common = {"task": "capitals", "dataset_path": "json", "dataset_kwargs": files}
        common |= {"test_split": "test", "doc_to_text": "{{question}}", "target_delimiter": ""}
        # JSON is also YAML.
        (folder / "capitals.yaml").write_text(json.dumps({**common, **task}))
        arguments = f"model={MODEL},base_url={URL}{path},num_concurrent=2"
        # Log-probabilities need a tokenizer: the server's, by /tokenize and /tokenizer_info.
        arguments += f",tokenizer_backend={'remote' if task is CHOICE else None}"
        command = ["lm_eval", "run", f"--model={kind}", f"--model_args={arguments}", *flags]
        command += ["--tasks=capitals", f"--include_path={folder}", f"--output_path={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        equal(done.returncode, 0, f"exit status ({done.stderr[-400:]})")
        (report,) = folder.rglob("results_*.json")
        results: dict[str, float] = json.loads(report.read_text())["results"]["capitals"]
        return results


@check("local-completions: log-probabilities")
def log_probabilities() -> None:
    flags = ["--batch_size=1"]
    results = evaluate("local-completions", "/completions", CHOICE, *flags)
    # Both capitals are known to the model, so a wrong alignment of the tokens would show.
    equal(results["acc,none"], 1.0, "accuracy")


@check("local-completions: answers")
def answers() -> None:
    holds("exact_match,none" in evaluate("local-completions", "/completions", GENERATE), "none")


@check("local-chat-completions: answers")
def chat_answers() -> None:
    flags = ["--apply_chat_template"]
    results = evaluate("local-chat-completions", "/chat/completions", GENERATE, *flags)
    holds("exact_match,none" in results, "no result")


if __name__ == "__main__":
    run("lm-eval")
