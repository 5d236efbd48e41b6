"""The systems that are compared, and how many of their requests meet the targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from configs.config import EngineConfig
from configs.schema.router import RouterCoreConfig
from simulator.arrival import Arrival, SequenceTimes, Targets
from simulator.command import make_arrivals
from simulator.hardware.gpus import find_gpu
from simulator.hardware.hardware import Hardware, hardware_of_gpu
from simulator.hardware.model_shape import read_shape
from simulator.macro.disaggregated import Link, simulate_disaggregated
from simulator.macro.instance import InstanceSpec
from simulator.macro.simulation import MacroRun, simulate_macro
from simulator.pipeline import Node
from simulator.workloads.make_workload import make_workload, with_arrivals

GPU = "L20"
MAX_MODEL_LEN = 8192
SIGMA = 0.5
"""Standard deviation of ln(predicted / real output length), for the systems that predict."""
LINKS = {"10 GbE": 1.25e9, "25 GbE": 3.125e9, "NVLink": 200e9}
"""Bytes per second by which an instance sends KV; the network cards are not shared."""
CHUNK, PREFILL_BATCH = 512, 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """Lengths (see `make_workload`), EcoServe's targets for them, and seconds of arrivals.

    A run is six times as long as a request of mean length may take (18, 25 and 24 s): what waits
    or decodes at its end was not served at the rate of the arrivals. In 40 s of ShareGPT, rates
    are met that are half as high again as those that can be served for long.
    """

    name: str
    targets: Targets
    seconds: float
    num_turns: int = 1
    """Of each arrival; with several, the workload is `chat`."""
    turn: str = ""
    """Tokens of a prompt and an answer of `chat`, `IN:OUT`."""

    def named(self, count: int) -> str:
        """The name of so many arrivals, as `make_workload` takes it."""
        turns = f":{self.num_turns}:{self.turn}" if self.turn else ""
        return f"{self.name}:{count}{turns}"

    def num_arrivals(self, rate: float) -> int:
        """Those of a run with so many per second."""
        return max(50, round(rate * self.seconds))


WORKLOADS = (
    Workload("alpaca", Targets(1.0, 0.1), 108.0),
    Workload("sharegpt", Targets(5.0, 0.1), 150.0),
    Workload("longbench", Targets(15.0, 0.1), 144.0),
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Instances of `num_gpus` GPUs each, with a model."""

    model: str
    num_gpus: int
    num_instances: int


