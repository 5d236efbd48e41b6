"""Process priority: lowered within the session and, where Linux has autogroups, of the session."""

import os
import subprocess
import sys

CODE = """
import os, pathlib
from daemon.processes.process_priority import lower_priority
lower_priority(3)
group = pathlib.Path("/proc/self/autogroup")
print(os.nice(0), group.read_text().split()[-1] if group.exists() else "")
"""


def test_a_process_lowers_the_priority_of_its_session() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    niceness, _, of_session = printed.stdout.strip().partition(" ")
    assert int(niceness) == os.nice(0) + 3
    assert of_session in ("", "3")
