"""Loading: a split by measured times is found once, loaded, and kept for the next start."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.config import EngineConfig
from tests.checkpoints import NUM_LAYERS, make_checkpoint
from tests.kernels import prepare_data_dir
from tests.workers.world import CPU
from workers import loading
from workers.kernels.compiler import FOLDER
from workers.loading import StagePlace, TimedRun, load
from workers.model import stage_model
from workers.model.decode_graphs import GraphLimits
from workers.model.kv_cache import KvCache
from workers.model.packed import linears
from workers.model.packed.linears import PackingError
from workers.model.proof import admission
from workers.model.step_runner import StepRunner
from workers.profiling import layer_times, profile_cache
from workers.profiling.dummy_run import prefill

PLACE = StagePlace(0, 1, CPU, 1)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[EngineConfig]:
    """A group of one stage that may find its own split."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield EngineConfig.of(
        model=str(make_checkpoint(tmp_path / "model", "llama")),
        dtype="bfloat16",
        device="cpu",
        pipeline_parallel_size=1,
        layer_split="auto",
    )
    dist.destroy_process_group()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder that holds nothing but compiled kernels."""
    return prepare_data_dir(tmp_path / "data")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layer ranges of each loading of weights; None is the first guess."""
    found: list[Any] = []
    real = stage_model.load

    def spy(config: EngineConfig, stage: int, device: torch.device, *others: Any) -> Any:
        found.append(others[1])
        return real(config, stage, device, *others)

    monkeypatch.setattr(stage_model, "load", spy)
    return found


