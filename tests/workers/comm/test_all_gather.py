"""The all-gather: each stage receives the values of all, and no value can run code."""

import os
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch.distributed as dist

from tests.workers.forked import FORKED
from workers.comm.all_gather import all_gather
from workers.comm.rendezvous import group_store
from workers.profiling.layer_times import LayerTimes

PATIENCE_S = 60.0


def stage(number: int, folder: Path, test: Connection) -> None:
    """One of two stages that exchange values."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ["WORLD_SIZE"] = "2"
    store = group_store(folder, timedelta(seconds=PATIENCE_S))
    dist.init_process_group("gloo", store=store, rank=number, world_size=2)
    assert all_gather(number == 1, bool) == [False, True]
    assert all_gather(2**62 + number, int) == [2**62, 2**62 + 1]
    assert all_gather((1, 2) if number else None, tuple[int, ...] | None) == [None, (1, 2)]
    times = [
        LayerTimes(i, (0.5,) * i, ("a",) * i, (1,), (2,), 0.25, 3, 4, None if i else 5)
        for i in range(2)
    ]
    assert all_gather(times[number], LayerTimes) == times
    try:
        all_gather("a text" if number else 1, int)
    except ValueError as error:
        test.send(str(error))
    dist.barrier()
    dist.destroy_process_group()


def test_each_stage_receives_all_values_and_another_type_is_refused(
    tmp_path: Path,
) -> None:
    pipes = [FORKED.Pipe() for _ in range(2)]
    stages = [
        FORKED.Process(target=stage, args=(number, tmp_path, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process in stages:
        process.start()
    for process, (test, theirs) in zip(stages, pipes, strict=True):
        theirs.close()
        process.join(PATIENCE_S)
        assert process.exitcode == 0
        assert "Expected `int`, got `str`" in test.recv()
        test.close()
    assert [path.name for path in tmp_path.iterdir()] in (["group-run-0"], [])
