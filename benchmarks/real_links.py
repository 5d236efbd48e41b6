"""What a slow link costs two CPU stages on two hosts: `make real-links` (as root).

The hosts are network namespaces (tests/hosts.py) with a stage of one thread each, of a random Llama
of 120 M parameters in bf16. For each latency of their link, `tdpipe doctor` predicts the bubble of
decode phases, and then 32 sequences decode with and without asynchronous scheduling. Prints
Markdown.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from tqdm import tqdm

from benchmarks.daemon_run import ROOT
from benchmarks.real_policies import make_random_llama
from tests.cluster import Cluster
from tests.end_to_end.daemon import SECRET, Daemon
from tests.hosts import Hosts

NUM_SEQUENCES, PROMPT_LEN, ANSWER_LEN = 32, 16, 400
# Of the decode phase: its begin and end are no steady decoding.
FROM_S, UNTIL_S = 2.0, 6.0
PATIENCE_S = 300.0
HEADER = """\
| one way, ms | doctor: hops, ms | doctor: bubble, at most | bubble | bubble with async | tokens/s \
| tokens/s with async |
|--:|--:|--:|--:|--:|--:|--:|"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_links", description=__doc__)
    parser.add_argument(
        "--milliseconds", type=float, nargs="+", default=[0, 1, 5, 20], help="[0 1 5 20]"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-links-") as temporary:
        model = make_random_llama(Path(temporary) / "llama")
        rows = [
            measure(model, latency_ms, Path(temporary) / str(latency_ms))
            for latency_ms in tqdm(options.milliseconds, file=sys.stderr)
        ]
    print("\n".join([HEADER, *rows]))
    return 0


def measure(model: Path, latency_ms: float, folder: Path) -> str:
    """A row of the table, for a link of this latency in each direction."""
    with Hosts(2) as hosts:
        hosts.slow_down(1, latency_ms)
        hops_ms, predicted = predict(hosts, model)
        found = []
        for flags in ([], ["--async-scheduling"]):
            arguments = [str(model), "-pp", "2", "--num-threads", "1", *flags]
            run_folder = folder / (flags[0] if flags else "plain")
            with Cluster(hosts, (0, 1), run_folder, *arguments) as cluster:
                found.append(asyncio.run(decode(cluster.first)))
    (bubble, rate), (async_bubble, async_rate) = found
    figures = [f"{latency_ms:g}", hops_ms, predicted, f"{bubble:.0%}", f"{async_bubble:.0%}"]
    return f"| {' | '.join([*figures, f'{rate:,.0f}', f'{async_rate:,.0f}'])} |"


def predict(hosts: Hosts, model: Path) -> tuple[str, str]:
    """What doctor says on the first host: milliseconds of hops, and the bubble."""

    def run(rank: int) -> str:
        command = [*hosts.under(rank), sys.executable, str(ROOT / "tdpipe.py"), "doctor"]
        command += [str(model), "-pp", "2", "--nnodes", "2", "--node-rank", str(rank)]
        command += ["--master-addr", hosts.address(0), "--cluster-secret", SECRET]
        command += ["--device", "cpu", *["--headless"][:rank]]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return result.stdout

    with ThreadPoolExecutor(2) as threads:
        output, _ = threads.map(run, range(2))
    found = re.search(r"hops of (.*) ms in sum, at most (.*) of a decode phase", output)
    if found is None:
        raise RuntimeError(f"no prediction in:\n{output}")
    return found[1], found[2]


async def decode(daemon: Daemon) -> tuple[float, float]:
    """The bubble of the stages and the tokens per second of steady decoding."""
    async with httpx.AsyncClient(base_url=daemon.url, timeout=PATIENCE_S) as client:
        requests = [asyncio.create_task(_ask(client, i)) for i in range(NUM_SEQUENCES)]
        while not daemon.metric("tdpipe_generated_tokens_total"):
            await asyncio.sleep(0.05)
        await asyncio.sleep(FROM_S)
        before, began_at = _counters(daemon), time.monotonic()
        await asyncio.sleep(UNTIL_S - FROM_S)
        after, seconds = _counters(daemon), time.monotonic() - began_at
        if any(request.done() for request in requests):
            raise RuntimeError("the answers ended before the measurement did")
        for request in requests:
            request.cancel()
    busy, bubble, tokens = (late - early for early, late in zip(before, after, strict=True))
    return bubble / (busy + bubble), tokens / seconds


def _counters(daemon: Daemon) -> list[float]:
    """Busy and bubble seconds, sums of the stages, and tokens."""
    names = ("stage_busy_seconds_total", "stage_bubble_seconds_total", "generated_tokens_total")
    return [daemon.metric(f"tdpipe_{name}") for name in names]


async def _ask(client: httpx.AsyncClient, number: int) -> None:
    prompt = [100 + number + i for i in range(PROMPT_LEN)]
    body = {"prompt": prompt, "max_tokens": ANSWER_LEN, "ignore_eos": True, "temperature": 0}
    (await client.post("/v1/completions", json=body)).raise_for_status()


if __name__ == "__main__":
    sys.exit(main())
