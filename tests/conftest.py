"""What all tests share: the same surroundings wherever the suite was started, and a fair split."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.hosts import Hosts, HostsImpossibleError

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

# Python itself ignores these two, and `subprocess` gives children the default.
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
# Files whose tests share a daemon of the session, which is started once if they share a worker.
SHARING = {
    f"tests/end_to_end/test_{name}.py": group
    for group, names in {
        "demo": ("batches", "chat", "demo", "disconnects", "llm", "sockets"),
        "lasting": ("greedy_fp32", "json_log", "supervisor"),
        "predicting": ("log_file", "predictor"),
        "tight": (
            "cluster_secret",
            "instance_status",
            "resumption",
            "sampling",
            "structured_outputs",
        ),
    }.items()
    for name in names
}
# They take longest: starting with them leaves none of them for the end.
FIRST = ("tests/end_to_end/", "tests/faults/")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Three hosts on this machine; the test is skipped where there can be none."""
    try:
        with Hosts(3) as three:
            yield three
    except HostsImpossibleError as error:
        pytest.skip(str(error))


def pytest_configure(config: pytest.Config) -> None:
    """Before the first test, in each process that runs tests."""
    restore_signals()
    for name in [name for name in os.environ if name.startswith(("TDPIPE_", "_TDPIPE_"))]:
        del os.environ[name]
    if not Path("/dev/nvidiactl").exists():  # Triton reads it when kernels are defined
        os.environ["TRITON_INTERPRET"] = "1"
    os.environ["NO_PROXY"] = "*"  # all servers of the tests are on this host
    # Tiny models run fastest on one thread: on a busy machine more of them wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.umask(0o022)
    # The time of an example depends on what else the machine does.
    is_short = config.getoption("markexpr") == "not long"
    settings.register_profile(
        "tdpipe",
        max_examples=50 if is_short else 200,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("tdpipe")


def restore_signals() -> None:
    """Undo ignored and blocked signals, which this process inherits and would pass on.

    `nohup` ignores SIGHUP, and a shell without job control ignores SIGINT and SIGQUIT in the
    background. A handler is not passed on, so one that does nothing keeps the suite alive and
    gives its children the default. SIGINT is needed within the tests too.
    """
    for number in signal.valid_signals() - IGNORED_BY_PYTHON:
        if signal.getsignal(number) == signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _do_nothing(_number: int, _frame: object) -> None:
    pass


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: "Producer"
) -> "LoadFileScheduling | None":
    """`--dist loadfile`, with files that share a daemon as if they were one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # xdist may not be there at all
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            is_of_the_matrix = file.startswith("tests/faults/")
            return "tests/faults" if is_of_the_matrix else SHARING.get(file, file)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest comes first where the tests are distributed."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """A command that is run within a test leaves the log and the signals as they were."""
    root, ours = logging.getLogger(), logging.getLogger("tdpipe")
    log = [(logger, logger.level, logger.handlers[:]) for logger in (root, ours)]
    terminate = signal.getsignal(signal.SIGTERM)
    yield
    for logger, level, handlers in log:
        logger.setLevel(level)
        logger.handlers[:] = handlers
    signal.signal(signal.SIGTERM, terminate)
