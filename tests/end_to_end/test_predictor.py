"""The trained encoder beside a real daemon: it predicts, and its death affects no request."""

import asyncio
from pathlib import Path

import psutil
import pytest

from demo.tasks import held_out
from tests.end_to_end.daemon import LOG_FILE, PREDICTOR, Daemon, all_gone
from tests.end_to_end.test_demo import answer


def ask(daemon: Daemon, seed: int, count: int = 24) -> int:
    """Ask held-out tasks; returns how many were answered right."""
    tasks = held_out(count, seed)

    async def ask_all() -> list[str]:
        async with daemon.async_client() as client:
            return await asyncio.gather(*(answer(client, task, stream=False) for task in tasks))

    texts = asyncio.run(ask_all())
    return sum(text == task.answer for text, task in zip(texts, tasks, strict=True))


def predictor_of(daemon: Daemon) -> psutil.Process | None:
    """The encoder's process, if there is one."""
    found = daemon.descendants().get("predictor")
    return found[0] if found else None


def num_ready(log: str) -> int:
    """How often one has become ready."""
    return log.count("predictor ready")


def test_an_encoder_predicts_beside_the_daemon_and_comes_back(predicting: Daemon) -> None:
    def log() -> str:
        return "".join(path.read_text() for path in predicting.folder.glob(f"{LOG_FILE}*"))

    predicting.wait_for(lambda: num_ready(log()) > 0, 120)
    for seed in range(5):
        assert ask(predicting, seed) >= 20
    predicted = predicting.metric('tdpipe_predicted_output_tokens_total{length_class="0"')
    real = predicting.metric('tdpipe_real_output_tokens_total{length_class="0"')
    # Answers of two tokens, and there are many.
    assert real > 0
    assert abs(predicted - real) <= 0.2 * real
    victim, before = predictor_of(predicting), num_ready(log())
    assert victim is not None
    victim.kill()
    predicting.wait_for(lambda: num_ready(log()) == before + 1, 120)
    assert ask(predicting, 6) >= 20
    assert all_gone([victim], 5)


@pytest.mark.long
def test_a_daemon_whose_encoder_dies_too_often_goes_on_without_it(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--predictor", PREDICTOR, "--max-restarts", "1") as daemon:
        for number in (1, 2):
            daemon.wait_for(lambda number=number: num_ready(daemon.log()) == number, 120)
            victim = predictor_of(daemon)
            assert victim is not None
            victim.kill()
        daemon.wait_for(lambda: "continuing without it" in daemon.log())
        assert ask(daemon, 7) >= 20
        assert daemon.health()["status"] == "ok"
        everything = [p for processes in daemon.descendants().values() for p in processes]
    assert all_gone([victim, *everything], 5)
