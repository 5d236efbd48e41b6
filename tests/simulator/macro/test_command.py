"""`tdpipe simulate --macro`: its figures, and its errors of one line."""

import json
from typing import Any

import pytest

from simulator.command import main
from simulator.macro.command import router_settings

NODE = ["--gpu", "L20", "--model", "llama2-13b", "--stages", "2", "--kv-tokens", "50000"]
WORKLOAD = ["--workload", "fixed:60:200:20", "--request-rate", "6"]


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object that a simulation prints."""
    assert main([*NODE, *WORKLOAD, "--json", *arguments]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize("routing", ["adaptive", "ecoserve", "round-robin"])
def test_instances_behind_a_router_have_their_figures(
    capsys: pytest.CaptureFixture[str], routing: str
) -> None:
    result = figures(capsys, "--macro", "3", "--routing", routing, "--policy", "separate")
    assert result["routing"] == routing
    assert result["num_requests"] == 60
    assert result["output_tokens_per_s"] == pytest.approx(60 * 20 / result["makespan_s"])
    assert result["mean_instances"] == 3.0
    assert 0 < result["targets_met"] <= 1
    assert {"p50", "p90", "p99"} <= set(result["ttft_s"])


def test_targets_are_those_of_the_instances(capsys: pytest.CaptureFixture[str]) -> None:
    assert figures(capsys, "--macro", "2", "--tpot-slo", "0.000001")["targets_met"] == 0
    assert (
        figures(capsys, "--macro", "2", "--ttft-slo", "99", "--tpot-slo", "9")["targets_met"] == 1
    )


def test_a_slower_network_delays_the_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    near, far = (
        figures(capsys, "--macro", "2", "--network-ms", milliseconds)["ttft_s"]["mean"]
        for milliseconds in ("0", "100")
    )
    assert far == pytest.approx(near + 0.2, abs=0.1)


def test_a_slower_link_delays_the_tokens_after_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow, fast = (
        figures(capsys, "--macro", "3", "--prefill-instances", "1", "--kv-link", gigabytes)
        for gigabytes in ("0.1", "100")
    )
    assert slow["tpot_s"]["mean"] > 1.5 * fast["tpot_s"]["mean"]
    assert slow["ttft_s"]["mean"] == pytest.approx(fast["ttft_s"]["mean"], rel=0.05)


def test_a_table_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NODE, *WORKLOAD, "--macro", "2"]) == 0
    printed = capsys.readouterr().out
    assert "targets met" in printed
    assert "2.00 on average" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--macro", "0"], "--macro"),
        (["--macro", "2", "--routing", "none"], "routing"),
        (["--macro", "2", "--prefill-instances", "2"], "below --macro 2"),
        (["--prefill-instances", "2"], "--macro"),
        (["--macro", "2", "--macro-lower", "9", "--macro-upper", "3"], "macro_upper"),
        (["--macro", "2", "--nonsense", "1"], "--nonsense"),
    ],
)
def test_wrong_options_are_named_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    try:
        code = main([*NODE, *WORKLOAD, *arguments])
    except SystemExit as ended:  # argparse's own
        code = int(ended.code or 0)
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in last


def test_the_routers_settings_are_told_from_the_daemons() -> None:
    router, others = router_settings(
        ["--policy", "hybrid", "--routing=prefix", "--no-prefix-affinity", "--max-num-seqs", "7"]
    )
    assert router.routing.routing == "prefix"
    assert not router.routing.prefix_affinity
    assert others == ["--policy", "hybrid", "--max-num-seqs", "7"]
