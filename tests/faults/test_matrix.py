"""Any fault on any process at any moment: nothing is lost, and /health and /ready stay correct."""

import asyncio
import math
import time
from itertools import pairwise

import psutil
import pytest

from tests.end_to_end.daemon import all_gone
from tests.end_to_end.test_supervisor import port_is_free
from tests.faults.blow import Struck, deal
from tests.faults.cells import AT_ONCE, MORTAL, NOTICE_S, STALL_S, Cell, all_cells
from tests.faults.clients import Clients, MomentPassedError, run_clients
from tests.faults.cut import can_cut
from tests.faults.results import Measured, Results
from tests.faults.witness import SILENT, Witness
from tests.faults.world import World

GONE_S = 5.0
LATE_S = 30.0  # a late detection is waited for this much longer, to report how late it was

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=[] if cell.is_short else [pytest.mark.long], id=str(cell))
        for cell in all_cells()
    ],
)
def test_a_fault_costs_time_and_nothing_else(cell: Cell, world: World, results: Results) -> None:
    if cell.fault == "cut link" and not can_cut():
        pytest.skip("this system does not let us cut another process's connections")
    world.revive()
    before = world.processes()
    inject = fault_during_batch if cell.moment == "batch" else fault_during_load
    with Witness(world.daemon) as witness:
        struck, clients, batch_id = inject(cell, world, witness)
        gone_s = wait_gone(world, before) if cell.process in MORTAL else math.nan
        if batch_id is not None:
            world.revive()  # where the fault was the daemon's death, this is its next start
            assert world.answers(batch_id) == world.batch
        noticed_s = witness.wait_noticed(struck(), NOTICE_S[cell.process] + LATE_S)
        if cell.process not in MORTAL:
            world.revive()
    held_up_s = witness.held_up_s(struck(), struck() + noticed_s)
    results.measured.append(Measured(cell, noticed_s, longest_pause_s(clients), gone_s))
    assert noticed_s <= NOTICE_S[cell.process] + held_up_s
    check_health(cell, witness, struck() + STALL_S + held_up_s)
    if cell.process in MORTAL:
        check_cut_off(clients)
        return
    check_whole(world, before)
    if clients is not None:
        check_answers(clients, world)


def fault_during_load(
    cell: Cell, world: World, witness: Witness
) -> tuple[Struck, Clients | None, None]:
    """Inflict the fault among streams, or ahead of them."""

    async def among(num_attempts: int = 4) -> tuple[Struck, Clients]:
        try:
            async with Clients(world.daemon.url, world.asked) as clients:
                await clients.reach(cell.moment)
                struck = deal(cell.fault, cell.process, world.daemon, world.levers)
        except MomentPassedError:  # a busy machine hands out many tokens of one stream at once
            if num_attempts == 1:
                raise
            return await among(num_attempts - 1)
        return struck, clients

    if cell.moment != "idle":
        return *asyncio.run(among()), None
    struck = deal(cell.fault, cell.process, world.daemon, world.levers)
    if cell.fault in AT_ONCE:
        witness.wait_noticed(struck(), NOTICE_S[cell.process] + LATE_S)
    if cell.process in MORTAL:
        return struck, None, None
    clients = asyncio.run(run_clients(world.daemon.url, world.asked))
    # A cut cannot be noticed before there is something to send.
    return (lambda: clients.began_at) if cell.fault == "cut link" else struck, clients, None


def fault_during_batch(cell: Cell, world: World, _: Witness) -> tuple[Struck, None, str]:
    """Inflict the fault while a batch is processed."""
    batch_id = world.begin_batch()
    world.wait_begun(batch_id)
    return deal(cell.fault, cell.process, world.daemon, world.levers), None, batch_id


def wait_gone(world: World, before: list[psutil.Process]) -> float:
    """Seconds from the supervisor's end until nothing is left, the port included."""
    daemon = world.daemon
    code = daemon.wait_end()
    assert code != 0
    ended_at = time.monotonic()
    assert all_gone(before, GONE_S), "processes are left"
    assert not daemon.present()
    assert port_is_free(daemon)
    return time.monotonic() - ended_at


def check_cut_off(clients: Clients | None) -> None:
    """A client that has lost its server gets nothing but this, once."""
    for stream in clients.streams if clients is not None else ():
        (end,) = stream.ends
        assert end.startswith(("connection", "error"))


def check_answers(clients: Clients, world: World) -> None:
    """Each has ended once, and as without the fault."""
    assert [stream.ends for stream in clients.streams] == [["length"]] * len(clients.streams)
    assert [stream.num_done for stream in clients.streams] == [1] * len(clients.streams)
    assert clients.texts == world.texts


def check_health(cell: Cell, witness: Witness, since: float) -> None:
    """It was not green before something worked again; the predictor is not needed for that."""
    if cell.process == "predictor":
        assert {look.health for look in witness.looks} <= {200, SILENT}
    else:
        assert not witness.lies(since)


def check_whole(world: World, before: list[psutil.Process]) -> None:
    """No block is taken, no earlier process is left, and all processes exist again."""
    daemon = world.daemon
    daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
    assert daemon.metric("tdpipe_live_sequences") == daemon.metric("tdpipe_queued_sequences") == 0
    now = {process.pid for process in world.processes()}
    assert all_gone([process for process in before if process.pid not in now], GONE_S)
    assert not world.strays()


def longest_pause_s(clients: Clients | None) -> float:
    """The longest time without anything new on any stream; NaN where there was none."""
    if clients is None or not any(stream.text for stream in clients.streams):
        return math.nan
    return max(later - earlier for earlier, later in pairwise(clients.progress))
