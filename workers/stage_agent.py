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

from daemon.processes import ranks
from daemon.processes.oom_kills import OomKills
from daemon.processes.process_exits import ExitFile, ProcessExit
from wire.messages import RankExit


class StagePids:
    """The processes of the newest group of stages, for another thread."""

    def __init__(self) -> None:
        self._pids: tuple[int, ...] = ()
        self._began_at = 0.0

    def replace(self, pids: Iterable[int]) -> None:
        """A new group has started."""
        self._pids, self._began_at = tuple(pids), time.monotonic()

    def first_exit(self, exits: ExitFile) -> RankExit | None:
        """How the first of them ended, if any has."""
        found = exits.first_of(self._pids, self._began_at)
        if found is None:
            return None
        return RankExit(found.stage, found.tensor_rank, found.pid, found.status, found.is_oom)

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
        ranks_per_stage: int = 1,
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
        self._pids, self._ranks_per_stage = pids, ranks_per_stage
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
            rank = worker_group.workers[local_rank].global_rank
            threading.Thread(target=self._wait, args=(rank, pid), daemon=True).start()
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self._oom_kills.refresh()
        # Whatever torchrun ends because of the failure that it finds here, ends later than this.
        began_at = time.monotonic()
        result: RunResult = super()._monitor_workers(worker_group)
        for rank, failure in result.failures.items():
            self._record(rank, failure.pid, failure.exitcode, began_at)
        return result

    def _wait(self, rank: int, pid: int) -> None:
        """Record the exit at once, and leave its status for torchrun.

        torchrun looks ten times a second. At a high load it may reap the stage before this thread
        runs: then `_monitor_workers` records the exit.
        """
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            is_killed = ended.si_code != os.CLD_EXITED
            status = -ended.si_status if is_killed else ended.si_status
            self._record(rank, pid, status, time.monotonic())

    def _record(self, rank: int, pid: int, status: int, at: float) -> None:
        with self._lock:
            if pid in self._recorded:
                return
            self._recorded.add(pid)
            is_oom = status == -signal.SIGKILL and self._oom_kills.are_recent()
        stage, tensor_rank = ranks.stage_and_rank(rank, self._ranks_per_stage)
        self._exits.append(ProcessExit(stage, pid, status, is_oom, at, tensor_rank))
