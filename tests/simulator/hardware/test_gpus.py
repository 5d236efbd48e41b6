"""The table of GPUs is complete and plausible, and lists its names."""

from typing import get_args

import pytest

from simulator.hardware.gpus import Architecture, Gpu, GpuError, find_gpu, read_gpus

GPUS = list(read_gpus().values())
BY_NAME = pytest.mark.parametrize("gpu", GPUS, ids=[gpu.name for gpu in GPUS])


@BY_NAME
def test_no_gpu_multiplies_faster_than_its_data_sheet_says(gpu: Gpu) -> None:
    assert 0.4 * gpu.peak_tflops < gpu.matmul_tflops <= gpu.peak_tflops


@BY_NAME
def test_every_figure_is_plausible_in_its_unit(gpu: Gpu) -> None:
    assert gpu.architecture in get_args(Architecture)
    assert 250 <= gpu.bandwidth_gb_s <= 8000
    assert 16 <= gpu.memory_gib <= 192
    assert 50 <= gpu.num_sms <= 150


def test_the_paper_s_gpu_has_the_paper_s_figures() -> None:
    l20 = find_gpu("L20")
    assert (l20.peak_tflops, l20.bytes_per_s) == (119.5, 864e9)
    assert l20.matmul_flops == pytest.approx(107.95e12)
    assert l20.memory_bytes == 45 * 2**30


def test_a_gpu_is_found_in_lower_case() -> None:
    assert find_gpu("h100-sxm") == find_gpu("H100-SXM")


def test_an_unknown_gpu_is_refused_in_one_line_with_the_known_names() -> None:
    with pytest.raises(GpuError) as caught:
        find_gpu("A9000")
    assert "'A9000'" in str(caught.value)
    assert "A100-40G-PCIe" in str(caught.value)
    assert "\n" not in str(caught.value)
