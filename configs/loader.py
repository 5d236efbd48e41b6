"""The loader: flags over environment over YAML over defaults, and errors that name the key."""

import argparse
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.command_line import Command, Settings, flag_of, make_parser
from configs.commands import SERVE
from configs.config import Config
from configs.schema.part import Part, flat_name, groups_of

RESOLVED = "config.json"


class ConfigError(Exception):
    """A setting is unknown or wrong; the text is one line for the user."""


def load(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, *, version: str = ""
) -> Config:
    """The settings of `tdpipe serve ARGV`; see `load_command`."""
    return load_command(SERVE, argv, environ, version=version)


def load_command(
    command: Command[Settings],
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    version: str = "",
) -> Settings:
    """The settings of a command with these arguments.

    Raises `ConfigError` in one line that names the key and what is allowed; prints the help and
    exits on `--help`, and the `version` on `--version`.
    """
    return _validate(command, given(command, argv, environ, version=version))


def given(
    command: Command[Any],
    argv: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    version: str = "",
) -> dict[str, Any]:
    """The settings that flags, environment and YAML name, by flat names and not validated.

    Raises `ConfigError`, and exits like `load_command`.
    """
    flags = _read_flags(command, argv, version)
    variables = _read_environment(command, os.environ if environ is None else environ)
    from_variable = variables.pop("config", None)
    path = flags.pop("config", from_variable)
    values = _read_yaml(command, Path(path)) if path else {}
    return values | variables | flags


def validate(values: Mapping[str, Any]) -> Config:
    """The settings of a daemon with these values by flat names, the rest by default.

    Raises `ConfigError` in one line.
    """
    return _validate(SERVE, values)


def save(config: Part, folder: Path) -> None:
    """Write the resolved settings, secrets too, where only the daemon's own user can read them."""
    path = folder / RESOLVED
    path.unlink(missing_ok=True)  # it may be an earlier daemon's, with other rights
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(config.model_dump_json(indent=2, context={"secrets": True}))


def load_saved(folder: Path) -> Config:
    """The settings that the supervisor resolved; raises `OSError` when there are none."""
    return Config.model_validate_json((folder / RESOLVED).read_text())


def non_default(config: Part) -> dict[str, Any]:
    """The settings that differ from their defaults, as JSON-ready values; secrets are starred."""
    default = type(config)().flat("json")
    return {key: value for key, value in config.flat("json").items() if value != default[key]}


def _validate(command: Command[Settings], values: Mapping[str, Any]) -> Settings:
    keys = command.keys
    for key in values:
        if key not in keys:
            raise ConfigError(_unknown(command, "setting", key, keys))
    for key, value in values.items():
        if any(isinstance(each, str) and not _is_text(each) for each in _each(value)):
            raise ConfigError(f"{key}: must be text in UTF-8")
    try:
        return command.schema.of(**values)
    except ValidationError as error:
        raise ConfigError(_explain(command.schema, error)) from error


def _each(value: object) -> Iterable[object]:
    return value if isinstance(value, list | tuple) else (value,)


def _is_text(value: str) -> bool:
    """Whether it can be saved: bytes that are no UTF-8 arrive as halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_flags(command: Command[Any], argv: Sequence[str], version: str) -> dict[str, Any]:
    try:
        given, unknown = make_parser(command, version).parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if unknown:
        flag = unknown[0].split("=")[0]  # what follows may be a secret
        positional, metavar = command.positional or ("", "")
        if not flag.startswith("-"):
            if positional:
                raise ConfigError(f"one {metavar} is served at a time; what is {unknown[0]}?")
            raise ConfigError(f"tdpipe {command.name} takes only flags; what is {unknown[0]}?")
        if positional and flag == flag_of(positional):
            raise ConfigError(f"unknown flag {flag}; {metavar} comes first and without a flag")
        flags = [flag_of(key) for key in command.flagged]
        raise ConfigError(_unknown(command, "flag", flag, flags))
    return vars(given)


def _read_environment(command: Command[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    keys = (*command.keys, "config")
    variables = {f"{command.prefix}{key.upper()}": key for key in keys}
    ours = [
        name
        for name in environ
        if name.startswith(command.prefix) and not name.startswith(command.foreign_prefixes)
    ]
    for name in ours:
        if name not in variables:
            raise ConfigError(_unknown(command, "variable", name, variables))
    return {variables[name]: environ[name] for name in ours}


def _read_yaml(command: Command[Any], path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {_reason(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    keys = command.keys
    for key in values:
        if str(key).replace("-", "_") not in keys:
            raise ConfigError(_unknown(command, "key", str(key), keys, f" in {path}"))
    return {key.replace("-", "_"): value for key, value in values.items()}


def _reason(error: Exception) -> str:
    """Without the line that is wrong, as yaml would show it: there may be a secret in it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())


def _unknown(
    command: Command[Any], what: str, name: str, known: Iterable[str], where: str = ""
) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name}{where}{hint} (see tdpipe {command.name} --help)"


def _explain(schema: type[Part], error: ValidationError) -> str:
    secrets = _secrets(schema)
    problems = []
    for problem in error.errors():
        key = flat_name(schema, problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        given = f", not {problem['input']!r}" if key and key not in secrets else ""
        problems.append(f"{key}: {text}{given}" if key else text)
    return "; ".join(problems)


def _secrets(schema: type[Part]) -> frozenset[str]:
    return frozenset(
        key
        for _, fields in groups_of(schema)
        for key, field in fields.items()
        if "SecretStr" in repr(field.annotation)
    )
