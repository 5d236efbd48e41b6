"""Client libraries against a daemon with SmolLM2: `make clients`.

Each client has an environment of its own with a pinned version, and a script with its checks. The
command prints a Markdown table; `--write` puts it into docs/clients.md. It returns 1 if a check
failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.clients.environments import HERE, clients, command
from benchmarks.daemon_run import serving

ROOT = HERE.parents[1]
DOCUMENT = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- make clients: begin -->", "<!-- make clients: end -->"
MODEL = "smollm2"
FLAGS = [f"--served-model-name={MODEL}", f"--chat-template={HERE / 'tools.jinja'}"]
FLAGS += ["--max-model-len=4096", "--enable-tokenizer-info-endpoint"]
SCRIPT_TIMEOUT_S = 900.0
MAX_ERROR = 160


@dataclass
class Report:
    """What a script printed: the client's version, and each check with its error."""

    client: str
    version: str = ""
    errors: dict[str, str | None] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether there were checks and none failed."""
        return bool(self.errors) and not any(self.errors.values())

    def row(self) -> str:
        """The row of the table."""
        failed = {what: error for what, error in self.errors.items() if error}
        words = "; ".join(f"{what}: {_short(error)}" for what, error in failed.items())
        outcome = "works" if self.works else words or "no check ran"
        return f"| {self.client} | {self.version} | {'; '.join(self.errors)} | {outcome} |"


def read_report(client: str, output: str) -> Report:
    """Parse a script's lines; libraries print other lines between them."""
    report = Report(client)
    for text in output.splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if not isinstance(line, dict):
            continue
        if "client" in line:
            report.client, report.version = line["client"], line["version"]
        elif "check" in line:
            report.errors[line["check"]] = line["error"]
    return report


def table(reports: Sequence[Report]) -> str:
    """The Markdown table."""
    head = ["| client | version | tried | result |", "|---|---|---|---|"]
    return "\n".join([*head, *(report.row() for report in reports)])


def write(rows: str, document: Path = DOCUMENT) -> None:
    """Replace the table in the document."""
    before, _, rest = document.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def _short(error: str) -> str:
    line = " ".join(error.split()).replace("|", "\\|")
    return line if len(line) <= MAX_ERROR else f"{line[:MAX_ERROR]}…"


def _run(client: str, url: str, folder: Path) -> Report:
    print(f"{client} ...", file=sys.stderr, flush=True)
    try:
        words, place, variables = command(client, folder)
        settings = {"TDPIPE_ORIGIN": url, "TDPIPE_MODEL": MODEL, "OPENAI_API_KEY": "none"}
        environment = {**os.environ, **settings, **variables}
        # Of the project's own environment nothing may be seen.
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            words, cwd=place, env=environment, timeout=SCRIPT_TIMEOUT_S, text=True,
            capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return Report(client, errors={"set-up": f"{type(error).__name__}: {error}"})
    report = read_report(client, done.stdout)
    if not report.errors:
        report.errors["start"] = f"exit status {done.returncode}: {done.stderr[-MAX_ERROR:]}"
    return report


@contextmanager
def _served(url: str | None, model: str) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with (
        tempfile.TemporaryDirectory(prefix="tdpipe-clients-") as name,
        serving(Path(model), 2, FLAGS, Path(name) / "daemon") as own,
    ):
        yield own


def main(argv: Sequence[str] | None = None) -> int:
    """Run the clients and print the table; returns 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", help=f"of {', '.join(clients())} [all]")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-clients", help="environments")
    parser.add_argument("--model", default=MODEL, help="[smollm2]")
    parser.add_argument(
        "--url", help="of a running daemon, which serves it as smollm2 [starts one]"
    )
    parser.add_argument("--write", action="store_true", help=f"update {DOCUMENT.name}")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _served(options.url, options.model) as url:
        reports = [_run(client, url, folder) for client in options.clients or clients()]
    rows = table(reports)
    print(rows)
    if options.write:
        write(rows)
    return 0 if all(report.works for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
