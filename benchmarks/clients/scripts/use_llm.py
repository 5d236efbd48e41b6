"""llm, the command: a model in extra-openai-models.yaml, chat, stream, schema, tool."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    MODEL,
    QUESTION,
    URL,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

TIMEOUT_S = 80


def llm(*arguments: str) -> str:
    """The output of the command with a settings folder of its own."""
    with tempfile.TemporaryDirectory(prefix="tdpipe-llm-") as folder:
        entry = {"model_id": "mine", "model_name": MODEL, "api_base": URL, "api_key_name": "none"}
        entry |= {"supports_schema": True, "supports_tools": True}  # type: ignore[dict-item]
        # JSON is also YAML.
        (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps([entry]))
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "mine", "--key", "none", *arguments],
            env={**os.environ, "LLM_USER_PATH": folder},
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    equal(done.returncode, 0, f"exit status ({done.stderr[-300:]})")
    return done.stdout.strip()


@check("chat and its stream")
def chat() -> None:
    whole = llm(QUESTION, "--no-stream", "-o", "temperature", "0")
    holds("Paris" in whole, f"{whole!r} does not name Paris")
    equal(llm(QUESTION, "-o", "temperature", "0"), whole)


@check("schema")
def schema() -> None:
    is_forecast(llm(FORECAST_QUESTION, "--schema", json.dumps(Forecast.model_json_schema())))


@check("a tool that the model may call")
def tool() -> None:
    holds(llm(QUESTION, "-T", "llm_version", "-o", "max_tokens", "60"), "no answer")


if __name__ == "__main__":
    run("llm")
