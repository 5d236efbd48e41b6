"""Refused nodes: each one's reason is logged once, although nodes report four times a second."""

import logging
from pathlib import Path

import pytest

from configs.config import EngineConfig
from configs.schema.runtime import RuntimeConfig
from engine import loop as engine_loop
from engine.loop import Loop
from engine.nodes import Nodes
from wire.messages import NodeState

FACTS = {"tdpipe": "1"}


def state(node: int, instance: int, version: str = "1") -> NodeState:
    """A node that waits for a group."""
    return NodeState(node, instance, f"host{instance}", 1, instance, 0, {"tdpipe": version})


def tell(loop: Loop, *states: NodeState) -> None:
    """The engine hears of them."""
    for each in states:
        loop._take_from_stage(f"node-{each.node}-{each.instance}", each)


def test_the_reason_of_a_refusal_is_logged_once_for_each_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(engine_loop, "MAX_REFUSALS", 2)
    with Loop(EngineConfig(), RuntimeConfig(runtime_dir=tmp_path), 0, Nodes(3, 3, FACTS)) as loop:
        good, old, other, again = state(0, 1), state(1, 2, "0"), state(2, 3, "2"), state(1, 4, "0")
        for _ in range(5):
            tell(loop, good, old, other)
        assert [record.getMessage() for record in caplog.records] == [
            "node 1 (host2) differs: tdpipe is 0, on the first node 1",
            "node 2 (host3) differs: tdpipe is 2, on the first node 1",
        ]
        tell(loop, state(1, 2), good, old)  # it differs again
        tell(loop, again, again)  # another process
        assert [record.getMessage()[:14] for record in caplog.records[2:]] == [
            "node 1 (host2)",
            "node_rank 1 is",
        ]
        assert len(loop._refusals) == 2
