"""The layer times: the best split by them."""

from dataclasses import replace
from pathlib import Path

from configs.config import EngineConfig
from tests.checkpoints import NUM_LAYERS, make_checkpoint
from tests.workers.stages import load_stage
from tests.workers.world import CPU
from workers.loading import TimedRun
from workers.model.attention.plain import PlainBackend
from workers.model.kv_cache import KvCache
from workers.model.step_runner import StepRunner
from workers.profiling.layer_times import LayerTimes, better_split, describe_layers, time_layers


def stage(first: int, seconds: list[float], *, extra_s: float = 0.0, kind: str = "L") -> LayerTimes:
    """Layers of 10 bytes of weights and 5 of KV on a device with memory for all."""
    count = len(seconds)
    kinds = (kind,) * count
    return LayerTimes(
        first, tuple(seconds), kinds, (10,) * count, (5,) * count, extra_s, 20, 10_000
    )


def test_a_balanced_split_stays() -> None:
    assert better_split([stage(0, [1.0] * 4), stage(4, [1.0] * 4)]) is None


def test_a_gain_within_the_noise_is_not_worth_loading_again() -> None:
    stages = [stage(0, [1.0] * 100), stage(100, [1.0] * 100, extra_s=2.0)]
    assert better_split(stages) is None


def test_a_slow_head_costs_the_last_stage_layers() -> None:
    stages = [stage(0, [1.0] * 4), stage(4, [1.0] * 4, extra_s=4.0)]
    assert better_split(stages) == [range(6), range(6, 8)]


def test_a_slow_device_is_slow_with_layers_it_has_not_had() -> None:
    stages = [stage(0, [1.0] * 6), stage(6, [2.0] * 6)]
    assert better_split(stages) == [range(8), range(8, 12)]


def test_layers_of_another_kind_are_estimated_by_those_that_both_have() -> None:
    first = replace(stage(0, [1.0] * 4), kinds=("A", "A", "A", "B"), seconds=(1, 1, 1, 9))
    second = replace(stage(4, [2.0] * 4), kinds=("A",) * 4)
    # The layer that takes 9 here would take 18 there: it stays, and others come.
    assert better_split([first, second]) is None
    slow_first = [replace(second, first=0), replace(first, first=4, seconds=(1, 1, 1, 3))]
    assert better_split(slow_first) == [range(3), range(3, 8)]


def test_memory_is_a_hard_limit() -> None:
    tight = replace(stage(0, [1.0] * 4), limit_bytes=20 + 5 * 15)
    slow = stage(4, [1.0] * 4, extra_s=4.0)
    assert better_split([tight, slow]) == [range(5), range(5, 8)]
    assert better_split([replace(tight, limit_bytes=10_000, kv_limit_bytes=25), slow]) == [
        range(5),
        range(5, 8),
    ]
    assert better_split([replace(tight, limit_bytes=1), slow]) is None


def test_a_little_speed_is_given_for_much_room() -> None:
    # With half of the layers, the first stage holds one sequence; with one less, two.
    def better(num_layers: int) -> list[range] | None:
        stages = [
            replace(
                stage(first, [1.0] * num_layers),
                weight_bytes=(100,) * num_layers,
                kv_bytes=(50,) * num_layers,
                limit_bytes=100_000,
            )
            for first in (0, num_layers)
        ]
        limit = 20 + (num_layers - 1) * (100 + 2 * 50)
        return better_split([replace(stages[0], limit_bytes=limit), stages[1]])

    assert better(50) == [range(49), range(49, 100)]  # 2 % slower
    assert better(10) is None  # it would be 10 % slower


def test_room_that_all_stages_have_changes_nothing() -> None:
    # 100 sequences beside 4 layers on both: more is not needed.
    stages = [replace(stage(first, [1.0] * 4), limit_bytes=20 + 4 * 510) for first in (0, 4)]
    assert better_split(stages) is None


def test_layers_are_timed_in_a_real_model(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "llama")
    config = EngineConfig.of(model=str(path), device="cpu", layer_split=(1, 3), dtype="bfloat16")
    for number, count in enumerate((1, NUM_LAYERS - 1)):
        model = load_stage(config, number)
        cache = KvCache(model.probe(2).shapes, 600, 16, model.dtype, CPU)
        run = TimedRun([StepRunner(model, PlainBackend(), cache, 16, CPU)], 600, CPU)
        run.touch(600)
        seconds, rest = time_layers(model, run, CPU)
        kinds, sizes, extra = describe_layers(model)
        assert len(seconds) == len(kinds) == len(sizes) == count
        assert min(seconds) > 0
        assert rest >= 0
        assert sum(sizes) + extra == model.num_bytes
        assert not any(layer._forward_hooks for layer in model.layer_modules)
