"""The default daemon and its demo model, through the official client."""

import asyncio

import openai
import pytest

from demo.tasks import Task, held_out
from tests.end_to_end.daemon import Daemon

MODEL = "tdpipe-demo"


async def answer(client: openai.AsyncOpenAI, task: Task, *, stream: bool) -> str:
    """The text of one greedy answer, asked for whole or in pieces."""
    arguments = {"model": MODEL, "prompt": task.prompt, "max_tokens": 600, "temperature": 0}
    if not stream:
        whole = await client.completions.create(**arguments)
        assert whole.choices[0].finish_reason == "stop"
        return whole.choices[0].text
    pieces, finish_reason = [], None
    async for chunk in await client.completions.create(**arguments, stream=True):
        pieces.append(chunk.choices[0].text)
        finish_reason = chunk.choices[0].finish_reason or finish_reason
    assert finish_reason == "stop"
    return "".join(pieces)


def test_64_concurrent_requests_end_with_right_answers(demo: Daemon) -> None:
    tasks = held_out(64, seed=11)

    async def ask_all() -> list[str]:
        async with demo.async_client() as client:
            return await asyncio.gather(
                *(answer(client, task, stream=i % 2 == 0) for i, task in enumerate(tasks))
            )

    texts = asyncio.run(ask_all())
    right = sum(text == task.answer for text, task in zip(texts, tasks, strict=True))
    assert right >= 0.95 * len(tasks)
    demo.wait_for(lambda: demo.metric("tdpipe_kv_blocks_used") == 0)


def test_200_requests_cut_off_leave_the_daemon_as_it_was(demo: Daemon) -> None:
    task = held_out(1, seed=5)[0]

    async def ask(client: openai.AsyncOpenAI, stream: bool) -> None:
        answer = client.completions.create(
            model=MODEL,
            prompt=task.prompt,
            max_tokens=1500,
            stream=stream,
            extra_body={"ignore_eos": True},
        )
        if stream:
            async for _ in await answer:
                pass
        else:
            await answer

    async def cut_off(client: openai.AsyncOpenAI, i: int) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(client, stream=i % 2 == 0), 0.3)

    async def ask_all() -> None:
        async with demo.async_client() as client:
            await asyncio.gather(*(cut_off(client, i) for i in range(200)))

    asyncio.run(ask_all())
    for gauge in ("tdpipe_kv_blocks_used", "tdpipe_waiting_sequences", "tdpipe_live_sequences"):
        demo.wait_for(lambda gauge=gauge: demo.metric(gauge) == 0)
    with demo.client() as client:
        whole = client.completions.create(
            model=MODEL, prompt=task.prompt, max_tokens=600, temperature=0
        )
    assert whole.choices[0].text == task.answer


def test_the_same_seed_gives_the_same_text_in_any_batch(demo: Daemon) -> None:
    task = held_out(1, seed=9)[0]

    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        whole = await client.completions.create(
            model=MODEL,
            prompt=task.prompt,
            max_tokens=40,
            temperature=1.5,
            top_p=0.95,
            seed=seed,
            extra_body={"top_k": 50, "ignore_eos": True},
        )
        return whole.choices[0].text

    async def ask_all() -> tuple[list[str], list[str]]:
        async with demo.async_client() as client:
            one_by_one = [await ask(client, seed) for seed in range(4)]
            together = await asyncio.gather(*(ask(client, seed % 8) for seed in range(32)))
            return one_by_one, together

    one_by_one, together = asyncio.run(ask_all())
    assert together[:4] == one_by_one
    assert together[:8] * 4 == together
    assert len(set(together)) > 4


def test_n_choices_of_a_list_of_prompts_stand_at_their_index(demo: Daemon) -> None:
    tasks = held_out(3, seed=21)
    with demo.client() as client:
        whole = client.completions.create(
            model=MODEL,
            prompt=[task.prompt for task in tasks],
            n=2,
            max_tokens=600,
            temperature=0,
        )
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [choice.text for choice in whole.choices]
    assert texts[0::2] == texts[1::2]
    assert texts[0::2] == [task.answer for task in tasks]


def test_min_tokens_and_stop_strings_hold_in_the_real_pipeline(demo: Daemon) -> None:
    with demo.client() as client:
        longer = client.completions.create(
            model=MODEL,
            prompt="Count to three in words.\n",
            max_tokens=30,
            temperature=0,
            extra_body={"min_tokens": 20},
        )
        stopped = client.completions.create(
            model=MODEL,
            prompt="Count to nine in words.\n",
            max_tokens=30,
            temperature=0,
            stop=["five"],
        )
    assert longer.usage is not None
    assert longer.usage.completion_tokens >= 20
    assert stopped.choices[0].text == "one two three four "
    assert stopped.choices[0].finish_reason == "stop"


def test_health_names_every_process_and_its_heartbeat(demo: Daemon) -> None:
    health = demo.health()
    assert health["status"] == "ok"
    assert [stage["stage"] for stage in health["stages"]] == [0, 1]
    pids = {process.pid for process in demo.descendants()["stage"]}
    assert {stage["pid"] for stage in health["stages"]} == pids
    assert all(stage["heartbeat_age_s"] < 10 for stage in health["stages"])


def test_stages_report_their_busy_seconds(demo: Daemon) -> None:
    before = demo.metric("tdpipe_stage_busy_seconds_total")
    with demo.client() as client:
        client.completions.create(
            model=MODEL, prompt="Count to nine in words.\n", max_tokens=30, temperature=0
        )
    demo.wait_for(lambda: demo.metric("tdpipe_stage_busy_seconds_total") > before)
