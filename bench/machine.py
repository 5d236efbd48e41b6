"""Describes the machine and the versions of a measurement, without names of hosts or people."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("tdpipe", "torch", "transformers", "pyzmq", "uvicorn", "uvloop", "httptools")


def describe_machine() -> dict[str, object]:
    """Return processor, cores, memory, and the current load of the machine."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo")),
        "num_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "load_average_1min": round(psutil.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: Path) -> str:
    """Return the name of the processor, which Linux has only in this file."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of packages; None if a package is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
