"""Settings of several hosts: where the engine is found."""

import pytest

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
