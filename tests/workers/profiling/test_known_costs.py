"""The known costs: where a stage takes them from."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from configs.profiles import StepTable, head_of_steps, line_of_step
from configs.schema.pipeline import PipelineConfig
from wire.messages import StageCosts
from workers.profiling import known_costs
from workers.profiling.dummy_run import prefill
from workers.profiling.known_costs import check_table, find_costs
from workers.profiling.profiler import Measurement
from workers.profiling.stage_fingerprint import StageFingerprint

FINGERPRINT = StageFingerprint(
    "cpu", "a processor", "abc", "bfloat16", 1, 0, "0-4", 16, 2048, "2.13", "0.1"
)
COSTS = StageCosts((1, 64), (0.001, 0.002), 1e-8, 2e-6, 3e-9)
NOTES = {
    "model_hash": "abc",
    "dtype": "bfloat16",
    "stages": "1",
    "layers": "0-4",
    "hardware": "a processor",
    "torch": "2.13",
}
STEP = prefill([64]).measured(0.25, 5)


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one stage."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Measuring:
    """Counts its calls."""

    def __init__(self, costs: StageCosts = COSTS, *, is_plausible: bool = True) -> None:
        self.times, self._measured = 0, Measurement(costs, is_plausible)

    def __call__(self) -> Measurement:
        self.times += 1
        return self._measured


def test_the_second_start_takes_what_the_first_has_measured(tmp_path: Path) -> None:
    config, measuring = PipelineConfig(), Measuring()
    assert find_costs(config, tmp_path, FINGERPRINT, measuring) == COSTS
    assert find_costs(config, tmp_path, FINGERPRINT, measuring) == COSTS
    assert measuring.times == 1
    assert find_costs(config, tmp_path, replace(FINGERPRINT, layers="0-5"), measuring) == COSTS
    assert measuring.times == 2


def test_an_implausible_measurement_is_used_but_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, measuring = PipelineConfig(), Measuring(is_plausible=False)
    for number in (1, 2):
        assert find_costs(config, tmp_path, FINGERPRINT, measuring) == COSTS
        assert measuring.times == number
    assert "the next start measures again" in caplog.text


def test_kept_costs_are_replaced_on_request(tmp_path: Path) -> None:
    find_costs(PipelineConfig(), tmp_path, FINGERPRINT, Measuring())
    other = StageCosts((1, 64), (0.001, 0.003))
    again = PipelineConfig(remeasure=True)
    assert find_costs(again, tmp_path, FINGERPRINT, Measuring(other)) == other
    assert find_costs(PipelineConfig(), tmp_path, FINGERPRINT, Measuring()) == other


def test_what_could_not_be_measured_is_not_kept(tmp_path: Path) -> None:
    config = PipelineConfig()
    assert find_costs(config, tmp_path, FINGERPRINT, Measuring(StageCosts())) == StageCosts()
    assert find_costs(config, tmp_path, FINGERPRINT, Measuring()) == COSTS


def test_without_a_budget_nothing_is_known(tmp_path: Path) -> None:
    config, measuring = PipelineConfig(profile_seconds=0), Measuring()
    assert find_costs(config, tmp_path, FINGERPRINT, measuring) == StageCosts()
    assert not measuring.times


def test_a_table_has_priority(tmp_path: Path) -> None:
    path = tmp_path / "x.steps.csv"
    path.write_text(head_of_steps(NOTES) + line_of_step(0, STEP))
    config, measuring = PipelineConfig(profile=path), Measuring()
    assert find_costs(config, tmp_path, FINGERPRINT, measuring).num_tokens == (64,)
    assert not measuring.times


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ({"model_hash": "abd"}, "another model: abd, not abc"),
        ({"dtype": "float16"}, "another dtype: float16, not bfloat16"),
        ({"layers": "0-3"}, "another layers: 0-3, not 0-4"),
    ],
)
def test_a_table_of_another_model_is_refused(note: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_table(StepTable(NOTES | note, ((STEP,),)), FINGERPRINT, "x")


def test_a_table_of_another_number_of_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="another number of stages: 2, not 1"):
        check_table(StepTable(NOTES, ((STEP,), (STEP,))), FINGERPRINT, "x")
    with pytest.raises(ValueError, match="another model: unknown"):
        check_table(StepTable({}, ((STEP,),)), FINGERPRINT, "x")


def test_a_table_of_other_hardware_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_table(StepTable(NOTES | {"hardware": json.dumps("H")}, ((STEP,),)), FINGERPRINT, "x")
    assert "is of hardware" in caplog.text


def test_a_node_with_a_table_answers_those_that_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(known_costs, "all_gather", lambda mine, _: told.append(mine) or [mine])
    path = tmp_path / "node.steps.csv"
    path.write_text(f"{head_of_steps(NOTES)}{line_of_step(0, STEP)}")
    for config in (PipelineConfig(profile=path), PipelineConfig(profile_seconds=0)):
        find_costs(config, tmp_path, FINGERPRINT, Measuring())
    assert told == [True, True]
