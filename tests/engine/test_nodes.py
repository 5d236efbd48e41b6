"""Nodes: every node gets the same epoch, whatever starts, ends or is lost in between."""

from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.nodes import CAUSE_S, SILENCE_S, Broken, Nodes
from wire.messages import NodeOrder, NodeState, RankExit

FACTS = {"tdpipe": "1", "max_model_len": "100"}
attempts = count(1)


@dataclass
class Node:
    """A node as its torchrun process is: it waits for a group, or its stages run."""

    number: int
    num_stages: int = 1
    instance: int = 0
    facts: dict[str, str] = field(default_factory=lambda: FACTS)
    epoch: int = 0
    attempt: int = field(default_factory=lambda: next(attempts))

    def state(self) -> NodeState:
        facts = self.facts if self.attempt else {}
        host, number = f"host{self.number}", self.number
        return NodeState(
            number, self.instance, host, self.num_stages, self.attempt, self.epoch, facts
        )

    def obey(self, order: NodeOrder) -> None:
        if self.attempt and order.attempt == self.attempt:
            self.attempt, self.epoch = 0, order.epoch
        elif not self.attempt and self.epoch <= order.ended_epoch:
            self.fail()

    def fail(self) -> None:
        """A stage ends: torchrun ends the others and waits for a new group."""
        self.attempt = next(attempts)


@pytest.fixture
def pair() -> list[Node]:
    return [Node(0), Node(1)]


def make_nodes(num_nodes: int = 2) -> Nodes:
    return Nodes(num_nodes, num_nodes, FACTS)


def tell(nodes: Nodes, node: Node, now: float = 0.0) -> NodeOrder:
    """The node's state goes to the engine, which ends what is broken, and its answer back."""
    order = nodes.take(node.state(), now)
    broken = nodes.find_broken(now + CAUSE_S)
    if broken is not None:
        nodes.end(broken.epoch)
    node.obey(order)
    return order


def tell_all(nodes: Nodes, pair: list[Node], now: float = 0.0, *, times: int = 3) -> None:
    for _ in range(times):
        for node in pair:
            tell(nodes, node, now)


def test_a_group_begins_when_all_nodes_wait(pair: list[Node]) -> None:
    nodes = make_nodes()
    order = tell(nodes, pair[0])
    assert not order.attempt
    assert order.missing == "node 1 has not connected"
    tell_all(nodes, pair)
    assert [(node.attempt, node.epoch) for node in pair] == [(0, 1), (0, 1)]
    assert nodes.find_broken(9.0) is None


def test_if_the_stages_of_one_node_end_those_of_all_do(pair: list[Node]) -> None:
    nodes = make_nodes()
    tell_all(nodes, pair)
    pair[1].fail()
    nodes.take(pair[1].state(), 0.0)
    broken = Broken(1, reason="the stages on node 1 (host1) have ended")
    assert nodes.find_broken(CAUSE_S) == broken
    tell_all(nodes, pair)
    assert [(node.attempt, node.epoch) for node in pair] == [(0, 2), (0, 2)]


def test_the_stage_that_ended_first_is_the_cause_whatever_node_is_heard_first(
    pair: list[Node],
) -> None:
    nodes = make_nodes()
    tell_all(nodes, pair)
    for node, status in ((pair[0], 1), (pair[1], -9)):  # stage 0 ends because of stage 1
        assert nodes.find_broken(0.1) is None
        node.fail()
        ended = RankExit(node.number, 0, 70 + node.number, status, False)
        nodes.take(replace(node.state(), first_exit=ended), 0.1)
    assert nodes.find_broken(0.1) == Broken(1, ended)
    nodes.end(1)
    tell_all(nodes, pair, 0.1)
    assert [(node.attempt, node.epoch) for node in pair] == [(0, 2), (0, 2)]
    assert nodes.find_broken(9.0) is None


