"""The command line: its help has all settings, in groups, with readable defaults."""

import re

import pytest

from configs import loader
from configs.command_line import flag_of
from configs.commands import ROUTE, SERVE
from configs.config import Config
from configs.schema.part import groups_of, paths_of
from configs.schema.scheduler import SchedulerConfig

CONSTANTS = {
    key
    for part, fields in groups_of(SchedulerConfig)
    if part is not SchedulerConfig
    for key in fields
}


def printed(flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `tdpipe serve FLAG` prints before it exits with 0."""
    with pytest.raises(SystemExit) as left:
        loader.load([flag], {}, version="1.2.3")
    assert left.value.code == 0
    return capsys.readouterr().out


def missing(text: str) -> set[str]:
    """The settings whose flags the help does not list."""
    listed = re.findall(r"^  (?:-[pt]p N, )?(--[a-z-]+)", text, re.MULTILINE)
    return {key for key in paths_of(Config) if key != "model" and flag_of(key) not in listed}


def test_the_full_help_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("--help-all", capsys)
    assert missing(text) == set()
    assert "-pp N, --pipeline-parallel-size N" in text


def test_the_help_leaves_out_nothing_but_the_constants_of_policies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed("--help", capsys)
    assert missing(text) == CONSTANTS
    assert "--help-all" in text


def test_the_common_settings_come_first_and_the_constants_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed("--help-all", capsys)
    groups = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert groups[0] == "Common settings"
    assert [title for title in groups if title.startswith("Policy")] == groups[-3:]
    common = text[: text.index(f"{groups[1]}:")]
    assert [key for key in SERVE.common if flag_of(key) not in common] == []
    assert all(text.count(f"{flag_of(key)} ") == 1 for key in ("host", "api_key", "policy"))


def test_the_help_shows_no_name_of_a_type_and_no_empty_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed("--help-all", capsys)
    wrong = (
        "tuple",
        "SecretStr",
        "Path",
        "factory",
        "null",
        "None",
        "default: )",
        " int ",
        " str ",
    )
    assert [word for word in wrong if word in text] == []
    assert "[" not in text.replace("[MODEL] [options]", "")


@pytest.mark.parametrize(
    "line",
    [
        "--port N port to listen on; 0: a free one (default: 8000)",
        "(default: 8388608, 8 MiB)",
        "allowed methods (default: *)",
        "(default: ~/.local/share/tdpipe)",
        "--trust-remote-code, --no-trust-remote-code run Python code that the checkpoint contains "
        "(default: off)",
    ],
)
def test_defaults_are_readable(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line in " ".join(printed("--help-all", capsys).split())


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("--version", capsys) == "1.2.3\n"


def test_every_name_in_the_tables_is_a_setting() -> None:
    for command in (SERVE, ROUTE):
        assert {*command.common, *command.metavars, *command.short} <= set(command.keys)
