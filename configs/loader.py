"""The loader: flags over environment over YAML over defaults, and errors that name the key."""

import argparse
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.command_line import flag_of, make_parser
from configs.config import Config
from configs.part import ENV_PREFIX, flat_name, groups_of, paths_of

RESOLVED = "config.json"
SECRETS = frozenset(
    key
    for _, fields in groups_of(Config)
    for key, field in fields.items()
    if "SecretStr" in repr(field.annotation)
)


class ConfigError(Exception):
    """A setting is unknown or wrong; the text is one line for the user."""


def load(
    argv: Sequence[str], environ: Mapping[str, str] | None = None, *, version: str = ""
) -> Config:
    """The settings of `tdpipe serve ARGV`.

    Raises `ConfigError` in one line that names the key and what is allowed; prints the help and
    exits on `--help`, and the `version` on `--version`.
    """
    flags = _read_flags(argv, version)
    variables = _read_environment(os.environ if environ is None else environ)
    from_variable = variables.pop("config", None)
    path = flags.pop("config", from_variable)
    return validate((_read_yaml(Path(path)) if path else {}) | variables | flags)


def validate(values: Mapping[str, Any]) -> Config:
    """The settings with these values by flat names, the rest by default.

    Raises `ConfigError` in one line.
    """
    keys = paths_of(Config)
    for key in values:
        if key not in keys:
            raise ConfigError(_unknown("setting", key, keys))
    try:
        return Config.of(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def save(config: Config, folder: Path) -> None:
    """Write the resolved settings, secrets too, where only the daemon's own user can read them."""
    path = folder / RESOLVED
    path.unlink(missing_ok=True)  # it may be an earlier daemon's, with other rights
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(config.model_dump_json(indent=2, context={"secrets": True}))


def load_saved(folder: Path) -> Config:
    """The settings that the supervisor resolved; raises `OSError` when there are none."""
    return Config.model_validate_json((folder / RESOLVED).read_text())


def non_default(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, as JSON-ready values; secrets are starred."""
    default = Config().flat("json")
    return {key: value for key, value in config.flat("json").items() if value != default[key]}


def _read_flags(argv: Sequence[str], version: str) -> dict[str, Any]:
    try:
        given, unknown = make_parser(version).parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if unknown:
        flag = unknown[0].split("=")[0]  # what follows may be a secret
        if not flag.startswith("-"):
            raise ConfigError(f"one MODEL is served at a time; what is {unknown[0]}?")
        if flag == "--model":
            raise ConfigError("unknown flag --model; MODEL comes first and without a flag")
        flags = [flag_of(key) for key in (*paths_of(Config), "config") if key != "model"]
        raise ConfigError(_unknown("flag", flag, flags))
    return vars(given)


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    variables = {f"{ENV_PREFIX}{key.upper()}": key for key in (*paths_of(Config), "config")}
    ours = [name for name in environ if name.startswith(ENV_PREFIX)]
    for name in ours:
        if name not in variables:
            raise ConfigError(_unknown("variable", name, variables))
    return {variables[name]: environ[name] for name in ours}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {_reason(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    keys = paths_of(Config)
    for key in values:
        if str(key).replace("-", "_") not in keys:
            raise ConfigError(_unknown("key", str(key), keys, f" in {path}"))
    return {key.replace("-", "_"): value for key, value in values.items()}


def _reason(error: Exception) -> str:
    """Without the line that is wrong, as yaml would show it: there may be a secret in it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


def _unknown(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name}{where}{hint} (see tdpipe serve --help)"


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        key = flat_name(Config, problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        given = f", not {problem['input']!r}" if key and key not in SECRETS else ""
        problems.append(f"{key}: {text}{given}" if key else text)
    return "; ".join(problems)
