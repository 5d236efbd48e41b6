"""The node link: it says what a node waits for, and does what the engine answers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from configs.schema.nodes import NodesConfig
from tests.end_to_end.daemon import SECRET
from wire.messages import NodeOrder, NodeState
from wire.sockets import Hub
from workers.comm import node_link
from workers.comm.node_link import NodeLink, RefusedError

PATIENCE_S = 10.0
CONFIG = NodesConfig(nnodes=2, node_rank=1, headless=True, master_addr="127.0.0.1")
Answer = Callable[[NodeState], NodeOrder | None]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "INTERVAL_S", 0.02)
    monkeypatch.setattr(node_link, "REFUSAL_S", 0.2)
    monkeypatch.setattr(node_link, "ENGINE_SILENCE_S", 0.4)


@contextmanager
def engine(answer: Answer, secret: str = SECRET) -> Iterator[str]:
    """An engine that answers each state; yields its endpoint."""
    is_over = threading.Event()

    def run(hub: Hub[NodeState]) -> None:
        while not is_over.is_set():
            for sender, state in hub.drain():
                order = answer(state)
                if order is not None:
                    hub.send(sender, order)
            time.sleep(0.005)

    with Hub[NodeState]("tcp://127.0.0.1:*", NodeState, secret) as hub:
        thread = threading.Thread(target=run, args=(hub,))
        thread.start()
        try:
            yield hub.endpoint
        finally:
            is_over.set()
            thread.join()


def link_to(endpoint: str, end_stages: Callable[[], None] = lambda: None) -> NodeLink:
    return NodeLink(CONFIG, endpoint, SECRET, 3, {"tdpipe": "1"}, end_stages)


def start(state: NodeState) -> NodeOrder:
    """Every group begins at once."""
    return NodeOrder(state.attempt, state.epoch + 5 if state.attempt else 0)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_group_has_the_epoch_that_the_engine_says() -> None:
    beats: list[int] = []
    states: list[NodeState] = []

    def answer(state: NodeState) -> NodeOrder:
        states.append(state)
        return start(state)

    with engine(answer) as endpoint, link_to(endpoint) as link:
        assert link.next_epoch(lambda: beats.append(1), PATIENCE_S) == 5
        assert link.next_epoch(lambda: beats.append(1), PATIENCE_S) == 10
        wait_for(lambda: states[-1].epoch == 10)
    assert beats
    assert (states[-1].node, states[-1].num_stages, states[-1].attempt) == (1, 3, 0)
    waiting = [state for state in states if state.attempt]
    assert {msgspec.json.encode(state.facts) for state in waiting} == {b'{"tdpipe":"1"}'}
    assert len({state.attempt for state in waiting}) == 2
    assert not states[-1].facts


def test_stages_of_an_epoch_that_is_over_end() -> None:
    ended, ended_epoch = threading.Event(), [0]

    def answer(state: NodeState) -> NodeOrder:
        return msgspec.structs.replace(start(state), ended_epoch=ended_epoch[0])

    with engine(answer) as endpoint, link_to(endpoint, ended.set) as link:
        link.next_epoch(lambda: None, PATIENCE_S)
        ended_epoch[0] = 4
        time.sleep(0.2)
        assert not ended.is_set()
        ended_epoch[0] = 5
        assert ended.wait(PATIENCE_S)


def test_without_answers_the_stages_end() -> None:
    ended, is_silent = threading.Event(), threading.Event()

    def answer(state: NodeState) -> NodeOrder | None:
        return None if is_silent.is_set() else start(state)

    with engine(answer) as endpoint, link_to(endpoint, ended.set) as link:
        link.next_epoch(lambda: None, PATIENCE_S)
        time.sleep(0.6)
        assert not ended.is_set()
        is_silent.set()
        assert ended.wait(PATIENCE_S)


def test_a_refusal_that_lasts_is_an_error() -> None:
    with (
        engine(lambda _: NodeOrder(refusal="node_rank 1 is taken by a")) as endpoint,
        link_to(endpoint) as link,
        pytest.raises(RefusedError, match=r"^node_rank 1 is taken by a$"),
    ):
        link.next_epoch(lambda: None, PATIENCE_S)


def test_a_short_refusal_is_none() -> None:
    began_at = time.monotonic()

    def answer(state: NodeState) -> NodeOrder:
        is_early = time.monotonic() < began_at + 0.1
        return NodeOrder(refusal="node_rank 1 is taken by a") if is_early else start(state)

    with engine(answer) as endpoint, link_to(endpoint) as link:
        assert link.next_epoch(lambda: None, PATIENCE_S) == 5


@pytest.mark.parametrize(
    ("answer", "secret", "missing"),
    [
        (lambda _: None, SECRET, "the first node does not answer at tcp://127.0.0.1:"),
        (start, "another secret, which is long", "or has another cluster_secret"),
        (lambda _: NodeOrder(missing="node 0 is gone"), SECRET, "node 0 is gone"),
    ],
)
def test_a_wait_is_limited_and_says_what_was_missing(
    answer: Answer, secret: str, missing: str
) -> None:
    with engine(answer, secret) as endpoint, link_to(endpoint) as link:
        with pytest.raises(TimeoutError, match=r"^after 0.5 s \(stage_start_timeout\)") as raised:
            link.next_epoch(lambda: None, 0.5)
        assert missing in str(raised.value)
