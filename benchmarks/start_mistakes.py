"""Start-up mistakes: the line that each gives, and the seconds that it takes.

    python -m benchmarks.start_mistakes [--write] [--repeats 3]

Every command is started with a wrong setting, on the demo model. The table has the last line that
it prints, the exit code and the median time until it has ended. `--write` puts it into the docs.
"""

import argparse
import fcntl
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.schema.model import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "troubleshooting.md"
BEGIN, END = "<!-- make start-mistakes: begin -->", "<!-- make start-mistakes: end -->"
TIMEOUT_S = 120.0
# What no name server knows (RFC 6761).
NO_HUB = "https://hub.invalid"
PROBLEMS = ("Traceback", "restarting")
_LOG_LINE = re.compile(r"^[A-Z]+ \S+ \S+ \[\w+\] ")

Prepare = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong command: `prepare` makes what it needs in a folder, and returns its arguments."""

    what: str
    prepare: Prepare
    command: str = "serve"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the command did: its last line, its exit code, and the seconds of each attempt.

    `cpu_s` are those of all of its processes.
    """

    mistake: Mistake
    line: str
    code: int
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def row(self) -> str:
        """The row of the Markdown table."""
        line = self.line.replace("|", "\\|")
        shown = f"`` {line} ``" if "`" in line else f"`{line}`"
        times = [f"{statistics.median(taken):.1f}" for taken in (self.seconds, self.cpu_s)]
        problems = f" (printed {', '.join(self.problems)})" if self.problems else ""
        return f"| {self.mistake.what} | {shown}{problems} | {self.code} | {' | '.join(times)} |"


def flags(*arguments: str) -> Prepare:
    """The demo model with these arguments."""
    return lambda _: [*arguments]


def changed_config(**settings: object) -> Prepare:
    """The demo model with another config.json."""

    def prepare(folder: Path) -> list[str]:
        model = _copy_model(folder)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | settings))
        return [str(model)]

    return prepare


