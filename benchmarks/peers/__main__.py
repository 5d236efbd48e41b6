"""The same workload through other engines and through tdpipe, in turn: `make peers`.

Each round starts every candidate once, one after the other, because a machine's speed differs from
hour to hour. Prints output tokens per second, medians over the rounds, and the ratio of tdpipe's
best to each. Engines are installed into environments of their own (`make peers` does it); one that
is not there, or that fails, is named and left out.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.machine import describe_machine
from benchmarks.peers.workload import MODELS, make_model, make_requests, write_requests

RUN_ENGINE = Path(__file__).parent / "run_engine.py"
TCMALLOC = Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")  # Debian's


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine with its settings; `python` is that of its environment."""

    name: str
    engine: str
    python: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def model(self, checkpoint: Path) -> Path:
        """The folder of the model in the engine's own format."""
        return checkpoint.with_name(f"{checkpoint.name}-openvino") if self._exports else checkpoint

    @property
    def _exports(self) -> bool:
        return self.engine == "openvino"

    def prepare(self, checkpoint: Path) -> None:
        """Export the model where the engine needs that. Raises CalledProcessError."""
        made = self.model(checkpoint)
        if not self._exports or made.exists():
            return
        command = [
            str(self.python.parent / "optimum-cli"),
            "export",
            "openvino",
            f"-m={checkpoint}",
        ]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp16", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)

    def command(self, checkpoint: Path, requests: Path, num_runs: int) -> list[str]:
        """The command of one start."""
        command = [str(self.python), str(RUN_ENGINE), self.engine, str(self.model(checkpoint))]
        command += [str(requests), f"--runs={num_runs}"]
        return command + [f"--set={name}={json.dumps(v)}" for name, v in self.settings.items()]


def candidates(folder: Path, data_dir: Path) -> list[Candidate]:
    """All of them; `folder` has the environments of the others."""
    ours = {"pipeline_parallel_size": 2, "data_dir": str(data_dir)}
    vllm = folder / "vllm" / "bin" / "python"
    space = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    libraries = [path for path in (TCMALLOC, folder / "vllm/lib/libiomp5.so") if path.exists()]
    if libraries:  # vLLM's documentation advises both on CPUs
        space["LD_PRELOAD"] = ":".join(map(str, libraries))
    return [
        *(
            Candidate(f"tdpipe, 2 stages, {policy}", "tdpipe", Path(sys.executable), settings)
            for policy in ("td-pipe", "temporal")
            for settings in [ours | {"policy": policy}]
        ),
        *(
            Candidate(
                f"vLLM, {name}, {dtype}",
                "vllm",
                vllm,
                {"dtype": dtype, **settings},
                space | {"VLLM_CPU_OMP_THREADS_BIND": cores},
            )
            # Where torch's bf16 is slow, which vLLM uses, fp32 may be its best setting.
            for dtype in ("bfloat16", "float32")[: 1 if has_bf16_products() else 2]
            for name, settings, cores in (
                ("2 stages", {"pipeline_parallel_size": 2}, "0|1"),
                ("2 threads", {}, "0-1"),
            )
        ),
        Candidate(
            "OpenVINO GenAI, 2 threads",
            "openvino",
            folder / "openvino" / "bin" / "python",
            {"dtype": "bf16" if has_bf16_products() else "f32"},  # it refuses bf16 elsewhere
        ),
    ]


def has_bf16_products() -> bool:
    """Whether torch, which vLLM uses, has fast bf16 products on this CPU."""
    is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # private
    return is_supported is None or bool(is_supported())


@dataclass(frozen=True, slots=True)
class Result:
    """One run: seconds, and numbers of tokens."""

    seconds: float
    num_output_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    wrong: int

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.num_output_tokens / self.seconds

    @property
    def cached_share(self) -> float:
        """The share of the prompts' tokens that were in the prefix cache, 0 to 1."""
        return self.num_cached_tokens / self.num_prompt_tokens


def run(candidate: Candidate, command: Sequence[str], timeout_s: float) -> list[Result]:
    """The result of each run. Raises RuntimeError with the engine's last words."""
    with subprocess.Popen(
        command,
        env=os.environ | candidate.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not ready within {timeout_s:,.0f} s") from None
        finally:
            with suppress(ProcessLookupError):  # an engine's workers end with it
                os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    results = [Result(**json.loads(line.removeprefix("RESULT "))) for line in lines]
    if process.returncode or not results:
        last = (errors or output).strip().splitlines()[-1:]
        raise RuntimeError(f"exit code {process.returncode}: {''.join(last)}")
    if any(result.wrong for result in results):
        raise RuntimeError("it did not generate the wanted numbers of tokens")
    return results


def table(rates: Mapping[str, Sequence[float]]) -> list[str]:
    """The table as Markdown: the median, all figures, and tdpipe's best median over this one."""
    medians = {name: statistics.median(found) for name, found in rates.items() if found}
    best = max((rate for name, rate in medians.items() if name.startswith("tdpipe")), default=0.0)
    lines = [
        "| engine | output tokens/s | all rounds | tdpipe's best / this |",
        "|---|---|---|---|",
    ]
    for name, found in rates.items():
        if not found:
            lines.append(f"| {name} | not run | | |")
            continue
        each = ", ".join(f"{rate:,.0f}" for rate in found)
        lines.append(f"| {name} | {medians[name]:,.0f} | {each} | {best / medians[name]:.2f} |")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run all candidates and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make peers ARGS=...", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=Path(".venv-peers"), help="environments, models, data")
    add("--model", choices=MODELS, default="llama-120m", help="[llama-120m]")
    add("--requests", type=int, default=200, help="number of requests [200]")
    add("--rounds", type=int, default=2, help="starts of each engine [2]")
    add("--runs", type=int, default=2, help="runs in each start [2]")
    add("--timeout", type=float, default=1800.0, help="seconds of one start [1800]")
    add("--only", help="only candidates whose name contains this")
    options = parser.parse_args(argv)
    folder: Path = options.folder.resolve()
    checkpoint = make_model(folder / "models", options.model)
    requests = folder / "requests.json"
    write_requests(make_requests()[: options.requests], requests)
    rates: dict[str, list[float]] = {}
    chosen = [c for c in candidates(folder, folder / "data") if (options.only or "") in c.name]
    for number in range(options.rounds):
        for candidate in chosen:
            found = rates.setdefault(candidate.name, [])
            try:
                if not candidate.python.exists():
                    raise RuntimeError(f"{candidate.python} is not there")
                candidate.prepare(checkpoint)
                command = candidate.command(checkpoint, requests, options.runs)
                found += [result.rate for result in run(candidate, command, options.timeout)]
                print(f"round {number + 1}, {candidate.name}: {found[-1]:,.0f}", file=sys.stderr)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"round {number + 1}, {candidate.name}: {error}", file=sys.stderr)
    machine = describe_machine()
    print(f"{options.model}, bf16, {options.requests} requests; {machine['cpu']}, ", end="")
    print(f"{machine['num_cores']} cores\n")
    print("\n".join(table(rates)))
    return 0 if any(rates.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
