"""Local instances: daemons are started, found, replaced and ended, and none is left behind."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from configs.schema.model import DEMO_MODEL
from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import ActuatorError
from router.actuators.local import LocalActuator
from tests.end_to_end.daemon import ROOT, all_gone
from tests.kernels import prepare_data_dir
from tests.router.actuators.running import running, until

STAND_IN = (sys.executable, "-P", "-m", "tests.router.actuators.stand_in_daemon")

START_S = 400.0  # of a real daemon on a busy machine, which compiles its kernels

# A router that is killed: it prints the process id of its daemon.
ROUTER = f"""
import asyncio, json, sys, urllib.request
from configs.schema.scaling import ScalingConfig
from router.actuators.local import LocalActuator

def show(url):
    with urllib.request.urlopen(url + "/environment") as answer:
        print(json.load(answer)["PID"], flush=True)

actuator = LocalActuator(ScalingConfig(actuator="local"), command={STAND_IN!r})
asyncio.run(actuator.run(show, print))
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders of the instances are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def actuator(arguments: str = "", api_key: str | None = None, **settings: Any) -> LocalActuator:
    """An actuator of stand-ins with these arguments."""
    config = ScalingConfig.of(
        **{"actuator": "local", "local_args": arguments, "scale_cooldown": 0} | settings
    )
    return LocalActuator(config, api_key, STAND_IN)


def environment(url: str) -> dict[str, Any]:
    """The environment of a stand-in, and its process id as PID."""
    with urllib.request.urlopen(f"{url}/environment", timeout=10) as answer:
        variables: dict[str, Any] = json.load(answer)
    return variables


