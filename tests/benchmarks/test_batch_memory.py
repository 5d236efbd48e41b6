"""The memory benchmark: its input is a batch, and it sees memory grow."""

from pathlib import Path

import psutil

from benchmarks.batch_memory import MODEL, Memory, write_input
from server.batches.lines import Rules
from server.batches.validation import Validation


def test_its_input_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    write_input(path, 300)
    validation = Validation(path, Rules({"/v1/completions"}, {MODEL}, 1000), 300)
    validation.run()
    assert validation.num_requests == 300


def test_memory_that_grows_is_seen() -> None:
    with Memory(psutil.Process()) as memory:
        held = b"\1" * 60_000_000
    assert memory.peak_mb - memory.before_mb > 50
    assert held
