"""The tables in docs/settings.md are those that the schema gives."""

import re
from typing import Any

import pytest

from configs.command_line import Command, flag_of
from configs.commands import ROUTE, SERVE
from configs.document_tables import has_table
from configs.settings_table import DOCUMENT, TARGET, tables


def sections() -> dict[str, str]:
    """The tables by command."""
    _, *parts = re.split(r"^## tdpipe (\w+)$", tables(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_document_has_the_current_tables() -> None:
    assert has_table(DOCUMENT, TARGET, tables()), "make settings-table writes it"


@pytest.mark.parametrize("command", [SERVE, ROUTE], ids=lambda command: command.name)
def test_every_setting_of_a_command_is_there_once(command: Command[Any]) -> None:
    flags = re.findall(r"^\| `(\S+?)`", sections()[command.name], re.MULTILINE)
    positional = command.positional or ("", "")
    expected = [positional[1] if key == positional[0] else flag_of(key) for key in command.keys]
    assert sorted(flags) == sorted(expected)


def test_every_row_has_four_cells_and_a_meaning() -> None:
    rows = [line for line in tables().splitlines() if line.startswith("| `")]
    for row in rows:
        cells = [each.strip() for each in re.split(r"(?<!\\)\|", row)]
        assert len(cells) == 6, row
        assert cells[2], row
        assert cells[4], row


@pytest.mark.parametrize(
    "row",
    [
        "| `MODEL` | `MODEL` | the demo model | folder of a checkpoint,",
        "| `--pipeline-parallel-size`, `-pp` | `N` at least 1, at most 256 | 2 | number of stages",
        "| `--kv-cache-memory-bytes` | `BYTES` at least 1 | by gpu_memory_utilization;",
        "| `--enforce-eager` | on, off (`--no-enforce-eager`) | off | run decode steps",
        "| `--policy` | `temporal\\|td-pipe\\|separate\\|hybrid` | temporal | how",
        "| `--max-body-bytes` | `BYTES` at least 1024 | 8388608, 8 MiB | maximum size",
    ],
)
def test_values_defaults_and_bounds_are_those_of_the_schema(row: str) -> None:
    assert row in sections()["serve"]
