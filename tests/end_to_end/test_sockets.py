"""The daemon listens on its port, and on nothing else that another host or user could reach."""

import stat

import psutil

from daemon.healthcheck import check
from tests.end_to_end.daemon import Daemon


def test_nothing_listens_but_on_loopback_and_on_the_owner_s_sockets(demo: Daemon) -> None:
    supervisor = psutil.Process(demo.process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1"), process.cmdline()
    sockets = [path for path in (demo.folder / "run").iterdir() if path.is_socket()]
    assert {path.name for path in sockets} >= {"server.sock", "stages.sock"}
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    settings = (demo.folder / "run" / "config.json").stat().st_mode
    assert stat.S_IMODE(settings) == 0o600


def test_the_health_check_finds_the_port_that_was_free(demo: Daemon) -> None:
    assert check(demo.folder / "run", "/live") == "alive"
    assert check(demo.folder / "run", "/ready") == "ready"
