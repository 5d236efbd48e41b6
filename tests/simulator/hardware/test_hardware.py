"""The hardware of a simulation: the costs of the stages, and the required options."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from configs.profiles import MeasuredStep, Profile, head_of_steps, line_of_step, write_profile
from simulator.hardware.gpu_model import KV_READ_EFFICIENCY, kv_capacity_tokens, profile_of
from simulator.hardware.gpus import GpuError, find_gpu
from simulator.hardware.hardware import (
    ERRORS,
    Hardware,
    HardwareError,
    MeasuredHardware,
    add_hardware_options,
    hardware_of,
    num_stages_of,
)
from simulator.hardware.model_shape import read_shape

PROFILE = Profile((1, 512), (0.040, 0.128))
# Llama-2-13B: keys and values of 40 layers are as many numbers as two exchanges in each layer.
BYTES_13B = 819_200.0
NODE = Hardware(PROFILE, 170_000, BYTES_13B, 864e9)
SIZES = ["--kv-tokens", "1000", "--kv-bytes-per-token", "1e5", "--memory-bandwidth", "800"]
BY_MODEL = ["--gpu", "L20", "--model", "llama2-13b"]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_hardware_options(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def profile(tmp_path: Path) -> list[str]:
    """Options with a profile that contains `PROFILE`."""
    path = tmp_path / "profile.csv"
    write_profile(PROFILE, path)
    return ["--profile", str(path)]


def test_each_of_four_stages_takes_a_quarter_of_the_time() -> None:
    node = replace(NODE, overhead_s=0.003, hop_s=0.004).node(4, 16, 2048)
    assert len(node.costs) == 4
    assert len(set(node.costs)) == 1
    assert node.costs[0].num_tokens == (1, 512)
    assert node.costs[0].seconds == pytest.approx((0.010, 0.032))
    assert node.costs[0].kv_s_per_token == pytest.approx(BYTES_13B / 4 / 864e9)
    assert (node.overhead_s, node.hop_s, node.max_model_len) == (0.003, 0.004, 2048)


def test_the_kv_cache_is_counted_in_whole_blocks() -> None:
    assert replace(NODE, kv_tokens=1039).node(4, 16, 2048).num_blocks == 64
    assert replace(NODE, kv_tokens=1040).node(4, 16, 2048).num_blocks == 65


def test_gpus_that_share_every_layer_exchange_partial_sums_for_each_token() -> None:
    shared = replace(NODE, tensor_parallel=4, allreduce_bytes_per_token=BYTES_13B)
    (stage,) = shared.node(1, 16, 2048).costs
    # 819,200 bytes at 14.65 GB/s are 55.9 us: 512 tokens exchange for 28.6 ms beside their 32 ms.
    assert stage.seconds == pytest.approx((0.010 + 55.918e-6, 0.032 + 28.630e-3), rel=1e-5)
    assert stage.kv_s_per_token == pytest.approx(BYTES_13B / 4 / 864e9)


def test_each_of_two_stages_exchanges_for_its_own_half_of_the_layers() -> None:
    shared = replace(NODE, tensor_parallel=2, allreduce_bytes_per_token=BYTES_13B)
    first, second = shared.node(2, 16, 2048).costs
    assert first == second
    assert first.seconds[1] == pytest.approx(0.128 / 4 + 28.630e-3 / 2, rel=1e-5)


def test_a_faster_exchange_costs_less() -> None:
    shared = replace(NODE, tensor_parallel=4, allreduce_bytes_per_token=BYTES_13B)
    (stage,) = replace(shared, allreduce_bytes_per_s=146.5e9).node(1, 16, 2048).costs
    assert stage.seconds[1] == pytest.approx(0.032 + 2.8630e-3, rel=1e-5)


def test_one_gpu_for_each_stage_exchanges_nothing() -> None:
    unshared = replace(NODE, allreduce_bytes_per_token=BYTES_13B)
    assert unshared.node(4, 16, 2048) == NODE.node(4, 16, 2048)


def test_a_profile_with_its_sizes_is_used_unchanged(profile: list[str]) -> None:
    options = parse(*profile, *SIZES, "--overhead-ms", "3", "--hop-ms", "4")
    hardware = hardware_of(options)
    assert hardware == Hardware(PROFILE, 1000, 1e5, 800e9, overhead_s=0.003, hop_s=0.004)


def test_a_gpu_and_a_model_are_sufficient() -> None:
    gpu, shape = find_gpu("L20"), read_shape("llama2-13b")
    hardware = hardware_of(parse(*BY_MODEL, "--stages", "2", "--tensor-parallel", "2"))
    assert hardware.profile == profile_of(gpu, shape)
    assert hardware.kv_tokens == kv_capacity_tokens(gpu, shape, 4)
    assert hardware.kv_bytes_per_token == BYTES_13B
    assert hardware.memory_bytes_per_s == 864e9 * KV_READ_EFFICIENCY
    assert hardware.allreduce_bytes_per_token == 2 * 40 * 5120 * 2


def test_an_fp8_kv_cache_holds_twice_the_tokens_and_is_read_in_half_the_time() -> None:
    wide, narrow = (hardware_of(parse(*BY_MODEL, "--kv-cache-dtype", d)) for d in ("auto", "fp8"))
    assert narrow.kv_tokens in (2 * wide.kv_tokens, 2 * wide.kv_tokens + 1)
    costs = [hardware.node(4, 16, 2048).costs[0] for hardware in (wide, narrow)]
    assert costs[0].kv_s_per_token == pytest.approx(2 * costs[1].kv_s_per_token)
    assert narrow.profile == wide.profile


def test_reading_a_full_kv_cache_takes_about_as_long_as_reading_the_weights() -> None:
    hardware = hardware_of(parse(*BY_MODEL))
    of_one, of_four = (hardware.node(stages, 16, 2048).costs[0] for stages in (1, 4))
    kv_s = 170_000 / 4 * of_one.kv_s_per_token
    assert kv_s == pytest.approx(of_one.seconds[64 - 1], rel=0.3)
    assert of_four.kv_s_per_token == pytest.approx(kv_s * 4 / 170_000 / 4)


def test_explicit_options_override_the_gpu_and_the_model() -> None:
    given = ["--allreduce-bytes-per-token", "7", "--allreduce-bandwidth", "50"]
    hardware = hardware_of(parse(*BY_MODEL, *SIZES, *given))
    assert (hardware.kv_tokens, hardware.kv_bytes_per_token) == (1000, 1e5)
    assert hardware.memory_bytes_per_s == 800e9
    assert (hardware.allreduce_bytes_per_token, hardware.allreduce_bytes_per_s) == (7.0, 50e9)


def test_a_model_that_does_not_fit_can_be_simulated_with_an_explicit_cache() -> None:
    too_large = ["--gpu", "L4", "--model", "llama2-70b"]
    with pytest.raises(HardwareError, match="llama2-70b does not fit 4 x L4"):
        hardware_of(parse(*too_large))
    assert hardware_of(parse(*too_large, "--kv-tokens", "5000")).kv_tokens == 5000


@pytest.mark.parametrize("index", range(0, 6, 2))
def test_a_profile_without_one_of_its_sizes_reports_the_option(
    profile: list[str], index: int
) -> None:
    with pytest.raises(HardwareError, match=f"give {SIZES[index]} too"):
        hardware_of(parse(*profile, *SIZES[:index], *SIZES[index + 2 :]))


def test_a_profile_with_tensor_parallelism_needs_the_exchanged_bytes(profile: list[str]) -> None:
    shared = [*profile, *SIZES, "--tensor-parallel", "2"]
    with pytest.raises(HardwareError, match="give --allreduce-bytes-per-token too"):
        hardware_of(parse(*shared))
    hardware = hardware_of(parse(*shared, "--allreduce-bytes-per-token", "9"))
    assert (hardware.tensor_parallel, hardware.allreduce_bytes_per_token) == (2, 9.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--stages", "0"),
        ("--tensor-parallel", "0"),
        ("--kv-tokens", "-50"),
        ("--overhead-ms", "-50"),
        ("--hop-ms", "nan"),
        ("--allreduce-bytes-per-token", "-1"),
    ],
)
def test_a_number_out_of_range_reports_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*BY_MODEL, f"{option}={value}")
    assert f"argument {option}: {value} is not" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--profile", "x.csv", *BY_MODEL],
        ["--gpu", "L20"],
        ["--gpu", "L21", "--model", "llama2-13b"],
        ["--gpu", "L20", "--model", "llama2-14b"],
        ["--profile", "/nowhere.csv", *SIZES],
    ],
)
def test_an_incomplete_description_is_refused_in_one_line(wrong: list[str]) -> None:
    with pytest.raises(ERRORS) as caught:
        hardware_of(parse(*wrong))
    assert "\n" not in str(caught.value)


NOTES = {"stages": "2", "kv_tokens": "5000", "p2p_latency_us": "300"}


def write_table(path: Path, notes: dict[str, str]) -> list[str]:
    """Write a table of two stages of 1 ms and 2 ms per step; returns the options for it."""
    lines = [head_of_steps(notes)]
    for stage in range(2):
        for tokens in (1, 64, 512):
            step = MeasuredStep("prefill", 1, tokens, 0, tokens, (1 + stage) / 1000)
            lines.append(line_of_step(stage, step))
    path.write_text("".join(lines))
    return ["--profile", str(path)]


def test_a_table_of_measured_stages_is_sufficient(tmp_path: Path) -> None:
    options = parse(*write_table(tmp_path / "x.steps.csv", NOTES))
    assert num_stages_of(options) == 2
    hardware = hardware_of(options)
    assert isinstance(hardware, MeasuredHardware)
    node = hardware.node(2, 16, 2048)
    assert node.num_blocks == 5000 // 16
    assert node.hop_s == pytest.approx(0.0003)
    assert [costs.seconds[0] for costs in node.costs] == pytest.approx([0.001, 0.002], rel=0.02)


def test_explicit_options_override_the_table(tmp_path: Path) -> None:
    table = write_table(tmp_path / "x.steps.csv", NOTES)
    hardware = hardware_of(parse(*table, "--kv-tokens", "32", "--hop-ms", "7", "--stages", "2"))
    node = hardware.node(2, 16, 2048)
    assert (node.num_blocks, node.hop_s) == (2, 0.007)


def test_a_table_has_exactly_its_measured_stages(tmp_path: Path) -> None:
    table = write_table(tmp_path / "x.steps.csv", NOTES)
    with pytest.raises(HardwareError, match="has 2 stages, not 4"):
        num_stages_of(parse(*table, "--stages", "4"))
    with pytest.raises(HardwareError, match="without tensor parallelism"):
        hardware_of(parse(*table, "--tensor-parallel", "2"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kv_tokens", "x", "kv_tokens"),
        ("kv_tokens", "9" * 5000, "cannot be"),
        ("p2p_latency_us", "x", "us x"),
        ("p2p_latency_us", "-5", "-5 cannot be"),
        ("p2p_latency_us", "nan", "nan cannot be"),
        ("p2p_latency_us", "80,1e12", "cannot be"),
    ],
)
def test_an_invalid_note_in_a_table_is_reported(
    tmp_path: Path, key: str, value: str, words: str
) -> None:
    with pytest.raises(HardwareError, match=words):
        hardware_of(parse(*write_table(tmp_path / "x.steps.csv", NOTES | {key: value})))


@pytest.mark.parametrize(
    ("flag", "figure", "words"),
    [
        ("--memory-bandwidth", "691e9", "691e9 GB/s cannot be: between 0.01 and 50000"),
        ("--memory-bandwidth", "1e-9", "GB/s cannot be"),
        ("--allreduce-bandwidth", "14.65e9", "GB/s cannot be"),
        ("--allreduce-bytes-per-token", "1e12", "bytes cannot be"),
        ("--kv-bytes-per-token", "819200e6", "bytes cannot be"),
        ("--kv-tokens", "100000000000", "tokens cannot be"),
        ("--overhead-ms", "200000", "ms cannot be"),
        ("--hop-ms", "1e-9", "ms cannot be"),
        ("--stages", "100000", "stages cannot be"),
        ("--tensor-parallel", "100000", "GPUs cannot be"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_with_the_flag_and_the_range(
    flag: str, figure: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*BY_MODEL, flag, figure)
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {flag}: " in error
    assert words in error
    assert error.endswith("are plausible")


def test_zero_is_plausible_where_it_is_allowed() -> None:
    options = parse(*BY_MODEL, "--hop-ms", "0", "--overhead-ms", "0")
    assert (options.hop_ms, options.overhead_ms) == (0, 0)


@pytest.mark.parametrize(
    ("field", "figure"),
    [
        ("bandwidth_gb_s", 864e9),
        ("peak_tflops", 119.5e12),
        ("matmul_tflops", 0.0),
        ("matmul_tflops", 120.0),  # more than the data sheet's peak
        ("memory_gib", 48e9),
        ("num_sms", float("nan")),
    ],
)
def test_a_figure_of_a_gpu_that_cannot_be_is_refused_by_name(field: str, figure: float) -> None:
    with pytest.raises(GpuError, match=f"L20: {field} .* cannot be"):
        replace(find_gpu("L20"), **{field: figure})


def test_without_a_table_there_are_four_stages(profile: list[str]) -> None:
    assert num_stages_of(parse(*profile)) == 4
    assert num_stages_of(parse(*profile, "--stages", "3")) == 3
