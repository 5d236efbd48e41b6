"""The command line of a command: an argparse parser that is built from the schema of its settings.

Values stay texts: the schema validates them, as it does those of the environment. The help has a
group for each part, the common settings first; what few need is left to `--help-all`.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

from configs.schema.part import Part, groups_of, paths_of

Settings = TypeVar("Settings", bound=Part)


@dataclass(frozen=True)
class Command(Generic[Settings]):
    """A command whose settings are those of `schema`; a setting's flag is its flat name.

    `common` settings come first in its help. `positional` is the setting that is given without a
    flag, with its metavar. `short` has further flags, `metavars` what the types do not say. The
    groups of `hidden` parts are shown by `--help-all` only, as `constants`. The environment has
    each setting with `prefix`; variables with one of `foreign_prefixes` are another command's.
    """

    name: str
    schema: type[Settings]
    description: str
    prefix: str
    common: tuple[str, ...]
    metavars: Mapping[str, str]
    short: Mapping[str, str] = field(default_factory=dict)
    positional: tuple[str, str] | None = None
    hidden: frozenset[type[Part]] = frozenset()
    constants: str = ""
    foreign_prefixes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings by their flat names."""
        return tuple(paths_of(self.schema))

    @property
    def flagged(self) -> list[str]:
        """The settings that have a flag, and `config`."""
        positional = self.positional[0] if self.positional else None
        return [key for key in (*self.keys, "config") if key != positional]


def flag_of(key: str) -> str:
    """The flag of a setting."""
    return f"--{key.replace('_', '-')}"


def metavar_of(command: Command[Any], key: str, field: FieldInfo) -> str:
    """What stands for the value of a setting: its choices, or a word for its type."""
    choices = _choices(field) or []
    return command.metavars.get(key) or "|".join(choices) or _metavar(key, field)


def text_of(field: FieldInfo) -> str:
    """The description of a setting without its default."""
    return str(field.description).removesuffix("]").partition(" [")[0]


def default_of(key: str, field: FieldInfo) -> str:
    """The default: the words in brackets at the description's end, or the value; may be empty."""
    described = str(field.description).removesuffix("]").partition(" [")[2]
    return described or _shown(key, field.default)


def make_parser(
    command: Command[Any], version: str = "", *, full: bool = False
) -> argparse.ArgumentParser:
    """The parser; it raises `argparse.ArgumentError`. `full` also shows the hidden groups.

    What it returns holds the settings that were given, as texts, lists of texts and booleans.
    """
    positional, metavar = command.positional or ("", "")
    usage = ("tdpipe", command.name, f"[{metavar}]" if metavar else "", "[options]")
    parser = _Parser(
        command,
        prog=f"tdpipe {command.name}",
        usage=" ".join(filter(None, usage)),
        description=command.description,
        epilog=_epilog(command),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    groups = list(groups_of(command.schema))
    fields = {key: setting for _, own in groups for key, setting in own.items()}
    common = parser.add_argument_group("Common settings")
    if positional:
        text = _help(positional, fields[positional])
        common.add_argument(positional, nargs="?", metavar=metavar, help=text)
    for key in command.common:
        _add(command, common, key, fields[key])
    common.add_argument("--config", metavar="FILE", help="YAML file with any of these settings")
    common.add_argument("-h", "--help", action="help", help="show this help and exit")
    if command.hidden:
        common.add_argument(
            "--help-all", action=_HelpAll, nargs=0, help="show all settings and exit"
        )
    if version:
        common.add_argument(
            "-V", "--version", action="version", version=version, help="show the version and exit"
        )
    for part, own in sorted(groups, key=lambda group: group[0] in command.hidden):
        group = parser.add_argument_group(str(part.model_config["title"]))
        for key, setting in own.items():
            if key not in (positional, *command.common):
                _add(command, group, key, setting, is_shown=full or part not in command.hidden)
    return parser


def _epilog(command: Command[Any]) -> str:
    key, value = "port", "9000"
    text = (
        f"Each setting is also a key of the --config file ({key}: {value}) and an environment "
        f"variable ({command.prefix}{key.upper()}={value}). Flags override the environment, and "
        "the environment overrides the file."
    )
    return f"{text} --help-all also shows {command.constants}." if command.hidden else text


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: Command[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.command = command

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Choices are for completion only: the schema checks values, whatever their source."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:  # noqa: ARG002
        """Flags with one dash are not abbreviated either: `-p` is not `-pp`."""
        return []


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        assert isinstance(parser, _Parser)
        make_parser(parser.command, full=True).print_help()
        parser.exit()


def _add(
    command: Command[Any], group: Any, key: str, field: FieldInfo, *, is_shown: bool = True
) -> None:
    flags = [command.short[key], flag_of(key)] if key in command.short else [flag_of(key)]
    text = _help(key, field) if is_shown else argparse.SUPPRESS
    if field.annotation is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
        return
    # A list may be given with commas, or by one flag for each.
    action = "append" if get_origin(field.annotation) is tuple else "store"
    choices, metavar = _choices(field), metavar_of(command, key, field)
    group.add_argument(*flags, action=action, metavar=metavar, choices=choices, help=text)


def _choices(field: FieldInfo) -> list[str] | None:
    is_literal = get_origin(field.annotation) is Literal
    return [str(choice) for choice in get_args(field.annotation)] if is_literal else None


def _metavar(key: str, field: FieldInfo) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)  # of a union with None, the first
    if Path in kinds:
        return "DIR" if key.endswith("_dir") else "FILE"
    if float in kinds:
        return "SECONDS" if key.endswith(("_timeout", "_seconds")) else "X"
    return "BYTES" if key.endswith("_bytes") else "N"


def _help(key: str, field: FieldInfo) -> str:
    """The description and the default."""
    text, default = text_of(field), default_of(key, field)
    return f"{text} (default: {default})".replace("%", "%%") if default else text


def _shown(key: str, value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case int() if key.endswith("_bytes"):
            return f"{value}, {value >> 20} MiB"
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(map(str, value))
    return "" if value is None else str(value)
