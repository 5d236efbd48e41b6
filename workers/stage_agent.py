"""The agent of torchrun: starts the stages, restarts them, and records how each has ended."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.launcher.api import LaunchConfig

from daemon.oom_kills import OomKills
from daemon.process_exits import ExitFile, ProcessExit


class StagePids:
    """The processes of the newest group of stages, for another thread that ends them."""

    def __init__(self) -> None:
        self._pids: tuple[int, ...] = ()

    def replace(self, pids: Iterable[int]) -> None:
        """A new group has started."""
        self._pids = tuple(pids)

    def kill(self) -> None:
        """Kill those that have not ended; torchrun restarts the group."""
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class StageAgent(LocalElasticAgent):
    """Runs `entrypoint(*args)` in a process for each stage until the group fails for good."""

    def __init__(
        self,
        config: LaunchConfig,
        rendezvous: RendezvousHandler,
        folder: Path,
        entrypoint: Callable[..., object],
        args: tuple[Any, ...],
        pids: StagePids,
    ) -> None:
        spec = WorkerSpec(
            role=config.role,
            local_world_size=config.nproc_per_node,
            rdzv_handler=rendezvous,
            entrypoint=entrypoint,
            args=args,
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
        )
        assert config.logs_specs is not None
        super().__init__(spec, config.logs_specs, config.start_method)
        self._pids = pids
        self._exits, self._oom_kills = ExitFile(folder), OomKills()
        self._lock = threading.Lock()
        self._recorded: set[int] = set()  # process ids

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the stages, and a thread for each that waits for its end."""
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._pids.replace(pids.values())
        with self._lock:
            self._recorded.clear()
        for local_rank, pid in pids.items():
            stage = worker_group.workers[local_rank].global_rank
            threading.Thread(target=self._wait, args=(stage, pid), daemon=True).start()
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._oom_kills.refresh()
        # Whatever torchrun ends because of the failure that it finds here, ends later than this.
        began_at = time.monotonic()
        result: RunResult = super()._monitor_workers(worker_group)
        for stage, failure in result.failures.items():
            self._record(stage, failure.pid, failure.exitcode, began_at)
        return result

    def _wait(self, stage: int, pid: int) -> None:
        """Record the exit at once, and leave its status for torchrun.

        torchrun looks ten times a second. At a high load it may reap the stage before this thread
        runs: then `_monitor_workers` records the exit.
        """
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            is_killed = ended.si_code != os.CLD_EXITED
            status = -ended.si_status if is_killed else ended.si_status
            self._record(stage, pid, status, time.monotonic())

    def _record(self, stage: int, pid: int, status: int, at: float) -> None:
        with self._lock:
            if pid in self._recorded:
                return
            self._recorded.add(pid)
            is_oom = status == -signal.SIGKILL and self._oom_kills.are_recent()
        self._exits.append(ProcessExit(f"stage {stage}", pid, status, is_oom, at))
