"""The meeting of the doctor's nodes: one that leaves is named, and nobody waits for it."""

import subprocess
import sys

import pytest
from torch.distributed import HashStore

from configs.config import Config
from daemon.host.node_facts import facts_of
from doctor import meeting as meetings
from doctor.meeting import ApartError, Meeting, meeting
from engine.nodes import Nodes
from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import ROOT, SECRET
from wire.messages import NodeState

OTHER = """
import sys, time
from doctor.meeting import meeting
from tests.doctor.test_meeting import node
with meeting(node(int(sys.argv[1]), int(sys.argv[2]))) as met:
    met.tell("is there", "yes")
    print("met", flush=True)
    time.sleep(600)
"""


def node(rank: int, port: int) -> Config:
    """One of two nodes on this host."""
    return Config.of(
        nnodes=2,
        node_rank=rank,
        headless=rank > 0,
        master_port=port,
        cluster_secret=SECRET,
        pipeline_parallel_size=2,
        device="cpu",
    )


def meet_and_kill(rank: int) -> None:
    """Meet another process, kill it, and wait for a note of it."""
    port = free_port()
    other = [sys.executable, "-c", OTHER, str(1 - rank), str(port)]
    with subprocess.Popen(other, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            with meeting(node(rank, port)) as met:
                assert met.hear("is there", 1 - rank) == "yes"
                assert process.stdout is not None
                assert process.stdout.readline() == "met\n"
                process.kill()
                met.hear("what never comes", 1 - rank)
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("rank", "reason"), [(0, "node 1 has left"), (1, "the first node has ended")]
)
def test_a_node_that_is_killed_in_the_middle_is_named(rank: int, reason: str) -> None:
    with pytest.raises(ApartError, match=reason):
        meet_and_kill(rank)


def test_what_a_node_waits_for_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meetings, "LOG_INTERVAL_S", 0.0)
    monkeypatch.setattr(meetings, "NOTE_TIMEOUT_S", 0.0)
    caplog.set_level("INFO", "tdpipe")
    with pytest.raises(ApartError, match=r"node 1 has not answered in time \(files\)"):
        Meeting(0, 2, HashStore()).hear("files", 1)
    assert caplog.messages == ["node 0 waits for node 1 (files)"]


def test_a_doctor_and_a_daemon_do_not_take_part_in_each_others_meeting() -> None:
    config = node(0, 29500)
    daemon, doctor = facts_of(config), meetings._facts(config)
    for first, second in [(daemon, doctor), (doctor, daemon)]:
        refusal = Nodes(2, 2, first).take(NodeState(1, 1, "b", 1, 1, 0, second, None), 0.0).refusal
        assert refusal.startswith("node 1 (b) differs: tdpipe is ")
        assert "(doctor)" in refusal
