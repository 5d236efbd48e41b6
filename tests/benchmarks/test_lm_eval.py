"""The tasks for lm-evaluation-harness."""

import json
from pathlib import Path

from benchmarks.lm_eval import NUM_CHOICES, NUM_OTHERS, documents, task_files
from demo.tasks import held_out


def test_the_right_answer_is_among_others_of_its_kind() -> None:
    by_prompt = {task.prompt: task for task in held_out(60 + NUM_OTHERS, 0)}
    answers = {task.answer for task in by_prompt.values()}
    found = documents(60)
    assert len(found) > 40
    for document in found:
        assert len(set(document["choices"])) == NUM_CHOICES
        assert document["choices"][document["right"]] == by_prompt[document["prompt"]].answer
        assert set(document["choices"]) <= answers
    assert len({document["right"] for document in found}) == NUM_CHOICES


def test_the_harness_finds_its_documents(tmp_path: Path) -> None:
    task_files(tmp_path, 20)
    for name in ("tdpipe_demo_choice", "tdpipe_demo_generate"):
        task = json.loads((tmp_path / f"{name}.yaml").read_text())
        path = Path(task["dataset_kwargs"]["data_files"]["test"])
        assert len(path.read_text().splitlines()) == len(documents(20))
