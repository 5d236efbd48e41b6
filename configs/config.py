"""The settings composed: one part for each concern, and their flat names outside.

The flat keys (`max_num_seqs`) bear vLLM's names wherever vLLM has the setting, so that a command
line moves over. A class takes the part that it needs (`def __init__(self, config: CacheConfig)`);
only the entry points of processes see all of `Config`.
"""

from pydantic import Field

from configs.model import ChatConfig, ModelConfig
from configs.part import Part
from configs.pipeline import CacheConfig, PipelineConfig
from configs.runtime import LogConfig, RuntimeConfig
from configs.scheduler import PredictorConfig, SchedulerConfig
from configs.server import BatchConfig, ServerConfig


class EngineConfig(Part):
    """What engine and stages share, and decisions depend on; a journal begins with these."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    pipeline: PipelineConfig = Field(default_factory=PipelineConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig)

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
    predictor: PredictorConfig = Field(default_factory=PredictorConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    chat: ChatConfig = Field(default_factory=ChatConfig)
    batches: BatchConfig = Field(default_factory=BatchConfig)
    logs: LogConfig = Field(default_factory=LogConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

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
