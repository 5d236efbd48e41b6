"""Writes docs/settings.md's tables, of all settings of all commands: `make settings-table`."""

import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from configs.command_line import Command, default_of, flag_of, metavar_of, text_of
from configs.commands import ROUTE, SERVE
from configs.document_tables import DOCUMENTS, cell, write_table
from configs.schema.part import groups_of

DOCUMENT, TARGET = DOCUMENTS / "settings.md", "settings-table"
# The attributes of pydantic's constraints.
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def tables() -> str:
    """The tables as Markdown, one for each part of the settings of each command."""
    return "\n".join(line for command in (SERVE, ROUTE) for line in _command(command))


def _command(command: Command[Any]) -> Iterator[str]:
    yield f"## tdpipe {command.name}\n"
    yield f"Environment variables begin with `{command.prefix}`.\n"
    for part, settings in groups_of(command.schema):
        yield f"### {part.model_config['title']}\n"
        if part.__doc__:
            yield f"{' '.join(part.__doc__.split())}\n"
        yield "| setting | value | default | meaning |\n|---|---|---|---|"
        for key, field in settings.items():
            yield _row(command, key, field)
        yield ""


def _row(command: Command[Any], key: str, field: FieldInfo) -> str:
    positional, metavar = command.positional or ("", "")
    flags = [metavar if key == positional else flag_of(key)]
    if key in command.short:
        flags.append(command.short[key])
    name = ", ".join(f"`{flag}`" for flag in flags)
    cells = (name, _values(command, key, field), default_of(key, field), text_of(field))
    return f"| {' | '.join(cell(each) for each in cells)} |"


def _values(command: Command[Any], key: str, field: FieldInfo) -> str:
    """What may be given: a placeholder or the choices, and bounds."""
    if command.positional and key == command.positional[0]:
        return f"`{command.positional[1]}`"
    if field.annotation is bool:
        return f"on, off (`--no-{key.replace('_', '-')}`)"
    is_number = field.annotation in (int, float) or {int, float} & {*get_args(field.annotation)}
    bounds = [
        f"{words} {getattr(each, name):g}"
        for each in field.metadata
        for name, words in _BOUNDS.items()
        if hasattr(each, name)
    ]
    shown = f"`{metavar_of(command, key, field)}`"
    return f"{shown} {', '.join(bounds)}" if is_number and bounds else shown


def main() -> int:
    """Write the tables into the document."""
    write_table(DOCUMENT, TARGET, tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
