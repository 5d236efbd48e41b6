"""guidellm: its default load, which asks for the usage on each chunk of a stream."""

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.clients.scripts.checks import MODEL, ORIGIN, check, equal, holds, run

TIMEOUT_S = 85
NUM_REQUESTS = 4


def load(request_format: str) -> None:
    """Run a small load; the report must have every request, none of them failed."""
    with tempfile.TemporaryDirectory(prefix="tdpipe-guidellm-") as folder:
        data = Path(folder) / "prompts.jsonl"
        line = json.dumps({"prompt": "Name a city in France.", "output_tokens_count": 8})
        data.write_text(f"{line}\n" * NUM_REQUESTS)
        report = Path(folder) / "report.json"
        backend = f"kind=openai_http,target={ORIGIN},model={MODEL},request_format={request_format}"
        done = subprocess.run(
            [
                "guidellm", "run", "--disable-console-interactive", "--backend", backend,
                "--profile", "kind=synchronous", "--data", f"kind=json_file,path={data}",
                "--constraint", f"kind=max_requests,count={NUM_REQUESTS}",
                "--output", f"kind=json,path={report}",
            ],
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        holds(report.exists(), f"no report: {(done.stdout + done.stderr)[-600:]}")
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
    errors = [request["info"].get("error") for request in requests["errored"]]
    equal(errors, [], "failures")
    equal(len(requests["successful"]), NUM_REQUESTS, "answers")


@check("chat completions")
def chat() -> None:
    load("/v1/chat/completions")


@check("completions")
def completions() -> None:
    load("/v1/completions")


if __name__ == "__main__":
    run("guidellm")
