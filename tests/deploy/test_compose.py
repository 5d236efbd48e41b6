"""The compose file: valid, with settings that tdpipe has, and longer patience than a drain."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import loader
from tests.deploy.tools import ROOT, run, tool

COMPOSE = ROOT / "deploy" / "compose.yaml"
DAEMONS = ("tdpipe-cpu", "tdpipe-gpu")


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def substituted(text: str, **variables: str) -> str:
    """With the values of variables, or their defaults."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1], found[2]), text)


@pytest.mark.deploy
@pytest.mark.parametrize(("profile", "daemon"), [("cpu", "tdpipe-cpu"), ("gpu", "tdpipe-gpu")])
def test_each_profile_is_valid_and_has_one_daemon_prometheus_and_grafana(
    profile: str, daemon: str
) -> None:
    command = [tool("docker-compose", "Debian: docker-compose")]
    if shutil.which("docker") and run("docker", "compose", "version").returncode == 0:
        command = ["docker", "compose"]
    environment = {**os.environ, "TDPIPE_MODEL": "org/name"}
    flags = ("-f", str(COMPOSE), "--profile", profile, "config")
    shown = run(*command, *flags, env=environment)
    assert shown.returncode == 0, shown.stderr
    (service,) = [
        each for name, each in yaml.safe_load(shown.stdout)["services"].items() if name == daemon
    ]
    assert service["environment"]["TDPIPE_MODEL"] == "org/name"
    assert service["environment"].get("TDPIPE_API_KEY") is None
    names = run(*command, *flags, "--services", env=environment).stdout.split()
    assert set(names) >= {daemon, "prometheus", "grafana"}


@pytest.mark.parametrize("name", DAEMONS)
def test_its_settings_are_those_of_the_daemon(name: str) -> None:
    service = services()[name]
    flags = [substituted(flag, STAGES="3") for flag in service["command"]]
    variables = {
        key: substituted(value or "http://a-value") for key, value in service["environment"].items()
    }
    config = loader.load(flags, variables)
    assert config.pipeline.pipeline_parallel_size == 3
    assert config.server.access.open_paths == ("/metrics",)


@pytest.mark.parametrize("name", DAEMONS)
def test_a_container_is_given_more_time_than_its_drain_takes(name: str) -> None:
    service = services()[name]
    drain_s = float(substituted(service["environment"]["TDPIPE_SHUTDOWN_TIMEOUT"]))
    patience = substituted(service["stop_grace_period"])
    assert float(patience.removesuffix("s")) >= drain_s + 15


@pytest.mark.parametrize("name", DAEMONS)
def test_prometheus_finds_the_daemon_of_either_profile(name: str) -> None:
    assert services()[name]["networks"]["default"]["aliases"] == ["tdpipe"]


def test_every_image_of_others_has_a_version() -> None:
    for name, service in services().items():
        version = service["image"].partition(":")[2]
        assert version not in ("", "latest"), name


def test_what_is_mounted_from_this_folder_is_there() -> None:
    mounts = [volume for service in services().values() for volume in service.get("volumes", ())]
    folders = {volume.split(":")[0] for volume in mounts if volume.startswith("./")}
    assert folders == {"./models", "./prometheus", "./grafana/provisioning", "./grafana/dashboards"}
    for folder in folders - {"./models"}:  # the user's
        assert (COMPOSE.parent / Path(folder)).is_dir(), folder
