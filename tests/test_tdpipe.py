"""The command line: every command exists, and an unknown one gets the list of commands."""

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

import tdpipe


def test_each_command_names_a_module_and_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for command, (module_name, what) in tdpipe.COMMANDS.items():
        given: list[str] = []
        module = ModuleType(module_name)

        def main(arguments: Sequence[str], given: list[str] = given) -> int:
            given.extend(arguments)
            return 7

        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module_name, module)
        assert what
        assert tdpipe.main([command, "--some", "flag"]) == 7
        assert given == ["--some", "flag"]


@pytest.mark.parametrize(
    "module_name", sorted({module_name for module_name, _ in tdpipe.COMMANDS.values()})
)
def test_the_module_of_a_command_has_a_main(module_name: str) -> None:
    module = __import__(module_name, fromlist=["main"])
    assert callable(module.main)


def test_commands_are_imported_late() -> None:
    assert "torch" not in vars(tdpipe)
    assert all(module_name not in vars(tdpipe) for module_name, _ in tdpipe.COMMANDS.values())


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tdpipe.main(arguments) == 0
    text = capsys.readouterr().out
    for command, (_, what) in tdpipe.COMMANDS.items():
        assert f"  {command} " in text
        assert what in text


def test_without_arguments_the_command_line_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tdpipe", "no-such-command"])
    assert tdpipe.main() == 2
    assert "no-such-command" in capsys.readouterr().err


def test_an_unknown_command_is_named_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tdpipe.main(["sreve"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "unknown command sreve" in printed.err
    assert all(command in printed.err for command in tdpipe.COMMANDS)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_printed(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tdpipe, "VERSION", "1.2.3")
    assert tdpipe.main([flag]) == 0
    assert capsys.readouterr().out == "1.2.3\n"
