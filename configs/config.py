"""The settings composed: one part for each concern, and their flat names outside.

The flat keys (`max_num_seqs`) bear vLLM's names wherever vLLM has the setting, so that a command
line moves over. A class takes the part that it needs (`def __init__(self, config: CacheConfig)`);
only the entry points of processes see all of `Config`.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from configs.schema.model import ChatConfig, ModelConfig
from configs.schema.nodes import NodesConfig
from configs.schema.part import Part
from configs.schema.pipeline import CacheConfig, PipelineConfig
from configs.schema.runtime import LogConfig, RuntimeConfig
from configs.schema.scheduler import PredictorConfig, SchedulerConfig
from configs.schema.server import BatchConfig, ServerConfig
from configs.schema.tracing import TracingConfig


class EngineConfig(Part):
    """What engine and stages share, and decisions depend on; a journal begins with these."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    pipeline: PipelineConfig = Field(default_factory=PipelineConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        _check_async_scheduling(self.pipeline, self.scheduler)
        return self

    @property
    def max_live(self) -> int:
        """Sequences that may hold KV at one time."""
        return self.scheduler.max_live(self.pipeline.pipeline_parallel_size)


class Config(Part):
    """All settings of `tdpipe serve`."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    pipeline: PipelineConfig = Field(default_factory=PipelineConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)
    nodes: NodesConfig = Field(default_factory=NodesConfig)
    predictor: PredictorConfig = Field(default_factory=PredictorConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    chat: ChatConfig = Field(default_factory=ChatConfig)
    batches: BatchConfig = Field(default_factory=BatchConfig)
    logs: LogConfig = Field(default_factory=LogConfig)
    tracing: TracingConfig = Field(default_factory=TracingConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        _check_async_scheduling(self.pipeline, self.scheduler)
        return self

    @model_validator(mode="after")
    def _nodes_have_stages_and_a_secret(self) -> Self:
        num_nodes, num_stages = self.nodes.nnodes, self.pipeline.pipeline_parallel_size
        if num_nodes > num_stages:
            raise ValueError(
                f"nnodes: {num_nodes} nodes cannot share {num_stages} stages "
                "(pipeline_parallel_size); each needs one"
            )
        num_local, tensor_size = self.nodes.nproc_per_node, self.pipeline.tensor_parallel_size
        if num_local is not None and num_local % tensor_size:
            raise ValueError(
                f"nproc_per_node: {num_local} processes are no whole stages of {tensor_size} ranks "
                "(tensor_parallel_size)"
            )
        if num_nodes > 1 and not self.runtime.cluster_secret:
            raise ValueError(
                f"nnodes: {num_nodes} nodes need a cluster_secret, the same on all of them, e.g. "
                "from `openssl rand -hex 32`, best in TDPIPE_CLUSTER_SECRET"
            )
        endpoint = self.runtime.stage_endpoint
        if num_nodes > 1 and endpoint and endpoint.startswith("ipc://"):
            raise ValueError(
                f"stage_endpoint {endpoint} cannot be reached from the other nodes (nnodes "
                f"{num_nodes}): it must begin with tcp://, or be left out"
            )
        return self

    def placed(self, folder: Path) -> Self:
        """The settings of a daemon in this runtime folder.

        With several nodes, engine and stages meet at an address that all of them reach.
        """
        placed = self.replaced(runtime_dir=folder)
        if self.nodes.nnodes == 1:
            return placed
        return placed.replaced(stage_endpoint=self.nodes.endpoint(self.runtime.stage_endpoint))

    @property
    def engine(self) -> EngineConfig:
        """The parts that engine and stages share."""
        return EngineConfig(
            model=self.model, pipeline=self.pipeline, cache=self.cache, scheduler=self.scheduler
        )

    @property
    def max_open_batch_requests(self) -> int:
        """Requests of batches that are open at one time: what runs, and as much to choose from."""
        return self.batches.batch_concurrency or 2 * self.engine.max_live


def _check_async_scheduling(pipeline: PipelineConfig, scheduler: SchedulerConfig) -> None:
    """Raise `ValueError` for asynchronous scheduling with settings that it cannot be used with."""
    if not scheduler.async_scheduling:
        return
    if pipeline.tensor_parallel_size > 1:
        raise ValueError(
            "async_scheduling hands sampled tokens to one rank only: it cannot be used with "
            "tensor_parallel_size above 1"
        )
    if pipeline.virtual_pipeline_size > 1:
        raise ValueError(
            "async_scheduling lets the first stage wait for sampled tokens, while it has other "
            "slices to run: it cannot be used with virtual_pipeline_size above 1"
        )
