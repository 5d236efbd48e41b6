"""Engine and stages without HTTP: they work inside the block, and nothing is left after it."""

import asyncio
from pathlib import Path

import psutil
import pytest

from configs.schema import Config
from engine.messages import Sampling, Submit
from server.engine_client import Inbox, Sequence
from server.errors import ApiError
from server.offline import OfflineEngine, OfflineEngineError
from server.plan import pack
from tests.end_to_end.daemon import all_gone

GONE_TIMEOUT_S = 5.0
NUM_TOKENS = 12


def settings(folder: Path, **values: object) -> Config:
    """Two stages of the demo model that measure themselves only briefly."""
    return Config.model_validate({"data_dir": folder, "profile_seconds": 0.3} | values)


async def generate(engine: OfflineEngine) -> list[int]:
    """Greedy tokens after a fixed prompt."""
    inbox, sequence_id = Inbox(), engine.client.next_ids(1)
    sequence = Sequence(sequence_id, 0, inbox)
    prompt = engine.tokenizer.encode("Count to nine in words.\n")
    sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0)
    engine.client.submit(Submit(sequence_id, pack(prompt), NUM_TOKENS, sampling), sequence)
    token_ids: list[int] = []
    while sequence.finished is None:
        await inbox.take()
        token_ids += sequence.take_tokens()
    if sequence.finished.reason == "error":
        raise ApiError(500, sequence.finished.message)
    return token_ids


def children() -> list[psutil.Process]:
    """All processes that this one has started."""
    return psutil.Process().children(recursive=True)


def test_inside_the_block_requests_are_worked_on_and_after_it_nothing_is_left(
    tmp_path: Path,
) -> None:
    async def work() -> tuple[list[int], list[psutil.Process], Path]:
        async with OfflineEngine(settings(tmp_path)) as engine:
            token_ids = await engine.run(generate(engine))
            return token_ids, children(), engine.config.folder

    token_ids, processes, folder = asyncio.run(work())
    assert len(token_ids) == NUM_TOKENS
    assert len(processes) >= 4, "engine, torchrun and two stages"
    assert all_gone(processes, GONE_TIMEOUT_S)
    assert not folder.exists()


def test_an_engine_that_dies_comes_back_with_new_stages(tmp_path: Path) -> None:
    async def work() -> tuple[list[int], list[int]]:
        async with OfflineEngine(settings(tmp_path)) as engine:
            before = await engine.run(generate(engine))
            (victim,) = (child for child in children() if "engine" in child.cmdline())
            victim.kill()
            return before, await engine.run(generate_in_the_end(engine))

    async def generate_in_the_end(engine: OfflineEngine) -> list[int]:
        while True:
            try:
                engine.client.check_ready()
                return await generate(engine)
            except ApiError:
                await asyncio.sleep(0.05)

    before, after = asyncio.run(work())
    assert before == after


def test_what_cannot_be_mended_ends_the_work_in_one_line(tmp_path: Path) -> None:
    async def work() -> None:
        async with OfflineEngine(settings(tmp_path, max_restarts=0)) as engine:
            for child in children():
                if "engine" in child.cmdline():
                    child.kill()
            await engine.run(asyncio.Event().wait())

    with pytest.raises(OfflineEngineError, match="the engine was killed by SIGKILL"):
        asyncio.run(work())
    assert all_gone(children(), GONE_TIMEOUT_S)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "/nowhere/at/all"}, "no folder /nowhere/at/all"),
        ({"max_model_len": 5000}, "max_model_len 5000"),
        ({"tokenizer": "/nowhere/at/all"}, "cannot load the tokenizer"),
    ],
)
def test_a_start_that_fails_is_one_line_and_leaves_nothing(
    values: dict[str, object], words: str, tmp_path: Path
) -> None:
    async def start() -> None:
        async with OfflineEngine(settings(tmp_path, **values)):
            pass

    with pytest.raises(OfflineEngineError, match=words):
        asyncio.run(start())
    assert all_gone(children(), GONE_TIMEOUT_S)
