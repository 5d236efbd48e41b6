"""Settings of scaling: how a router finds its instances, and starts and stops them."""

import re
import shlex
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from configs.schema.part import Part, fit_for_a_header, shown_secret

# The router sets these for each daemon that it starts, or reaches it without them.
_SET_BY_THE_ROUTER = ("--host", "--port", "--uds", "--runtime-dir", "--ssl-certfile")
_WORKLOAD = re.compile(r"(deployment|statefulset|leaderworkerset)/[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


class ScalingConfig(Part, title="Scaling"):
    """The actuator, which discovers, starts and stops instances, and its limits."""

    actuator: Literal["fixed", "local", "kubernetes", "webhook"] = Field(
        "fixed",
        description="what starts and stops instances; fixed: nothing, local: the router on its own "
        "host, kubernetes: the replicas of a workload, webhook: a service at webhook_url",
    )
    min_instances: int = Field(1, ge=1, description="minimum number of instances")
    max_instances: int = Field(8, ge=1, description="maximum number of instances")
    scale_signal: Literal["load", "ecoserve"] = Field(
        "load",
        description="load: the instances that prefill and decoding within the targets take, and a "
        "reserve; ecoserve: the paper's signals, from times to the first token and from slack",
    )
    scale_cooldown: float = Field(
        10.0, ge=0, description="minimum seconds between two starts of instances"
    )
    scale_window: float = Field(
        10.0,
        gt=0,
        description="seconds over which times to the first token and prefill are averaged; the "
        "most KV that was held within them counts",
    )
    instance_start_timeout: float = Field(
        900.0,
        gt=0,
        description="seconds that a new instance has to become ready; afterwards a local one is "
        "ended, and another one may be started",
    )
    instance_stop_timeout: float = Field(
        60.0,
        gt=0,
        description="seconds that a stopped instance has to end; afterwards a local one is killed. "
        "It should exceed the shutdown_timeout of the instances",
    )
    local_args: str = Field(
        "",
        description="local: model and settings of each instance, as for `tdpipe serve`, e.g. "
        "'some/model -pp 4'",
    )
    local_devices: str = Field(
        "",
        description="local: GPUs of each instance (CUDA_VISIBLE_DEVICES), e.g. '0,1;2,3' for two "
        "instances, which is then their maximum number [all GPUs for each instance]",
    )
    kube_workload: str | None = Field(
        None,
        description="kubernetes: the workload with the instances: deployment/NAME, "
        "statefulset/NAME or leaderworkerset/NAME",
    )
    kube_namespace: str | None = Field(
        None, description="kubernetes: namespace of the workload [that of the router's pod]"
    )
    kube_selector: str | None = Field(
        None,
        description="kubernetes: label selector of the pods that listen [that of the workload]",
    )
    kube_port: int = Field(
        8000, ge=1, le=65535, description="kubernetes: port on which the instances listen"
    )
    kube_api: str | None = Field(
        None, description="kubernetes: URL of the API server [that of the router's cluster]"
    )
    kube_token_file: Path | None = Field(
        None,
        description="kubernetes: file with the token for the API server, read for each request "
        "[that of the router's service account]",
    )
    kube_ca_file: Path | None = Field(
        None,
        description="kubernetes: CA certificates of the API server, PEM [those of the router's "
        "service account; of the system, with kube_api]",
    )
    webhook_url: str | None = Field(
        None, description="webhook: URL that starts, stops and lists instances"
    )
    webhook_token: SecretStr | None = Field(
        None,
        description="webhook: bearer token. Prefer an environment variable: `ps` shows flags",
    )
    webhook_interval: float = Field(
        5.0, gt=0, description="webhook: seconds between two requests for the list of instances"
    )

    @field_validator("kube_api", "webhook_url")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        url = urlsplit(value)  # raises ValueError for wrong brackets, and its port for a wrong one
        if not url.hostname or url.port == 0:
            raise ValueError("must name a host, and a port from 1 to 65535 if it has one")
        return value

    @field_validator("kube_workload")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and not _WORKLOAD.fullmatch(value):
            raise ValueError("must be deployment/NAME, statefulset/NAME or leaderworkerset/NAME")
        return value

    @field_validator("local_args")
    @classmethod
    def _can_be_started(cls, value: str) -> str:
        for argument in shlex.split(value):  # raises ValueError: No closing quotation
            flag = argument.split("=")[0]
            if flag in _SET_BY_THE_ROUTER:
                raise ValueError(
                    f"{flag} cannot be given: instances listen on free ports of 127.0.0.1"
                )
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.min_instances > self.max_instances:
            raise ValueError(
                f"min_instances ({self.min_instances}) exceeds max_instances ({self.max_instances})"
            )
        num_devices = len(self.device_groups)
        if self.actuator == "local" and 0 < num_devices < self.min_instances:
            raise ValueError(
                f"local_devices names the GPUs of {num_devices} instances, fewer than "
                f"min_instances ({self.min_instances})"
            )
        needed = {"kubernetes": "kube_workload", "webhook": "webhook_url"}.get(self.actuator)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"actuator {self.actuator} needs {needed}")
        return self

    @field_validator("webhook_token")
    @classmethod
    def _fits_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        return None if token is None else fit_for_a_header(token)

    @field_serializer("webhook_token", when_used="json")
    def _hide(self, token: SecretStr | None, info: SerializationInfo) -> str | None:
        return None if token is None else shown_secret(token, info)

    @property
    def device_groups(self) -> tuple[str, ...]:
        """The GPUs of each local instance; empty if all have all."""
        return tuple(group.strip() for group in self.local_devices.split(";") if group.strip())