async def process_at(url: str) -> psutil.Process:
    """The stand-in that listens there."""
    return psutil.Process((await asyncio.to_thread(environment, url))["PID"])


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own."""
    asyncio.run(test)


def test_a_daemon_that_ends_is_replaced_if_there_are_too_few() -> None:
    async def test() -> None:
        async with running(actuator(min_instances=2, max_instances=3)) as reports:
            await reports.until_number(2)
            before = set(reports.present)
            (await process_at(reports.present[0])).kill()
            await reports.until_number(1)
            await reports.until_number(2)
            assert len(before & set(reports.present)) == 1

    run(test())


def test_a_replacement_that_cannot_be_started_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test() -> None:
        async with running(actuator(min_instances=1)) as reports:
            await reports.until_number(1)
            with monkeypatch.context() as patch:
                patch.setattr(tempfile, "mkdtemp", full)
                (await process_at(reports.present[0])).kill()
                await until(lambda: "cannot be started: " in caplog.text)
            await reports.until_number(1)

    run(test())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_as_many_as_are_needed_are_there_until_the_end(
    loop: Callable[[], asyncio.AbstractEventLoop], folders: Path
) -> None:
    async def test() -> None:
        async with running(actuator(min_instances=2)) as reports:
            await reports.until_number(2)
            processes.extend([await process_at(url) for url in reports.present])
            assert len(list(folders.iterdir())) == 2
        assert sorted(reports.history)[:2] == sorted(("gone", name) for _, name in joined(reports))

    def joined(reports: Any) -> list[tuple[str, str]]:
        return [entry for entry in reports.history if entry[0] == "joined"]

    processes: list[psutil.Process] = []
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())
    assert len(processes) == 2
    assert all_gone(processes, 5.0)
    assert not list(folders.iterdir())


def test_an_instance_has_joined_when_it_is_ready_and_another_one_starts_only_then() -> None:
    async def test() -> None:
        acts = actuator("--unready-answers 2")
        async with running(acts) as reports:
            for _ in range(3):
                await acts.grow()
            assert reports.history == []
            await reports.until_number(1)
            await acts.grow()
            await acts.grow()
            await reports.until_number(2)
            assert len(reports.history) == 2

    run(test())


def test_there_are_never_more_than_the_maximum() -> None:
    async def test() -> None:
        acts = actuator(min_instances=2, max_instances=2)
        async with running(acts) as reports:
            await reports.until_number(2)
            await acts.grow()
            assert len(acts._daemons) == 2

    run(test())


def test_after_a_start_there_is_a_pause() -> None:
    async def test() -> None:
        acts = actuator("--fail 'no GPU'", scale_cooldown=1000)
        async with running(acts):
            await until(lambda: not acts._daemons)
            await acts.grow()
            assert not acts._daemons

    run(test())


def test_an_instance_that_dies_is_gone_and_replaced_by_the_next_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        acts = actuator()
        async with running(acts) as reports:
            await reports.until_number(1)
            first = reports.present[0]
            (await process_at(first)).kill()
            await reports.until_number(0)
            assert caplog.messages == ["local instance 1 was killed by SIGKILL"]
            await acts.grow()
            await reports.until_number(1)
            assert [kind for kind, _ in reports.history] == ["joined", "gone", "joined"]

    run(test())


def test_an_instance_that_cannot_start_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        acts = actuator("--fail 'there is no folder /nowhere'")
        async with running(acts) as reports:
            await until(lambda: bool(caplog.messages))
            assert reports.history == []
        assert caplog.messages == [
            "local instance 1 ended with code 3 before it was ready: there is no folder /nowhere"
        ]

    run(test())


def test_a_program_that_is_missing_is_an_error_of_one_line(
    caplog: pytest.LogCaptureFixture, folders: Path
) -> None:
    async def test() -> None:
        acts = LocalActuator(ScalingConfig(actuator="local"), command=("/nowhere/python",))
        async with running(acts):
            await until(lambda: bool(caplog.messages))
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("local instance 1 cannot be started: [Errno 2]")

    run(test())
    assert not list(folders.iterdir())


def test_an_instance_that_is_not_ready_in_time_is_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        acts = actuator("--unready-answers 1000000", instance_start_timeout=0.1)
        async with running(acts) as reports:
            await until(lambda: not acts._daemons)
            assert reports.history == []
        assert caplog.messages == [
            "local instance 1 was not ready within 0.1 s (instance_start_timeout)"
        ]

    run(test())


@pytest.mark.parametrize("ignores", ["", "--ignore-sigterm"])
def test_a_removed_instance_has_ended(ignores: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        acts = actuator(ignores, min_instances=2, instance_stop_timeout=0.2 if ignores else 60)
        async with running(acts) as reports:
            await reports.until_number(2)
            assert acts.pick(reports.present) is None  # min_instances
            name = reports.present[0]
            process = await process_at(name)
            await acts.remove(name)
            assert all_gone([process], 0.1)
            assert reports.history[2:] == [("gone", name)]
            assert len(caplog.messages) == bool(ignores)

    run(test())


def test_closing_kills_what_does_not_end() -> None:
    async def test() -> None:
        async with running(actuator("--ignore-sigterm", instance_stop_timeout=0.2)) as reports:
            await reports.until_number(1)
            processes.append(await process_at(reports.present[0]))

    processes: list[psutil.Process] = []
    run(test())
    assert all_gone(processes, 5.0)


def test_closing_at_once_ends_a_daemon_that_has_just_been_started() -> None:
    before = psutil.Process().children()  # those of other tests in this process

    async def test() -> None:
        acts = actuator()
        async with running(acts):
            assert len(acts._daemons) == 1
        assert not acts._daemons

    run(test())
    assert set(psutil.Process().children()) <= set(before)


def test_a_name_that_is_unknown_is_not_removed() -> None:
    async def test() -> None:
        async with running(acts := actuator()):
            with pytest.raises(ActuatorError, match="none of the local instances"):
                await acts.remove("http://127.0.0.1:1")

    run(test())


def test_each_instance_has_its_own_gpus() -> None:
    async def test() -> None:
        acts = actuator(local_devices="0,1; 2,3", min_instances=2)
        async with running(acts) as reports:
            await reports.until_number(2)
            gpus = {url: await devices(url) for url in reports.present}
            assert sorted(gpus.values()) == ["0,1", "2,3"]
            await acts.grow()  # there are no others
            assert len(acts._daemons) == 2
            name = reports.present[0]
            await acts.remove(name)
            await acts.grow()
            await reports.until_number(2)
            assert await devices(reports.present[1]) == gpus[name]

    async def devices(url: str) -> str:
        return str((await asyncio.to_thread(environment, url))["CUDA_VISIBLE_DEVICES"])

    run(test())


def test_instances_demand_the_routers_key_and_inherit_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        monkeypatch.setenv("TDPIPE_PORT", "80")
        async with running(actuator(api_key="a-key")) as reports:
            await reports.until_number(1)
            variables = await asyncio.to_thread(environment, reports.present[0])
        assert {k: v for k, v in variables.items() if k.startswith("TDPIPE_")} == {
            "TDPIPE_API_KEY": "a-key"
        }

    run(test())


def test_a_killed_router_leaves_no_daemon(folders: Path) -> None:
    variables = os.environ | {"TMPDIR": str(folders)}
    with subprocess.Popen(
        [sys.executable, "-c", ROUTER], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=variables
    ) as router:
        assert router.stdout is not None
        daemon = psutil.Process(int(router.stdout.readline()))
        router.send_signal(signal.SIGKILL)
        assert all_gone([daemon], 30.0)


@pytest.mark.long
@pytest.mark.timeout(3 * START_S)
def test_real_daemons_are_started_and_stopped(tmp_path: Path) -> None:
    data_dir = prepare_data_dir(tmp_path / "data")
    arguments = f"{DEMO_MODEL} -pp 1 --data-dir {data_dir} --profile-seconds 0.3"

    async def test() -> None:
        config = ScalingConfig(actuator="local", local_args=arguments, scale_cooldown=0)
        acts = LocalActuator(config, "a-key")
        async with running(acts) as reports:
            async with asyncio.timeout(START_S):
                while not reports.present:
                    await asyncio.sleep(0.1)
            await acts.grow()
            async with asyncio.timeout(START_S):
                while len(reports.present) < 2:
                    await asyncio.sleep(0.1)
            processes.extend(psutil.Process().children(recursive=True))
            assert models(reports.present[0]) == models(reports.present[1]) == ["tdpipe-demo"]
            name = acts.pick(reports.present)
            assert name is not None
            await acts.remove(name)
            assert reports.history[-1] == ("gone", name)

    def models(url: str) -> list[str]:
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"authorization": "Bearer a-key"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [model["id"] for model in json.load(answer)["data"]]

    processes: list[psutil.Process] = []
    run(test())
    assert len(processes) >= 8
    assert all_gone(processes, 30.0)
