"""Links: latency and bandwidth between neighbouring nodes, and the bubble that they cause."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from configs.config import Config
from daemon.checkpoint.weight_files import find_weights
from doctor.attendance import GONE_S
from doctor.findings import Finding, ok, warning
from doctor.meeting import ApartError, Meeting
from doctor.node_checks import memory_bandwidth
from workers.comm.node_link import INTERVAL_S
from workers.model.stage_model import bytes_per_token

NUM_TRIPS, NUM_TRANSFERS = 50, 5
# Of one transfer; also when the other node has left.
TIMEOUT_S = 60.0
DECODE_ROWS, PREFILL_TOKENS = 128, 2048
# A hop between two stages on one node (docs/benchmarks.md, links between stages).
LOCAL_HOP_S = 0.0001
# A larger part of the time is worth a warning.
MAX_BUBBLE = 0.1
# Bytes of a message that only says that something has come, or is wanted.
_WORD = 8


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Seconds of half a round trip, and to hand over the activations of two kinds of steps."""

    latency_s: float
    decode_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """Both directions between two nodes, which often differ in bandwidth; `there` comes first."""

    there: LinkTimes
    back: LinkTimes

    def note(self) -> str:
        """As a note for the other nodes."""
        return json.dumps([astuple(self.there), astuple(self.back)])

    @classmethod
    def noted(cls, note: str) -> "Link":
        """What was noted."""
        there, back = json.loads(note)
        return cls(LinkTimes(*there), LinkTimes(*back))


def check_links(meeting: Meeting, config: Config) -> Iterator[Finding]:
    """Measure one link after the other in both directions; the first of its two nodes reports it.

    Raises `ApartError` if a link fails.
    """
    token_bytes = bytes_per_token(config.model)
    try:
        yield from _measure_all(meeting, token_bytes)
    except RuntimeError as error:  # of gloo
        meeting.check_for(GONE_S + 1)  # is there a node that has left?
        raise ApartError(f"a link fails: {str(error).splitlines()[0]}") from error
    if meeting.node == 0:
        links = [Link.noted(meeting.hear("link", first)) for first, _ in _links(meeting.num_nodes)]
        yield predict(config, links, memory_bandwidth(config))


def _measure_all(meeting: Meeting, token_bytes: int) -> Iterator[Finding]:
    _connect(meeting)
    try:
        for first, second in _links(meeting.num_nodes):
            link = _measure(meeting.node, first, second, token_bytes)
            if link is not None:
                meeting.tell("link", link.note())
                yield _report(first, second, link.there, token_bytes)
                yield _report(second, first, link.back, token_bytes)
            meeting.hear("link", first)
    finally:
        dist.destroy_process_group()


def _connect(meeting: Meeting) -> None:
    """Connect all nodes with gloo. Raises `ApartError` if one leaves meanwhile.

    The node that is connected to would wait for it: 150 s were seen, with a timeout of 60.
    """
    failures: list[Exception] = []

    def connect() -> None:
        try:
            dist.init_process_group(
                "gloo",
                store=meeting.store,
                rank=meeting.node,
                world_size=meeting.num_nodes,
                timeout=timedelta(seconds=TIMEOUT_S),
            )
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=connect, name="gloo", daemon=True)
    thread.start()
    while thread.is_alive():
        meeting.check()
        thread.join(INTERVAL_S)
    if failures:
        raise failures[0]