def test_the_stages_of_an_epoch_that_is_lost_end_on_all_nodes(pair: list[Node]) -> None:
    nodes = make_nodes()
    tell_all(nodes, pair)
    nodes.end(1)
    assert tell(nodes, pair[0]).ended_epoch == 1
    tell_all(nodes, pair)
    assert {node.epoch for node in pair} == {2}


def test_another_engine_leaves_the_stages_alone_until_one_node_waits(pair: list[Node]) -> None:
    tell_all(make_nodes(), pair)
    nodes = make_nodes()
    tell_all(nodes, pair)
    assert {node.epoch for node in pair} == {1}
    assert not any(node.attempt for node in pair)
    pair[0].fail()
    tell_all(nodes, pair)
    assert {node.epoch for node in pair} == {2}


def test_no_group_begins_with_a_node_that_is_gone(pair: list[Node]) -> None:
    nodes = make_nodes()
    tell(nodes, pair[1], 0.0)
    order = tell(nodes, pair[0], SILENCE_S + 0.1)
    assert (order.attempt, order.missing) == (0, "node 1 is gone")
    tell_all(nodes, pair, SILENCE_S + 0.2)
    assert {node.epoch for node in pair} == {1}


def test_a_node_takes_the_place_of_one_that_is_gone(pair: list[Node]) -> None:
    nodes = make_nodes()
    tell_all(nodes, pair)
    other = Node(1, instance=7)
    assert tell(nodes, other, 1.0).refusal == "node_rank 1 is taken by host1"
    tell(nodes, pair[0], 2.0)
    assert tell(nodes, other, 2.0).refusal == ""
    tell_all(nodes, [pair[0], other], 2.0)
    assert (pair[0].epoch, other.epoch) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"facts": FACTS | {"max_model_len": "90"}}, "max_model_len is 90, on the first node 100"),
        ({"facts": {"tdpipe": "1"}}, "max_model_len is unknown, on the first node 100"),
        ({"number": 2}, "node_rank 2 is not one of the first node's 2 nodes"),
    ],
)
def test_a_wrong_node_is_refused_by_name(
    pair: list[Node], changes: dict[str, object], refusal: str
) -> None:
    nodes = make_nodes()
    wrong = Node(**({"number": 1} | changes))  # type: ignore[arg-type]
    order = tell(nodes, wrong)
    assert refusal in order.refusal
    assert tell(nodes, pair[0]).missing == "node 1 has not connected"


def test_the_stages_of_all_nodes_must_be_those_of_the_pipeline() -> None:
    nodes, pair = Nodes(2, 3, FACTS), [Node(0, 2), Node(1, 2)]
    tell(nodes, pair[0])
    missing = tell(nodes, pair[1]).missing
    assert missing.startswith("the nodes have 4 stages in sum, not 3 (pipeline_parallel_size")
    pair[1].num_stages = 1
    tell_all(nodes, pair)
    assert {node.epoch for node in pair} == {1}


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from(["tell", "fail", "replace", "lose", "engine"]), st.integers(0, 3))
    ),
)
def test_after_any_faults_all_nodes_are_in_one_group(
    num_nodes: int, events: list[tuple[str, int]]
) -> None:
    nodes, group, now = make_nodes(num_nodes), [Node(i) for i in range(num_nodes)], 0.0
    epochs = [0] * num_nodes
    for what, number in events:
        node = group[number % num_nodes]
        match what:
            case "tell":
                tell(nodes, node, now)
            case "fail":
                node.fail()
            case "replace":
                now += SILENCE_S + 0.1
                group[node.number] = Node(node.number, instance=node.instance + 1)
            case "lose":
                nodes.end(max(node.epoch for node in group))
            case "engine":
                nodes = make_nodes(num_nodes)
        for one in group:
            assert one.epoch >= epochs[one.number] or not one.epoch  # a new node knows none
            epochs[one.number] = one.epoch
    tell_all(nodes, group, now + SILENCE_S + 0.1, times=5)
    assert not any(node.attempt for node in group)
    assert len({node.epoch for node in group}) == 1
    assert nodes.find_broken(9.0) is None
