"""The cost of serving: roles of processes, and the table."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.peers.serving_cost import contenders, table


@pytest.mark.parametrize(
    ("contender", "name", "command", "role"),
    [
        (0, "python", "python tdpipe.py serve --port 1", ""),
        (0, "python", "python -P -m server /tmp/a", "server"),
        (0, "python", "python -P -m engine /tmp/a 0", "scheduler"),
        (0, "python", "python -P -m workers /tmp/a 0", "stages"),
        (1, "python", "python -m vllm.entrypoints.openai.api_server --port 1", "server"),
        (1, "VLLM::EngineCore", "VLLM::EngineCore", "scheduler"),
        (1, "VLLM::Worker_PP1", "VLLM::Worker_PP1", "stages"),
        (1, "python", "python -c from multiprocessing.resource_tracker import main", ""),
    ],
)
def test_a_process_has_the_role_that_its_name_says(
    contender: int, name: str, command: str, role: str
) -> None:
    process = SimpleNamespace(name=lambda: name, cmdline=command.split)
    chosen = contenders(Path("/nowhere"), 1)[contender]
    assert chosen.role_of(cast(Any, process)) == role


def test_the_table_has_medians_ranges_and_ratios() -> None:
    def runs(*servers: float) -> list[dict[str, float]]:
        return [{"server": s, "scheduler": 1.0, "stages": 4.0, "tokens/s": 1e4} for s in servers]

    lines = table({"ours": runs(5, 1, 3), "theirs": runs(6, 6, 6)})
    assert lines[0] == "| | ours | theirs | ratio |"
    assert lines[2] == "| server | 3.0 (1.0–5.0) | 6.0 (6.0–6.0) | 0.50 |"
    assert lines[-1].startswith("| tokens/s | 10,000.0 (10,000.0–10,000.0) |")