def incomplete(folder: Path) -> list[str]:
    """A checkpoint of which one of two files is missing."""
    model = _copy_model(folder)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (model / "model.safetensors").rename(model / names[0])
    index = {"weight_map": {"first": names[0], "second": names[1]}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return [str(model)]


def truncated(folder: Path) -> list[str]:
    """A checkpoint whose download was interrupted."""
    model = _copy_model(folder)
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    return [str(model)]


def without_config(folder: Path) -> list[str]:
    """A folder that is no checkpoint."""
    (folder / "model").mkdir()
    return [str(folder / "model")]


def not_a_gguf(folder: Path) -> list[str]:
    """A file with the wrong contents."""
    (folder / "model.gguf").write_bytes(b"<!DOCTYPE html>")
    return [str(folder / "model.gguf")]


def data_dir_in_a_file(folder: Path) -> list[str]:
    """A data folder that cannot be made."""
    (folder / "file").touch()
    return ["--data-dir", str(folder / "file" / "data")]


def no_tokenizer(folder: Path) -> list[str]:
    """A checkpoint without the files of its tokenizer."""
    model = _copy_model(folder)
    for path in model.glob("tokenizer*"):
        path.unlink()
    return [str(model)]


def bad_yaml(folder: Path) -> list[str]:
    """A file of settings with an unknown one."""
    (folder / "tdpipe.yaml").write_text("max_num_seq: 64\n")
    return ["--config", str(folder / "tdpipe.yaml")]


def batch_to_nowhere(folder: Path) -> list[str]:
    """A batch whose requests do not exist."""
    return ["-i", str(folder / "requests.jsonl"), "-o", str(folder / "answers.jsonl")]


# {port} is one that is in use, {run} the runtime folder of a live daemon.
MISTAKES = (
    Mistake("no network, and a hub id", flags("org/model")),
    Mistake("a folder that does not exist", flags("/models/nowhere")),
    Mistake("a folder that is not a checkpoint", without_config),
    Mistake("a file of the checkpoint is missing", incomplete),
    Mistake("a download was interrupted", truncated),
    Mistake("a wrong GGUF file", not_a_gguf),
    Mistake("an unknown architecture", changed_config(model_type="my_model")),
    Mistake("a family that cannot be served", changed_config(model_type="bloom")),
    Mistake("no tokenizer", no_tokenizer),
    Mistake("a misspelt flag", flags("--max-num-seq", "64")),
    Mistake("a misspelt key of the YAML file", bad_yaml),
    Mistake("a wrong dtype", flags("--dtype", "fp16")),
    Mistake("more stages than layers", flags("-pp", "7")),
    Mistake("a layer split that does not fit", flags("--layer-split", "4,4")),
    Mistake("ranks that do not divide the heads", flags("-pp", "1", "-tp", "3")),
    Mistake("a context beyond the model's", flags("--max-model-len", "100000")),
    Mistake("a KV cache larger than the memory", flags("--kv-cache-memory-bytes", f"{1 << 50}")),
    Mistake(
        "a KV cache smaller than a sequence",
        flags("--kv-cache-memory-bytes", "100000", "--max-model-len", "2048"),
    ),
    Mistake("CUDA without a GPU", flags("--device", "cuda")),
    Mistake("a port in use", flags("--port", "{port}")),
    Mistake("the runtime folder of a live daemon", flags("--runtime-dir", "{run}")),
    Mistake("a runtime folder with a long path", flags("--runtime-dir", f"/tmp/{'x' * 100}")),
    Mistake("a data folder that cannot be written", data_dir_in_a_file),
    Mistake("a chat template that does not exist", flags("--chat-template", "/nowhere.jinja")),
    Mistake("an API key with a space", flags("--api-key", "my key")),
    Mistake("a certificate that does not exist", flags("--ssl-certfile", "/nowhere.pem")),
    Mistake(
        "`tdpipe route` on a port in use",
        flags("--instances", "http://127.0.0.1:1", "--port", "{port}"),
        "route",
    ),
    Mistake("`tdpipe route` without daemons", flags(), "route"),
    Mistake("`tdpipe chat` without a daemon", flags("--url", "http://127.0.0.1:1"), "chat"),
    Mistake("`tdpipe run-batch` without a file", batch_to_nowhere, "run-batch"),
    Mistake(
        "`tdpipe simulate` with an unknown GPU",
        flags("--gpu", "L21", "--model", "llama2-13b", "--workload", "sharegpt:9"),
        "simulate",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the mistakes and print the table; returns 1 if one printed more than its line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_mistakes")
    parser.add_argument("--repeats", type=int, default=3, help="of each mistake [3]")
    parser.add_argument("--write", action="store_true", help="update docs/troubleshooting.md")
    options = parser.parse_args(argv)
    outcomes = []
    for mistake in MISTAKES:
        outcomes.append(make(mistake, options.repeats))
        print(outcomes[-1].row(), flush=True)
    rows = table(outcomes)
    if options.write:
        write(rows)
    return int(any(outcome.problems or not outcome.code for outcome in outcomes))


def table(outcomes: Sequence[Outcome]) -> str:
    """The Markdown table."""
    head = ["| mistake | last line | exit code | seconds | CPU seconds |", "|---|---|--:|--:|--:|"]
    return "\n".join([*head, *(outcome.row() for outcome in outcomes)])


def write(rows: str, document: Path = DOCUMENT) -> None:
    """Replace the table in the document."""
    before, _, rest = document.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def make(mistake: Mistake, repeats: int) -> Outcome:
    """Make one mistake several times."""
    attempts = [_attempt(mistake) for _ in range(repeats)]
    printed, code, _, _ = attempts[-1]
    lines = printed.strip().splitlines() or ["(nothing)"]
    problems = [word for word in PROBLEMS if word in printed]
    seconds = [took_s for _, _, took_s, _ in attempts]
    cpu_s = [used_s for _, _, _, used_s in attempts]
    return Outcome(mistake, _message(lines[-1]), code, seconds, cpu_s, problems)


def _attempt(mistake: Mistake) -> tuple[str, int, float, float]:
    """What it prints, its exit code, the seconds until it has ended, and its CPU seconds."""
    with tempfile.TemporaryDirectory(prefix="tdpipe-mistakes-") as name, _taken(Path(name)) as what:
        folder = Path(name)
        arguments = [word.format(**what) for word in mistake.prepare(folder)]
        if mistake.command in ("serve", "route") and "--port" not in arguments:
            arguments += ["--port", "0"]
        command = [sys.executable, str(ROOT / "tdpipe.py"), mistake.command, *arguments]
        began_at, used_s = time.monotonic(), _cpu_of_children_s()
        done = subprocess.run(
            command,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            cwd=folder,
            check=False,
        )
        took_s = time.monotonic() - began_at
        used_s = _cpu_of_children_s() - used_s
        return done.stdout.replace(str(folder), "FOLDER"), done.returncode, took_s, used_s


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _taken(folder: Path) -> Iterator[dict[str, str]]:
    """A port that another process listens on, and a folder that a live daemon has locked."""
    run = folder / "run"
    run.mkdir()
    (run / "pid").write_text(f"{os.getpid()}\n")
    lock = os.open(run, os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield {"port": str(listener.getsockname()[1]), "run": str(run)}
        finally:
            os.close(lock)


def _environment(folder: Path) -> dict[str, str]:
    """Without settings of ours, and with an empty cache of a hub that cannot be reached."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TDPIPE_", "HF_"))}
    return kept | {"HF_ENDPOINT": NO_HUB, "HF_HOME": str(folder / "hub"), "NO_PROXY": "*"}


def _message(line: str) -> str:
    """A line without the time and the process that logged it."""
    return _LOG_LINE.sub("", line)


def _copy_model(folder: Path) -> Path:
    return shutil.copytree(DEMO_MODEL, folder / "model", copy_function=shutil.copyfile)


if __name__ == "__main__":
    sys.exit(main())
