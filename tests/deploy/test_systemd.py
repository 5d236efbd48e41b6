"""The systemd units: valid, with settings that tdpipe has, and a drain that nothing cuts short."""

from pathlib import Path

import pytest

from configs import loader
from configs.commands import ROUTE, SERVE
from tests.deploy.tools import ROOT, run, tool

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def unit(path: Path) -> dict[str, dict[str, str]]:
    """Its sections; a key that is given several times has all its values, separated by spaces."""
    sections: dict[str, dict[str, str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values = sections.setdefault(section, {})
            values[key] = f"{values[key]} {value}" if key in values else value
    return sections


@pytest.mark.deploy
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_no_mistake(path: Path, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "Debian: systemd")
    copy = tmp_path / path.name
    # Only a program that exists can be verified.
    copy.write_text(path.read_text().replace("/opt/tdpipe/bin/tdpipe", "/bin/true"))
    verified = run(analyze, "verify", "--man=no", str(copy))
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_its_settings_are_those_of_tdpipe(path: Path) -> None:
    service = unit(path)["Service"]
    _, name, *flags = service["ExecStart"].split()
    command = {"serve": SERVE, "route": ROUTE}[name]
    assert flags[0] == "--config"
    variables = dict(pair.split("=", 1) for pair in service["Environment"].split())
    variables = {key: value for key, value in variables.items() if key.startswith("TDPIPE_")}
    settings = loader.load_command(command, [], variables)
    values = settings.flat()
    assert values["runtime_dir"] == Path(f"%t/{service['RuntimeDirectory']}")
    assert values["data_dir"] == Path(f"%S/{service['StateDirectory']}")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_stop_reaches_the_supervisor_alone_and_leaves_time_to_drain(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["KillMode"] == "mixed"
    drains = path.stem != "tdpipe-follower"
    default_s = loader.load([], {}).server.connections.shutdown_timeout
    patience_s = float(service["TimeoutStopSec"].removesuffix("s"))
    assert patience_s >= (default_s + 15 if drains else 10)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_it_is_not_root_and_writes_only_into_its_own_folders(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["DynamicUser"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


def test_a_follower_waits_for_the_first_node_without_end() -> None:
    follower = unit(ROOT / "deploy" / "systemd" / "tdpipe-follower.service")
    assert follower["Service"]["Restart"] == "always"
    assert follower["Unit"]["StartLimitIntervalSec"] == "0"


def test_a_stage_that_the_kernel_kills_does_not_end_the_daemon() -> None:
    for name in ("tdpipe", "tdpipe-follower"):
        found = unit(ROOT / "deploy" / "systemd" / f"{name}.service")
        assert found["Service"]["OOMPolicy"] == "continue"
