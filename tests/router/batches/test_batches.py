"""Files and batches of a router: each line is answered once, whatever happens to instances."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from router.batches import batches, instance_lines
from tests.router.batches.world import (
    ENDED,
    Gate,
    asked_ids,
    begin,
    client,
    echoes,
    ids,
    line,
    lines,
    read,
    wait_for,
)
from tests.router.world import FakeDaemon, World, run_async, running

Test = Callable[[World, openai.AsyncOpenAI], Awaitable[None]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_lines, "RETRY_S", 0.02)


def run(test: Test, *daemons: FakeDaemon, **settings: Any) -> None:
    """Run a test with a router and its client."""

    async def run_in_world() -> None:
        async with running(*daemons, **settings) as world, client(world) as api:
            await test(world, api)

    run_async(run_in_world())


def test_a_batch_is_spread_over_the_instances() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        batch = await begin(api, lines(40), metadata={"for": "a test"})
        batch = await wait_for(api, batch.id, *ENDED)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        assert batch.metadata == {"for": "a test"}
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (40, 40, 0)
        assert batch.usage is not None
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (80, 120)
        answers = await read(api, batch.output_file_id)
        assert ids(answers) == sorted(f"r{i}" for i in range(40))
        for answer in answers:
            response = answer["response"]
            assert response["body"]["choices"][0]["text"] == answer["custom_id"]
            assert response["request_id"] == response["body"]["id"]
        assert all(len(daemon.asked) == 20 for daemon in world.daemons)
        for asked in world.daemons[0].asked:
            assert asked.path == "/v1/completions"
            assert asked.json["priority"] == 1
        outcome = 'tdpipe_router_batch_requests_total{outcome="success"}'
        assert await world.metric(outcome) == 40

    run(test, FakeDaemon(echoes), FakeDaemon(echoes))


def test_each_line_is_answered_once_when_an_instance_dies() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        dying, other = world.daemons
        batch = await begin(api, lines(30))
        await world.until(lambda: gate.num_waiting == 15)
        await dying.kill()
        batch = await wait_for(api, batch.id, *ENDED)
        assert batch.status == "completed"
        answers = await read(api, batch.output_file_id)
        assert ids(answers) == sorted(f"r{i}" for i in range(30))
        assert set(asked_ids([other])) == {f"r{i}" for i in range(30)}, "it has answered all"
        assert await world.metric(f'tdpipe_router_open_requests{{instance="{other.url}"}}') == 0

    gate = Gate()
    run(test, FakeDaemon(gate), FakeDaemon(echoes))


def test_a_batch_goes_on_when_all_instances_were_away() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        (daemon,) = world.daemons
        batch = await begin(api, lines(20))
        await world.until(lambda: gate.num_waiting == 12)
        await daemon.kill()
        await world.until(lambda: not world.is_up())
        gate.open.set()
        await daemon.start()
        batch = await wait_for(api, batch.id, *ENDED)
        assert ids(await read(api, batch.output_file_id)) == sorted(f"r{i}" for i in range(20))
        assert asked_ids([daemon]).total() == 20 + 12

    gate = Gate(num_at_once=8)
    run(test, FakeDaemon(gate))


def test_no_more_lines_are_open_than_allowed() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        batch = await begin(api, lines(30))
        await world.until(lambda: gate.num_waiting == 7)
        await asyncio.sleep(0.1)
        assert gate.num_waiting == 7
        assert await world.metric("tdpipe_router_open_batches") == 1
        gate.open.set()
        await wait_for(api, batch.id, "completed")
        while await world.metric("tdpipe_router_open_batches"):
            await asyncio.sleep(0.01)

    gate = Gate()
    run(test, FakeDaemon(gate), batch_concurrency=7)


def test_a_cancelled_batch_leaves_the_instances_and_keeps_its_answers() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        (daemon,) = world.daemons
        batch = await begin(api, lines(10))
        await world.until(lambda: gate.num_waiting == 6)
        assert (await api.batches.cancel(batch.id)).status == "cancelling"
        batch = await wait_for(api, batch.id, *ENDED)
        assert batch.status == "cancelled"
        assert len(await read(api, batch.output_file_id)) == 4
        for asked in daemon.asked[4:]:
            await asked.left()
        core = next(iter(world.router.fleets._fleets)).core
        assert not core.pending  # type: ignore[attr-defined]
        with pytest.raises(openai.ConflictError, match="Cannot cancel a batch"):
            await api.batches.cancel((await ended(api)).id)

    async def ended(api: openai.AsyncOpenAI) -> Any:
        gate.open.set()
        return await wait_for(api, (await begin(api, lines(1))).id, "completed")

    gate = Gate(num_at_once=4)
    run(test, FakeDaemon(gate))


def test_lines_without_an_answer_in_time_expire() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        batch = await begin(api, lines(3), completion_window="1s")
        batch = await wait_for(api, batch.id, *ENDED)
        assert batch.status == "expired"
        errors = await read(api, batch.error_file_id)
        assert {error["error"]["code"] for error in errors} == {"batch_expired"}
        assert len(await read(api, batch.output_file_id)) + len(errors) == 3
        assert world.daemons[0].asked

    run(test, FakeDaemon(Gate(num_at_once=1)))


def test_a_restarted_router_asks_only_for_what_has_no_answer(tmp_path: Path) -> None:
    daemons = [FakeDaemon(Gate(num_at_once=5)) for _ in range(2)]

    async def test() -> None:
        async with running(*daemons, data_dir=tmp_path) as world, client(world) as api:
            batch = await begin(api, lines(25))
            await world.until(lambda: sum(each.script.num_waiting for each in daemons) == 15)  # type: ignore[attr-defined]
            num_answers = "tdpipe_router_batch_requests_total"
            assert await world.metric(f'{num_answers}{{outcome="success"}}') == 10
        for path in (tmp_path / "router/files").iterdir():
            if b'{"id":"batch_req_' in path.read_bytes():
                with path.open("ab") as file:  # a line that the death of the process has cut
                    file.write(b'{"id":"batch_req_0","custom_id":"r')
        first = asked_ids(daemons)
        for daemon in daemons:
            daemon.asked.clear()
            daemon.script = echoes
            await daemon.start()
        async with running(*daemons, data_dir=tmp_path) as world, client(world) as api:
            batch = await wait_for(api, batch.id, *ENDED)
            answers = await read(api, batch.output_file_id)
        assert batch.status == "completed"
        assert ids(answers) == sorted(f"r{i}" for i in range(25))
        assert set(first) == {f"r{i}" for i in range(25)}
        assert asked_ids(daemons).total() == 15
        assert set(asked_ids(daemons).values()) == {1}

    run_async(test())


def test_a_second_router_takes_the_folder_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.batches.service.RETRY_S", 0.05)

    async def test() -> None:
        async with running(FakeDaemon(echoes), data_dir=tmp_path) as first, client(first) as api:
            batch = await begin(api, lines(1))
            async with running(FakeDaemon(echoes), data_dir=tmp_path) as second_world:
                reply = await second_world.ask("/v1/batches")
                assert reply.status == 503
                assert reply.json["error"]["code"] == "batches_unavailable"
                await wait_for(api, batch.id, "completed")
                assert first.router.server is not None
                first.router.server.stop()
                async with client(second_world) as other:
                    assert (await other.batches.retrieve(batch.id)).status == "completed"

    run_async(test())


def test_a_validation_waits_until_the_models_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MODELS_PATIENCE_S", 0.3)

    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        first, silent = world.daemons
        batch = await begin(api, lines(2))
        await asyncio.sleep(0.3)
        assert (await api.batches.retrieve(batch.id)).status == "validating"
        first.sends_statuses = True
        await wait_for(api, batch.id, "completed")
        assert not silent.asked, "it is not waited for any longer"
        unknown = await begin(api, line("a", model="another"))
        failed = await wait_for(api, unknown.id, *ENDED)
        assert failed.status == "failed"
        assert failed.errors is not None
        assert failed.errors.data is not None
        assert failed.errors.data[0].code == "model_not_found"

    daemons = [FakeDaemon(echoes, sends_statuses=False) for _ in range(2)]
    run(test, *daemons, wait=False, stale_after=100.0)


def test_files_and_batches_need_the_routers_key() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            await begin(api, lines(1))
        async with client(world, "a-key") as other:
            await wait_for(other, (await begin(other, lines(1))).id, "completed")
        assert world.daemons[0].asked[0].headers["authorization"] == "Bearer its-key"

    run(test, FakeDaemon(echoes), api_key="a-key", instance_api_key="its-key")


def test_bad_batches_are_refused_as_by_a_daemon() -> None:
    async def test(_: World, api: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="Supported: /v1/chat/completions"):
            await begin(api, lines(1), endpoint="/v1/embeddings")
        with pytest.raises(openai.NotFoundError, match="No such File object: no"):
            await api.batches.create(
                input_file_id="no",
                endpoint="/v1/completions",
                completion_window="24h",
            )
        file = await api.files.create(file=("in", b"x"), purpose="batch")
        assert (await api.files.content(file.id)).read() == b"x"
        assert file.id in [each.id async for each in api.files.list()]
        assert (await api.files.delete(file.id)).deleted

    run(test, FakeDaemon(echoes))
