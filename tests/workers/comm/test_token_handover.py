"""Tokens from the last stage to the first: with one stage, and what is kept."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from workers.comm.token_handover import TokenHandover
from workers.comm.transport import TransportError


@pytest.fixture
def handover(tmp_path: Path) -> Iterator[TokenHandover]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield TokenHandover(5.0, 3)
    dist.destroy_process_group()


def ids(*token_ids: int) -> bytes:
    return array("i", token_ids).tobytes()


def test_a_single_stage_hands_to_itself_and_forgets_older_steps(handover: TokenHandover) -> None:
    for step_id in range(4, 8):
        handover.hand(step_id, ids(step_id, 10 * step_id))
    handover.hand(8, b"")  # samples nothing
    assert handover.take(5).tolist() == [5, 50]
    assert handover.take(5).tolist() == [5, 50]
    assert handover.take(7).tolist() == [7, 70]
    with pytest.raises(TransportError, match="tokens of step 6"):
        handover.take(6)
    with pytest.raises(TransportError, match="tokens of step 8"):
        handover.take(8)


def test_twice_the_steps_in_flight_are_kept(handover: TokenHandover) -> None:
    for step_id in range(20):
        handover.hand(step_id, ids(step_id))
    assert handover.take(13).tolist() == [13]
    assert len(handover._expected) == 7
