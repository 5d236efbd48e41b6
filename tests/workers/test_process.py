"""A stage's process: which device it takes, and when it has its turn there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.config import Config
from workers import process


def place_of(
    monkeypatch: pytest.MonkeyPatch, rank: int, local_rank: int, num_local: int, num_gpus: int
) -> tuple[str, int, int]:
    """Device, turn and sharing stages of one rank of four, on a node with so many GPUs."""
    settings: dict[str, Any] = {"pipeline_parallel_size": 4, "device": "auto"}
    environment = {"LOCAL_WORLD_SIZE": num_local, "WORLD_SIZE": 4, "LOCAL_RANK": local_rank}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(process, "_meet", lambda *_: None)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    place = process._join_group(Config.of(runtime_dir=Path("/nowhere"), **settings), epoch=1)
    assert place.stage == rank
    return str(place.device), place.turn, place.stages_on_device


@pytest.mark.parametrize(
    ("rank", "local_rank", "num_local", "num_gpus", "place"),
    [
        (1, 1, 4, 2, ("cuda:1", 0, 2)),
        (2, 2, 4, 2, ("cuda:0", 1, 2)),
        (2, 0, 2, 2, ("cuda:0", 0, 1)),  # the first stage of a second node
        (3, 1, 2, 2, ("cuda:1", 0, 1)),
        (3, 1, 2, 1, ("cuda:0", 1, 2)),
        (3, 1, 2, 0, ("cpu", 1, 2)),
    ],
)
def test_a_stage_has_its_turn_among_those_of_its_node_on_its_device(
    rank: int,
    local_rank: int,
    num_local: int,
    num_gpus: int,
    place: tuple[str, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert place_of(monkeypatch, rank, local_rank, num_local, num_gpus) == place
