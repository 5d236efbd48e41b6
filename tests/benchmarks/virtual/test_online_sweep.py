"""The online sweep: goodput under targets over the best policy's, and times per output token."""

from pathlib import Path

import pytest

from benchmarks.virtual import online_sweep
from benchmarks.virtual.online_sweep import Outcome, World, reachable
from benchmarks.virtual.paper import SETUPS, hardware_of_setup
from configs.profiles import Profile, write_profile
from simulator.arrival import SequenceTimes, Targets
from simulator.pipeline import Node
from wire.messages import StageCosts

TARGETS = Targets(ttft_s=5.0, tpot_s=0.1)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles for a sweep that has few and small cases."""
    profile = Profile((1, 64, 65, 256), (0.04, 0.05, 0.08, 0.1))
    write_profile(profile, tmp_path / str(SETUPS[0].measured))
    monkeypatch.setattr(online_sweep, "NODES", SETUPS[:1])
    monkeypatch.setattr(online_sweep, "STAGES", (1, 2))
    monkeypatch.setattr(online_sweep, "LOADS", (0.3, 2.0))
    monkeypatch.setattr(online_sweep, "MODERATE", (0.3,))
    monkeypatch.setattr(online_sweep, "CAPACITY_REQUESTS", 100)
    monkeypatch.setattr(online_sweep, "LEAST_REQUESTS", 15)
    monkeypatch.setattr(online_sweep, "DURATION_S", 4.0)
    return tmp_path


def outcome(load: float, **goodput: float) -> Outcome:
    """An outcome with these goodputs, in the case of 3 stages."""
    hardware, _ = hardware_of_setup(SETUPS[0], Path("nowhere"))
    policies = {name.replace("_", " "): rate for name, rate in goodput.items()}
    return Outcome(World("a node", hardware, 3, "bursts"), load, policies, {})


@pytest.mark.parametrize(
    ("first_token_at", "ended_at", "output_len", "met"),
    [
        (7.0, 7.9, 10, True),  # 5 s, and 9 times 0.1 s
        (7.1, 7.9, 10, False),
        (7.0, 8.0, 10, False),
        (7.0, 7.0, 1, True),  # without a second token, the second target is met
    ],
)
def test_a_request_counts_if_it_meets_both_targets(
    first_token_at: float, ended_at: float, output_len: int, *, met: bool
) -> None:
    times = SequenceTimes(2.0, 30, output_len, first_token_at, ended_at)
    assert Targets(5.0, 0.1000001).are_met(times) is met


def test_the_time_per_output_token_begins_with_the_first_token() -> None:
    assert SequenceTimes(0.0, 30, 11, 4.0, 6.0).tpot_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("second_token_at", "output_len", "met"),
    [(6.9, 11, True), (7.1, 11, False), (6.9, 9, False), (6.9, 2, True), (-1.0, 1, True)],
)
def test_the_wait_for_the_first_decode_step_may_count_as_time_to_the_first_token(
    second_token_at: float, output_len: int, *, met: bool
) -> None:
    """Nine more tokens in 0.85 s are in time, seven are not; one token is the first one only."""
    ended_at = {1: 4.0, 2: second_token_at}.get(output_len, 7.75)
    times = SequenceTimes(2.0, 30, output_len, 4.0, ended_at, second_token_at)
    assert Targets(5.0, 0.1, until_decode=True).are_met(times) is met


def test_a_request_without_a_decode_step_in_time_has_missed_its_target() -> None:
    times = SequenceTimes(2.0, 30, 11, 4.0)
    assert not Targets(5.0, 0.1).are_missed(times, 9.0)
    assert not Targets(5.0, 0.1, until_decode=True).are_missed(times, 6.9)
    assert Targets(5.0, 0.1, until_decode=True).are_missed(times, 7.1)


def test_a_target_that_no_policy_can_reach_is_raised() -> None:
    def tpot_of(seconds: float) -> float:
        costs = StageCosts((1, 100), (seconds, 1.0))
        return reachable(TARGETS, Node((costs,) * 2, 100, 2048, 0.004, 0.001)).tpot_s

    assert tpot_of(0.02) == TARGETS.tpot_s
    assert tpot_of(0.095) == pytest.approx(1.5 * 2 * (0.095 + 0.004 + 0.001))


def test_shares_are_of_the_best_policy_and_1_if_no_request_met_the_targets() -> None:
    shares = outcome(0.5, temporal=3.0, td_pipe=4.0).shares()
    assert shares == {"temporal": 0.75, "td pipe": 1.0}
    assert outcome(0.5, temporal=0.0, td_pipe=0.0).shares() == {"temporal": 1.0, "td pipe": 1.0}


def test_every_case_has_a_row_and_all_have_one_together(
    capsys: pytest.CaptureFixture[str], profiles: Path
) -> None:
    assert online_sweep.main(["--profiles", str(profiles)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert [row[:3] for row in rows[2:7]] == [
        ["L20 + 13B", "Poisson", "30%"],
        ["L20 + 13B", "Poisson", "200%"],
        ["L20 + 13B", "bursts", "30%"],
        ["L20 + 13B", "bursts", "200%"],
        ["all", "all", "all"],
    ]
    for row in rows[2:7]:
        assert len(row) == 3 + len(online_sweep.POLICIES)
        assert max(float(cell.split()[0]) for cell in row[3:]) > 0.9
    assert rows[9][:2] == ["L20 + 13B", "30%"]
    assert any(line.startswith("temporal is below 0.98") for line in lines)


def test_cases_in_which_temporal_loses_are_listed() -> None:
    outcomes = [outcome(0.5, temporal=3.0, td_pipe=4.0), outcome(0.9, temporal=4.0, td_pipe=4.0)]
    assert list(online_sweep._behind(outcomes)) == [
        "temporal is below 0.98 of the best policy in 1 of 2 cases.",
        "- a node, 3 stages, bursts, 50%: 0.750, the best is td pipe",
    ]


def test_unreachable_targets_have_no_goodput(
    capsys: pytest.CaptureFixture[str], profiles: Path
) -> None:
    assert online_sweep.main(["--profiles", str(profiles), "--ttft-slo", "0.001"]) == 0
    assert "in 0 of 8 cases" in capsys.readouterr().out
