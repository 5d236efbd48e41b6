"""Faults of a router and of its instances under load: no request is lost, no text differs."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from configs.schema.model import DEMO_MODEL
from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import END_TIMEOUT_S, START_TIMEOUT_S, Daemon, all_gone
from tests.end_to_end.router import Router, instances_of
from tests.faults.steady_load import SteadyLoad, questions, right_answers
from tests.kernels import prepare_data_dir

# In fp32 a text does not depend on what else is in a step (docs/models.md, batch invariance).
EXACT = ("-pp", "1", "--dtype", "float32", "--device", "cpu", "--num-threads", "1")
SCALED_S = 240.0

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class World(NamedTuple):
    """A router with two daemons that keep their ports, and the right answers."""

    router: Router
    daemons: tuple[Daemon, Daemon]
    right: list[str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("router")
    first, second = (
        Daemon(folder / name, *EXACT, "--port", str(free_port())) for name in ("one", "two")
    )
    with first, second:
        right = asyncio.run(right_answers(first.async_client(), questions()))
        instances = instances_of(first.url, second.url)
        # The questions recur: both instances shall have requests, whatever they have cached.
        with Router(folder, *instances, "--no-prefix-affinity", num_instances=2) as router:
            yield World(router, (first, second), right)


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to all of them; the others may die with the first."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            os.kill(process.pid, number)


def num_blocks(daemon: Daemon) -> float:
    """KV blocks in use."""
    return daemon.metric("tdpipe_kv_blocks_used")


def served(router: Router, url: str) -> float:
    """How many requests this instance has answered."""
    found = re.search(
        rf'requests_total{{instance="{url}",outcome="success"}} (\S+)', router.metrics()
    )
    return float(found[1]) if found else 0.0


async def wait_for(condition: Callable[[], bool], router: Router, timeout_s: float) -> None:
    """Poll until true; an AssertionError with the router's log when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, router.log()
        await asyncio.sleep(0.05)


async def serves_again(world: World, url: str) -> None:
    """Wait until both instances are up, and this one has answered a request more."""
    await asyncio.to_thread(world.router.wait_up, 2)
    before = served(world.router, url)
    await wait_for(lambda: served(world.router, url) > before, world.router, START_TIMEOUT_S)


def test_a_killed_instance_loses_no_request(world: World) -> None:
    """All of its processes end at the same moment; then it starts again, and serves."""
    router, victim = world.router, world.daemons[0]
    url = victim.url
    processes = victim.present()

    async def disturb() -> SteadyLoad:
        async with SteadyLoad(router.client, questions()) as load:
            await load.wait_answers(8)
            send(processes, signal.SIGKILL)
            await wait_for(lambda: router.states()[url] == "lost", router, END_TIMEOUT_S)
            await load.wait_ended(set(load.open))
            await asyncio.to_thread(victim.process.wait)
            victim.start()
            await asyncio.to_thread(victim.wait_ready)
            await serves_again(world, url)
        return load

    router.wait_up(2)
    load = asyncio.run(disturb())
    assert not load.failures
    assert not load.wrong(world.right)
    assert all_gone(processes, END_TIMEOUT_S)
    assert 'tdpipe_router_resumptions_total{outcome="impossible"} 0.0' in router.metrics()


def test_a_silent_instance_loses_no_request(world: World) -> None:
    """Its requests are answered elsewhere while it is stopped; then it goes on, and serves."""
    router, victim = world.router, world.daemons[0]

    async def disturb() -> SteadyLoad:
        async with SteadyLoad(router.client, questions()) as load:
            await load.wait_answers(8)
            processes = victim.present()
            open_before = set(load.open)
            send(processes, signal.SIGSTOP)
            try:
                await wait_for(lambda: router.states()[victim.url] == "lost", router, END_TIMEOUT_S)
                await load.wait_ended(open_before)
                await load.wait_answers(8)
            finally:
                send(processes, signal.SIGCONT)
            await serves_again(world, victim.url)
        return load

    router.wait_up(2)
    load = asyncio.run(disturb())
    assert not load.failures
    assert not load.wrong(world.right)
    assert "it has sent no status for 1.5 s" in router.log()


def test_a_killed_router_loses_no_request_of_clients_that_retry(world: World) -> None:
    """It starts again at the same address; the daemons have dropped what it had asked."""
    router = world.router

    async def disturb() -> SteadyLoad:
        async with SteadyLoad(router.client, questions(), retries=True) as load:
            await load.wait_answers(8)
            open_before = set(load.open)
            router.process.kill()
            await asyncio.to_thread(router.process.wait)
            await wait_for(lambda: load.num_retries > 0, router, END_TIMEOUT_S)
            router.start()
            await load.wait_ended(open_before)
            await asyncio.to_thread(router.wait_up, 2)
            await load.wait_answers(8)
        return load

    router.wait_up(2)
    load = asyncio.run(disturb())
    assert not load.failures
    assert not load.wrong(world.right)
    world.daemons[0].wait_for(lambda: not any(map(num_blocks, world.daemons)))


@pytest.fixture
def scaling(tmp_path: Path) -> Iterator[Router]:
    """A router that runs one or two daemons itself.

    Forty clients must exceed the target for the first token on a fast machine too.
    """
    targets = "--ttft-slo 0.05 --tpot-slo 0.1 --profile-seconds 0.3"
    data_dir = prepare_data_dir(tmp_path / "data")
    local_args = f"{DEMO_MODEL} {' '.join(EXACT)} {targets} --data-dir {data_dir}"
    arguments = ["--actuator", "local", "--local-args", local_args]
    arguments += ["--min-instances", "1", "--max-instances", "2"]
    arguments += ["--scale-window", "3", "--scale-cooldown", "3"]
    with Router(tmp_path, *arguments) as router:
        yield router


async def scale(router: Router) -> list[SteadyLoad]:
    """Wait for a second instance under heavy load, and for its removal under light load."""

    def has_shrunk() -> bool:
        return "is removed" in router.log() and list(router.states().values()) == ["up"]

    async with SteadyLoad(router.client, questions(), num_clients=2) as light:
        async with SteadyLoad(router.client, questions(), num_clients=40) as heavy:
            await wait_for(lambda: "local instance 2 is ready" in router.log(), router, SCALED_S)
            await heavy.wait_answers(40)
        await wait_for(has_shrunk, router, SCALED_S)
        await light.wait_answers(8)
    return [light, heavy]


def test_no_request_is_lost_while_instances_come_and_go(scaling: Router, world: World) -> None:
    loads = asyncio.run(scale(scaling))
    for load in loads:
        assert not load.failures
        assert not load.wrong(world.right)
    assert "is stopped" in scaling.log()


def test_a_killed_router_takes_its_local_instances_along(scaling: Router, world: World) -> None:
    """A new router at the same address starts others; clients that retry get all answers."""

    async def disturb() -> SteadyLoad:
        async with SteadyLoad(scaling.client, questions(), retries=True) as load:
            await load.wait_answers(8)
            scaling.process.kill()
            await asyncio.to_thread(scaling.process.wait)
            assert await asyncio.to_thread(all_gone, processes, END_TIMEOUT_S)
            scaling.start()
            await load.wait_answers(8)
        return load

    processes = scaling.descendants()
    assert processes
    load = asyncio.run(disturb())
    assert load.num_retries
    assert not load.failures
    assert not load.wrong(world.right)
