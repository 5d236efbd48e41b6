"""The profile cache: what was kept is found again, and no damage to it is fatal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wire.messages import StageCosts
from workers.profiling import profile_cache
from workers.profiling.profile_cache import load_costs, load_split, path_of, save_costs, save_split
from workers.profiling.stage_fingerprint import StageFingerprint

FINGERPRINT = StageFingerprint(
    "cpu", "a processor", "abc", "bfloat16", 3, 1, "2-4", 16, 2048, "2.13", "0.1"
)
COSTS = StageCosts((1, 64), (0.001, 0.002), 1e-8, 2e-6, 3e-9)


def test_costs_and_splits_are_found_again(tmp_path: Path) -> None:
    data_dir = tmp_path / "not yet there"
    assert load_costs(data_dir, FINGERPRINT) is None
    assert load_split(data_dir, FINGERPRINT) is None
    save_costs(data_dir, FINGERPRINT, COSTS)
    save_split(data_dir, FINGERPRINT, (2, 2, 4))
    assert load_costs(data_dir, FINGERPRINT) == COSTS
    assert load_split(data_dir, FINGERPRINT) == (2, 2, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"hardware": "another"},
        {"model_hash": "abd"},
        {"dtype": "float16"},
        {"num_stages": 4},
        {"stage": 2},
        {"layers": "2-5"},
        {"block_size": 32},
        {"max_num_batched_tokens": 4096},
        {"torch": "2.14"},
        {"tdpipe": "0.2"},
    ],
)
def test_what_was_measured_elsewhere_is_not_taken(tmp_path: Path, change: dict[str, str]) -> None:
    save_costs(tmp_path, FINGERPRINT, COSTS)
    assert load_costs(tmp_path, replace(FINGERPRINT, **change)) is None  # type: ignore[arg-type]


def kept(costs: object) -> str:
    """The content of a file with other costs."""
    fields = {name: getattr(FINGERPRINT, name) for name in FINGERPRINT.__dataclass_fields__}
    return json.dumps({"of": fields, "value": costs})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\0\1",
        '{"of": 1, "value": 2}',
        kept("costs"),
        kept(["StageCosts", [1, 64], [0.1], 0, 0, 0]),
        kept(["StageCosts", [64, 1], [0.1, 0.2], 0, 0, 0]),
        kept(["StageCosts", [1, 64], [0.1, -0.2], 0, 0, 0]),
        kept(["StageCosts", [], [], 0, 0, 0]),
    ],
)
def test_a_damaged_file_is_logged_ignored_and_rewritten(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(tmp_path, "costs", FINGERPRINT)
    path.parent.mkdir()
    path.write_text(text)
    assert load_costs(tmp_path, FINGERPRINT) is None
    assert str(path) in caplog.text
    save_costs(tmp_path, FINGERPRINT, COSTS)
    assert load_costs(tmp_path, FINGERPRINT) == COSTS


def test_a_split_for_another_number_of_stages_is_ignored(tmp_path: Path) -> None:
    save_split(tmp_path, FINGERPRINT, (2, 6))
    assert load_split(tmp_path, FINGERPRINT) is None
    save_split(tmp_path, FINGERPRINT, (2, 0, 6))
    assert load_split(tmp_path, FINGERPRINT) is None


def test_a_folder_that_cannot_be_written_is_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / profile_cache.FOLDER).write_text("a file where the folder should be")
    save_costs(tmp_path, FINGERPRINT, COSTS)
    assert "cannot be kept" in caplog.text
    assert load_costs(tmp_path, FINGERPRINT) is None


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    for _ in range(3):
        save_costs(tmp_path, FINGERPRINT, COSTS)
    path = path_of(tmp_path, "costs", FINGERPRINT)
    assert list(path.parent.iterdir()) == [path]


def test_a_fingerprint_left_in_a_folder_is_found_there(tmp_path: Path) -> None:
    FINGERPRINT.save(tmp_path)
    assert StageFingerprint.load(tmp_path, FINGERPRINT.stage) == FINGERPRINT


def test_a_fingerprint_that_cannot_be_written_does_not_stop_the_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FINGERPRINT.save(tmp_path / "nowhere")
    (record,) = caplog.records
    assert record.getMessage().startswith("the fingerprint of stage 1 is not kept in ")
