"""The command-line interface: every command is there, errors name what is allowed."""

import subprocess
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
    assert all(flag in text for flag in ("--help", "--version", "--print-completion"))


def test_without_arguments_the_command_line_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tdpipe", "no-such-command"])
    assert tdpipe.main() == 2
    assert "no-such-command" in capsys.readouterr().err


def test_an_unknown_command_is_named_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tdpipe.main(["sreve"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "unknown command sreve; did you mean serve?" in printed.err
    assert all(command in printed.err for command in tdpipe.COMMANDS)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_is_printed(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tdpipe, "VERSION", "1.2.3")
    assert tdpipe.main([flag]) == 0
    assert capsys.readouterr().out == "1.2.3\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_has_commands_flags_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tdpipe.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    words = [*tdpipe.COMMANDS, "max-num-seqs", "topup", "llama3_json"]
    assert [word for word in words if word not in script] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tdpipe ser", "serve"),
        ("tdpipe serve --max-num-s", "--max-num-seqs"),
        ("tdpipe serve some/model --policy td", "td-pipe"),
    ],
)
def test_bash_completes_a_line(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tdpipe.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    script += f"\nCOMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
    script += '\n_shtab_tdpipe; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


@pytest.mark.parametrize("shell", [[], ["tcsh"], ["bash", "zsh"]])
def test_a_completion_for_no_known_shell_is_an_error(shell: list[str]) -> None:
    assert tdpipe.main(["--print-completion", *shell]) == 2


@pytest.mark.parametrize("arguments", ["['serve', '--help']", "['--print-completion', 'bash']"])
def test_neither_help_nor_completion_imports_torch(arguments: str) -> None:
    code = (
        "import sys, tdpipe\n"
        f"try:\n    tdpipe.main({arguments})\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
