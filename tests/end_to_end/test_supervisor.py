"""The supervisor owns its processes: draining, every kind of death, nothing left behind."""

import asyncio
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from configs.model import DEMO_MODEL
from tests.end_to_end.daemon import Daemon, all_gone

MODEL = "tdpipe-demo"
GONE_TIMEOUT_S = 5.0


async def long_stream(
    client: openai.AsyncOpenAI, started: asyncio.Event, max_tokens: int = 1500
) -> int:
    """Chunks of an answer that takes a while; sets `started` at the first."""
    chunks = 0
    async for _ in await client.completions.create(
        model=MODEL,
        prompt="Count to nine in words.\n",
        max_tokens=max_tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    ):
        chunks += 1
        started.set()
    return chunks


def port_is_free(daemon: Daemon) -> bool:
    """Whether the daemon's port can be listened on again."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(daemon.url.rsplit(":", 1)[1])))
    return True


def everything(daemon: Daemon) -> list[psutil.Process]:
    """All processes of the daemon but the supervisor."""
    return [process for kind in daemon.descendants().values() for process in kind]


def ask(daemon: Daemon) -> str:
    """A short answer of the demo model."""
    with daemon.client() as client:
        answer = client.completions.create(
            model=MODEL, prompt="Count to nine in words.\n", max_tokens=4, temperature=0
        )
    return answer.choices[0].text


def test_sigterm_lets_open_requests_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    async def drain(daemon: Daemon) -> tuple[int, int]:
        async with daemon.async_client() as client:
            started = asyncio.Event()
            running = asyncio.create_task(long_stream(client, started, max_tokens=600))
            await started.wait()
            daemon.process.send_signal(signal.SIGTERM)
            status = 200
            while status == 200 and not running.done():
                status = (await asyncio.to_thread(daemon.get, "/ready"))[0]
            with pytest.raises(openai.InternalServerError) as refused:
                await long_stream(client, asyncio.Event())
            return await running, refused.value.status_code

    with Daemon(tmp_path) as daemon:
        processes = everything(daemon)
        chunks, status = asyncio.run(drain(daemon))
        assert status == 503
        assert chunks > 1
        assert daemon.wait_end() == 0
        assert all_gone(processes, GONE_TIMEOUT_S)
        assert port_is_free(daemon)


def test_a_second_signal_ends_the_daemon_at_once(tmp_path: Path) -> None:
    async def stop_twice(daemon: Daemon) -> float:
        async with daemon.async_client() as client:
            started = asyncio.Event()
            running = asyncio.create_task(long_stream(client, started))
            await started.wait()
            daemon.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                await running
        return time.monotonic()

    with Daemon(tmp_path) as daemon:
        processes = everything(daemon)
        asyncio.run(stop_twice(daemon))
        assert daemon.wait_end(10) == 0
        assert all_gone(processes, GONE_TIMEOUT_S)


def test_a_closed_terminal_lets_open_requests_finish_and_ends_the_daemon(tmp_path: Path) -> None:
    async def hang_up(daemon: Daemon) -> int:
        async with daemon.async_client() as client:
            started = asyncio.Event()
            running = asyncio.create_task(long_stream(client, started, max_tokens=600))
            await started.wait()
            for _ in range(2):  # the kernel sends it, and the shell
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for(lambda: "draining" in daemon.log())
            return await running

    with Daemon(tmp_path) as daemon:
        processes = everything(daemon)
        assert asyncio.run(hang_up(daemon)) > 1
        assert daemon.wait_end() == 0
        assert all_gone(processes, GONE_TIMEOUT_S)
        assert "second signal" not in daemon.log()


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, under=("nohup",)) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        assert ask(daemon)
        assert daemon.get("/ready")[0] == 200
        assert "draining" not in daemon.log()


LONG = {"model": MODEL, "prompt": "Count to nine in words.\n", "max_tokens": 200}
ENDLESS: list[dict[str, Any]] = [
    {**LONG, "temperature": 0, "extra_body": {"ignore_eos": True}},
    {**LONG, "temperature": 1, "seed": 5, "extra_body": {"ignore_eos": True}},
    {**LONG, "frequency_penalty": 1.5, "temperature": 0, "extra_body": {"ignore_eos": True}},
    {**LONG, "seed": 6, "extra_body": {"structured_outputs": {"regex": "([a-z]{3} ){40,60}"}}},
]


async def stream_all(daemon: Daemon, hurt: Callable[[], None]) -> list[str]:
    """The texts of the streams of all `ENDLESS` requests, with `hurt` called in the middle."""
    started = [asyncio.Event() for _ in ENDLESS]

    async def stream(client: openai.AsyncOpenAI, number: int) -> str:
        text = ""
        async for chunk in await client.completions.create(stream=True, **ENDLESS[number]):
            text += chunk.choices[0].text
            started[number].set()
        return text

    async with daemon.async_client() as client:
        running = [asyncio.create_task(stream(client, number)) for number in range(len(ENDLESS))]
        await asyncio.gather(*(event.wait() for event in started))
        hurt()
        return await asyncio.wait_for(asyncio.gather(*running), 60)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, list[str]]]:
    """A daemon that tests may damage often, and the texts of an undisturbed one."""
    folder = tmp_path_factory.mktemp("lasting")
    with Daemon(folder, "--dtype", "float32", "--max-restarts", "100") as daemon:
        yield daemon, asyncio.run(stream_all(daemon, lambda: None))


@pytest.mark.parametrize("victim", ["stage", "engine"])
def test_open_requests_survive(victim: str, lasting: tuple[Daemon, list[str]]) -> None:
    """Greedy, drawn, penalised, constrained: token for token what they would have been."""
    daemon, undisturbed = lasting
    hurt = daemon.descendants()[victim][-1]
    assert asyncio.run(stream_all(daemon, hurt.kill)) == undisturbed
    daemon.wait_ready()
    assert daemon.get("/health")[0] == 200
    assert not hurt.is_running() or hurt.status() == psutil.STATUS_ZOMBIE
    daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)


def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit(3)")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit(4)")
    with Daemon(tmp_path, cwd=tmp_path) as daemon:
        assert ask(daemon)


def test_health_is_not_ok_while_a_stage_is_gone(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.descendants()["torchrun"][0].kill()
        daemon.wait_for(lambda: daemon.get("/health")[0] == 503, 10)
        daemon.wait_for(lambda: daemon.get("/health")[0] == 200, 60)


@pytest.mark.parametrize("after_s", [0.4, 1.2, 2.5])
def test_a_supervisor_killed_during_the_start_leaves_nothing(
    after_s: float, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    time.sleep(after_s)  # not for synchronisation: it is the moment under test
    processes = psutil.Process(daemon.process.pid).children(recursive=True)
    daemon.process.kill()
    daemon.wait_end()
    assert all_gone(processes, GONE_TIMEOUT_S)
    assert not daemon.present()


@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_without_server_or_supervisor_nothing_is_left(victim: str, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    daemon.wait_ready()
    processes = everything(daemon)
    if victim == "server":
        daemon.descendants()["server"][0].kill()
        assert daemon.wait_end() == 1
        assert "the server was killed by SIGKILL" in daemon.log()
    else:
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.wait_end()
    assert all_gone(processes, GONE_TIMEOUT_S)
    assert port_is_free(daemon)


def test_stages_that_cannot_be_restarted_end_the_daemon_and_all_clients_get_the_reason(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)

    async def lose(daemon: Daemon) -> None:
        async with daemon.async_client() as client:
            started = asyncio.Event()
            running = asyncio.create_task(long_stream(client, started))
            await started.wait()
            next(model.glob("*.safetensors")).write_bytes(b"torn")
            daemon.descendants()["stage"][0].kill()
            with pytest.raises(openai.APIError, match="It has failed: stage"):
                await asyncio.wait_for(running, 60)

    daemon = Daemon(tmp_path, str(model), "--served-model-name", MODEL, "--max-restarts", "2")
    daemon.start()
    daemon.wait_ready()
    processes = everything(daemon)
    asyncio.run(lose(daemon))
    assert daemon.wait_end() == 1
    assert "after 2 restarts in 600 s" in daemon.log().splitlines()[-1]
    assert all_gone(processes, GONE_TIMEOUT_S)
    assert port_is_free(daemon)
