"""The predictor's process: answers an `Ask` message when all of its prompts are predicted.

No request waits for a prediction, so the process must not slow down the other ones: it has one
thread and low priority, and drops messages if it cannot keep up.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zmq

from configs import loader
from daemon.observability import logs
from daemon.processes import child_process
from daemon.processes.process_priority import lower_priority
from daemon.processes.watchdog_file import WatchdogFile
from predictor.asks import AskQueue, OpenAsk, batches
from predictor.checkpoint import Prediction, PredictorError, load_predictor
from wire.predictor_messages import Ask
from wire.sockets import Hub

NICENESS = 10
LOG_INTERVAL_S = 60.0

Predict = Callable[[list[str]], list[Prediction]]

log = logging.getLogger("tdpipe")


def main(folder: Path, incarnation: int) -> int:
    """Serve until SIGTERM; returns the exit code, 1 if the predictor cannot start.

    If the first start fails, the settings are wrong: the root cause is written to the runtime
    folder, and the daemon ends. If a later start fails, the daemon continues without a predictor.
    """
    config = loader.load_saved(folder)
    logs.set_up("predictor", config.logs)
    lower_priority(NICENESS)
    torch.set_num_threads(1)
    try:
        if config.predictor.predictor_folder is None:
            raise PredictorError(f"predictor {config.predictor.predictor} is not a folder")
        predictor = load_predictor(config.predictor.predictor_folder)
        hub = Hub[Ask](config.runtime.predictor_address, Ask)
    except (PredictorError, zmq.ZMQError, OSError) as error:
        if incarnation:
            log.error("%s", error)
        else:
            child_process.report_failure(folder, f"predictor: {error}")
        return 1
    with hub:
        description = predictor.description
        log.info(
            "predictor ready: %d length classes, reads the last %d tokens of a prompt",
            len(description.classes),
            description.max_tokens,
        )
        watchdog_file = WatchdogFile(folder, "predictor")
        serve(hub, predictor.predict, on_pass=watchdog_file.beat)
    return 0


def serve(
    hub: Hub[Ask],
    predict: Predict,
    queue: AskQueue | None = None,
    is_over: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    on_pass: Callable[[], None] = lambda: None,
) -> None:
    """Answer `Ask` messages until `is_over()`, which is called after each batch and while idle.

    `on_pass` is called at the same times.
    """
    queue = AskQueue() if queue is None else queue  # an empty queue is false
    dropped = DropCount()
    while not is_over():
        on_pass()
        if not queue:
            hub.socket.poll(100)
        _take(hub, queue, dropped, clock)
        for batch in batches(queue.next_group()):
            _run(hub, predict, batch)
            # Read after each batch, so that the queue's own limit applies and not the socket's.
            _take(hub, queue, dropped, clock)
            on_pass()
            if is_over():
                return


class DropCount:
    """Counts dropped `Ask` messages, and logs the number at most once a minute."""

    def __init__(self) -> None:
        self.total = 0
        self._logged_at: float | None = None
        self._num_logged = 0

    def add(self, num_asks: int, now: float) -> None:
        """Add dropped messages; log them if the last log line is old enough."""
        self.total += num_asks
        is_quiet = self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_S
        if self.total > self._num_logged and is_quiet:
            news = self.total - self._num_logged
            log.warning(
                "the predictor cannot keep up: %d requests dropped, %d in total", news, self.total
            )
            self._num_logged, self._logged_at = self.total, now


def _take(hub: Hub[Ask], queue: AskQueue, dropped: DropCount, clock: Callable[[], float]) -> None:
    num_dropped = sum(queue.add(peer, ask) for peer, ask in hub.drain() if ask.prompts)
    dropped.add(num_dropped, clock())


def _run(hub: Hub[Ask], predict: Predict, batch: list[tuple[OpenAsk, int]]) -> None:
    predictions = predict([ask.ask.prompts[i] for ask, i in batch])
    for (ask, i), prediction in zip(batch, predictions, strict=True):
        ask.found[i] = prediction
        if ask.is_done:
            # If the server has ended, sending fails, which does not matter.
            hub.send(ask.peer, ask.answer())
