"""Settings of several hosts: where the engine is found."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from configs.config import Config
from configs.schema.nodes import NodesConfig

FIRST = NodesConfig(nnodes=2, master_addr="10.0.0.1", master_port=7000)
SECOND = NodesConfig(nnodes=2, node_rank=1, headless=True, master_addr="10.0.0.1", master_port=7000)
SECOND_V6 = SECOND.model_copy(update={"master_addr": "fd00::1"})


@pytest.mark.parametrize(
    ("node", "given", "endpoint"),
    [
        (FIRST, None, "tcp://10.0.0.1:7000"),
        (SECOND, None, "tcp://10.0.0.1:7000"),
        (SECOND_V6, None, "tcp://[fd00::1]:7000"),
        (SECOND, "tcp://10.0.0.9:5000", "tcp://10.0.0.9:5000"),
        (FIRST, "tcp://0.0.0.0:5000", "tcp://0.0.0.0:5000"),
        (SECOND, "tcp://0.0.0.0:5000", "tcp://10.0.0.1:5000"),
        (SECOND, "tcp://*:5000", "tcp://10.0.0.1:5000"),
        (SECOND_V6, "tcp://[::]:5000", "tcp://[fd00::1]:5000"),
    ],
)
def test_other_nodes_connect_to_the_first_one_wherever_its_engine_listens(
    node: NodesConfig, given: str | None, endpoint: str
) -> None:
    assert node.endpoint(given) == endpoint


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("127.0.0.1:29500", "no port: that is master_port, e.g. 127.0.0.1"),
        ("node1:29500", "no port: that is master_port, e.g. node1"),
        ("[::1]", "without brackets, e.g. ::1"),
        ("[fd00::1]:29500", "without brackets, e.g. fd00::1"),
        ("tcp://127.0.0.1", "without tcp:// or a path, e.g. 127.0.0.1"),
        ("tcp://10.0.0.1:29500", "without tcp:// or a path, e.g. 10.0.0.1"),
        ("http://node1/x", "without tcp:// or a path, e.g. node1"),
        ("0.0.0.0", "all interfaces are no such address"),
        ("::", "all interfaces are no such address"),
        ("*", "all interfaces are no such address"),
        ("10.0.0.256", "neither an IPv4 or IPv6 address nor a host's name"),
        ("10.0.1", "neither an IPv4"),
        ("0", "neither an IPv4"),
        ("0x7f000001", "neither an IPv4"),
        ("two words", "neither an IPv4"),
        (" 10.0.0.1", "neither an IPv4"),
        ("-host", "neither an IPv4"),
        ("fd00::g", "neither an IPv4"),
    ],
)
def test_an_address_in_another_form_is_refused_with_what_was_meant(value: str, words: str) -> None:
    with pytest.raises(ValidationError) as found:
        NodesConfig(nnodes=2, master_addr=value)
    assert words in str(found.value)


@pytest.mark.parametrize(
    "value",
    [
        "10.0.0.1",
        "::1",
        "fd00::1",
        "fe80::1%eth0",
        "node1",
        "node_1",
        "localhost",
        "1node",
        "leader.tdpipe.svc.cluster.local",
        "leader.test.",
    ],
)
def test_addresses_and_names_are_taken(value: str) -> None:
    assert NodesConfig(nnodes=2, master_addr=value).master_addr == value


@pytest.mark.parametrize("value", ["0.0.0.0", "node1", "10.0.0.1/24", "eth0", ""])
def test_a_node_s_own_address_is_no_name(value: str) -> None:
    with pytest.raises(ValidationError, match="must be an IPv4 or IPv6 address of this node"):
        NodesConfig(nnodes=2, node_ip=value)


NODES: dict[str, Any] = {"nnodes": 2, "cluster_secret": "x" * 16, "master_addr": "10.0.0.1"}


def test_a_socket_of_one_host_is_refused_for_several_nodes() -> None:
    with pytest.raises(ValidationError, match=r"stage_endpoint ipc:///x cannot be reached"):
        Config.of(stage_endpoint="ipc:///x", **NODES)


def test_whoever_places_the_settings_listens_for_the_other_nodes() -> None:
    folder = Path("/run/x")
    assert Config.of().placed(folder).runtime.stage_address == "ipc:///run/x/stages.sock"
    placed = Config.of(**NODES).placed(folder)
    assert placed.runtime.stage_address == "tcp://10.0.0.1:29500"
    assert placed.runtime.folder == folder
    other = {"node_rank": 1, "headless": True, "stage_endpoint": "tcp://0.0.0.0:7000"}
    assert Config.of(**NODES, **other).placed(folder).runtime.stage_address == "tcp://10.0.0.1:7000"
