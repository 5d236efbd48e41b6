"""The soak test: `make soak` runs mixed traffic with faults for 20 minutes, and without faults for
11 more, so that engine and stages run long enough to show a leak.

A daemon with the demo model answers streams, whole answers, chats, several choices, bad input,
clients that disconnect, and batches. Every 30 seconds on average a stage, the engine, torchrun or
the predictor is killed or stopped. At the end every answer that was waited for must have arrived,
and be the one that an undisturbed daemon gave; no KV block, process or descriptor may be left over,
no process that has run for ten minutes may grow, and the journal must replay to the same decisions.

The command prints the findings, and exits with 1 if any of these checks fails.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from bench.machine import describe_machine
from bench.results.daemon_figures import parse_figures
from benchmarks.daemon_run import END_TIMEOUT_S, ROOT, log_of, serving
from benchmarks.stress.processes import Processes
from configs.schema.model import DEMO_MODEL
from demo.tasks import held_out

MODEL = "tdpipe-demo"
PREDICTOR = ROOT / "demo" / "predictor"
NUM_STAGES = 2
NUM_ASKS, NUM_CLIENTS, NUM_LINES = 48, 12, 150
RECOVERY_TIMEOUT_S, ANSWER_TIMEOUT_S = 60.0, 180.0
SAMPLE_S = 2.0

# Faults, drawn uniformly; a fault that is listed twice is twice as likely.
FAULTS = (
    ("stage", signal.SIGKILL),
    ("stage", signal.SIGKILL),
    ("stage", signal.SIGSTOP),
    ("engine", signal.SIGKILL),
    ("engine", signal.SIGKILL),
    ("engine", signal.SIGSTOP),
    ("torchrun", signal.SIGKILL),
    ("predictor", signal.SIGKILL),
)
BAD = (
    {"prompt": "x", "max_tokens": -1},
    {"prompt": [10**9]},
    {"prompt": "x", "temperature": "warm"},
    {"prompt": "x", "no_such_field": 1},
    {"prompt": "x " * 20_000},
    {"prompt": "x", "structured_outputs": {"regex": "("}},
)

FORM = "([a-z]{3,9} ){5,30}[0-9]{4}"

Text = tuple[str, ...]


@dataclass(frozen=True)
class SoakRequest:
    """A request and how it is sent; its choices' texts are always the same."""

    is_chat: bool
    stream: bool
    body: dict[str, Any]


