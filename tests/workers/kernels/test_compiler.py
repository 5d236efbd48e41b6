"""The kernels are compiled once, by one process, and every failure is one line."""

import os
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.kernels import shared_library
from workers.kernels import compiler
from workers.kernels.compiler import FOLDER, CompilerError, compiled
from workers.kernels.library import Library

PATIENCE_S = 20.0
ROOT = Path(__file__).resolve().parents[3]
NUM_CALLS = len(compiler.SOURCES) + 1  # each source, and the link
# Stands in for a compiler: it counts its calls, and writes the file after `-o`.
FAKE = """
    #!{python}
    import pathlib, sys
    if sys.argv[1:] == ["--version"]:
        print("fake 1.0")
        sys.exit()
    with open("{calls}", "a") as file:
        file.write("x")
    {fault}
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("library")
"""


def make_fake(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str = "") -> Path:
    """A fake compiler, chosen by $CXX; returns the file in which its calls are counted."""
    calls, path = folder / "calls", folder / "fake-c++"
    text = textwrap.dedent(FAKE).strip().format(python=sys.executable, calls=calls, fault=fault)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))
    return calls


def test_the_second_call_finds_the_library_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = make_fake(tmp_path, monkeypatch)
    path = compiled(tmp_path)
    assert path == compiled(tmp_path)
    assert path.read_text() == "library"
    assert calls.read_text() == "x" * NUM_CALLS
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "lock"}


def test_other_flags_give_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fake(tmp_path, monkeypatch)
    before = compiled(tmp_path)
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DOTHER"))
    assert compiled(tmp_path) != before
    assert before.exists()


def test_of_several_processes_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = make_fake(tmp_path, monkeypatch, "import time; time.sleep(0.5)")
    script = "import sys, pathlib; from workers.kernels.compiler import compiled; "
    script += "print(compiled(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    (path,) = {process.communicate(timeout=60)[0] for process in processes}
    assert Path(path.strip()).exists()
    assert calls.read_text() == "x" * NUM_CALLS


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("print('x.cpp:1: error: no such type', file=sys.stderr); sys.exit(1)", "no such type"),
        ("sys.exit(3)", "failed: no message"),
    ],
)
def test_a_failed_compilation_is_reported_in_one_line_and_leaves_no_library(
    fault: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fake(tmp_path, monkeypatch, fault)
    with pytest.raises(CompilerError, match=words) as caught:
        compiled(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / FOLDER).glob("*.so"))


def test_a_compiler_that_takes_too_long_ends_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    started.mkdir()
    make_fake(
        tmp_path,
        monkeypatch,
        "import subprocess, time; child = subprocess.Popen(['sleep', '600']); "
        f"(pathlib.Path({str(started)!r}) / str(child.pid)).touch(); time.sleep(600)",
    )
    monkeypatch.setattr(compiler, "COMPILE_S", 3.0)
    with pytest.raises(CompilerError, match="took longer than 3 s"):
        compiled(tmp_path)
    children = [int(path.name) for path in started.iterdir()]
    assert children
    deadline = time.monotonic() + PATIENCE_S
    while any(map(psutil.pid_exists, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_machine_without_a_compiler_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerError, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)"):
        compiled(tmp_path)


def test_a_data_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fake(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilerError, match="cannot write to"):
        compiled(tmp_path / "file")


def test_a_damaged_library_is_told(tmp_path: Path) -> None:
    path = tmp_path / "damaged.so"
    path.write_text("nothing")
    with pytest.raises(CompilerError, match="cannot load"):
        Library(path)


def test_the_sources_have_no_warnings() -> None:
    shared_library()  # or skips
    here = Path(compiler.__file__).parent
    command = [compiler._find(), *compiler.FLAGS, "-O0", "-Wall", "-Wextra", "-fsyntax-only"]
    command += [str(here / name) for name in compiler.SOURCES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
