"""The GPU model has the measured stairs, and exceeds the limits of no GPU."""

from dataclasses import replace

import numpy as np
import pytest

from engine.costs.cost_model import CostModel
from simulator.hardware.gpu_model import (
    forward_s,
    kv_capacity_tokens,
    matrices_s,
    profile_of,
)
from simulator.hardware.gpus import Gpu, find_gpu, read_gpus
from simulator.hardware.model_shape import read_shape

GPUS = list(read_gpus().values())
BY_NAME = pytest.mark.parametrize("gpu", GPUS, ids=[gpu.name for gpu in GPUS])


def seconds(gpu: Gpu, model: str, *num_tokens: int) -> list[float]:
    return list(forward_s(gpu, read_shape(model), np.array(num_tokens)))


@BY_NAME
def test_one_token_takes_a_little_longer_than_reading_the_weights(gpu: Gpu) -> None:
    shape = read_shape("llama2-13b")
    read_s = shape.weight_bytes / gpu.bytes_per_s
    assert read_s < seconds(gpu, "llama2-13b", 1)[0] < 1.8 * read_s


@BY_NAME
def test_a_long_prompt_takes_longer_than_its_products_at_full_speed(gpu: Gpu) -> None:
    parameters = read_shape("llama2-70b").layer_parameters
    products_s = 2 * parameters * 2048 / gpu.matmul_flops
    assert products_s < seconds(gpu, "llama2-70b", 2048)[0] < 1.25 * products_s


@BY_NAME
def test_more_tokens_never_take_less_time(gpu: Gpu) -> None:
    assert np.all(np.diff(profile_of(gpu, read_shape("qwen2.5-32b")).seconds) >= 0)


@pytest.mark.parametrize("edge", [128, 256, 384, 512, 640])
def test_one_token_beyond_a_tile_costs_a_tile(edge: int) -> None:
    below, at, beyond = seconds(find_gpu("L20"), "llama2-13b", edge - 20, edge, edge + 1)
    assert at / below < 1.01
    assert beyond / at > 1.15


def test_the_cost_model_finds_the_stairs() -> None:
    profile = profile_of(find_gpu("L20"), read_shape("llama2-13b"))
    edges = CostModel(profile.num_tokens, profile.seconds).edges
    assert {128, 256, 384, 512, 640} <= set(edges)


def test_a_model_of_small_layers_takes_as_long_as_launching_them() -> None:
    few, many = seconds(find_gpu("L20"), "opt-125m", 1, 256)
    assert few == many == pytest.approx(2.76e-3)


def test_a_step_of_cuda_graphs_has_no_launch_time_per_layer() -> None:
    gpu, shape = find_gpu("L20"), read_shape("opt-125m")
    assert profile_of(gpu, shape, 8, layer_launch_s=0.0).seconds < profile_of(gpu, shape, 8).seconds


def test_a_second_token_of_a_mixture_reads_more_experts() -> None:
    one, two, all_read, more = seconds(find_gpu("L20"), "mixtral-8x7b", 1, 2, 200, 201)
    assert two > 1.5 * one  # 3.5 experts of 8 instead of 2
    assert more < 1.01 * all_read


def test_a_mixture_of_one_expert_is_a_dense_model() -> None:
    gpu, dense = find_gpu("L20"), read_shape("llama2-13b")
    mixture = replace(
        dense,
        layer_parameters=0,
        expert_parameters=dense.layer_parameters,
        num_experts=1,
        experts_per_token=1,
    )
    num_tokens = np.arange(1, 600)
    of_dense, of_mixture = (forward_s(gpu, shape, num_tokens) for shape in (dense, mixture))
    np.testing.assert_allclose(of_mixture, of_dense)


def test_matrices_are_bound_by_memory_and_then_by_compute() -> None:
    gpu = find_gpu("H100-SXM")
    few, many = matrices_s(gpu, 10**9, np.array([1, 4096]))
    assert few == pytest.approx(2e9 / gpu.bytes_per_s / 0.87, rel=0.01)
    assert many == pytest.approx(2e9 * 4096 / gpu.matmul_flops, rel=0.01)


def test_the_node_of_the_paper_holds_the_published_number_of_kv_tokens() -> None:
    # 4 L20 with Llama2-13B hold about 170,000 tokens.
    tokens = kv_capacity_tokens(find_gpu("L20"), read_shape("llama2-13b"), 4)
    assert tokens == pytest.approx(170_000, rel=0.03)


def test_a_node_that_cannot_hold_the_weights_holds_no_kv() -> None:
    assert kv_capacity_tokens(find_gpu("L4"), read_shape("llama2-70b"), 4) == 0


def test_a_larger_part_of_the_memory_holds_more_kv() -> None:
    gpu, shape = find_gpu("L20"), read_shape("qwen2.5-32b")
    assert kv_capacity_tokens(gpu, shape, 4, 0.95) > kv_capacity_tokens(gpu, shape, 4)
