"""Engine and stages without HTTP: they run inside the block, and nothing is left after it."""

import asyncio
import json
import socket
from pathlib import Path

import psutil
import pytest

from client.offline import OfflineEngine, OfflineEngineError
from configs.config import Config
from server.requests.retry import ask_until_final
from tests.end_to_end.daemon import SECRET, Daemon, all_gone
from tests.kernels import prepare_data_dir
from tests.processes import words_of

GONE_TIMEOUT_S = 20.0
PROMPT, ANSWER = "Count to seven in words.\n", "one two three four five six seven"


def settings(folder: Path, **values: object) -> Config:
    """Two stages of the demo model that measure themselves only briefly."""
    return Config.of(**{"data_dir": prepare_data_dir(folder), "profile_seconds": 0.3} | values)


async def generate(engine: OfflineEngine) -> str:
    """A greedy answer."""
    body = {"model": "tdpipe-demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 40}
    reply = await engine.endpoints().completions.prepare(json.dumps(body).encode(), offline=True)
    text: str = json.loads(await reply.whole())["choices"][0]["text"]
    return text


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that other tests have started before, such as a daemon."""
    present = frozenset(psutil.Process().children(recursive=True))
    monkeypatch.setattr(f"{__name__}.OTHERS", present)


OTHERS: frozenset[psutil.Process] = frozenset()


def children() -> list[psutil.Process]:
    """All processes that this test has started."""
    return [child for child in psutil.Process().children(recursive=True) if child not in OTHERS]


def test_inside_the_block_requests_outlast_an_engine_that_dies_and_after_it_nothing_is_left(
    tmp_path: Path,
) -> None:
    async def work() -> tuple[list[str], list[psutil.Process], Path]:
        async with OfflineEngine(settings(tmp_path)) as engine:
            texts = [await engine.run(generate(engine))]
            processes = children()
            assert len(processes) >= 4, "engine, torchrun and two stages"
            (victim,) = (child for child in processes if "engine" in words_of(child))
            victim.kill()
            texts.append(await engine.run(ask_until_final(engine.client, lambda: generate(engine))))
            return texts, [*processes, *children()], engine.config.runtime.folder

    texts, processes, folder = asyncio.run(work())
    assert texts == [ANSWER, ANSWER]
    assert all_gone(processes, GONE_TIMEOUT_S)
    assert not folder.exists()


def test_a_permanent_failure_ends_the_work_in_one_line(tmp_path: Path) -> None:
    async def work() -> None:
        async with OfflineEngine(settings(tmp_path, max_restarts=0)) as engine:
            for child in children():
                if "engine" in words_of(child):
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
        ({"tokenizer": "configs"}, "cannot load the tokenizer"),
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


@pytest.mark.long
def test_the_stages_of_another_node_take_part(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = {"nnodes": 2, "master_port": port, "cluster_secret": SECRET, "device": "cpu"}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in nodes.items()]
    other = Daemon(tmp_path / "other", *flags, "--node-rank=1", "--headless", "--num-threads=1")

    async def work() -> str:
        async with OfflineEngine(settings(tmp_path, num_threads=1, **nodes)) as engine:
            return await engine.run(generate(engine))

    other.start()
    try:
        assert asyncio.run(work()) == ANSWER
        assert "a loopback address" in other.log()
    finally:
        other.process.terminate()
        assert other.wait_end() == 0
