"""Faults of nodes: streams of a daemon on two hosts survive whatever happens to one of them."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster
from tests.end_to_end.daemon import Daemon, all_gone
from tests.faults.blow import stages_of
from tests.faults.clients import FULL, Clients, Stream, bodies, run_clients
from tests.faults.witness import Witness
from tests.hosts import Hosts, slow_down

NOTICE_S = 2.0
AWAY_S = 5.0
GONE_S = 20.0
SLOW_MS = 300.0
"""One way: a heartbeat is late by less than `--heartbeat-timeout`."""

LONG = replace(FULL, num_tasks=7, max_tokens=600)
"""Streams that decode for seconds."""

Blow = Callable[[Cluster], None]


def kill_stage(cluster: Cluster) -> None:
    stages_of(cluster.first)[1].kill()


def stop_stage(cluster: Cluster) -> None:
    stages_of(cluster.first)[1].suspend()


def kill_torchrun(cluster: Cluster) -> None:
    cluster.nodes[1].descendants()["torchrun"][0].kill()


def stop_torchrun(cluster: Cluster) -> None:
    """With its stages, as if the node were frozen."""
    for process in cluster.nodes[1].present():
        process.suspend()


def kill_node(cluster: Cluster) -> None:
    lose(cluster.nodes[1])


def kill_first_torchrun(cluster: Cluster) -> None:
    cluster.first.descendants()["torchrun"][0].kill()


def kill_engine(cluster: Cluster) -> None:
    cluster.first.descendants()["engine"][0].kill()


def cut_link(cluster: Cluster) -> None:
    cluster.hosts.cut(1)


def nothing(_: Cluster) -> None:
    pass


def start_node(cluster: Cluster) -> None:
    cluster.nodes[1].start()


def resume_node(cluster: Cluster) -> None:
    for process in cluster.nodes[1].present():
        process.resume()


def mend_link(cluster: Cluster) -> None:
    cluster.hosts.mend(1)


def lose(node: Daemon) -> None:
    """All processes of a node end at the same moment, as when it loses its power."""
    for process in node.present():  # the others may die with the first
        with suppress(psutil.NoSuchProcess):
            process.kill()
    node.process.wait()


@pytest.mark.long
@pytest.mark.parametrize(
    ("num_nodes", "blow", "mend"),
    [
        (2, kill_stage, nothing),
        (2, stop_stage, nothing),
        (2, kill_torchrun, nothing),
        (2, kill_first_torchrun, nothing),
        (2, kill_engine, nothing),
        (2, stop_torchrun, resume_node),
        (2, kill_node, start_node),
        (2, cut_link, mend_link),
        (3, kill_stage, nothing),
        (3, kill_node, start_node),
        (3, cut_link, mend_link),
    ],
)
@pytest.mark.timeout(400)
def test_streams_survive(
    hosts: Hosts, tmp_path: Path, num_nodes: int, blow: Blow, mend: Blow
) -> None:
    arguments = ["-pp", str(num_nodes), "--dtype", "float32"]
    with Cluster(hosts, range(num_nodes), tmp_path, *arguments) as cluster:
        daemon = cluster.first
        undisturbed = asyncio.run(run_clients(daemon.url, bodies(LONG)))
        clients, noticed_s = asyncio.run(stream_through(cluster, blow, mend))
        pause_s = max(map(longest_pause_s, clients.streams))
        case = f"{num_nodes} nodes, {blow.__name__}"
        print(f"{case}: noticed {noticed_s:.2f} s, longest pause {pause_s:.1f} s")  # noqa: T201
        assert noticed_s < NOTICE_S
        assert [stream.ends for stream in clients.streams] == [["length"]] * len(clients.streams)
        assert clients.texts == undisturbed.texts
        daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
        if blow is kill_stage:
            assert "stage 1 was killed by SIGKILL" in daemon.log()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_link_that_becomes_slow_ends_nothing(hosts: Hosts, tmp_path: Path) -> None:
    slow_down(hosts, 0)
    with Cluster(hosts, (0, 1), tmp_path, "-pp", "2", "--dtype", "float32") as cluster:
        undisturbed = asyncio.run(run_clients(cluster.first.url, bodies(LONG)))
        clients = asyncio.run(stream_through_slowness(cluster))
        assert clients.texts == undisturbed.texts
        assert cluster.first.metric("tdpipe_pipeline_restarts_total") == 0


async def stream_through_slowness(cluster: Cluster) -> Clients:
    """Streams whose link becomes slow while they decode, and fast again after a while."""
    async with Clients(cluster.first.url, bodies(LONG)) as clients:
        await clients.reach("decode")
        cluster.hosts.slow_down(1, SLOW_MS)
        await asyncio.sleep(AWAY_S)
        assert not any(stream.ends for stream in clients.streams)
        cluster.hosts.slow_down(1, 0)
    return clients


def longest_pause_s(stream: Stream) -> float:
    """The longest time between two tokens."""
    return max(later - before for before, later in pairwise(stream.arrivals))


async def stream_through(cluster: Cluster, blow: Blow, mend: Blow) -> tuple[Clients, float]:
    """Streams that decode when the blow falls; how long its detection took, in seconds."""
    daemon = cluster.first
    async with Clients(daemon.url, bodies(LONG)) as clients:
        await clients.reach("decode")
        with Witness(daemon) as witness:
            began_at = time.monotonic()
            blow(cluster)
            noticed_s = await asyncio.to_thread(witness.wait_noticed, began_at, 10 * NOTICE_S)
            held_up_s = witness.held_up_s(began_at, began_at + noticed_s)
        if mend is not nothing:
            await asyncio.sleep(max(0.0, AWAY_S - noticed_s))
            assert not any(stream.ends for stream in clients.streams)
            mend(cluster)
    return clients, noticed_s - held_up_s


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_node_whose_first_node_dies_has_no_stages_and_joins_the_next_one(
    hosts: Hosts, tmp_path: Path
) -> None:
    with Cluster(hosts, (0, 1), tmp_path, "-pp", "2", "--dtype", "float32") as cluster:
        stages = cluster.nodes[1].descendants()["stage"]
        assert len(stages) == 1
        lose(cluster.first)
        assert all_gone(stages, GONE_S)
        cluster.first.start()
        cluster.first.wait_ready()
        answer = cluster.first.client().completions.create(
            model="tdpipe-demo", prompt="Count to three in words.\n", temperature=0
        )
        assert answer.choices[0].text == "one two three"
