"""The server's memory with a large batch: uploaded, listed, run for a while, cancelled.

    python -m benchmarks.stress.batch_memory [--lines 200000] [--limit-mb 150]

The daemon serves the demo model. The command measures the resident memory of the server process
before the batch and at its peak; the exit code is 1 if it has grown beyond the limit.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import describe_machine
from benchmarks.daemon_run import serving
from benchmarks.stress.memory import MB, Memory, process_of
from configs.schema.model import DEMO_MODEL
from simulator.argument_types import positive, positive_int

MODEL = "tdpipe-demo"
PATIENCE_S = 600.0
POLL_INTERVAL_S = 0.25
NUM_ANSWERS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; return 1 if the memory has grown beyond the limit."""
    options = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "in.jsonl"
        write_input(path, options.lines)
        with serving(DEMO_MODEL, 2, ["--profile-seconds=0.3"], folder / "daemon") as url:
            growth_mb = _exercise(url, path, process_of("server"))
    print(f"machine: {json.dumps(describe_machine())}")
    print(f"the server grew by {growth_mb:.0f} MB with {options.lines:,} lines")
    return int(growth_mb > options.limit_mb)


def write_input(path: Path, num_lines: int) -> None:
    """Write a batch of short requests."""
    body = {"model": MODEL, "prompt": "Count to nine in words.\n", "max_tokens": 20}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    with path.open("w") as file:
        for i in range(num_lines):
            file.write(json.dumps({"custom_id": f"request-{i}"} | line) + "\n")


def _exercise(url: str, path: Path, server: psutil.Process) -> float:
    """Upload, list, validate, run and cancel; the most megabytes by which the server grew."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, Memory(server) as memory:
        began_at = time.monotonic()

        def report(what: str) -> None:
            grown_mb = memory.peak_mb - memory.before_mb
            print(f"{time.monotonic() - began_at:6.1f} s  {grown_mb:5.0f} MB  {what}")

        report(f"the server has {memory.before_mb:.0f} MB")
        with path.open("rb") as file:
            upload = client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
        file_id = _json(upload)["id"]
        report(f"uploaded {path.stat().st_size / MB:.0f} MB")
        assert [each["id"] for each in _json(client.get("/v1/files"))["data"]] == [file_id]
        batch = {"input_file_id": file_id, "endpoint": "/v1/completions"}
        created = _json(client.post("/v1/batches", json=batch | {"completion_window": "24h"}))
        batch_path = f"/v1/batches/{created['id']}"
        _wait(client, batch_path, lambda b: b["status"] == "in_progress")
        report("validated")
        _wait(client, batch_path, lambda b: b["request_counts"]["completed"] >= NUM_ANSWERS)
        report("running")
        _json(client.post(f"{batch_path}/cancel"))
        ended = _wait(client, batch_path, lambda b: b["status"] == "cancelled")
        report(f"cancelled after {ended['request_counts']['completed']} answers")
    return memory.peak_mb - memory.before_mb


def _wait(
    client: httpx.Client, path: str, is_over: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while not is_over(batch := _json(client.get(path))):
        assert time.monotonic() < deadline, (
            f"the batch did not reach the expected state in {PATIENCE_S:g} s: {batch}"
        )
        time.sleep(POLL_INTERVAL_S)
    return batch


def _json(answer: httpx.Response) -> dict[str, Any]:
    values: dict[str, Any] = answer.raise_for_status().json()
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.stress.batch_memory", description=__doc__
    )
    parser.add_argument("--lines", type=positive_int, default=200_000, help="requests")
    parser.add_argument("--limit-mb", type=positive, default=150.0, help="limit of the growth")
    return parser


if __name__ == "__main__":
    sys.exit(main())
