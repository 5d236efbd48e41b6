"""The prefix cache through the daemon: it changes no token, whatever happens to the stages."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import TOKENIZER, ids_of, make_checkpoint
from tests.end_to_end.asking import random_prompts
from tests.end_to_end.daemon import Daemon
from tests.faults.blow import stages_of
from tests.kernels import shared_library

NUM_TOKENS = 40
BLOCK_BYTES = 16 * 2 * 2 * 2 * 32 * 4  # tokens, layers, K and V, KV heads, head dim, fp32


def conversations() -> list[list[list[int]]]:
    """The users' turns of conversations: all begin with the same 70 tokens."""
    (system,) = random_prompts("system", [70])
    turns = [random_prompts(f"turns {i}", [9 + i, 20, 1, 33]) for i in range(6)]
    return [[[*system, *first], *rest] for first, *rest in turns]


async def converse(
    client: httpx.AsyncClient, turns: list[list[int]], **fields: Any
) -> list[tuple[list[int], int]]:
    """The answer to each turn, and how many tokens of its prompt were cached."""
    prompt: list[int] = []
    answers = []
    for turn in turns:
        prompt += turn
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        reply = (await client.post("/v1/completions", json=body | fields)).json()
        answer = ids_of(reply["choices"][0]["text"])
        answers.append((answer, reply["usage"]["prompt_tokens_details"]["cached_tokens"]))
        prompt = [*prompt, *answer]
    return answers


def converse_all(daemon: Daemon, *, kills: bool = False) -> list[list[tuple[list[int], int]]]:
    """All conversations at the same time; with `kills`, a stage dies in their midst."""

    async def run() -> list[list[tuple[list[int], int]]]:
        async with httpx.AsyncClient(base_url=daemon.url, timeout=120) as client:
            tasks = [asyncio.create_task(converse(client, turns)) for turns in conversations()]
            if kills:
                await converse(client, conversations()[0][:1])
                stages_of(daemon)[1].kill()
            return await asyncio.gather(*tasks)

    return asyncio.run(run())


def answers_of(found: list[list[tuple[list[int], int]]]) -> list[list[list[int]]]:
    return [[answer for answer, _ in turns] for turns in found]


@pytest.mark.parametrize(
    ("family", "policy", "num_blocks"),
    [
        # The longest conversation takes 19 blocks, all together some 90.
        ("llama", "td-pipe", 22),
        pytest.param("gemma2", "temporal", None, marks=pytest.mark.long),
        pytest.param("gpt_oss", "hybrid", None, marks=pytest.mark.long),
        pytest.param("llama", "temporal", 22, marks=pytest.mark.long),
        pytest.param("gemma2", "td-pipe", None, marks=pytest.mark.long),
        pytest.param("llama", "separate", 22, marks=pytest.mark.long),
    ],
)
def test_conversations_are_the_same_with_and_without_it(
    family: str, policy: str, num_blocks: int | None, tmp_path: Path
) -> None:
    shared_library()
    checkpoint = make_checkpoint(tmp_path / "model", family)
    common = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32", "--device", "cpu"]
    common += ["--policy", policy]
    off = ["-pp", "1", "--no-enable-prefix-caching"]
    with Daemon(tmp_path / "off", str(checkpoint), *common, *off) as daemon:
        without = converse_all(daemon)
        assert not any(cached for turns in without for _, cached in turns)
        assert daemon.metric("tdpipe_prefix_cache_queries_total") > 0
        assert daemon.metric("tdpipe_prefix_cache_hits_total") == 0
    on = ["-pp", "2", "--predictor", "constant:1"]
    if num_blocks:
        on += ["--kv-cache-memory-bytes", str(num_blocks * BLOCK_BYTES)]
    with Daemon(tmp_path / "on", str(checkpoint), *common, *on) as daemon:
        once = converse_all(daemon)
        assert answers_of(once) == answers_of(without)
        again = converse_all(daemon, kills=True)
        assert answers_of(again) == answers_of(without)
        daemon.wait_for(lambda: daemon.metric("tdpipe_pipeline_restarts_total") == 1)
        assert daemon.metric("tdpipe_prefix_cache_hits_total") > 0
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
        for _ in range(4):  # on a busy machine, too few may have been open at one time
            if not num_blocks or daemon.metric("tdpipe_preemptions_total"):
                break
            assert answers_of(converse_all(daemon)) == answers_of(without)
        assert (daemon.metric("tdpipe_preemptions_total") > 0) == bool(num_blocks)
    if not num_blocks:  # the system prompt, and later the turns before
        assert all(cached >= 64 for turns in once for _, cached in turns[1:])
    assert sum(cached for turns in again for _, cached in turns) > 0


def test_choices_and_salts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    (prompt,) = random_prompts("choices", [100])
    arguments = ["--tokenizer", str(checkpoint / TOKENIZER), "--dtype", "float32"]
    with Daemon(tmp_path, str(checkpoint), *arguments, "--device", "cpu") as daemon:

        def ask(**fields: Any) -> tuple[list[str], int]:
            body = {"prompt": prompt, "max_tokens": 8, "seed": 1, "ignore_eos": True}
            reply = httpx.post(f"{daemon.url}/v1/completions", json=body | fields, timeout=60)
            assert reply.status_code == 200, reply.text
            usage = reply.json()["usage"]["prompt_tokens_details"]
            return [choice["text"] for choice in reply.json()["choices"]], usage["cached_tokens"]

        texts, cached = ask(n=5)
        assert cached == 0
        # Four of the five choices have found the prompt of the first.
        daemon.wait_for(lambda: daemon.metric("tdpipe_prefix_cache_hits_total") == 4 * 96)
        assert ask(n=5) == (texts, 96)
        assert ask(n=5, cache_salt="a") == (texts, 0)
        assert ask(n=5, cache_salt="a") == (texts, 96)
        # A prompt that is scored is computed as a whole.
        body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
        reply = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60).json()
        assert len(reply["choices"][0]["logprobs"]["tokens"]) == 100
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
