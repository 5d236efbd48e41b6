"""One stage's process, started by torchrun: joins the group, makes the stage, runs it."""

import logging
import os
import signal
import sys
import time
import warnings
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from configs import loader
from configs.config import Config
from daemon.observability import log_file, logs
from daemon.processes import child_process, ranks
from daemon.processes.process_title import entitle
from wire.messages import StageFailed, ToStage
from wire.sockets import Spoke
from workers.comm import tensor_group
from workers.comm.rendezvous import EPOCH, stages_store
from workers.comm.transport import TransportError
from workers.device.overlooked_gpu import why_overlooked
from workers.heartbeat import HeartbeatThread, Progress
from workers.loading import StagePlace
from workers.stage import Stage

# Between two attempts to meet: an unreachable network would otherwise cause restarts in a loop.
MEET_AGAIN_S = 1.0

log = logging.getLogger("tdpipe")


class ApartError(Exception):
    """The other stages cannot be reached."""


def main(runtime_dir: str, num_incarnations: int) -> None:
    """Run one stage until it fails, and exit with code 1.

    `num_incarnations` counts the torchrun processes before this one.

    A failure at the first start would only be repeated: it is written to the runtime folder and
    ends the daemon. After a later failure torchrun restarts the group, up to the engine's limit, or
    without a limit while the stages do not reach each other.
    """
    forget_handlers()
    child_process.tie_to_parent()
    log_file.follow()
    config = loader.load_saved(Path(runtime_dir))
    runtime = config.runtime
    logging.disable(logging.NOTSET)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="torch.distributed")
    with ExitStack() as stack:
        incarnation = num_incarnations + int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        stage, epoch = _start(config, stack, incarnation)
        engine = stack.enter_context(
            Spoke[ToStage](runtime.stage_address, stage.rank_name, ToStage, runtime.secret)
        )
        try:
            stage.run(engine)
        except Exception as error:
            cause = _root_cause(error)
            log.error("%s", cause, exc_info=config.logs.log_level == "debug")
            if not isinstance(error, TransportError):  # else the fault is a neighbour's
                is_oom = is_out_of_memory(error)
                step_id, pid = stage.step_id, os.getpid()
                failed = StageFailed(stage.number, epoch, step_id, cause, False, is_oom, pid)
                engine.send(failed)
            sys.exit(1)


def forget_handlers() -> None:
    """End on a signal by default, whatever handlers the process had that this was forked from."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _start(config: Config, stack: ExitStack, incarnation: int) -> tuple[Stage, int]:
    """A ready stage with its heartbeat, and the group's epoch; exits where that fails."""
    # Each incarnation of the group has a higher epoch, even if the clock is set back.
    epoch, runtime = int(os.environ.get(EPOCH, incarnation + 1)), config.runtime
    try:
        place = _join_group(config, epoch)
        progress = Progress()
        logs.set_up(place.name, config.logs)
        entitle(place.name)
        if place.tensor_rank:  # it does what rank 0 of its stage logs
            log.setLevel(logging.WARNING)
        if not incarnation and os.environ["LOCAL_RANK"] == "0":
            _warn_of_overlooked_gpu(config.pipeline.device, place.device)
        # From here on, so that a stage that hangs while it loads is noticed too.
        exact = place.device.type == "cpu" or config.pipeline.exact_times
        stack.enter_context(
            HeartbeatThread(
                runtime.stage_address,
                place.stage,
                epoch,
                progress,
                exact,
                runtime.secret,
                place.tensor_rank,
            )
        )
        stage = Stage(config.engine, runtime.data_dir, place, progress)
        stage.fingerprint.save(runtime.folder)
    except Exception as error:  # the edge of the process: any failure is logged in one line
        global_rank, cause = int(os.environ["RANK"]), _root_cause(error)
        ranks_per_stage = config.pipeline.tensor_parallel_size
        number, tensor_rank = ranks.stage_and_rank(global_rank, ranks_per_stage)
        name = ranks.describe(number, tensor_rank)
        is_apart = isinstance(error, ApartError)
        # Where the daemon already ends for the same reason, one report is enough.
        is_logged = not incarnation or child_process.reported_failure(runtime.folder) is not None
        level = logging.DEBUG if is_logged else logging.ERROR
        logs.set_up("stages", config.logs).log(
            level, "%s: %s", name, cause, exc_info=config.logs.log_level == "debug"
        )
        if not incarnation:
            child_process.report_failure(runtime.folder, f"{name}: {cause}")
        with Spoke[None](
            runtime.stage_address, f"failed-{global_rank}", None, runtime.secret
        ) as engine:
            is_oom = is_out_of_memory(error)
            engine.send(StageFailed(number, epoch, -1, cause, is_apart, is_oom, os.getpid()))
        if is_apart and incarnation:
            time.sleep(MEET_AGAIN_S)
        sys.exit(1)
    return stage, epoch


