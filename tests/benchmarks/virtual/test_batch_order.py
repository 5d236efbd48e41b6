"""The order of a batch: the benchmark's is the server's, and its table has every policy."""

from pathlib import Path

import pytest

from benchmarks.virtual import batch_order
from benchmarks.virtual.paper import SETUPS
from configs.profiles import Profile, write_profile
from simulator.arrival import Arrival


def test_the_last_come_longest_first_by_powers_of_two() -> None:
    limits = [1, 5, 100, 7, 300, 90, 2]
    arrivals = [Arrival(0.0, i + 1, 1) for i in range(len(limits))]
    lens = [a.num_prompt_tokens - 1 for a in batch_order.ordered(arrivals, limits, 2)]
    assert lens == [0, 1, 4, 2, 5, 3, 6]
    assert batch_order.ordered(arrivals, limits, 99) == arrivals


def test_the_table_has_a_line_for_each_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = Profile((1, 64, 65, 256), (0.04, 0.05, 0.08, 0.1))
    write_profile(profile, tmp_path / str(SETUPS[0].measured))
    monkeypatch.setattr(batch_order, "SETUPS", SETUPS[:1])
    assert batch_order.main(["--requests", "3", "--profiles", str(tmp_path)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| 3 requests | policy |")
    assert [row.split(" | ")[1] for row in rows] == list(batch_order.POLICIES)
    # All are open from the start, so the file's order equals all at once.
    assert all(row.endswith(" 1.000 |") for row in rows)
