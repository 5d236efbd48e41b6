"""The container: its user is not root and cannot become root, and any arguments are served."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import tdpipe
from configs import loader
from configs.commands import ROUTE, SERVE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DAEMONS = ("tdpipe-cpu", "tdpipe-gpu")


def test_the_image_runs_as_a_user_that_is_visibly_not_root() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("name", DAEMONS)
def test_the_service_cannot_write_into_its_own_code_or_gain_rights(name: str) -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert [port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"]] == [True]


@pytest.mark.parametrize("name", DAEMONS)
def test_what_the_daemon_keeps_survives_the_container(name: str) -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    targets = {volume.split(":")[1] for volume in compose["services"][name]["volumes"]}
    for target in targets - {"/models"}:
        assert target in DOCKERFILE, "or the volume would be root's"


def test_the_image_has_every_package() -> None:
    packages = set(PROJECT["tool"]["importlinter"]["root_packages"])
    assert set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE)) == packages
    allowed = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert packages <= allowed, "or the build would not find it"


def test_the_label_has_the_version_of_the_project() -> None:
    (version,) = re.findall(r"^ARG VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert version == PROJECT["project"]["version"]


def test_arguments_do_not_undo_where_the_image_listens() -> None:
    variables = dict(re.findall(r"(TDPIPE_\w+)=(\S+)", DOCKERFILE))
    serve = loader.load_command(SERVE, ["--port", "8401"], variables)
    assert (serve.server.listen.host, serve.server.listen.port) == ("0.0.0.0", 8401)
    route = loader.load_command(ROUTE, ["--port", "8401"], variables)
    assert (route.listen.host, route.listen.port) == ("0.0.0.0", 8401)
    assert serve.runtime.runtime_dir == route.process.runtime_dir, "one for the health check"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["serve"]),
        (["--port", "8401"], ["serve", "--port", "8401"]),
        (["/models/x", "-pp", "2"], ["serve", "/models/x", "-pp", "2"]),
        (["smollm2"], ["serve", "smollm2"]),
        (["serve", "org/name"], ["serve", "org/name"]),
        (["route", "--instances", "http://a"], ["route", "--instances", "http://a"]),
        (["healthcheck"], ["healthcheck"]),
        (["--version"], ["--version"]),
        (["--help"], ["--help"]),
    ],
)
def test_a_command_is_run_and_other_arguments_are_served(
    arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    fake = tmp_path / "tdpipe"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"if sys.argv[1:] == ['--help']: print({tdpipe._usage()!r})\n"
        "print(json.dumps(sys.argv[1:]))\n"
    )
    fake.chmod(0o755)
    answer = subprocess.run(
        [str(ROOT / "deploy" / "docker" / "entrypoint.sh"), *arguments],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(answer.stdout.splitlines()[-1]) == expected


def test_dependencies_are_those_of_the_project_and_of_chosen_extras() -> None:
    script = ROOT / "deploy" / "docker" / "dependencies.py"

    def listed(extras: str) -> list[str]:
        command = [sys.executable, str(script), str(ROOT / "pyproject.toml"), extras]
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        ).stdout.splitlines()

    plain = PROJECT["project"]["dependencies"]
    assert listed("") == plain
    assert listed("gguf") == [*plain, *PROJECT["project"]["optional-dependencies"]["gguf"]]
