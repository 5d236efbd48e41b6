"""Several routers with the same instances: each instance belongs to one of them at a time."""

import asyncio
from typing import Any

from tests.router.test_front import answers
from tests.router.world import Asked, FakeDaemon, completion, run_async, running


def test_a_second_router_gets_an_instance_when_the_first_one_has_ended() -> None:
    async def test() -> None:
        daemon = FakeDaemon(answers)
        async with running(daemon) as first, running(daemon, wait=False) as second:
            link = second.router.fleets.links[daemon.url]
            await second.until(lambda: "another router" in link.reason)
            assert (await second.ask("/v1/completions", completion())).status == 503
            assert (await first.ask("/v1/completions", completion())).status == 200
            assert first.router.server is not None
            first.router.server.stop()
            await second.until(second.is_up)
            assert (await second.ask("/v1/completions", completion())).status == 200

    run_async(test())


def test_an_instance_moves_to_another_router_while_it_serves() -> None:
    async def test() -> None:
        goes_on = asyncio.Event()

        async def script(asked: Asked) -> None:
            await goes_on.wait()
            await answers(asked)

        daemon = FakeDaemon(script)
        async with running(daemon) as first, running(daemon, wait=False) as second:
            begun = asyncio.create_task(first.ask("/v1/completions", completion()))
            await first.until(lambda: daemon.asked)
            body = {"instance": daemon.url, "seconds": 30}
            reply = await first.ask("/instances/release", body)
            assert reply.json == {"released": daemon.url}
            await second.until(second.is_up)
            assert not first.is_up()
            (state,) = (await first.ask("/instances")).json["instances"]
            assert state["state"] == "released"
            goes_on.set()
            assert (await begun).status == 200, "what was open is answered to its end"
            assert (await second.ask("/v1/completions", completion())).status == 200

    run_async(test())


def test_a_released_instance_comes_back_if_nobody_else_wants_it() -> None:
    async def test() -> None:
        daemon = FakeDaemon(answers)
        async with running(daemon) as world:
            await world.ask("/instances/release", {"instance": daemon.url, "seconds": 0.2})
            assert not world.is_up()
            await world.until(world.is_up)
            assert (await world.ask("/v1/completions", completion())).status == 200

    run_async(test())


def test_an_instance_is_left_to_others_even_between_two_streams_of_its_status() -> None:
    async def test() -> None:
        daemon = FakeDaemon()
        async with running(daemon) as world:
            await daemon.kill()
            await world.until(lambda: not world.is_up())
            asked = {"instance": daemon.url, "seconds": 3600}
            assert (await world.ask("/instances/release", asked)).status == 200
            await daemon.start()
            await asyncio.sleep(0.6)
            assert not daemon.owner
            assert not world.is_up()

    run_async(test())


def test_a_wrong_release_is_refused() -> None:
    async def test() -> None:
        daemon = FakeDaemon()
        async with running(daemon, max_body_bytes=2000) as world:
            ask = world.ask
            assert (await ask("/instances/release", {"instance": "http://other"})).status == 404
            wrong: list[Any] = [{"seconds": 3}, {"instance": daemon.url, "seconds": -1}, [], b"{"]
            for body in (*wrong, b'{"instance": "\xff"}', b"[" * 2000):
                assert (await ask("/instances/release", body)).status == 400
            right = {"instance": daemon.url}
            assert (await ask("/instances/release", right, content_type="text/plain")).status == 415
            assert (await ask("/instances/release", b" " * 2001)).status == 413
            assert world.is_up()

    run_async(test())
