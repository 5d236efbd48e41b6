"""The loader: flags over environment over YAML over defaults, and errors that name the key."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from configs.front_door import SECRETS
from configs.part import ENV_PREFIX
from configs.schema import DEMO_MODEL, Config

PIPELINE_FLAG = "--pipeline-parallel-size"
RESOLVED = "config.json"


class ConfigError(Exception):
    """A setting is unknown or wrong; the text is one line for the user."""


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Config:
    """The settings of `tdpipe serve ARGV`.

    Raises `ConfigError` in one line that names the key and what is allowed; prints the help and
    exits on `--help`.
    """
    flags = _read_flags(argv)
    variables = _read_environment(os.environ if environ is None else environ)
    from_variable = variables.pop("config", None)
    path = flags.pop("config", from_variable)
    return validate((_read_yaml(Path(path)) if path else {}) | variables | flags)


def validate(values: Mapping[str, Any]) -> Config:
    """The settings with these values, the rest by default. Raises `ConfigError` in one line."""
    try:
        return Config.model_validate(values)
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
    default = Config().model_dump(mode="json")
    return {k: v for k, v in config.model_dump(mode="json").items() if v != default[k]}


class _Flags(Config, BaseSettings):
    """Serve a model over an OpenAI-compatible HTTP API through a pipeline of stages."""

    model_config = SettingsConfigDict(
        cli_prog_name="tdpipe serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
    )

    model: CliPositionalArg[str] = Field(
        str(DEMO_MODEL),
        description="folder or Hugging Face hub id of a checkpoint [the demo model]",
    )
    config: Path | None = Field(None, description="YAML file with any of these settings")


def _read_flags(argv: Sequence[str]) -> dict[str, Any]:
    arguments = [re.sub(r"^-pp(=|$)", rf"{PIPELINE_FLAG}\1", word) for word in argv]
    try:
        return dict(CliSettingsSource[Any](_Flags, cli_parse_args=arguments)())
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown and not unknown[1].startswith("-"):
            message = f"one MODEL is served at a time; what is {unknown[1]}?"
        elif unknown and unknown[1].split("=")[0] == "--model":
            message = "unknown flag --model; MODEL comes first and without a flag"
        elif unknown:
            flags = [f"--{key.replace('_', '-')}" for key in _Flags.model_fields if key != "model"]
            flag = unknown[1].split("=")[0]  # what follows may be a secret
            message = f"unknown flag {flag}; {_allowed(flag, flags)}"
        raise ConfigError(message) from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key not in _Flags.model_fields:
            known = [ENV_PREFIX + field.upper() for field in _Flags.model_fields]
            raise ConfigError(f"unknown variable {variable}; {_allowed(variable, known)}")
        values[key] = value
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings in {path}: {_reason(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    for key in values:
        if str(key).replace("-", "_") not in Config.model_fields:
            allowed = _allowed(str(key), Config.model_fields)
            raise ConfigError(f"unknown key {key} in {path}; {allowed}")
    return {key.replace("-", "_"): value for key, value in values.items()}


def _reason(error: Exception) -> str:
    """Without the line that is wrong, as yaml would show it: there may be a secret in it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


def _allowed(wrong: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"][:1])
        text = problem["msg"].removeprefix("Value error, ")
        given = f", not {problem['input']!r}" if key and key not in SECRETS else ""
        problems.append(f"{key}: {text}{given}" if key else text)
    return "; ".join(problems)
