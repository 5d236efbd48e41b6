"""Settings of the router's process (`tdpipe route`)."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from configs.schema.instance_url import checked_url
from configs.schema.part import Part, fit_for_a_header, shown_secret, split_commas
from configs.schema.router import RouterCoreConfig, RoutingConfig
from configs.schema.runtime import LogConfig, data_dir
from configs.schema.scaling import ScalingConfig
from configs.schema.server import AccessConfig, ConnectionConfig, ListenConfig
from configs.schema.tracing import TracingConfig

LINES_PER_INSTANCE = 256
"""As many as one stage runs at one time by default (`max_num_seqs`)."""


class InstancesConfig(Part, title="Instances"):
    """The daemons that serve the requests, and how the router speaks to them."""

    instances: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        (), description="URLs of the daemons, e.g. http://10.0.0.1:8000"
    )
    instance_api_key: SecretStr | None = Field(
        None,
        description="API key that the router sends to the daemons. Prefer the environment: `ps` "
        "shows flags [none]",
    )
    instance_ca_certs: Path | None = Field(
        None,
        description="TLS: CA certificates that verify https:// daemons, PEM [the system's]",
    )
    connect_timeout: float = Field(
        2.0, gt=0, description="time in which a daemon must accept a connection"
    )
    max_attempts: int = Field(
        4, ge=1, description="maximum number of daemons that a request is sent to, one by one"
    )
    max_resume_bytes: int = Field(
        256 * 1024 * 1024,
        ge=0,
        description="maximum memory for the events of open streams, from which they are resumed "
        "on another daemon; further streams end with an error if their daemon is lost",
    )
    journal: Path | None = Field(
        None, description="record all events and routing decisions, for `tdpipe replay`"
    )

    @field_validator("instances")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(checked_url(url) for url in urls)
        if len(set(found)) < len(found):
            raise ValueError("a daemon is listed twice")
        return found

    @field_validator("instance_api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return None if key is None else fit_for_a_header(key)

    @field_serializer("instance_api_key", when_used="json")
    def _hide(self, key: SecretStr | None, info: SerializationInfo) -> str | None:
        return None if key is None else shown_secret(key, info)


class RouterBatchConfig(Part, title="Files and batches"):
    """Files and batches, which the router keeps itself."""

    data_dir: Path = Field(
        default_factory=data_dir,
        description="folder of data kept across restarts: files and batches; each router needs "
        "one of its own [~/.local/share/tdpipe]",
    )
    max_file_bytes: int = Field(2**30, ge=1, description="maximum size of an uploaded file")
    max_batch_requests: int = Field(
        1_000_000, ge=1, description="maximum requests (lines) of a batch"
    )
    batch_concurrency: int | None = Field(
        None,
        ge=1,
        description="maximum batch requests that are open at one time, at most half of max_pending "
        "[256 for each daemon that is up]",
    )


class RouterProcessConfig(Part, title="Process"):
    """What the router's process tells other commands."""

    runtime_dir: Path | None = Field(
        None,
        description="folder of the resolved settings, the port and the process id, for `tdpipe "
        "healthcheck` and signals [none]",
    )


class RouteConfig(Part):
    """All settings of `tdpipe route`."""

    listen: ListenConfig = Field(default_factory=ListenConfig)
    access: AccessConfig = Field(default_factory=AccessConfig)
    connections: ConnectionConfig = Field(default_factory=ConnectionConfig)
    instances: InstancesConfig = Field(default_factory=InstancesConfig)
    routing: RoutingConfig = Field(default_factory=RoutingConfig)
    scaling: ScalingConfig = Field(default_factory=ScalingConfig)
    batches: RouterBatchConfig = Field(default_factory=RouterBatchConfig)
    logs: LogConfig = Field(default_factory=LogConfig)
    tracing: TracingConfig = Field(default_factory=TracingConfig)
    process: RouterProcessConfig = Field(default_factory=RouterProcessConfig)

    @model_validator(mode="after")
    def _has_instances(self) -> Self:
        if self.instances.instances and self.scaling.actuator != "fixed":
            raise ValueError(
                f"instances cannot be given: actuator {self.scaling.actuator} finds them"
            )
        return self

    def max_open_lines(self, num_up: int) -> int:
        """Requests of batches that may be open while so many daemons are up.

        Half of the places of waiting requests are left for those of clients.
        """
        batches, routing = self.batches, self.routing
        wanted = batches.batch_concurrency or LINES_PER_INSTANCE * max(1, num_up)
        return max(1, min(wanted, routing.max_pending // 2))

    @property
    def core(self) -> RouterCoreConfig:
        """What the decisions depend on."""
        return RouterCoreConfig(routing=self.routing, scaling=self.scaling)
