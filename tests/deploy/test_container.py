"""The container: its user is not root and cannot become root."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_image_runs_as_a_user_that_is_visibly_not_root() -> None:
    (user,) = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_service_cannot_write_into_its_own_code_or_gain_rights() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["tdpipe"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    assert [port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"]] == [True]


def test_what_the_daemon_keeps_survives_the_container() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    targets = {volume.split(":")[1] for volume in compose["services"]["tdpipe"]["volumes"]}
    dockerfile = (ROOT / "Dockerfile").read_text()
    for target in targets - {"/models"}:
        assert target in dockerfile, "or the volume would be root's"


def test_the_image_has_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = set(re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert copied == set(project["tool"]["importlinter"]["root_packages"])