# Half of the 32 GPUs of EcoServe's evaluation: 30B models on four GPUs, 70B models on eight.
CLUSTERS = (
    Cluster("llama-30b", 4, 4),
    Cluster("codellama-34b", 4, 4),
    Cluster("qwen2.5-72b", 8, 2),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals, requests per second; a `cv` of 1 is a Poisson process, above 1 it is burstier."""

    workload: Workload
    rate: float
    cv: float = 1.0
    seed: int = 0

    def arrivals(self, sigma: float | None) -> list[Arrival]:
        """The requests, all online."""
        name = self.workload.named(self.workload.num_arrivals(self.rate))
        requests = make_workload(name, seed=self.seed)
        requests = with_arrivals(requests, self.rate, self.cv**-2, self.seed)
        return make_arrivals(requests, sigma, self.seed)


@dataclass(frozen=True, slots=True)
class System:
    """A router over instances: its rule, the policy of the instances, and settings of both.

    With `stages`, an instance is a pipeline of so many stages of `num_gpus / stages` GPUs each.
    """

    name: str
    routing: str
    policy: str
    engine: tuple[tuple[str, object], ...] = ()
    router: tuple[tuple[str, object], ...] = ()
    stages: int = 1
    predicts: bool = False

    def run(self, cluster: Cluster, traffic: Traffic, is_hopeless: "Hopeless") -> MacroRun:
        """Serve the traffic."""
        arrivals = traffic.arrivals(SIGMA if self.predicts else None)
        return self.serve(cluster, traffic.workload.targets, arrivals, is_hopeless)

    def serve(
        self,
        cluster: Cluster,
        targets: Targets,
        arrivals: Sequence[Arrival],
        is_hopeless: "Hopeless",
    ) -> MacroRun:
        """Serve the arrivals."""
        config = RouterCoreConfig.of(routing=self.routing, **dict(self.router))
        specs = [self.spec(cluster, targets)] * cluster.num_instances
        return simulate_macro(config, specs, arrivals, is_hopeless=is_hopeless)

    def spec(self, cluster: Cluster, targets: Targets) -> InstanceSpec:
        """One instance; only policy temporal uses the targets, the status has them in any case."""
        settings = {
            "policy": self.policy,
            "pipeline_parallel_size": self.stages,
            "max_num_seqs": 4096,
            "ttft_slo": targets.ttft_s,
            "tpot_slo": targets.tpot_s,
            **dict(self.engine),
        }
        return InstanceSpec(EngineConfig.of(**settings), node_of(cluster, self.stages))


@dataclass(frozen=True, slots=True)
class Disaggregated:
    """Prefill and decode instances, in the best division of the cluster."""

    name: str
    link: str
    shifts: bool = False

    def run_divided(
        self, cluster: Cluster, traffic: Traffic, num_prefill: int, is_hopeless: "Hopeless"
    ) -> MacroRun:
        """Serve the traffic with so many prefill instances at the start."""
        settings = {
            "policy": "separate",
            "pipeline_parallel_size": 1,
            "max_num_seqs": 4096,
            "max_num_batched_tokens": PREFILL_BATCH,
            "ttft_slo": traffic.workload.targets.ttft_s,
            "tpot_slo": traffic.workload.targets.tpot_s,
        }
        spec = InstanceSpec(EngineConfig.of(**settings), node_of(cluster, 1))
        return simulate_disaggregated(
            spec,
            num_prefill,
            cluster.num_instances - num_prefill,
            Link(LINKS[self.link], read_shape(cluster.model).kv_bytes_per_token),
            traffic.arrivals(None),
            shifts=self.shifts,
            is_hopeless=is_hopeless,
        )


Hopeless = Callable[[Sequence[SequenceTimes], float], bool]

PREFILL_FIRST = (("max_num_batched_tokens", PREFILL_BATCH),)
TDPIPE = System("tdpipe", "adaptive", "temporal", predicts=True)
ECOSERVE = System("EcoServe", "ecoserve", "separate", PREFILL_FIRST)
VLLM_LIKE = System("vLLM-like", "least-loaded", "separate", PREFILL_FIRST)
SYSTEMS: tuple[System | Disaggregated, ...] = (
    VLLM_LIKE,
    System(
        "chunked prefill",
        "least-loaded",
        "hybrid",
        (("hybrid", "vllm"), ("max_num_batched_tokens", CHUNK)),
    ),
    System("throttled hybrid", "least-loaded", "hybrid"),
    *(Disaggregated(f"FuDG, {link}", link) for link in LINKS),
    Disaggregated("Arrow, 10 GbE", "10 GbE", shifts=True),
    ECOSERVE,
    TDPIPE,
)
"""The vLLM-like one is prefill-first with whole prompts, as vLLM was when EcoServe was written."""


@cache
def _hardware(model: str, num_gpus: int) -> Hardware:
    return hardware_of_gpu(find_gpu(GPU), read_shape(model), num_gpus)


def node_of(cluster: Cluster, stages: int) -> Node:
    """The GPUs of an instance as `stages` stages, each of which is a tensor-parallel group."""
    hardware = _hardware(cluster.model, cluster.num_gpus)
    hardware = replace(hardware, tensor_parallel=cluster.num_gpus // stages)
    return hardware.node(stages, EngineConfig().cache.block_size, MAX_MODEL_LEN)
