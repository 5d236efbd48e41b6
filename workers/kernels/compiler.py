"""The compiler: turns the C++ sources of this folder into a library in the data folder, once.

The machine's own compiler may use all instructions of the machine's own CPU (-march=native). The
file name contains a hash of everything that the result depends on, so another CPU, compiler or
version of the sources gets another file.
"""

import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = "kernels"
SOURCES = ("attention.cpp", "attention_fp8.cpp", "linear.cpp", "elementwise.cpp")
HEADERS = ("vectors.h", "threads.h", "attention.h")
# No -ffast-math: linking with it would flush denormal numbers to zero in the whole process.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
COMPILE_S, VERSION_S = 120.0, 10.0
CANDIDATES = ("c++", "g++", "clang++")

log = logging.getLogger("tdpipe")


class CompilerError(Exception):
    """There is no library; the message gives the reason in one line."""


def compiled(data_dir: Path) -> Path:
    """The path of the library, which is compiled if it is not there yet. Raises `CompilerError`.

    Several processes may call this at the same time: one of them compiles.
    """
    compiler = _find()
    folder = data_dir / FOLDER
    path = folder / f"{_key(compiler)}.so"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=COMPILE_S + 10):
            if not path.exists():
                _compile(compiler, path)
    except OSError as error:
        raise CompilerError(f"cannot write to {folder}: {error.strerror or error}") from error
    except Timeout as error:
        raise CompilerError(f"another process holds {folder / 'lock'}") from error
    return path


def _find() -> str:
    """The compiler: $CXX, or the first one in the path."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else CANDIDATES:
        found = shutil.which(name)
        if found:
            return found
    raise CompilerError(f"no C++ compiler ({wanted or ', '.join(CANDIDATES)})")


def _key(compiler: str) -> str:
    parts = [_run([compiler, "--version"], VERSION_S), *FLAGS, platform.machine(), _cpu()]
    here = Path(__file__).parent
    parts += [(here / name).read_text(encoding="utf-8") for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """What -march=native depends on: the model of the CPU and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = ("model", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _compile(compiler: str, path: Path) -> None:
    """Compile into a temporary file, and give it its name when it is whole."""
    began_at = time.monotonic()
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        objects = [str(Path(folder) / f"{name}.o") for name in SOURCES]
        commands = [
            [compiler, *FLAGS, "-c", str(here / name), "-o", to]
            for name, to in zip(SOURCES, objects, strict=True)
        ]
        commands.append([compiler, *FLAGS, *objects, "-o", str(made)])
        with ThreadPoolExecutor() as pool:  # the sources at once, before they are linked
            # The compiler's own files too: a container may have no other folder that it may write
            # to.
            run = partial(_run, timeout_s=COMPILE_S, TMPDIR=folder)
            list(pool.map(run, commands[:-1]))
        run(commands[-1])
        made.replace(path)
    log.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - began_at, path)


def _run(command: list[str], timeout_s: float, **environment: str) -> str:
    """Run the compiler; returns its output. Raises `CompilerError`."""
    try:
        # In a group of its own, because the compiler starts others, which end with it.
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
    except OSError as error:
        raise CompilerError(f"cannot run {command[0]}: {error.strerror or error}") from error
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                late = f"{command[0]} took longer than {timeout_s:g} s"
                raise CompilerError(late) from error
            raise
    if process.returncode:
        lines = [line for line in stderr.splitlines() if "error" in line] or ["no message"]
        raise CompilerError(f"{command[0]} failed: {lines[0].strip()}")
    return stdout
