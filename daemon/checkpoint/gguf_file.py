"""A GGUF file as an ordinary checkpoint: it is converted once, into the data folder.

transformers reads a GGUF file in tens of seconds, because it parses the vocabulary several times
and dequantises every tensor, and needs torch for its tokenizer too. Each stage and the server would
do so at every start. A process of its own (`workers.gguf_conversion`) therefore writes what
transformers reads as a folder of safetensors, config and tokenizer, which every process loads as
any other checkpoint. The folder is kept until the file, its precision or a version changes.
"""

import hashlib
import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from daemon.checkpoint.gguf_header import GgufError
from daemon.processes import child_process
from daemon.processes.process_exits import describe

FOLDER = "gguf"
STAMP = "gguf.json"
FORMAT = 1  # of what is written; another number converts every file again
CONVERTER = "workers.gguf_conversion"
POLL_INTERVAL_S = 0.1

log = logging.getLogger("tdpipe")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A GGUF file, the precision of its weights (`auto`, or a dtype) and the folder they go to."""

    file: Path
    dtype: str
    folder: Path

    @classmethod
    def of(cls, file: Path, dtype: str, data_dir: Path) -> "Conversion":
        """The conversion of this file; its folder is named by the file's path and the dtype."""
        place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
        return cls(file.resolve(), dtype, data_dir / FOLDER / f"{file.stem}-{place}-{dtype}")

    def stamp(self) -> dict[str, Any]:
        """What the folder depends on."""
        status = self.file.stat()
        return {
            "file": str(self.file),
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "transformers": metadata.version("transformers"),
            "gguf": metadata.version("gguf"),
            "format": FORMAT,
        }

    def is_done(self) -> bool:
        """Whether the folder holds what the file would be converted to now."""
        try:
            kept = json.loads((self.folder / STAMP).read_text())
        except (OSError, ValueError):
            return False
        return bool(kept["stamp"] == self.stamp())

    def report(self) -> dict[str, Any]:
        """What the converter found, see `workers.gguf_conversion`; only if it is done."""
        report: dict[str, Any] = json.loads((self.folder / STAMP).read_text())["report"]
        return report

    def finish(self, folder: Path, report: dict[str, Any]) -> None:
        """Mark `folder`, which was written elsewhere, as done, and move it into its place."""
        (folder / STAMP).write_text(json.dumps({"stamp": self.stamp(), "report": report}))
        shutil.rmtree(self.folder, ignore_errors=True)
        folder.rename(self.folder)


def convert(conversion: Conversion, stop: threading.Event) -> None:
    """Convert the file, if that was not done before, until `stop`. Raises `GgufError`."""
    if find_spec("gguf") is None:
        raise GgufError(
            f"{conversion.file} is a GGUF file, which transformers reads with the package gguf; "
            "install it: pip install gguf"
        )
    if conversion.is_done():
        log.info("%s was converted before, into %s", conversion.file, conversion.folder)
    else:
        log.info("converting %s into %s, once", conversion.file, conversion.folder)
        began_at = time.monotonic()
        error = _run(conversion, stop)
        if error is not None:
            raise GgufError(error)
        log.info("converted in %.0f s", time.monotonic() - began_at)
    report = conversion.report()
    log.info("its weights are %s, %.2f GB", report["dtype"], report["bytes"] / 1e9)
    for warning in report["warnings"]:
        log.warning("%s: %s", conversion.file.name, warning)


def _run(conversion: Conversion, stop: threading.Event) -> str | None:
    """Run the converter; returns its error, the last line that it prints."""
    arguments = [str(conversion.file), conversion.dtype, str(conversion.folder)]
    converting = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-m", CONVERTER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # see `child_process.start`
        env=child_process.environment_of_children(None),
    )
    try:
        while converting.poll() is None and not stop.wait(POLL_INTERVAL_S):
            pass
    finally:
        converting.kill()
        printed, _ = converting.communicate()
    if stop.is_set():
        return f"the conversion of {conversion.file} was interrupted"
    if converting.returncode == 0:
        return None
    if printed.strip():
        return printed.strip().splitlines()[-1]
    is_killed = converting.returncode == -signal.SIGKILL
    advice = ", probably for lack of memory" if is_killed else ""
    return f"the conversion of {conversion.file} {describe(converting.returncode)}{advice}"
