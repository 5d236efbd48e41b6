"""The memory benchmark: its input is a batch."""

from pathlib import Path

from benchmarks.stress.batch_memory import MODEL, write_input
from server.batches.storage.lines import Rules
from server.batches.validation import Validation


def test_its_input_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_input(path, 300)
    validation = Validation(path, Rules({"/v1/completions"}, {MODEL}, 1000), 300)
    validation.run()
    assert validation.num_requests == 300
