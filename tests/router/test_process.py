"""The process: its start, its end, and its journal, which tdpipe replay reproduces."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.schema.router import RouterCoreConfig
from daemon.healthcheck import PORT_FILE, NotHealthyError, check
from daemon.runtime_folder import PID_FILE
from router.decisions.core import RouterCore
from router.decisions.messages import Decision, Event, Route
from router.journal import Journal, is_routers, replay
from simulator import replay as replay_command
from tests.router.test_failures import breaking
from tests.router.test_front import answers
from tests.router.world import (
    PATIENCE_S,
    FakeDaemon,
    Reply,
    World,
    completion,
    parse,
    run_async,
    running,
)
from wire.journal_file import JournalError, frames


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A router of its own, which a failed test ends."""
    command = (sys.executable, "-m", "tdpipe", "route", *arguments)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "tdpipe: error: instances: give the URLs of the daemons"),
        (["--instances", "x"], "tdpipe: error: instances: x is not like http://127.0.0.1:8000"),
    ],
)
def test_a_wrong_setting_ends_the_start_in_one_line(arguments: list[str], line: str) -> None:
    with started(*arguments) as process:
        assert process.stderr is not None
        text = process.stderr.read()
    assert process.returncode == 2
    assert text.startswith(line)
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ssl-keyfile", "key.pem"], "TLS requires ssl_certfile"),
        (["--journal", "/nowhere/journal"], "cannot write the journal /nowhere/journal"),
        (["--journal", __file__], "is no journal"),
        (["--instances", "https://x", "--instance-ca-certs", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_used_ends_the_start(arguments: list[str], words: str) -> None:
    with started("--instances", "http://127.0.0.1:9", "--port", "0", *arguments) as process:
        assert process.stderr is not None
        text = process.stderr.read()
    assert process.returncode == 1
    assert words in text.splitlines()[-1]
    assert "Traceback" not in text


def test_a_router_serves_until_a_signal_and_its_journal_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, socket = tmp_path / "journal", tmp_path / "socket"

    async def asked(line: bytes, body: bytes) -> Reply:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        head = b"%b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (line, len(body)) + body)
        reply = parse(await reader.read())
        writer.close()
        return reply

    async def test() -> None:
        daemon = FakeDaemon(answers)
        await daemon.start()
        with started(
            *("--instances", daemon.url, "--uds", str(socket), "--journal", str(journal)),
            *("--data-dir", str(tmp_path / "data")),
        ) as process:
            async with asyncio.timeout(6 * PATIENCE_S):
                while not socket.exists() or (await asked(b"GET /ready", b"")).status != 200:
                    await asyncio.sleep(0.05)
                reply = await asked(b"POST /v1/completions", b'{"prompt": "x"}')
                assert reply.json == {"text": "hello"}
                process.send_signal(signal.SIGTERM)
                _, log = await asyncio.to_thread(process.communicate)
        await daemon.kill()
        assert process.returncode == 0
        assert "listening on the Unix socket" in log
        assert log.splitlines()[-1].endswith("stopped")

    run_async(test())
    assert replay_command.main([str(journal)]) == 0
    assert "all decisions identical" in capsys.readouterr().out


def test_the_health_check_finds_a_router_in_its_runtime_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    where = ("--instances", "http://127.0.0.1:9", "--port", "0", "--runtime-dir", str(folder))
    with started(*where, "--data-dir", str(tmp_path / "data")) as process:
        deadline = time.monotonic() + 6 * PATIENCE_S
        while not (folder / PORT_FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert int((folder / PID_FILE).read_text()) == process.pid
        assert check(folder, "/live", PATIENCE_S) == "alive"
        with pytest.raises(NotHealthyError, match="No instance is ready"):
            check(folder, "/ready", PATIENCE_S)
        with started(*where) as second:
            assert second.stderr is not None
            assert (
                f"another daemon (pid {process.pid}) runs in"
                in second.stderr.read().splitlines()[-1]
            )
        assert second.returncode == 1
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 0


def test_a_decision_that_differs_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    async def test(world: World) -> None:
        for _ in range(3):
            await world.ask("/v1/completions", completion())

    async def run() -> None:
        daemons = (FakeDaemon(breaking()), FakeDaemon(answers))
        with Journal(path, RouterCoreConfig.of(routing="round-robin")) as journal:
            async with running(*daemons, journal=journal) as world:
                await test(world)

    run_async(run())
    assert is_routers(path)
    num_events = replay(path, RouterCore)
    assert num_events == len(list(frames(path))) - 1 > 10

    class Other(RouterCore):
        def handle(self, event: Event, now: float) -> list[Decision]:
            return [
                Route(each.request_id, "elsewhere") if isinstance(each, Route) else each
                for each in super().handle(event, now)
            ]

    with pytest.raises(JournalError, match="the decision differs"):
        replay(path, Other)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("notes, and no journal at all")
    assert not is_routers(path)
    with pytest.raises(JournalError, match="not a journal"):
        replay(path, RouterCore)
