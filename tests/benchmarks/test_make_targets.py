"""The Makefile's targets: every module that they run with `python -m` does something."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(set(re.findall(r"python -m (\S+)", (ROOT / "Makefile").read_text())) - {"pip"})


def source_of(module: str) -> Path:
    """The file that `python -m MODULE` runs."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def is_main_guard(statement: ast.stmt) -> bool:
    """Whether the statement is `if __name__ == "__main__":`."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def test_the_makefile_runs_modules() -> None:
    assert "benchmarks.stress.soak" in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_every_module_that_make_runs_has_a_main_guard_at_its_top_level(module: str) -> None:
    assert any(map(is_main_guard, ast.parse(source_of(module).read_text()).body))
