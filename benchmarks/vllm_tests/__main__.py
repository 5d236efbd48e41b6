"""vLLM's HTTP tests against tdpipe: `make vllm-tests`.

Fetches vLLM's source archive, runs the chosen files of its tests with the plugin `shim`, each
against a daemon with SmolLM2, and prints how many ran and passed, and each failure in one line.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.clients.environments import VLLM, vllm_sdist

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "benchmarks" / "clients" / "tools.jinja"
# What the tests import beside openai, pytest and transformers.
PACKAGES = (
    "jsonschema-specifications",
    "referencing",
    "rpds-py",
    "pytest-asyncio==1.4.0",
    "regex",
    "requests",
    "jsonschema",
    "pybase64",
    "attrs",
)
FILES = (
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_completion_with_function_calling.py",
    "openai/chat_completion/test_enable_force_include_usage.py",
    "openai/chat_completion/test_include_reasoning.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/chat_completion/test_root_path.py",
    "openai/chat_completion/test_thinking_token_budget.py",
    "openai/completion/test_completion.py",
    "openai/completion/test_prompt_validation.py",
    "openai/completion/test_token_in_token_out.py",
    "openai/models/test_models.py",
    "openai/responses/test_simple.py",
    "openai/test_chunked_prompt.py",
    "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py",
    "serve/instrumentator/test_basic.py",
    "serve/tokenize/test_tokenization.py",
)
FILE_TIMEOUT_S = 1800.0
MAX_WORDS = 200


def run(file: str, tests: Path, packages: Path, model: str, report: Path) -> None:
    """Run one file, and write its report in JUnit's XML."""
    variables = {
        "PYTHONPATH": f"{ROOT}:{packages}",
        "TESTED_DAEMON_MODEL": model,
        "TESTED_DAEMON_TEMPLATE": str(TEMPLATE),
        "TESTED_DAEMON_DATA": str(report.parent / "vllm_data"),
    }
    words = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.vllm_tests.shim"]
    words += ["-p", "pytest_asyncio", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore"]
    words += [f"--rootdir={tests.parent}", "-c", os.devnull, f"--junitxml={report}"]
    words.append(str(tests / "entrypoints" / file))
    with suppress(subprocess.TimeoutExpired):  # it has then written no report
        subprocess.run(
            words, cwd=tests.parent, env={**os.environ, **variables}, timeout=FILE_TIMEOUT_S,
            check=False, capture_output=True,
        )  # fmt: skip


def outcomes(report: Path) -> Iterator[tuple[str, str]]:
    """Yield each test with its failure in one line; empty if it passed."""
    if not report.is_file():
        yield "(the file)", "wrote no report"
        return
    for case in ElementTree.parse(report).iter("testcase"):
        failure = next(
            (case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None
        )
        if case.find("skipped") is not None:
            continue
        words = "" if failure is None else " ".join((failure.get("message") or "failed").split())
        yield case.get("name") or "", words[:MAX_WORDS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the files and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vllm_tests", description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, help="below tests/entrypoints")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-clients")
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    packages = folder / "vllm_tests"
    if not packages.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(packages), *PACKAGES], check=True)
    archive = vllm_sdist(folder)
    source = folder / "vllm_source" / VLLM.removesuffix(".tar.gz")
    if not source.is_dir():
        with tarfile.open(archive) as tar:
            wanted = ("/tests/entrypoints/", "/tests/__init__.py")
            members = [m for m in tar if any(part in m.name for part in wanted)]
            tar.extractall(source.parent, members, filter="data")
    num_run = num_passed = 0
    for file in options.files:
        report = folder / f"vllm_{file.replace('/', '_')}.xml"
        report.unlink(missing_ok=True)
        run(file, source / "tests", packages, options.model, report)
        found = list(outcomes(report))
        failed = [(name, words) for name, words in found if words]
        num_run, num_passed = num_run + len(found), num_passed + len(found) - len(failed)
        print(f"{file}: {len(found) - len(failed)} of {len(found)}", flush=True)
        for name, words in failed:
            print(f"    {name}: {words}", flush=True)
    print(f"{num_passed} of {num_run} passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
