"""Programs that some checks of `deploy/` need; without them, a check is skipped by name."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 120.0


def tool(name: str, package: str, *other_names: str) -> str:
    """The path of a program; the test is skipped where it is absent."""
    for each in (name, *other_names):
        if path := shutil.which(each):
            return path
    pytest.skip(f"{name} is absent: Debian's package {package} has it")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a program prints; an AssertionError with it if it fails."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout
