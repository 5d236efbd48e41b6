"""Settings of the pipeline: its stages, how their failures are detected, and their KV cache."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from configs.schema.part import Part

AttentionBackend = Literal["auto", "plain", "native", "triton", "flashinfer"]
KvCacheDtype = Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]


class PipelineConfig(Part, title="Pipeline"):
    """How the model is split into stages, where they run, and when one counts as failed."""

    pipeline_parallel_size: int = Field(2, ge=1, le=256, description="number of stages S")
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="ranks that share each stage's layers: every weight matrix is divided, which "
        "costs two sums over all ranks per layer; within a host with fast links only",
    )
    virtual_pipeline_size: int = Field(
        1,
        ge=1,
        le=64,
        description="virtual stages v per stage: a stage holds v slices of the layers, and a step "
        "passes all stages v times; shortens filling and draining, and costs more transfers",
    )
    layer_split: tuple[int, ...] | Literal["auto"] | None = Field(
        None,
        description="layers per stage, e.g. 10,10,12,8, or per virtual stage, in the order of the "
        "layers; auto: balanced by measured times [balanced by parameters, including embedding and "
        "head]",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the stages; auto: GPUs if there are any"
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads per stage [number of cores divided by stages]"
    )
    attention_backend: AttentionBackend = Field(
        "auto",
        description="how attention is computed; native: C++ kernels for CPUs, compiled at the "
        "first start; triton: kernels for GPUs; flashinfer: those of FlashInfer, if it is "
        "installed; plain: torch's own operations; auto: native or triton, otherwise plain",
    )
    batch_invariant: bool = Field(
        False,
        description="the tokens of an answer must not depend on the other requests, unless it is "
        "preempted: oneDNN may not use AMX, and the start fails where this is not enough, e.g. on "
        "GPUs",
    )
    enforce_eager: bool = Field(
        False,
        description="run decode steps without CUDA graphs, which are captured at the start; no "
        "effect on CPUs",
    )
    distributed_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="maximum time that a stage may wait for its neighbour, and maximum time of a "
        "forward pass",
    )
    stage_start_timeout: float = Field(
        600.0, gt=0, description="time within which all stages must have loaded their weights"
    )
    heartbeat_timeout: float = Field(
        1.5,
        gt=0,
        description="time without a heartbeat after which a process is considered lost; a stage "
        "that waits for its neighbour also is if no stage makes progress for this time",
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="maximum restarts of the stages, and of the engine, within restart_window; one "
        "more failure ends the daemon",
    )
    restart_window: float = Field(
        600.0, gt=0, description="period over which max_restarts counts restarts"
    )
    profile: Path | None = Field(
        None, description="step costs from `tdpipe profile` [measured at the first start]"
    )
    profile_seconds: float = Field(
        5.0,
        ge=0,
        description="time for which a stage measures its step costs at the first start; 0: never",
    )
    remeasure: bool = Field(
        False,
        description="measure step costs, and the layer times of --layer-split auto, again instead "
        "of using those of an earlier start",
    )
    exact_times: bool = Field(
        False,
        description="synchronise GPU stages after each step, so that step times are exact; for "
        "traces and measurements; reduces overlap",
    )

    @property
    def num_ranks(self) -> int:
        """The processes of all stages."""
        return self.pipeline_parallel_size * self.tensor_parallel_size

    @field_validator("layer_split", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if not isinstance(value, str) or value == "auto":
            return value
        return [part.strip() for part in value.split(",")]

    @model_validator(mode="after")
    def _split_fits_stages(self) -> Self:
        split, num_slices = self.layer_split, self.virtual_pipeline_size
        num_parts = num_slices * self.pipeline_parallel_size
        if isinstance(split, tuple) and (len(split) != num_parts or min(split) < 1):
            given = ",".join(map(str, split)) or "(empty)"
            stages = f"{num_parts} stages (pipeline_parallel_size)"
            if num_slices > 1:
                stages = f"{num_parts} virtual stages (pipeline_parallel_size x {num_slices})"
            raise ValueError(
                f"layer_split {given} must name at least one layer for each of the {stages}"
            )
        if split == "auto" and num_slices > 1:
            raise ValueError("layer_split auto needs virtual_pipeline_size 1")
        if self.tensor_parallel_size > 1 and num_slices > 1:
            # The order in which a stage runs its slices depends on what arrives first, but all of
            # its ranks must run the same one at the same time.
            raise ValueError("tensor_parallel_size above 1 needs virtual_pipeline_size 1")
        return self


class CacheConfig(Part, title="KV cache"):
    """Size and type of the KV cache of a stage."""

    block_size: int = Field(16, ge=1, le=1024, description="tokens in a KV block")
    kv_cache_dtype: KvCacheDtype = Field(
        "auto",
        description="type of the keys and values in the cache; auto: that of the model; fp8 "
        "(fp8_e4m3) and fp8_e5m2 take half of the memory of 16-bit values, and change the logits",
    )
    kv_cache_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="KV cache per stage [by gpu_memory_utilization; on a CPU 40 % of the free "
        "memory, divided by stages]",
    )
    enable_prefix_caching: bool = Field(
        True,
        description="keep the KV of full blocks as long as there is memory, so that prompts which "
        "begin with the same tokens compute them once",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="fraction of GPU memory for weights, activations and KV cache",
    )

    @field_validator("kv_cache_dtype")
    @classmethod
    def _one_name_each(cls, value: KvCacheDtype) -> KvCacheDtype:
        return "fp8_e4m3" if value == "fp8" else value
