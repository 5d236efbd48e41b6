"""Stage losses: what has caused each loss of the stages, for the log and the metrics."""

from collections import Counter
from dataclasses import dataclass

from daemon.processes.process_exits import ProcessExit
from wire.messages import LossCause, RankExit, StageFailed, StageLoss, StageLosses


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the stages are lost; `reason` is a sentence without the pid, also for clients."""

    reason: str
    cause: LossCause = "other"
    stage: int = -1
    pid: int = 0
    code: str = ""

    @classmethod
    def of_exit(cls, ended: ProcessExit) -> "Trouble":
        """The end of a stage, or of torchrun, with which all stages end."""
        cause: LossCause = "signal" if ended.status < 0 else "exit"
        if ended.is_oom:
            cause = "oom_killer"
        return cls(str(ended), cause, ended.stage, ended.pid, ended.code)

    @classmethod
    def of_node(cls, ended: RankExit) -> "Trouble":
        """The end of a stage on another node."""
        rank, pid, status = ended.tensor_rank, ended.pid, ended.status
        found = ProcessExit(ended.stage, pid, status, ended.is_oom, tensor_rank=rank)
        return cls.of_exit(found)

    @classmethod
    def of_failure(cls, failed: StageFailed) -> "Trouble":
        """The exception that a stage has reported."""
        cause: LossCause = "out_of_memory" if failed.is_out_of_memory else "exception"
        reason = f"stage {failed.stage} failed: {failed.reason}"
        return cls(reason, cause, failed.stage, failed.pid)

    def __str__(self) -> str:
        return f"{self.reason} (pid {self.pid})" if self.pid else self.reason


class LossCounter:
    """Counts the losses since the start of the engine; they are few."""

    def __init__(self) -> None:
        self.last: StageLoss | None = None
        self._counts: Counter[tuple[int, LossCause, str]] = Counter()

    def count(self, trouble: Trouble, unix_time: float) -> None:
        """Count a loss at `unix_time` (seconds)."""
        self._counts[trouble.stage, trouble.cause, trouble.code] += 1
        self.last = StageLoss(trouble.stage, trouble.pid, trouble.cause, trouble.code, unix_time)

    def figures(self) -> tuple[StageLosses, ...]:
        """The number of losses by stage, cause and code."""
        return tuple(StageLosses(*key, count) for key, count in self._counts.items())
