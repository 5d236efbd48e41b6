"""The process: it answers over its socket, keeps to its limit, and reports why it cannot start."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs import loader
from configs.config import Config
from daemon.processes import child_process
from predictor.asks import AskQueue
from predictor.checkpoint import Prediction, load_predictor
from predictor.process import LOG_INTERVAL_S, DropCount, serve
from tests.predictor.world import make_predictor
from wire.predictor_messages import Answer, Ask
from wire.sockets import Hub, Spoke

ROOT = Path(__file__).parents[2]
PATIENCE_S = 200.0  # it starts at a low priority


def receive(spoke: Spoke[Answer], count: int) -> list[Answer]:
    """The next answers."""
    got: list[Answer] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {got} came"
        spoke.wait(0.1)
        got.extend(spoke.drain())
    return got


def by_length(prompts: list[str]) -> list[Prediction]:
    """Predicts as many tokens as the prompt has characters."""
    return [Prediction(0, len(prompt), 0.5) for prompt in prompts]


@contextmanager
def serving(
    tmp_path: Path, predict: Callable[[list[str]], list[Prediction]], queue: AskQueue | None = None
) -> Iterator[Spoke[Answer]]:
    """A predictor in a thread, and the server's end of the socket."""
    over = threading.Event()
    endpoint = f"ipc://{tmp_path}/predictor.sock"

    def run() -> None:
        with Hub[Ask](endpoint, Ask) as hub:
            serve(hub, predict, queue, over.is_set)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with Spoke[Answer](endpoint, "server", Answer) as spoke:
            yield spoke
    finally:
        over.set()
        thread.join()


def test_each_ask_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, by_length) as server:
        for i in range(20):
            server.send(Ask(i, ("a" * (i + 1), "b")))
        answers = sorted(receive(server, 20), key=lambda answer: answer.request_id)
    assert answers == [Answer(i, (0, 0), (i + 1, 1), (0.5, 0.5)) for i in range(20)]


def test_an_ask_of_many_batches_is_answered_once_and_whole(tmp_path: Path) -> None:
    sizes: list[int] = []

    def predict(prompts: list[str]) -> list[Prediction]:
        sizes.append(len(prompts))
        return by_length(prompts)

    lens = tuple((i * 37) % 100 + 1 for i in range(100))
    with serving(tmp_path, predict) as server:
        server.send(Ask(1, tuple("a" * n for n in lens)))
        answers = receive(server, 1)
    assert answers == [Answer(1, (0,) * 100, lens, (0.5,) * 100)]
    assert sizes == [32, 32, 32, 4]


def test_an_ask_without_prompts_does_not_end_it(tmp_path: Path) -> None:
    with serving(tmp_path, by_length) as server:
        server.send(Ask(1, ()))
        server.send(Ask(2, ("a",)))
        assert [answer.request_id for answer in receive(server, 1)] == [2]


def test_when_it_is_overfull_the_oldest_asks_are_dropped_and_the_rest_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def predict(prompts: list[str]) -> list[Prediction]:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return by_length(prompts)

    with serving(tmp_path, predict, AskQueue(max_prompts=3)) as server:
        server.send(Ask(0, ("a",)))
        assert begun.wait(PATIENCE_S)
        for i in range(1, 11):
            server.send(Ask(i, ("a",)))
        time.sleep(0.05)  # until the other end's socket has what was sent
        go_on.set()
        assert [answer.request_id for answer in receive(server, 4)] == [0, 8, 9, 10]
    assert "7 requests dropped, 7 in total" in caplog.text


def test_drops_are_logged_once_a_minute_and_none_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = DropCount()
    count.add(0, 0.0)
    assert not caplog.records
    for i in range(10):
        count.add(2, 1.0 + i)
    count.add(0, 1.0 + LOG_INTERVAL_S)
    count.add(0, 2.0 + 2 * LOG_INTERVAL_S)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "2 requests dropped, 2 in total",
        "18 requests dropped, 20 in total",
    ]
    assert count.total == 20


@contextmanager
def process(folder: Path, predictor: str, incarnation: int = 0) -> Iterator[subprocess.Popen[str]]:
    """`python -m predictor`, as the supervisor starts it."""
    loader.save(Config.of(predictor=predictor, runtime_dir=folder), folder)
    environment = os.environ | {child_process.PARENT: str(os.getpid()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "predictor", str(folder), str(incarnation)]
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_the_real_process_answers_as_the_loaded_predictor_would_and_ends_on_sigterm(
    tmp_path: Path,
) -> None:
    made = make_predictor(tmp_path / "made")
    prompts = ("short please", "long show me now", "")
    with (
        process(tmp_path, str(made)) as child,
        Spoke[Answer](f"ipc://{tmp_path}/predictor.sock", "server", Answer) as server,
    ):
        server.send(Ask(3, prompts))
        (answer,) = receive(server, 1)
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=PATIENCE_S)
    expected = load_predictor(made).predict(sorted(prompts, key=len))
    by_prompt = dict(zip(sorted(prompts, key=len), expected, strict=True))
    assert answer.request_id == 3
    assert answer.predicted_lens == tuple(by_prompt[each].predicted_len for each in prompts)
    assert answer.classes == tuple(by_prompt[each].length_class for each in prompts)
    assert answer.spreads == pytest.approx([by_prompt[each].spread for each in prompts])
    assert child.returncode == 0
    assert log.count("\n") == 1
    assert "[predictor] predictor ready: 2 length classes" in log


@pytest.mark.parametrize("predictor", ["nowhere", "histogram"])
def test_a_process_that_cannot_start_leaves_the_reason(tmp_path: Path, predictor: str) -> None:
    with process(tmp_path, predictor) as child:
        assert child.wait(PATIENCE_S) == 1
    reason = child_process.reported_failure(tmp_path)
    assert reason is not None
    assert reason.startswith("predictor: ")
    assert predictor in reason


def test_one_that_cannot_start_again_says_so_in_the_log_and_ends_nothing_else(
    tmp_path: Path,
) -> None:
    with process(tmp_path, "nowhere", incarnation=1) as child:
        _, log = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 1
    assert log.count("\n") == 1
    assert "nowhere" in log
    assert child_process.reported_failure(tmp_path) is None
