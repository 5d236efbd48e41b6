"""The trained encoder beside a real daemon: it predicts, and its death affects no request."""

import asyncio
from pathlib import Path

import psutil

from configs.model import DEMO_MODEL
from demo.tasks import held_out
from tests.end_to_end.daemon import Daemon, all_gone
from tests.end_to_end.test_demo import answer

PREDICTOR = str(DEMO_MODEL.parent / "predictor")


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


def test_an_encoder_predicts_beside_the_daemon_and_may_die(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--predictor", PREDICTOR, "--max-restarts", "1") as daemon:
        daemon.wait_for(lambda: "predictor ready" in daemon.log(), 120)
        for seed in range(5):
            assert ask(daemon, seed) >= 20
        predicted = daemon.metric('tdpipe_predicted_output_tokens_total{length_class="0"')
        real = daemon.metric('tdpipe_real_output_tokens_total{length_class="0"')
        # Answers of two tokens, and there are many.
        assert real > 0
        assert abs(predicted - real) <= 0.2 * real
        first = predictor_of(daemon)
        assert first is not None
        first.kill()
        daemon.wait_for(lambda: daemon.log().count("predictor ready") == 2, 120)
        assert ask(daemon, 6) >= 20
        second = predictor_of(daemon)
        assert second is not None
        second.kill()
        daemon.wait_for(lambda: "continuing without it" in daemon.log())
        assert ask(daemon, 7) >= 20
        assert daemon.health()["status"] == "ok"
        everything = [p for processes in daemon.descendants().values() for p in processes]
    assert all_gone([first, second, *everything], 5)
