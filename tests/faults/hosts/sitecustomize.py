"""Moves each stage to its test host: python imports this module at its start, if it is found.

`TEST_HOSTS` names a network namespace for each stage. torchrun forks the stages and sets each
one's number in the environment before it runs our code: the stage is moved at that moment.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x4000_0000
_HOSTS = os.environ.get("TEST_HOSTS", "").split()


def _move(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.putenv" and arguments[0] == b"RANK":
        with Path("/run/netns", _HOSTS[int(arguments[1])]).open() as host:
            if ctypes.CDLL(None, use_errno=True).setns(host.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


if _HOSTS:
    sys.addaudithook(_move)
