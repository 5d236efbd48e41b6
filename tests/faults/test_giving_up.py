"""More restarts than allowed: all clients get an error, and every process of the daemon ends."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.end_to_end.daemon import Daemon, all_gone
from tests.end_to_end.test_supervisor import port_is_free
from tests.faults.blow import stages_of
from tests.faults.clients import Clients, bodies
from tests.faults.witness import Witness

LONG = 1200  # tokens: still open when the second stage dies
GONE_S = 5.0
REPORT_S = 1.0  # until the engine has noticed and the server has the message


@pytest.mark.long
def test_after_too_many_restarts_all_clients_get_an_error_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    asked = [{**body, "max_tokens": LONG} for body in bodies()]

    def incarnations(daemon: Daemon) -> int:
        return daemon.log().count("; longest sequence")

    async def kill_twice(daemon: Daemon) -> tuple[Clients, float]:
        async with Clients(daemon.url, asked) as clients:
            await clients.reach("decode")
            stages_of(daemon)[2].kill()
            await asyncio.to_thread(daemon.wait_for, lambda: incarnations(daemon) == 2)
            # As the engine reports it, once the new stages have reported.
            await asyncio.to_thread(daemon.wait_for, lambda: daemon.get("/health")[0] == 200)
            stages_of(daemon)[0].kill()
            killed_at = time.monotonic()
        return clients, killed_at

    with Daemon(tmp_path, "-pp", "3", "--max-restarts", "1") as daemon:
        with Witness(daemon) as witness:
            clients, killed_at = asyncio.run(kill_twice(daemon))
            assert daemon.wait_end() == 1
        late = [look for look in witness.looks if look.at > killed_at + REPORT_S]
        assert not any(look.is_green for look in late)
        red = [look for look in witness.looks if not look.is_green]
        assert any(look.health == 503 and "was killed by SIGKILL" in look.body for look in red)
        assert (
            "was killed by SIGKILL; giving up after 1 restarts in 600 s"
            in daemon.log().splitlines()[-1]
        )
        assert all_gone(daemon.present(), GONE_S)
        assert port_is_free(daemon)
    for stream in clients.streams:
        (end,) = stream.ends
        assert end.startswith("error: The server is shutting down. It has failed:")
        assert "was killed by SIGKILL; giving up after 1 restarts in 600 s" in end
        assert stream.num_done == 1
