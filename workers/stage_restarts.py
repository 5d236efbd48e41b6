"""torchrun: starts and restarts the group of stages, one process per stage.

torchrun notices within a tenth of a second that a stage has died, and restarts the whole group. The
stages are forked from this process where that is safe: torch and transformers are imported once,
not once per stage (5 s of CPU each), and a restarted group is ready as soon as its weights are
loaded. torchrun's long report of a failure is kept out of the log: the stages have logged the cause
in a line.
"""

import logging
import os
import sys
import threading
import uuid
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import config_from_args, parse_args

from configs import loader
from configs.pipeline import PipelineConfig
from daemon.process_priority import lower_priority
from daemon.watchdog_file import WatchdogFile
from workers import process
from workers.comm import rendezvous
from workers.model import batch_invariance
from workers.stage_agent import StageAgent

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
SIGNAL_AGAIN_S = 0.05
# For stages on cores that the engine and the server share: both use little CPU, and all requests
# wait for them. The stages get a third of an equal share.
NICENESS = 5
_ALWAYS = _INCARNATIONS_APART = 1_000_000


def main(folder: str, incarnation: int) -> int:
    """Run the group until it ends; 1 when it has failed more often than it may be restarted.

    `incarnation` counts the torchrun processes of this daemon before this one.
    """
    config = loader.load_saved(Path(folder))
    logging.disable(logging.ERROR)
    # A fork inherits torchrun's handlers: a stage that is ended in its first moment would print a
    # traceback.
    os.register_at_fork(after_in_child=process.forget_handlers)
    sys.unraisablehook = signal_again
    watchdog_file = WatchdogFile(config.runtime.folder, "stages")
    rendezvous.forget_groups(config.runtime.folder)
    for library in ("GLOO", "NCCL"):  # these would listen where other hosts can reach them
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
    if not _uses_gpus(config.pipeline):
        lower_priority(NICENESS)
    if config.pipeline.batch_invariant:
        batch_invariance.limit_onednn()
    arguments = parse_args([*_torchrun_flags(config.pipeline), f"--log-dir={folder}", "stage"])
    launch_config, _, _ = config_from_args(arguments)
    agent = StageAgent(
        launch_config,
        rendezvous.OneHost(watchdog_file, launch_config.run_id),
        config.runtime.folder,
        process.main,
        (folder, incarnation * _INCARNATIONS_APART),
    )
    try:
        return int(agent.run().is_failed())
    except SignalException:
        return 0


def signal_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Send a signal again: torchrun's handler has raised within a fork, where that is lost."""
    if isinstance(ignored.exc_value, SignalException):
        arguments = (os.getpid(), ignored.exc_value.sigval)
        threading.Timer(SIGNAL_AGAIN_S, os.kill, arguments).start()
    else:
        sys.__unraisablehook__(ignored)


def _uses_gpus(config: PipelineConfig) -> bool:
    """device_count asks NVML and makes no CUDA context, which would not survive a fork."""
    return config.device != "cpu" and torch.cuda.device_count() > 0


def _torchrun_flags(config: PipelineConfig) -> list[str]:
    return [
        f"--rdzv-id={uuid.uuid4()}",
        f"--nproc-per-node={config.pipeline_parallel_size}",
        # The engine decides how many restarts are too many: it has the time of each failure.
        f"--max-restarts={_ALWAYS if config.max_restarts else 0}",
        "--monitor-interval=0.1",
        f"--start-method={'spawn' if _uses_gpus(config) else 'fork'}",
    ]
