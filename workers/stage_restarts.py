"""torchrun: starts and restarts the group of stages, one process per stage.

torchrun notices within a tenth of a second that a stage has died, and restarts the whole group. The
stages are forked from this process where that is safe: torch and transformers are imported once,
not once per stage (5 s of CPU each), and a restarted group is ready as soon as its weights are
loaded. torchrun's long report of a failure is kept out of the log: the stages have logged the cause
in a line.
"""

import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.run import config_from_args, parse_args

from configs import loader
from configs.config import Config
from configs.schema.nodes import NodesConfig
from configs.schema.pipeline import PipelineConfig
from daemon.host import addresses, meeting_point
from daemon.host.node_facts import facts_of
from daemon.observability import logs
from daemon.processes import child_process
from daemon.processes.process_exits import ExitFile
from daemon.processes.process_priority import lower_priority
from daemon.processes.watchdog_file import WatchdogFile
from workers import process
from workers.comm import rendezvous
from workers.comm.node_link import (
    FIRST_LOG_S,
    INTERVAL_S,
    LOG_INTERVAL_S,
    NodeLink,
    RefusedError,
)
from workers.model import batch_invariance
from workers.stage_agent import StageAgent, StagePids

log = logging.getLogger("tdpipe")

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
    if config.nodes.nnodes > 1:
        _log_as_node(config)
        try:
            wait_for_route(config, watchdog_file.beat)
            interface = interface_of(config.nodes)
        except OSError as error:  # also TimeoutError
            child_process.report_failure(config.runtime.folder, str(error))
            return 1
        if not incarnation:
            _warn_of_loopback(config.nodes)
    else:
        interface = LOOPBACK
    for library in ("GLOO", "NCCL"):  # these would listen on all interfaces
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    if not _uses_gpus(config.pipeline):
        lower_priority(NICENESS)
    if config.pipeline.batch_invariant:
        batch_invariance.limit_onednn()
    arguments = parse_args([*_torchrun_flags(config), f"--log-dir={folder}", "stage"])
    launch_config, _, _ = config_from_args(arguments)
    try:
        with ExitStack() as stack:
            pids = StagePids()
            agent = StageAgent(
                launch_config,
                _rendezvous(config, watchdog_file, launch_config.run_id, pids, stack),
                config.runtime.folder,
                process.main,
                (folder, incarnation * _INCARNATIONS_APART),
                pids,
                config.pipeline.tensor_parallel_size,
            )
            return int(agent.run().is_failed())
    except SignalException:
        return 0
    except DistError as error:  # a node was lost while the group began
        log.error("the nodes did not meet: %s", str(error).splitlines()[0])
        return 1
    except (RefusedError, TimeoutError, OSError) as error:
        child_process.report_failure(config.runtime.folder, str(error))
        return 1


def _rendezvous(
    config: Config, watchdog_file: WatchdogFile, run_id: str, pids: StagePids, stack: ExitStack
) -> RendezvousHandler:
    if config.nodes.nnodes == 1:
        return rendezvous.OneHost(watchdog_file, run_id)
    # Before the node is heard of: where the first node cannot listen, there is nobody to hear.
    listener = rendezvous.listen(config.nodes) if config.nodes.node_rank == 0 else None
    num_local = config.nodes.num_local_stages(config.pipeline)
    log.info(
        "node %d of %d: %d of %d stages; gloo uses the interface %s, NCCL %s",
        config.nodes.node_rank,
        config.nodes.nnodes,
        num_local,
        config.pipeline.pipeline_parallel_size,
        os.environ["GLOO_SOCKET_IFNAME"],
        os.environ["NCCL_SOCKET_IFNAME"],
    )
    link = NodeLink(
        config.nodes,
        config.runtime.stage_address,
        config.runtime.secret,
        num_local,
        facts_of(config),
        pids.kill,
        partial(pids.first_exit, ExitFile(config.runtime.folder)),
    )
    stack.enter_context(link)
    timeout_s = config.pipeline.stage_start_timeout
    return rendezvous.ManyNodes(watchdog_file, run_id, config.nodes, link, timeout_s, listener)


def _log_as_node(config: Config) -> None:
    """Log what the nodes wait for, but not torchrun's reports."""
    logs.set_up("node", config.logs)
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.disabled = True


def wait_for_route(config: Config, beat: Callable[[], None]) -> None:
    """Wait until the first node's name is known, and there is a route to it.

    `beat` is called several times a second, although a name server may take a minute to answer.
    Raises `TimeoutError` after `stage_start_timeout`.
    """
    nodes, timeout_s = config.nodes, config.pipeline.stage_start_timeout
    began_at = time.monotonic()
    next_log_at = began_at + FIRST_LOG_S
    obstacles = [f"master_addr {nodes.master_addr} is not known yet"]
    asking = threading.Thread(target=_ask_for_route, args=(nodes, obstacles), daemon=True)
    asking.start()
    while obstacles[-1]:
        now = time.monotonic()
        if now - began_at > timeout_s:
            raise TimeoutError(f"after {timeout_s:g} s (stage_start_timeout): {obstacles[-1]}")
        if now >= next_log_at:
            log.info("node %d waits: %s", nodes.node_rank, obstacles[-1])
            next_log_at = now + LOG_INTERVAL_S
        beat()
        asking.join(INTERVAL_S)


def _ask_for_route(config: NodesConfig, obstacles: list[str]) -> None:
    """Append what is in the way, again and again, and at last that nothing is."""
    while obstacles[-1]:
        obstacles[:] = [_obstacle(config)]
        if obstacles[-1]:
            time.sleep(INTERVAL_S)


def _obstacle(config: NodesConfig) -> str:
    try:
        addresses.resolve(config.master_addr)
        own_address(config)
    except socket.gaierror as error:
        return f"master_addr {config.master_addr} is not known yet ({error.strerror})"
    except OSError as error:
        return f"there is no route to master_addr {config.master_addr} yet ({error.strerror})"
    return ""


def _warn_of_loopback(config: NodesConfig) -> None:
    address = addresses.numeric(config.master_addr)
    if addresses.is_loopback(address):
        name = f" is {address} here," if address != config.master_addr else ":"
        log.warning(
            "master_addr %s%s a loopback address, which no other host can reach; give the first "
            "node's address in the network of the nodes (a name may have the other one from "
            "/etc/hosts)",
            config.master_addr,
            name,
        )


def interface_of(config: NodesConfig) -> str:
    """The network interface for the traffic between stages.

    Raises `OSError` if this node has no such address, or no route to the first node.
    """
    return meeting_point.interface_of(own_address(config))


def own_address(config: NodesConfig) -> str:
    """This node's address, by default that of the route to the first node; nothing is sent.

    Raises `OSError` if there is no such route.
    """
    if config.node_ip:
        return config.node_ip
    family, address = addresses.resolve(config.master_addr, config.master_port)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


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


def _torchrun_flags(config: Config) -> list[str]:
    num_local = config.nodes.num_local_ranks(config.pipeline)
    return [
        f"--rdzv-id={uuid.uuid4()}",
        f"--nproc-per-node={num_local}",
        # The engine decides how many restarts are too many: it has the time of each failure.
        f"--max-restarts={_ALWAYS if config.pipeline.max_restarts else 0}",
        "--monitor-interval=0.1",
        f"--start-method={'spawn' if _uses_gpus(config.pipeline) else 'fork'}",
    ]
