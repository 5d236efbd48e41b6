"""The dashboards have the types of Grafana's own schema (npm: @grafana/schema), says tsc."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.source.__main__ import DASHBOARDS, path_of
from tests.deploy.tools import ROOT, run, tool

MODULES = ROOT / ".venv-deploy" / "node" / "node_modules"
TYPES = Path(__file__).with_name("dashboard_types.ts")
FLAGS = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext"]

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which TypeScript finds Grafana's types and ours."""
    if not (MODULES / "@grafana" / "schema").exists():
        pytest.skip("@grafana/schema and typescript are not installed (make deploy-check)")
    folder = tmp_path_factory.mktemp("types")
    (folder / "node_modules").symlink_to(MODULES)
    shutil.copy(TYPES, folder)
    return folder


def errors_in(folder: Path, *dashboards: dict[str, Any]) -> str:
    """What tsc finds wrong with these dashboards."""
    files = [folder / f"{each['uid']}.ts" for each in dashboards]
    for file, each in zip(files, dashboards, strict=True):
        head = f"import type {{ OurDashboard }} from './{TYPES.stem}';\n"
        file.write_text(f"{head}export const it: OurDashboard = {json.dumps(each, indent=1)};\n")
    node, tsc = tool("node", "Debian's package nodejs"), MODULES / "typescript" / "bin" / "tsc"
    names = map(str, [tsc, *FLAGS, "--moduleResolution", "bundler", *files])
    ended = run(node, *names, cwd=folder)
    return ended.stdout + ended.stderr


def shown() -> list[dict[str, Any]]:
    """The committed dashboards."""
    return [json.loads(path_of(each).read_text()) for each in DASHBOARDS]


def test_the_dashboards_have_grafanas_types(folder: Path) -> None:
    assert not errors_in(folder, *shown())


def test_a_misspelt_key_and_a_value_that_grafana_does_not_have_are_errors(folder: Path) -> None:
    dashboard = shown()[0] | {"uid": "wrong"}
    stat, graph = (
        next(panel for panel in dashboard["panels"] if panel["type"] == kind)
        for kind in ("stat", "timeseries")
    )
    stat["options"]["texMode"] = stat["options"].pop("textMode")
    graph["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] = "piled"
    found = errors_in(folder, dashboard)
    assert "texMode" in found
    assert "piled" in found
