"""The machine is described without naming it."""

import json
import platform
from pathlib import Path

from bench.machine import cpu_model, describe_machine, describe_versions


def test_the_processor_is_the_model_that_the_kernel_reports(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast: CPU @ 3GHz\nflags\t: fpu\n")
    assert cpu_model(cpuinfo) == "Fast: CPU @ 3GHz"


def test_without_the_kernel_s_file_the_processor_still_has_a_name(tmp_path: Path) -> None:
    assert cpu_model(tmp_path / "none")


def test_neither_the_machine_nor_the_versions_name_the_host() -> None:
    described = json.dumps([describe_machine(), describe_versions()])
    assert platform.node() not in described


def test_a_package_that_is_not_installed_has_no_version() -> None:
    versions = describe_versions()
    assert versions["python"] == platform.python_version()
    assert "torch" in versions
