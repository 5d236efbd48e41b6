"""The predictor's process: takes asks, answers each as soon as all its prompts are predicted.

Nobody waits for it, so it is the one that steps aside: one thread, low priority, and asks that it
cannot keep up with are dropped.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
import zmq

from configs import loader
from daemon import child_process, logs
from daemon.process_priority import lower_priority
from daemon.watchdog_file import WatchdogFile
from predictor.asks import OpenAsk, Queue, batches
from predictor.checkpoint import Prediction, PredictorError, load_predictor
from wire.predictor_messages import Ask
from wire.sockets import Hub

NICENESS = 10
LOG_INTERVAL_S = 60.0

Predict = Callable[[list[str]], list[Prediction]]

log = logging.getLogger("tdpipe")


def main(folder: Path, incarnation: int) -> int:
    """Serve until SIGTERM; 1 where it cannot begin.

    The first one's root cause is left in the runtime folder and ends the daemon: the settings are
    wrong. The daemon can do without one that does not come back.
    """
    config = loader.load_saved(folder)
    logs.set_up("predictor", config)
    lower_priority(NICENESS)
    torch.set_num_threads(1)
    try:
        if config.predictor_folder is None:
            raise PredictorError(f"predictor {config.predictor} is no folder")
        predictor = load_predictor(config.predictor_folder)
        hub = Hub[Ask](config.predictor_address, Ask)
    except (PredictorError, zmq.ZMQError, OSError) as error:
        if incarnation:
            log.error("%s", error)
        else:
            child_process.report_failure(folder, f"predictor: {error}")
        return 1
    with hub:
        told = predictor.description
        log.info(
            "predictor ready: %d classes of lengths, the last %d tokens of a prompt",
            len(told.classes),
            told.max_tokens,
        )
        watchdog_file = WatchdogFile(folder, "predictor")
        serve(hub, predictor.predict, on_round=watchdog_file.beat)
    return 0


def serve(
    hub: Hub[Ask],
    predict: Predict,
    queue: Queue | None = None,
    is_over: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    on_round: Callable[[], None] = lambda: None,
) -> None:
    """Answer asks until `is_over`, which is looked at between batches and while nothing comes.

    So is `on_round` called.
    """
    queue = Queue() if queue is None else queue  # an empty one is false
    dropped = DropCount()
    while not is_over():
        on_round()
        if not queue:
            hub.socket.poll(100)
        _take(hub, queue, dropped, clock)
        for batch in batches(queue.next_round()):
            _run(hub, predict, batch)
            # Between batches, so that the bound is that of the queue and not of the socket.
            _take(hub, queue, dropped, clock)
            on_round()
            if is_over():
                return


class DropCount:
    """Counts dropped asks and says so, at most once a minute."""

    def __init__(self) -> None:
        self.total = 0
        self._told_at: float | None = None
        self._told = 0

    def add(self, num_asks: int, now: float) -> None:
        """Count; log where there is news and the last line is old enough."""
        self.total += num_asks
        is_quiet = self._told_at is None or now - self._told_at >= LOG_INTERVAL_S
        if self.total > self._told and is_quiet:
            news = self.total - self._told
            log.warning(
                "asked for more than it can predict: %d asks dropped, %d in all", news, self.total
            )
            self._told, self._told_at = self.total, now


def _take(hub: Hub[Ask], queue: Queue, dropped: DropCount, clock: Callable[[], float]) -> None:
    num_dropped = sum(queue.add(peer, ask) for peer, ask in hub.drain() if ask.prompts)
    dropped.add(num_dropped, clock())


def _run(hub: Hub[Ask], predict: Predict, batch: list[tuple[OpenAsk, int]]) -> None:
    predictions = predict([ask.ask.prompts[i] for ask, i in batch])
    for (ask, i), prediction in zip(batch, predictions, strict=True):
        ask.found[i] = prediction
        if ask.is_done:
            # A server that has gone does not want it any more: whether it was sent is all one.
            hub.send(ask.peer, ask.answer())