def predict(config: Config, links: list[Link], bytes_per_s: float) -> Finding:
    """The bubble in decode phases, from the time that a stage needs to read its weights.

    `links` are those of `_links`. With S micro-batches in flight, each comes back after its S
    stages and its hops, the last of which takes its tokens to the first node, and a stage computes
    S steps in this time: bubble = hops / (S x step + hops). With v virtual stages, a micro-batch
    passes all stages v times, and between two rounds its activations go to the first one.
    """
    num_stages, num_ranks = config.pipeline.pipeline_parallel_size, config.pipeline.num_ranks
    files = find_weights(Path(config.model.model), config.model.load_format)
    num_bytes = sum(path.stat().st_size for path in files)
    step_s = num_bytes / num_ranks / bytes_per_s
    between = links[: config.nodes.nnodes - 1]
    closing = links[-1].there if config.nodes.nnodes > 2 else links[-1].back
    num_rounds = config.pipeline.virtual_pipeline_size
    round_s = sum(link.there.decode_s for link in between)
    round_s += (num_stages - 1 - len(between)) * LOCAL_HOP_S
    hops_s = num_rounds * round_s + (num_rounds - 1) * closing.decode_s + closing.latency_s
    bubble = hops_s / (num_stages * step_s + hops_s)
    text = (
        f"a rank reads {num_bytes / num_ranks / 1e9:.2f} GB of weights per step, "
        f"{1000 * step_s:.1f} ms at {bytes_per_s / 1e9:.0f} GB/s; with hops of "
        f"{1000 * hops_s:.1f} ms in sum, at most {bubble:.0%} of a decode phase is bubble"
    )
    if bubble > MAX_BUBBLE:
        return warning("pipeline", f"{text}: more rows per step, or fewer nodes, make it less")
    return ok("pipeline", text)


def _links(num_nodes: int) -> list[tuple[int, int]]:
    """The links: from each node to the next one, and from the last to the first one.

    Two nodes have a single link.
    """
    links = [(first, first + 1) for first in range(num_nodes - 1)]
    return links + [(num_nodes - 1, 0)] * (num_nodes > 2)


def _measure(node: int, first: int, second: int, token_bytes: int) -> Link | None:
    """The times of a link; None on nodes that are not its first one."""
    if node not in (first, second):
        return None
    peer, is_first = (second, True) if node == first else (first, False)
    latency_s = _exchange(_WORD, _WORD, NUM_TRIPS, peer, is_first=is_first) / 2
    there, back = [], []
    for size in (DECODE_ROWS * token_bytes, PREFILL_TOKENS * token_bytes):
        there.append(_exchange(size, _WORD, NUM_TRANSFERS, peer, is_first=is_first))
        back.append(_exchange(_WORD, size, NUM_TRANSFERS, peer, is_first=is_first))
    if not is_first:
        return None
    return Link(*(_times(latency_s, seconds) for seconds in (there, back)))


def _times(latency_s: float, seconds: list[float]) -> LinkTimes:
    """Without the word that begins or ends each exchange."""
    return LinkTimes(latency_s, *(max(latency_s, exchange_s - latency_s) for exchange_s in seconds))


def _exchange(num_sent: int, num_answered: int, count: int, there: int, *, is_first: bool) -> float:
    """The median time of a message of the first node and of its answer, after one to warm up."""
    message = torch.zeros(num_sent, dtype=torch.uint8)
    answer = torch.zeros(num_answered, dtype=torch.uint8)
    seconds = []
    for _ in range(1 + count):
        began_at = time.perf_counter()
        if is_first:
            dist.send(message, there)
            dist.recv(answer, there)
        else:
            dist.recv(message, there)
            dist.send(answer, there)
        seconds.append(time.perf_counter() - began_at)
    return median(seconds[1:])


def _report(first: int, second: int, times: LinkTimes, token_bytes: int) -> Finding:
    num_bytes = PREFILL_TOKENS * token_bytes
    rate = 8 * num_bytes / times.prefill_s / 1e9
    return ok(
        "links",
        f"node {first} to node {second}: {1000 * times.latency_s:.2f} ms, {rate:.2f} Gbit/s; "
        f"activations of {DECODE_ROWS} decode rows take {1000 * times.decode_s:.1f} ms, of "
        f"{PREFILL_TOKENS} prompt tokens {1000 * times.prefill_s:.1f} ms (gloo)",
    )
