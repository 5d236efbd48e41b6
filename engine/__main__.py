"""The engine process: `python -m engine RUNTIME_DIR INCARNATION`, started by the supervisor.

INCARNATION is the number of engine processes that this daemon has started before.
"""

import signal
import sys
from pathlib import Path

import zmq

from configs import loader
from configs.config import Config
from daemon.host.meeting_point import explain_engine
from daemon.host.node_facts import facts_of
from daemon.observability import log_file, logs
from daemon.processes import child_process
from daemon.processes.process_title import entitle
from engine.loop import EngineFailedError, Loop
from engine.nodes import Nodes
from engine.scheduler import ImpossibleSettingsError


def main() -> int:
    """Run until SIGTERM. Returns 1 after a failure and writes its cause to the runtime folder."""
    child_process.tie_to_parent()
    entitle("engine")
    log_file.follow()
    folder = Path(sys.argv[1])
    config = loader.load_saved(folder)
    logs.set_up("engine", config.logs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        incarnation, nodes = int(sys.argv[2]), _nodes(config)
        with Loop(config.engine, config.runtime, incarnation, nodes) as loop:
            loop.run()
    except (EngineFailedError, ImpossibleSettingsError) as error:
        child_process.report_failure(folder, str(error))
        return 1
    except (zmq.ZMQError, OSError) as error:
        child_process.report_failure(folder, explain_engine(config, error.errno) or str(error))
        return 1
    return 0


def _nodes(config: Config) -> Nodes | None:
    """The other nodes, if there are any."""
    num_nodes = config.nodes.nnodes
    if num_nodes == 1:
        return None
    return Nodes(num_nodes, config.pipeline.pipeline_parallel_size, facts_of(config))


if __name__ == "__main__":
    child_process.leave_with(main)
