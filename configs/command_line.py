"""The command line of `tdpipe serve`: an argparse parser that is built from the schema.

Values stay texts: the schema validates them, as it does those of the environment. The help has a
group for each part, the common settings first; the constants of the policies are left to
`--help-all`.
"""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from configs.config import Config
from configs.part import groups_of
from configs.scheduler import SchedulerConfig

COMMON = (
    "served_model_name",
    "pipeline_parallel_size",
    "tensor_parallel_size",
    "max_model_len",
    "gpu_memory_utilization",
    "max_num_seqs",
    "policy",
    "host",
    "port",
    "api_key",
)
SHORT = {"pipeline_parallel_size": "-pp", "tensor_parallel_size": "-tp"}
# Where the type does not say what to type.
METAVARS = {
    "served_model_name": "NAME,...",
    "tokenizer": "DIR|ID",
    "revision": "REVISION",
    "layer_split": "10,10,12,8|auto",
    "predictor": "histogram|constant:N|oracle|DIR",
    "host": "ADDRESS",
    "uds": "PATH",
    "uds_permissions": "MODE",
    "root_path": "PATH",
    "api_key": "KEY,...",
    "open_paths": "PATH,...",
    "allowed_origins": "ORIGIN,...",
    "allowed_methods": "METHOD,...",
    "allowed_headers": "HEADER,...",
    "server_endpoint": "ADDRESS",
    "stage_endpoint": "ADDRESS",
    "cluster_secret": "SECRET",
    "distributed_timeout_seconds": "SECONDS",
    "restart_window": "SECONDS",
    "max_prefill_wait": "SECONDS",
    "max_stream_interval": "SECONDS",
}


def flag_of(key: str) -> str:
    """The flag of a setting."""
    return f"--{key.replace('_', '-')}"


def make_parser(version: str = "", *, full: bool = False) -> argparse.ArgumentParser:
    """The parser; it raises `argparse.ArgumentError`. `full` shows the constants of the policies.

    What it returns holds the settings that were given, as texts, lists of texts and booleans.
    """
    parser = _Parser(
        prog="tdpipe serve",
        usage="tdpipe serve [MODEL] [options]",
        description="Serve a model over an OpenAI-compatible HTTP API, on a pipeline of stages.",
        epilog="Each setting is also a key of the --config file (max_num_seqs: 64) and an "
        "environment variable (TDPIPE_MAX_NUM_SEQS=64). Flags override the environment, and the "
        "environment overrides the file. --help-all also shows the constants of the scheduling "
        "policies.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    groups = list(groups_of(Config))
    fields = {key: field for _, own in groups for key, field in own.items()}
    common = parser.add_argument_group("Common settings")
    common.add_argument("model", nargs="?", metavar="MODEL", help=_help("model", fields["model"]))
    for key in COMMON:
        _add(common, key, fields[key])
    common.add_argument("--config", metavar="FILE", help="YAML file with any of these settings")
    common.add_argument("-h", "--help", action="help", help="show this help and exit")
    common.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all settings and exit")
    if version:
        common.add_argument(
            "-V", "--version", action="version", version=version, help="show the version and exit"
        )
    constants = [part for part, _ in groups_of(SchedulerConfig) if part is not SchedulerConfig]
    for part, own in sorted(groups, key=lambda group: group[0] in constants):
        group = parser.add_argument_group(str(part.model_config["title"]))
        for key, field in own.items():
            if key not in ("model", *COMMON):
                _add(group, key, field, is_shown=full or part not in constants)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Choices are for completion only: the schema checks values, whatever their source."""

    def _get_option_tuples(self, option_string: str) -> list[Any]:  # noqa: ARG002
        """Flags with one dash are not abbreviated either: `-p` is not `-pp`."""
        return []


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        make_parser(full=True).print_help()
        parser.exit()


def _add(group: Any, key: str, field: FieldInfo, *, is_shown: bool = True) -> None:
    flags = [SHORT[key], flag_of(key)] if key in SHORT else [flag_of(key)]
    text = _help(key, field) if is_shown else argparse.SUPPRESS
    if field.annotation is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, help=text)
        return
    # A list may be given with commas, or by one flag for each.
    action = "append" if get_origin(field.annotation) is tuple else "store"
    is_literal = get_origin(field.annotation) is Literal
    choices = [str(choice) for choice in get_args(field.annotation)] if is_literal else None
    metavar = METAVARS.get(key) or "|".join(choices or []) or _metavar(key, field)
    group.add_argument(*flags, action=action, metavar=metavar, choices=choices, help=text)


def _metavar(key: str, field: FieldInfo) -> str:
    kinds = get_args(field.annotation) or (field.annotation,)  # of a union with None, the first
    if Path in kinds:
        return "DIR" if key.endswith("_dir") else "FILE"
    if float in kinds:
        return "SECONDS" if key.endswith(("_timeout", "_seconds")) else "X"
    return "BYTES" if key.endswith("_bytes") else "N"


def _help(key: str, field: FieldInfo) -> str:
    """The description and the default: the words in brackets at its end, or the value."""
    text, _, described = str(field.description).removesuffix("]").partition(" [")
    default = described or _shown(key, field.default)
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
