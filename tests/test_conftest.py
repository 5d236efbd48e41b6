"""Where the suite was started makes no difference to the processes that its tests start."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import restore_signals

CHILD = """
import signal
print(*(signal.getsignal(getattr(signal, n)).__qualname__ for n in ("SIGINT",)), end=" ")
print(*(signal.getsignal(getattr(signal, n)).name for n in ("SIGHUP", "SIGQUIT")))
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
INHERITED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@pytest.fixture
def _in_the_background() -> Iterator[None]:
    """As `nohup make test &` in a script has it."""
    before = {number: signal.getsignal(number) for number in INHERITED}
    for number in INHERITED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@pytest.mark.usefixtures("_in_the_background")
def test_children_ignore_and_block_no_signal_that_the_suite_inherited() -> None:
    restore_signals()
    printed = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
    )
    assert printed.stdout == "default_int_handler SIG_DFL SIG_DFL\nset()\n"
    signal.raise_signal(signal.SIGHUP)  # the suite continues
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
