"""The supervisor owns its processes: draining, every kind of death, nothing left behind."""

import asyncio
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from configs.schema.model import DEMO_MODEL
from tests.end_to_end.daemon import Daemon, all_gone

MODEL = "tdpipe-demo"
GONE_TIMEOUT_S = 20.0


async def long_stream(
    client: openai.AsyncOpenAI, chunks: list[object], max_tokens: int = 1500
) -> None:
    """Keep the chunks of an answer that takes a while."""
    async for chunk in await client.completions.create(
        model=MODEL,
        prompt="Count to nine in words.\n",
        max_tokens=max_tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    ):
        chunks.append(chunk)  # noqa: PERF401 - others look at it meanwhile


async def has_grown(chunks: list[object], by: int) -> None:
    """Wait for so many more chunks."""
    enough = len(chunks) + by
    async with asyncio.timeout(60):
        while len(chunks) < enough:
            await asyncio.sleep(0.01)


def port_is_free(daemon: Daemon) -> bool:
    """Whether the daemon's port can be listened on again.

    A process is a zombie as soon as its first thread has ended; the others may hold the port a
    little longer.
    """
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while True:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", int(daemon.url.rsplit(":", 1)[1])))
                return True
            except OSError:
                if time.monotonic() > deadline:
                    return False
        time.sleep(0.05)


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
            chunks: list[object] = []
            running = asyncio.create_task(long_stream(client, chunks, max_tokens=600))
            await has_grown(chunks, 1)
            daemon.process.send_signal(signal.SIGTERM)
            status = 200
            while status == 200 and not running.done():
                status = (await asyncio.to_thread(daemon.get, "/ready"))[0]
            with pytest.raises(openai.InternalServerError) as refused:
                await long_stream(client, [])
            await running
            return len(chunks), refused.value.status_code

    with Daemon(tmp_path, "--log-format", "json") as daemon:
        processes = everything(daemon)
        num_chunks, status = asyncio.run(drain(daemon))
        assert status == 503
        assert num_chunks > 1
        assert daemon.wait_end() == 0
        assert all_gone(processes, GONE_TIMEOUT_S)
        assert port_is_free(daemon)
    assert [json.loads(line)["message"] for line in daemon.log().splitlines()][-1] == "stopped"


def test_a_closed_terminal_is_one_signal_and_a_second_one_ends_the_daemon_at_once(
    tmp_path: Path,
) -> None:
    async def stop_twice(daemon: Daemon) -> None:
        async with daemon.async_client() as client:
            chunks: list[object] = []
            running = asyncio.create_task(long_stream(client, chunks))
            await has_grown(chunks, 1)
            for _ in range(2):  # the kernel sends it, and the shell
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for(lambda: "draining" in daemon.log())
            await has_grown(chunks, 50)
            assert "second signal" not in daemon.log()
            daemon.process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                await running

    with Daemon(tmp_path) as daemon:
        processes = everything(daemon)
        asyncio.run(stop_twice(daemon))
        assert daemon.wait_end() == 0
        assert all_gone(processes, GONE_TIMEOUT_S)
        assert "second signal" in daemon.log()


def test_under_nohup_a_closed_terminal_changes_nothing(lasting: Daemon) -> None:
    lasting.process.send_signal(signal.SIGHUP)
    assert ask(lasting)
    assert lasting.get("/ready")[0] == 200
    assert "draining" not in lasting.log()


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
def undisturbed(lasting: Daemon) -> list[str]:
    """What it says when nothing happens."""
    return asyncio.run(stream_all(lasting, lambda: None))


@pytest.mark.parametrize("victim", ["stage", "engine"])
def test_open_requests_survive(victim: str, lasting: Daemon, undisturbed: list[str]) -> None:
    """Greedy, drawn, penalised, constrained: token for token what they would have been."""
    hurt = lasting.descendants()[victim][-1]
    assert asyncio.run(stream_all(lasting, hurt.kill)) == undisturbed
    lasting.wait_ready()
    assert lasting.get("/health")[0] == 200
    assert not hurt.is_running() or hurt.status() == psutil.STATUS_ZOMBIE
    lasting.wait_for(lambda: lasting.metric("tdpipe_kv_blocks_used") == 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_stage_is_named_with_its_signal(lasting: Daemon, number: signal.Signals) -> None:
    last = f'tdpipe_stage_losses_total{{cause="signal",code="{number.name}"'
    has_any = last in lasting.get("/metrics")[1]
    before = lasting.metric(last) if has_any else 0
    hurt = lasting.descendants()["stage"][-1]
    hurt.send_signal(number)
    lasting.wait_for(lambda: last in lasting.get("/metrics")[1], 30)
    lasting.wait_for(lambda: lasting.metric(last) == before + 1, 30)
    lasting.wait_ready()
    (line,) = (line for line in lasting.log().splitlines() if f"(pid {hurt.pid})" in line)
    assert f"was killed by {number.name} (pid {hurt.pid}); restarting the stages" in line
    newest = "tdpipe_last_stage_loss_timestamp_seconds"
    labels = f'{newest}{{cause="signal",code="{number.name}"'
    assert f'pid="{hurt.pid}"' in lasting.get("/metrics")[1]
    assert abs(lasting.metric(labels) - time.time()) < 60


def test_modules_in_the_working_directory_are_not_imported(lasting: Daemon) -> None:
    working_folder = Path(psutil.Process(lasting.process.pid).cwd())
    assert {"server.py", "engine"} <= {path.name for path in working_folder.iterdir()}
    assert ask(lasting)


def test_health_is_not_ok_while_a_stage_is_gone(lasting: Daemon) -> None:
    lasting.descendants()["torchrun"][0].kill()
    lasting.wait_for(lambda: lasting.get("/health")[0] == 503, 10)
    lasting.wait_for(lambda: lasting.get("/health")[0] == 200, 60)


@pytest.mark.parametrize(
    "after_s",
    [pytest.param(0.4, marks=pytest.mark.long), 1.2, pytest.param(2.5, marks=pytest.mark.long)],
)
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
            chunks: list[object] = []
            running = asyncio.create_task(long_stream(client, chunks))
            await has_grown(chunks, 1)
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
