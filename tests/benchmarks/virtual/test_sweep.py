"""The sweep: temporal against the best other policy in every case, with its losses marked."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.virtual import sweep
from benchmarks.virtual.paper import MAX_MODEL_LEN, POLICIES, SETUPS, Settings, hardware_of_setup
from configs.config import EngineConfig
from configs.profiles import Profile, write_profile
from simulator.arrival import Arrival
from simulator.command import make_arrivals
from simulator.hardware.hardware import Hardware
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

LINE = re.compile(
    r"\| (?P<case>[^|]+) \| (?P<mine>[\d,]+) \| (?P<bound>[01]\.\d{3}) "
    r"\| (?P<best>[^|]+) \| (?P<its>[\d,]+) \| (?P<ratio>\d\.\d{3})(?P<mark> \*\*<\*\*)? \|"
)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles for a sweep that has few and small cases."""
    write_profile(
        Profile((1, 64, 65, 256), (0.04, 0.05, 0.08, 0.1)), tmp_path / str(SETUPS[0].measured)
    )
    monkeypatch.setattr(sweep, "SETUPS", SETUPS[:1])
    monkeypatch.setattr(sweep, "STAGES", (1, 2))
    workloads = {"prompts": "fixed:9:200:3", "answers": "fixed:8:10:20"}
    monkeypatch.setattr(sweep, "WORKLOADS", workloads)
    monkeypatch.setattr(sweep, "KV_PARTS", {"tight": 0.02})
    monkeypatch.setattr(sweep, "PREDICTIONS", {"oracle": 0.0, "constant": None})
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str], profiles: Path) -> tuple[list[re.Match[str]], str]:
    """The rows of the table and the sentence below it."""
    assert sweep.main(["--profiles", str(profiles)]) == 0
    _, _, *rows, empty, sentence = capsys.readouterr().out.splitlines()
    assert empty == ""
    matches = [match for row in rows if (match := LINE.fullmatch(row))]
    assert len(matches) == len(rows)
    return matches, sentence


def test_every_case_has_a_line_with_the_best_other_policy(
    capsys: pytest.CaptureFixture[str], profiles: Path
) -> None:
    rows, sentence = lines(capsys, profiles)
    assert [row["case"] for row in rows] == [
        f"L20 + 13B, {stages} stages, {kind}, tight, {prediction}"
        for stages in (1, 2)
        for kind in ("prompts", "answers")
        for prediction in ("oracle", "constant")
    ]
    assert {row["best"] for row in rows} <= set(POLICIES) - {"temporal"}
    assert len({(row["mine"], row["its"]) for row in rows}) >= 4  # stages and kinds
    ratios = []
    for row in rows:
        mine, its = (float(row[key].replace(",", "")) for key in ("mine", "its"))
        assert float(row["ratio"]) == pytest.approx(mine / its, rel=0.02)  # both are rounded
        ratios.append(row["ratio"])
        assert 0 < float(row["bound"]) <= 1
    assert sentence.startswith(f"8 cases: ratio from {min(ratios)} to {max(ratios)}, below 0.98 in")


def rate(hardware: Hardware, arrivals: list[Arrival], settings: Settings) -> float:
    """Output tokens per second of a run of our own on two stages."""
    config = EngineConfig.of(**{"pipeline_parallel_size": 2, **settings})
    run = simulate(config, hardware.node(2, config.cache.block_size, MAX_MODEL_LEN), arrivals)
    return sum(times.output_len for times in run.sequences) / run.makespan_s


@pytest.mark.parametrize("rivals", [[*POLICIES], ["td-pipe", "temporal"]], ids=["all", "one"])
def test_a_line_is_of_the_runs_with_its_own_cache_and_predictions(
    capsys: pytest.CaptureFixture[str],
    profiles: Path,
    monkeypatch: pytest.MonkeyPatch,
    rivals: list[str],
) -> None:
    monkeypatch.setattr(sweep, "POLICIES", {name: POLICIES[name] for name in rivals})
    monkeypatch.setattr(sweep, "STAGES", (2,))
    monkeypatch.setattr(sweep, "WORKLOADS", {"mixed": "sharegpt:20"})
    monkeypatch.setattr(sweep, "KV_PARTS", {"tight": 0.016, "ample": 1.0})
    rows, _ = lines(capsys, profiles)
    expected = []
    for kv_tokens in (2720, 170_000):
        hardware = replace(hardware_of_setup(SETUPS[0], profiles)[0], kv_tokens=kv_tokens)
        for sigma in (0.0, None):
            arrivals = make_arrivals(make_workload("sharegpt:20", seed=0), sigma, 0)
            rates = {name: rate(hardware, arrivals, POLICIES[name]) for name in rivals}
            mine = rates.pop("temporal")
            best = max(rates, key=lambda name: rates[name])
            expected.append((f"{mine:,.0f}", best, f"{rates[best]:,.0f}"))
    assert [(row["mine"], row["best"], row["its"]) for row in rows] == expected
    assert len(set(expected)) == 4


def test_requests_of_one_length_in_a_tight_cache_are_run_in_three_numbers(
    capsys: pytest.CaptureFixture[str], profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "STAGES", (2,))
    monkeypatch.setattr(sweep, "WORKLOADS", {"answers": "fixed:100:10:20"})
    monkeypatch.setattr(sweep, "PREDICTIONS", {"oracle": 0.0})
    (row,), _ = lines(capsys, profiles)
    hardware = replace(hardware_of_setup(SETUPS[0], profiles)[0], kv_tokens=3400)
    rates = [
        rate(hardware, make_arrivals(make_workload(name, seed=0), 0.0, 0), POLICIES["temporal"])
        for name in ("fixed:97:10:20", "fixed:100:10:20", "fixed:103:10:20")
    ]
    assert row["mine"] == f"{fmean(rates):,.0f}"
    assert len(set(rates)) == 3


@pytest.mark.parametrize(("worst", "num_marked"), [(0.0, 0), (9.0, 8)])
def test_cases_in_which_temporal_loses_are_marked_and_counted(
    capsys: pytest.CaptureFixture[str],
    profiles: Path,
    monkeypatch: pytest.MonkeyPatch,
    worst: float,
    num_marked: int,
) -> None:
    monkeypatch.setattr(sweep, "WORST", worst)
    rows, sentence = lines(capsys, profiles)
    assert sum(row["mark"] is not None for row in rows) == num_marked
    assert sentence.endswith(f"below {worst} in {num_marked}.")


@pytest.mark.parametrize("workload", sweep.WORKLOADS.values(), ids=list(sweep.WORKLOADS))
def test_every_workload_fits_the_smallest_cache(workload: str) -> None:
    longest = max(len(r.prompt) + r.max_tokens for r in make_workload(workload, seed=0))
    smallest = min(setup.kv_tokens or 0 for setup in SETUPS) * min(sweep.KV_PARTS.values())
    assert longest <= MAX_MODEL_LEN <= smallest
