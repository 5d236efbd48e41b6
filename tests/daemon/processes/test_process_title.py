"""The title of a process: its role first, and the words that others look for."""

import subprocess
import sys

import psutil

from tests.processes import words_of

SCRIPT = """
from daemon.processes.process_title import entitle
entitle("stage 11")
print("entitled", flush=True)
input()
"""


def test_the_title_begins_with_the_role_and_keeps_the_arguments() -> None:
    command = [sys.executable, "-c", SCRIPT, "/run/folder", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"entitled\n"
        found = psutil.Process(process.pid)
        words, name = words_of(found), found.name()
        process.communicate(b"\n")
    assert words[:2] == ["tdpipe:stage", "11"]
    assert words[-2:] == ["/run/folder", "0"]
    assert name.startswith("tdpipe:stage 11")
