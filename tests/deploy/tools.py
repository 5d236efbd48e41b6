"""The tools of these checks; a check is skipped, with a word, where its own is absent.

`make deploy-check` installs those of PyPI into an environment of their own, `.venv-deploy`, because
no part of the product needs them.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-deploy" / "bin"
TIMEOUT_S = 120


def tool(name: str, origin: str) -> str:
    """The path of a program; without it, the test is skipped with where it comes from."""
    path = shutil.which(name, path=f"{ENVIRONMENT}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed ({origin})")
    return path


def run(*command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program with a limit; its output is text."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **options
    )


def chart(command: str, **request: Any) -> Any:
    """What `chart_tool.py` answers; it runs in the environment with Helm's library."""
    python = ENVIRONMENT / "python"
    if not python.exists():
        pytest.skip("helm-python-sdk and kubernetes-validate are not installed (make deploy-check)")
    script = str(Path(__file__).with_name("chart_tool.py"))
    answer = run(str(python), script, command, input=json.dumps(request))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)