def test_a_split_that_stays_is_measured_once(
    data_dir: Path, config: EngineConfig, loads: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loaded = load(config, data_dir, PLACE)
    assert sorted(loaded.shapes) == list(loaded.model.layers) == list(range(NUM_LAYERS))
    assert loads == [None]
    load(config, data_dir, PLACE)
    assert loads == [None, [range(NUM_LAYERS)]]
    assert "as found at an earlier start" in caplog.text


def test_a_better_split_is_loaded_and_kept(
    data_dir: Path, config: EngineConfig, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    better = [range(NUM_LAYERS)]
    monkeypatch.setattr(layer_times, "better_split", lambda *_: better)
    load(config, data_dir, PLACE)
    assert loads == [None, better]
    fingerprint = loading._split_fingerprint(config, PLACE)
    assert profile_cache.load_split(data_dir, fingerprint) == (NUM_LAYERS,)
    load(config, data_dir, PLACE)
    assert loads == [None, better, better]


def test_a_split_by_parameters_measures_nothing(
    data_dir: Path, config: EngineConfig, loads: list[Any]
) -> None:
    load(config.replaced(layer_split=None), data_dir, PLACE)
    assert loads == [None]
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([FOLDER, admission.FOLDER])


def test_with_virtual_stages_a_stage_loads_its_slices_and_times_them_together(
    data_dir: Path, config: EngineConfig
) -> None:
    config = config.replaced(layer_split=None, virtual_pipeline_size=2, dtype="float32")
    slices = loading.load_slices(config, data_dir, PLACE)
    assert [list(loaded.model.layers) for loaded in slices] == [[0, 1], [2, 3]]
    assert [sorted(loaded.shapes) for loaded in slices] == [[0, 1], [2, 3]]
    shapes = slices[0].shapes | slices[1].shapes
    cache = KvCache(shapes, 4, 16, torch.float32, CPU)
    runners = [StepRunner(each.model, each.attention, cache, 16, CPU) for each in slices]
    together = TimedRun(runners, 4, CPU)
    together.touch(4)
    ran: list[range] = []
    for runner in runners:
        layers = runner.model.layers
        runner.model.layer_modules[0].register_forward_pre_hook(lambda *_, i=layers: ran.append(i))
    assert together(prefill([20])) > 0
    assert ran == [range(2), range(2, 4)]


def test_a_start_that_cannot_promise_batch_invariance_fails(
    data_dir: Path, config: EngineConfig, loads: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = config.replaced(layer_split=None)
    promised = load(config, data_dir, PLACE).is_batch_invariant
    assert ("; batch invariant" in caplog.text) == promised
    config = config.replaced(batch_invariant=True)
    with pytest.raises(ValueError, match=r"^--batch-invariant: steps of 2 tokens cut"):
        load(config.replaced(max_num_batched_tokens=2), data_dir, PLACE)
    with pytest.raises(ValueError, match=r"^--batch-invariant: .* not available on GPUs yet"):
        load(config, data_dir, StagePlace(0, 1, torch.device("cuda"), 1))
    assert loads == [None]  # neither has read any weights
    slow_twin = config.replaced(attention_backend="plain", dtype="float32")
    with pytest.raises(ValueError, match=r"^--batch-invariant: torch's float32 products"):
        load(slow_twin, data_dir, PLACE)


def test_linear_layers_are_packed_for_onednn_where_it_has_such_products(
    data_dir: Path,
    config: EngineConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    config = config.replaced(layer_split=None, dtype="float32")  # oneDNN has fp32 products anywhere
    monkeypatch.setattr(linears, "has_onednn_products", lambda _: True)
    load(config, data_dir, PLACE)
    assert "25 linear layers packed for oneDNN" in caplog.text
    caplog.clear()
    load(config.replaced(attention_backend="plain"), data_dir, PLACE)  # the slow twin
    assert "packed" not in caplog.text

    def refuse(_: Any) -> int:
        raise PackingError("RuntimeError: no such instructions")

    monkeypatch.setattr(linears, "pack_for_onednn", refuse)
    load(config, data_dir, PLACE)
    assert "not packed for oneDNN: RuntimeError: no such instructions" in caplog.text


def measured_turns(
    monkeypatch: pytest.MonkeyPatch, num_gpus: Sequence[int], num_local: Sequence[int]
) -> list[list[int]]:
    """The turns in which the stages of nodes with so many GPUs and stages measure their graphs.

    The stages run one after the other here. Each must wait for the others equally often.
    """
    places = [
        StagePlace(0, 1, CPU, -(-stages // gpus) if gpus else stages, None, rank // max(1, gpus))
        for gpus, stages in zip(num_gpus, num_local, strict=True)
        for rank in range(stages)
    ]
    has_gpu = [gpus > 0 for gpus, n in zip(num_gpus, num_local, strict=True) for _ in range(n)]
    told = [place.stages_on_device * has for place, has in zip(places, has_gpu, strict=True)]
    barriers: list[int] = []
    turns: list[list[int]] = [[] for _ in places]
    said: list[int] = []
    monkeypatch.setattr(loading, "all_gather", lambda mine, _: said.append(mine) or told)
    for stage, place in enumerate(places):
        barriers.append(0)

        def wait() -> None:
            barriers[-1] += 1

        def measure(*_: object, stage: int = stage) -> int:
            turns[stage].append(barriers[-1] - 1)
            return 7

        monkeypatch.setattr(dist, "barrier", wait)
        monkeypatch.setattr(loading, "_measure_graph_bytes", measure)
        limits = GraphLimits(1, 1) if has_gpu[stage] else None
        slices: Any = [None]
        num_bytes = loading.estimate_graph_bytes(EngineConfig(), slices, place, limits)
        assert num_bytes == 7 * has_gpu[stage]
    assert said == told
    assert len(set(barriers)) == 1
    return turns


@pytest.mark.parametrize(
    ("num_gpus", "num_local", "turns"),
    [
        ([2], [4], [[0], [0], [1], [1]]),
        ([2, 2], [2, 2], [[0]] * 4),
        ([1, 3], [3, 3], [[0], [1], [2], [0], [0], [0]]),
        ([2, 0], [2, 2], [[0], [0], [], []]),
        ([0], [2], [[], []]),
    ],
    ids=str,
)
def test_stages_of_all_nodes_wait_for_each_other_while_those_on_a_device_measure_in_turn(
    num_gpus: list[int],
    num_local: list[int],
    turns: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert measured_turns(monkeypatch, num_gpus, num_local) == turns