@dataclass
class Findings:
    """What was observed, and the problems in it."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)

    def check(self, right: bool, problem: str) -> None:
        """Add a problem unless `right`."""
        if not right:
            self.problems.append(problem)


def make_asks(count: int, rng: random.Random) -> list[SoakRequest]:
    """Return greedy tasks, long seeded draws, forms, penalties, chats, and several choices."""
    asks = []
    drawn = {"temperature": 1.0, "extra_body": {"ignore_eos": True}}
    formed = {"temperature": 1.0, "extra_body": {"structured_outputs": {"regex": FORM}}}
    penalised = {"temperature": 0.0, "frequency_penalty": 0.7, "presence_penalty": 0.3}
    for i, task in enumerate(held_out(count, seed=23)):
        common = {"model": MODEL, "max_tokens": rng.choice([20, 60, 200]), "seed": i}
        body = common | ({"temperature": 0.0}, drawn, formed, penalised)[i % 4]
        if i % 6 > 3:
            message = {"role": "user", "content": task.prompt.strip()}
            asks.append(SoakRequest(True, i % 2 == 0, body | {"messages": [message]}))
        else:
            several = {"n": 3} if i % 5 == 0 else {}
            asks.append(SoakRequest(False, i % 2 == 0, body | several | {"prompt": task.prompt}))
    return asks


async def answer(client: openai.AsyncOpenAI, ask: SoakRequest, leave_after: int = 0) -> Text:
    """Return the texts of all choices; disconnect after `leave_after` events unless it is 0."""
    create: Callable[..., Awaitable[Any]] = client.completions.create
    if ask.is_chat:
        create = client.chat.completions.create
    texts = [""] * ask.body.get("n", 1)
    if not ask.stream and not leave_after:
        for choice in (await create(**ask.body)).choices:
            texts[choice.index] = choice.message.content if ask.is_chat else choice.text
        return tuple(texts)
    async with await create(**ask.body, stream=True) as events:
        num_events = 0
        async for event in events:
            num_events += 1
            if num_events == leave_after:
                break
            for choice in event.choices:
                texts[choice.index] += (choice.delta.content if ask.is_chat else choice.text) or ""
    return tuple(texts)


class Soak:
    """One daemon under traffic with faults, and then without."""

    def __init__(
        self, url: str, seed: int, seconds: float, calm_s: float, fault_every_s: float
    ) -> None:
        self.findings = Findings()
        self._rng = random.Random(seed)
        self._url = url
        self._seconds, self._calm_s, self._fault_every_s = seconds, calm_s, fault_every_s
        self._ends_at = 0.0
        (self._daemon,) = psutil.Process().children()
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=ANSWER_TIMEOUT_S
        )
        self._asks = make_asks(NUM_ASKS, self._rng)
        self._expected: dict[int, Text] = {}

    async def run(self) -> None:
        """Run undisturbed first, then with faults."""
        for number, ask in enumerate(self._asks):
            self._expected[number] = await answer(self._client, ask)
        kinds = {kind: len(found) for kind, found in self._processes().items()}
        began_at = time.monotonic()
        self._ends_at = began_at + self._seconds + self._calm_s
        async with asyncio.TaskGroup() as group:
            for i in range(NUM_CLIENTS):
                group.create_task(self._ask_on(random.Random(self._rng.random() + i)))
            group.create_task(self._run_batches())
            group.create_task(self._break_things())
            group.create_task(self._sample(began_at))
        await self._client.close()
        await self._wait_ready()
        await self._come_to_rest(kinds)

    async def _ask_on(self, rng: random.Random) -> None:
        while time.monotonic() < self._ends_at:
            kind = rng.choices(("wait", "leave", "bad"), (0.75, 0.15, 0.10))[0]
            number = rng.randrange(len(self._asks))
            try:
                if kind == "wait":
                    texts = await answer(self._client, self._asks[number])
                    self._judge(number, texts)
                elif kind == "leave":
                    await answer(self._client, self._asks[number], leave_after=rng.randint(1, 9))
                else:
                    await self._ask_badly(rng)
            except (openai.APIError, httpx.HTTPError) as error:
                self.findings.problems.append(f"{kind}: {type(error).__name__}: {error}"[:300])
            self.findings.counts[kind] += 1
            await asyncio.sleep(rng.expovariate(4.0))

    def _judge(self, number: int, texts: Text, kind: str = "request") -> None:
        expected = self._expected[number]
        self.findings.check(texts == expected, f"{kind} {number}: {texts!r} is not {expected!r}")

    async def _ask_badly(self, rng: random.Random) -> None:
        body = {"model": MODEL, **rng.choice(BAD)}
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S) as client:
            status = (await client.post(f"{self._url}/v1/completions", json=body)).status_code
        self.findings.check(
            status == 400, f"invalid input was answered with {status}, not with 400"
        )

    async def _run_batches(self) -> None:
        """One batch after the other, each of plain requests with known answers."""
        plain = [
            n for n, a in enumerate(self._asks) if not a.is_chat and "extra_body" not in a.body
        ]
        while time.monotonic() < self._ends_at:
            numbers = [plain[i % len(plain)] for i in range(NUM_LINES)]
            lines = [
                {
                    "custom_id": f"{i} {number}",
                    "method": "POST",
                    "url": "/v1/completions",
                    "body": self._asks[number].body,
                }
                for i, number in enumerate(numbers)
            ]
            content = "\n".join(map(json.dumps, lines)).encode()
            file = await self._client.files.create(file=("in.jsonl", content), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            while batch.status not in ("completed", "failed", "expired"):
                await asyncio.sleep(0.5)
                batch = await self._client.batches.retrieve(batch.id)
            await self._judge_batch(batch.output_file_id, {line["custom_id"] for line in lines})

    async def _judge_batch(self, output_file_id: str | None, custom_ids: set[Any]) -> None:
        if output_file_id is None:
            self.findings.problems.append("a batch ended without an output file")
            return
        output = (await self._client.files.content(output_file_id)).text
        answers = [json.loads(line) for line in output.splitlines()]
        ids = [line["custom_id"] for line in answers]
        self.findings.check(
            set(ids) == custom_ids and len(ids) == len(custom_ids),
            f"a batch of {len(custom_ids)} lines has {len(ids)} answers, {len(set(ids))} ids",
        )
        for line in answers:
            choices = line["response"]["body"]["choices"]
            texts = tuple(choice["text"] for choice in choices)
            self._judge(int(line["custom_id"].split()[1]), texts, "line")
        self.findings.counts["lines of batches"] += len(answers)

    async def _break_things(self) -> None:
        while True:
            pause_s = self._rng.expovariate(1 / self._fault_every_s)
            if time.monotonic() + pause_s > self._ends_at - self._calm_s:
                return
            await asyncio.sleep(pause_s)
            victim, number = self._rng.choice(FAULTS)
            found = self._processes().get(victim, [])
            if not found:
                continue
            with suppress(psutil.NoSuchProcess):
                self._rng.choice(found).send_signal(number)
                self.findings.counts[f"{number.name} of {victim}"] += 1
            broken_at = time.monotonic()
            await asyncio.sleep(0.5)  # until /ready shows the fault, unless it is already repaired
            await self._wait_ready()
            self.findings.recovered_s.append(time.monotonic() - broken_at)

    async def _wait_ready(self) -> None:
        ends_at = time.monotonic() + RECOVERY_TIMEOUT_S
        async with httpx.AsyncClient(timeout=10) as client:
            while (await client.get(f"{self._url}/ready")).status_code != 200:
                if time.monotonic() > ends_at:
                    self.findings.problems.append(
                        f"/ready did not return 200 within {RECOVERY_TIMEOUT_S:g} s"
                    )
                    return
                await asyncio.sleep(0.05)

    async def _sample(self, began_at: float) -> None:
        look = self.findings.processes.look
        while (now := time.monotonic()) < self._ends_at:
            look("supervisor", self._daemon, now - began_at)
            for kind, found in self._processes().items():
                for process in found:
                    look(kind, process, now - began_at)
            await asyncio.sleep(SAMPLE_S)

    async def _come_to_rest(self, kinds: dict[str, int]) -> None:
        """Check that nothing is left over."""
        ends_at = time.monotonic() + 10.0
        blocks = -1
        async with httpx.AsyncClient() as client:
            while time.monotonic() < ends_at and blocks:
                await asyncio.sleep(0.5)
                page = parse_figures((await client.get(f"{self._url}/metrics")).text)
                blocks = int(page["tdpipe_kv_blocks_used", ""])
        now = {kind: len(found) for kind, found in self._processes().items()}
        self.findings.check(
            blocks == 0, f"{blocks} KV blocks are in use although no request is open"
        )
        self.findings.check(now == kinds, f"the processes are {now}, and were {kinds} at the start")
        await asyncio.sleep(1.0)
        (server,) = self._processes()["server"]
        for kind, process in (("server", server), ("supervisor", self._daemon)):
            self.findings.problems += self.findings.processes.left_over(kind, process)
        self.findings.problems += self.findings.processes.problems()

    def _processes(self) -> dict[str, list[psutil.Process]]:
        kinds: dict[str, list[psutil.Process]] = {}
        for child in self._daemon.children():
            with suppress(psutil.NoSuchProcess):
                words = " ".join(child.cmdline()).split()  # it may be a title
                module = words[words.index("-m") + 1]
                kinds["torchrun" if module == "workers" else module] = [child]
                if module == "workers":
                    kinds["stage"] = child.children()
        return kinds


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks.stress.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes with faults [20]")
    parser.add_argument(
        "--calm-minutes", type=float, default=11.0, help="minutes without faults, afterwards [11]"
    )
    parser.add_argument(
        "--fault-every", type=float, default=30.0, help="mean seconds between faults [30]"
    )
    parser.add_argument("--seed", type=int, default=1, help="of traffic and faults [1]")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-soak-") as name:
        folder = Path(name) / "daemon"
        journal = Path(name) / "journal"
        flags = ["--dtype=float32", f"--journal={journal}", "--max-restarts=100000"]
        flags += [f"--predictor={PREDICTOR}", "--policy=td-pipe", "--no-access-log"]
        with serving(DEMO_MODEL, NUM_STAGES, flags, folder) as url:
            seconds, calm_s = 60 * arguments.minutes, 60 * arguments.calm_minutes
            soak = Soak(url, arguments.seed, seconds, calm_s, arguments.fault_every)
            asyncio.run(soak.run())
            descendants = psutil.Process().children(recursive=True)
        findings = soak.findings
        _, alive = psutil.wait_procs(descendants, timeout=END_TIMEOUT_S)
        findings.check(not alive, f"{len(alive)} processes are left")
        replay = [sys.executable, str(ROOT / "tdpipe.py"), "replay", str(journal)]
        replayed = subprocess.run(replay, capture_output=True, text=True, cwd=ROOT, check=False)
        findings.check(replayed.returncode == 0, replayed.stderr.strip())
        report(findings, replayed.stdout.strip())
        if findings.problems:
            sys.stdout.write(log_of(folder)[-20_000:])
    return int(bool(findings.problems))


def report(findings: Findings, replayed: str) -> None:
    """Print the findings in lines."""
    write = sys.stdout.write
    write(f"{json.dumps(describe_machine())}\n")
    for kind, count in sorted(findings.counts.items()):
        write(f"{count:8,}  {kind}\n")
    if findings.recovered_s:
        median, most = statistics.median(findings.recovered_s), max(findings.recovered_s)
        write(f"ready again after {median:.1f} s at the median, {most:.1f} s at most\n")
    for line in findings.processes.table():
        write(f"{line}\n")
    write(f"{replayed}\n{len(findings.problems)} problems\n")
    for problem in findings.problems[:20]:
        write(f"  {problem}\n")


if __name__ == "__main__":
    sys.exit(main())
