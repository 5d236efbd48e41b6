"""`tdpipe doctor`: with the flags of `tdpipe serve`, on every node, before the daemon starts.

It checks versions, devices, limits, and, if there are several nodes, whether they find and reach
each other, have the same model and settings, and how fast the links between them are. It starts no
stages. A hub id is fetched and a GGUF file converted, as by the daemon. The exit code is 1 if there
is an error.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence

from configs import loader
from configs.config import Config
from daemon.checkpoint.resolution import resolve
from daemon.start_error import StartError
from doctor.findings import Finding, error, warning

NO_HASHES = "--no-hashes"
HELP = f"""usage: tdpipe doctor [{NO_HASHES}] [MODEL] [the options of tdpipe serve]

{__doc__}
options:
  {NO_HASHES:15} do not read the files of the model as a whole
  -h, --help      show this help
"""


def main(argv: Sequence[str]) -> int:
    """Print the findings; returns the exit code."""
    given = [*argv]
    if "-h" in given or "--help" in given:
        print(HELP)
        return 0
    has_hashes = NO_HASHES not in given
    try:
        config = loader.load([word for word in given if word != NO_HASHES])
    except loader.ConfigError as problem:
        print(f"tdpipe: error: {problem}", file=sys.stderr)
        return 2
    num_errors = 0
    try:
        for finding in examine(config, has_hashes=has_hashes):
            print(finding, flush=True)
            num_errors += finding.level == "error"
    except KeyboardInterrupt:
        return 130
    return int(num_errors > 0)


def examine(config: Config, *, has_hashes: bool) -> Iterator[Finding]:
    """All checks, those between nodes only if there are several."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.basicConfig(format="%(message)s")  # to standard error: findings go to standard output
    logging.getLogger("tdpipe").setLevel(logging.INFO)
    # Late imports: torch takes seconds.
    from doctor import node_checks

    yield from node_checks.check_node(config)
    meeting_point = list(node_checks.check_meeting_point(config))
    yield from meeting_point
    can_meet = all(finding.level == "ok" for finding in meeting_point)
    try:
        resolved = resolve(config, threading.Event())
    except StartError as problem:
        yield error("model", str(problem))
        return
    if config.nodes.nnodes > 1 and can_meet:
        yield from _examine_cluster(resolved, has_hashes=has_hashes)


def _examine_cluster(config: Config, *, has_hashes: bool) -> Iterator[Finding]:
    import zmq

    from doctor import cluster_checks, links
    from doctor.meeting import ApartError, meeting
    from doctor.node_checks import nccl_of
    from workers.stage_restarts import interface_of

    try:
        interface = interface_of(config.nodes)
        if os.environ.setdefault("GLOO_SOCKET_IFNAME", interface) != interface:
            yield warning(
                "ports",
                f"GLOO_SOCKET_IFNAME is {os.environ['GLOO_SOCKET_IFNAME']}, and {interface} has "
                "the address of this node (--node-ip): the stages use the former",
            )
        with meeting(config) as met:
            yield from cluster_checks.check_nccl(met, nccl_of(config))
            yield from cluster_checks.check_names(met, config)
            ports = list(cluster_checks.check_ports(met, config))
            yield from ports
            yield from cluster_checks.check_clocks(met)
            yield from cluster_checks.check_files(met, config, reads=has_hashes)
            is_apart = any(finding.level == "error" for finding in ports)
            met.tell("is apart", str(is_apart))
            if "True" not in met.hear_all("is apart"):  # gloo would wait for minutes
                yield from links.check_links(met, config)
    except ApartError as problem:
        yield error("meeting", str(problem))
    except (OSError, RuntimeError, zmq.ZMQError) as problem:
        yield error("nodes", str(problem).splitlines()[0])
