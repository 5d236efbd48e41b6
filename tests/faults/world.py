"""The world of the matrix: one daemon that is restarted again and again, and its right answers."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import dynamic_module_utils

from configs.schema.model import DEMO_MODEL
from demo.tasks import held_out
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.test_batches import answers, begin, wait_ended
from tests.faults.checkpoint import Levers, levered_demo
from tests.faults.clients import Size, bodies, run_clients

NUM_STAGES = 3
WATCHDOG_AGE_S = 1.0
BATCH_BEGUN = 5  # answers that exist when the fault is inflicted
ANSWERS_S = 120.0


def levered_daemon(folder: Path, *arguments: str) -> tuple[Daemon, Levers]:
    """Three stages of the demo model with levers, in fp32: packed layers are batch invariant."""
    model, levers = levered_demo(folder)
    # Where the daemon's processes find the model's code: copied once, and not by all at once.
    dynamic_module_utils.get_cached_module_file(str(model), "levered_llama.py")
    common = [
        "--no-access-log",
        "--trust-remote-code",
        "-pp",
        str(NUM_STAGES),
        "--dtype",
        "float32",
    ]
    return Daemon(folder, str(model), *common, *arguments), levers


def keep_model_code(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Model code is copied to this folder, not to the user's cache."""
    patch.setenv("HF_MODULES_CACHE", str(folder))
    patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))


@dataclass
class World:
    """The daemon, and the right answers. Its restarts are not limited."""

    daemon: Daemon
    levers: Levers
    size: Size
    asked: list[dict[str, Any]]
    texts: list[str] = field(default_factory=list)
    batch: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def begin(cls, folder: Path, size: Size) -> Iterator["World"]:
        """Start it, ask everything once without faults, and end it as an operator does."""
        predictor = str(DEMO_MODEL.parent / "predictor")
        settings = ["--predictor", predictor, "--max-restarts", "1000"]
        world = cls(*levered_daemon(folder, *settings), size, bodies(size))
        try:
            world.revive()
            clients = asyncio.run(run_clients(world.daemon.url, world.asked))
            assert all(stream.ends == ["length"] for stream in clients.streams)
            world.texts = clients.texts
            world.batch = world.answers(world.begin_batch())
            yield world
        finally:
            if world.daemon.is_running:
                world.daemon.process.terminate()
                assert world.daemon.wait_end() == 0, world.daemon.log()

    def revive(self) -> None:
        """Start the daemon where it is not running, and wait until all processes exist."""
        daemon = self.daemon
        if not daemon.is_running:
            daemon.start()
        daemon.wait_for(self._predictor_is_well, 120)
        daemon.wait_for(lambda: daemon.get("/health")[0] == 200, 120)

    def _predictor_is_well(self) -> bool:
        """Whether its watchdog file is recent: without a beat it may be stopped."""
        try:
            beat_at = (self.daemon.folder / "run" / "predictor.watchdog").stat().st_mtime
        except OSError:
            return False
        return time.time() - beat_at < WATCHDOG_AGE_S

    def begin_batch(self) -> str:
        """A batch's id."""
        tasks = held_out(self.size.batch_size, seed=31)
        settings = {"model": "tdpipe-demo", "temperature": 0, "ignore_eos": True}
        lines = [
            {
                "custom_id": f"r{i}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {
                    "prompt": task.prompt,
                    "max_tokens": self.size.tokens_apart * i,
                    **settings,
                },
            }
            for i, task in enumerate(tasks, 1)
        ]
        return begin(self.daemon, "".join(json.dumps(line) + "\n" for line in lines))

    def wait_begun(self, batch_id: str) -> None:
        """Wait until some of it is answered, and not all."""
        with self.daemon.client() as client:

            def num_answered() -> int:
                counts = client.batches.retrieve(batch_id).request_counts
                return counts.completed if counts else 0

            self.daemon.wait_for(lambda: num_answered() >= BATCH_BEGUN, ANSWERS_S)
            assert num_answered() < self.size.batch_size, "the moment is over"

    def answers(self, batch_id: str) -> dict[str, str]:
        """The batch's answers, when it has ended."""
        return answers(self.daemon, wait_ended(self.daemon, batch_id))

    def processes(self) -> list[psutil.Process]:
        """All of the daemon's but the supervisor."""
        return psutil.Process(self.daemon.process.pid).children(recursive=True)

    def strays(self) -> list[psutil.Process]:
        """Processes that run in the daemon's folder and do not belong to it."""
        own = {self.daemon.process.pid, *(process.pid for process in self.processes())}
        return [process for process in self.daemon.present() if process.pid not in own]
