"""The all-gather: each stage gets the values of all, and no value can run code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.daemon import ROOT

SCRIPT = """if True:
    import os, sys
    from datetime import timedelta
    from pathlib import Path
    import torch, torch.distributed as dist
    from workers.comm.all_gather import all_gather
    from workers.profiling.layer_times import LayerTimes
    from workers.comm.rendezvous import group_store

    stage, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.update(TORCHELASTIC_RUN_ID="run", TORCHELASTIC_RESTART_COUNT="0", WORLD_SIZE="2")
    torch.set_num_threads(1)
    store = group_store(folder, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=stage, world_size=2)
    assert all_gather(stage == 1, bool) == [False, True]
    assert all_gather(2**62 + stage, int) == [2**62, 2**62 + 1]
    assert all_gather((1, 2) if stage else None, tuple[int, ...] | None) == [None, (1, 2)]
    times = [
        LayerTimes(i, (0.5,) * i, ("a",) * i, (1,), (2,), 0.25, 3, 4, None if i else 5)
        for i in range(2)
    ]
    assert all_gather(times[stage], LayerTimes) == times
    try:
        all_gather("a text" if stage else 1, int)
    except ValueError as error:
        print("refused:", error)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.timeout(120)
def test_each_stage_gets_all_values_and_another_type_is_refused(
    tmp_path: Path,
) -> None:
    stages = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(stage), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for stage in range(2)
    ]
    for stage in stages:
        printed, _ = stage.communicate(timeout=100)
        assert stage.returncode == 0, printed
        assert "refused: Expected `int`, got `str`" in printed
    assert [path.name for path in tmp_path.iterdir()] in (["group-run-0"], [])