def _warn_of_overlooked_gpu(wanted: str, device: torch.device) -> None:
    if wanted != "auto" or device.type != "cpu":
        return
    reason = why_overlooked(torch.version.cuda, os.environ)
    if reason is not None:
        log.warning(
            "THE STAGES RUN ON THE CPU, although this machine has a GPU: %s (--device cpu: this is "
            "wanted)",
            reason,
        )


def _join_group(config: Config, epoch: int) -> StagePlace:
    """Join the other stages. Raises `ApartError`."""
    pipeline, num_local = config.pipeline, int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(pipeline.num_threads or max(1, _num_cores() // num_local))
    local_rank = dist.get_node_local_rank(fallback_rank=0)
    device, backend, sharing, turn = torch.device("cpu"), "gloo", num_local, local_rank
    if pipeline.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU")
    if pipeline.device != "cpu" and torch.cuda.is_available():
        num_gpus = torch.cuda.device_count()
        turn, number = divmod(local_rank, num_gpus)  # stages take the devices in turn
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
        # NCCL refuses two ranks on one GPU (before 2.30); gloo then stages through the host.
        backend = "nccl" if num_gpus >= num_local else "gloo"
        sharing = -(-num_local // num_gpus)
    num_processes = int(os.environ["WORLD_SIZE"])
    if num_processes != pipeline.num_ranks:
        raise ValueError(
            f"{num_processes} processes for {pipeline.num_ranks} ranks (pipeline_parallel_size x "
            "tensor_parallel_size)"
        )
    _meet(config, backend, device)
    timeout = timedelta(seconds=pipeline.distributed_timeout_seconds)
    size = pipeline.tensor_parallel_size
    group = tensor_group.join(pipeline.pipeline_parallel_size, size, device, timeout)
    stage, _ = ranks.stage_and_rank(dist.get_rank(), size)
    return StagePlace(stage, epoch, device, sharing, group, turn)


def _meet(config: Config, backend: str, device: torch.device) -> None:
    timeout = timedelta(seconds=config.pipeline.stage_start_timeout)
    store = stages_store(config.nodes, config.runtime.folder, timeout)
    store.set(f"stage-{os.environ['RANK']}", backend)  # a failure here is not the others' fault
    try:
        num_ranks = config.pipeline.num_ranks
        backends = {store.get(f"stage-{rank}").decode() for rank in range(num_ranks)}
        if len(backends) > 1:  # one node has fewer GPUs than stages, or none
            backend = "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=int(os.environ["RANK"]),
            world_size=num_ranks,
            timeout=timeout,
            device_id=device if backend == "nccl" else None,
        )
    except RuntimeError as error:  # gloo, NCCL and the store all raise this
        if "cuda" in str(error).lower():
            raise
        raise ApartError(f"the other stages cannot be reached: {error}") from error


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no more memory, anywhere in the chain of causes.

    torch has an exception of its own for devices, and for a CPU only a `RuntimeError` with a text.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(at, RuntimeError) and "can't allocate memory" in str(at):
            return True
        at = at.__cause__
    return False


def _root_cause(error: BaseException) -> str:
    """The first line of the outermost message that has text: ours, where this package raised it."""
    at: BaseException | None = error
    while at is not None:
        lines = [line.strip() for line in str(at).splitlines() if line.strip()]
        if lines:
            return lines[0]
        at = at.__cause__
    return type(error).__name__
