"""Settings of the daemon's processes: their log, their sockets, and the files that they write."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from configs.schema.part import Part, shown_secret
from configs.uds import check_uds

# An eavesdropper of a handshake can test guesses offline.
MIN_SECRET = 16
_IPC = "ipc://"
_TCP = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\[\]:/\s]+):([0-9]{1,5})")


class LogConfig(Part, title="Logging"):
    """What is logged, and where to."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log lines"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object per line, for log collectors"
    )
    log_file: Path | None = Field(
        None,
        description="file to which all processes append their log; SIGHUP reopens it, for "
        "logrotate [standard error]",
    )
    access_log: bool = Field(
        True, description="log each request, except those to /health, /live, /ready and /metrics"
    )
    log_requests: bool = Field(
        False, description="log each generation: lengths and settings, never any text"
    )
    log_stats_interval: float = Field(
        10.0,
        ge=0,
        description="time between two lines with throughput, open requests and KV use; none while "
        "nothing happens; 0: never",
    )


def data_dir() -> Path:
    """The user's folder for applications' data; a user without a home has a shared one."""
    try:
        return Path.home() / ".local" / "share" / "tdpipe"
    except RuntimeError:
        return Path("/var/tmp/tdpipe")


class RuntimeConfig(Part, title="Processes and files"):
    """How the daemon's processes reach each other, and the folders and files that they write."""

    data_dir: Path = Field(
        default_factory=data_dir,
        description="folder of data kept across restarts: profiles, output lengths, batches "
        "[~/.local/share/tdpipe]",
    )
    runtime_dir: Path | None = Field(
        None,
        description="folder of sockets and the resolved settings [a new temporary folder]",
    )
    server_endpoint: str | None = Field(
        None,
        description="ipc:// or tcp:// address on which the engine listens for the server [a socket "
        "in runtime_dir]",
    )
    stage_endpoint: str | None = Field(
        None,
        description="ipc:// or tcp:// address on which the engine listens for the stages [a socket "
        "in runtime_dir]",
    )
    cluster_secret: SecretStr | None = Field(
        None,
        description="secret that authenticates the daemon's processes on tcp:// endpoints. Prefer "
        "TDPIPE_CLUSTER_SECRET or YAML: flags are visible in `ps`",
    )
    journal: Path | None = Field(
        None, description="record all events and scheduling decisions, for `tdpipe replay`"
    )
    trace: Path | None = Field(
        None, description="record the steps of all stages, for `tdpipe timeline` and Perfetto"
    )

    @field_validator("server_endpoint", "stage_endpoint")
    @classmethod
    def _known_transport(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ipc://", "tcp://")):
            raise ValueError("must begin with ipc:// or tcp://")
        if value is not None and value.startswith(_IPC):
            check_uds(value.removeprefix(_IPC))
        elif value is not None:
            found = _TCP.fullmatch(value)
            if not found or not 0 < int(found[1]) <= 65535:
                raise ValueError(
                    f"{value} is not like tcp://10.0.0.1:29500 or tcp://[fd00::1]:29500"
                )
        return value

    @model_validator(mode="after")
    def _reachable_endpoints_need_a_secret(self) -> Self:
        endpoints = {"server_endpoint": self.server_endpoint, "stage_endpoint": self.stage_endpoint}
        for key, endpoint in endpoints.items():
            if endpoint and _is_reachable(endpoint) and not self.cluster_secret:
                raise ValueError(
                    f"{key} {endpoint} can be reached from other hosts: it needs a cluster_secret "
                    f"of at least {MIN_SECRET} characters, e.g. from `openssl rand -hex 32`, best "
                    "in TDPIPE_CLUSTER_SECRET"
                )
        return self

    @field_validator("cluster_secret")
    @classmethod
    def _hard_to_guess(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        value = secret.get_secret_value()
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("must be text in UTF-8") from error
        if len(value.strip()) < MIN_SECRET:
            raise ValueError(f"must have at least {MIN_SECRET} characters, without spaces around")
        return secret

    @field_serializer("cluster_secret", when_used="json")
    def _hide_secret(self, secret: SecretStr | None, info: SerializationInfo) -> str | None:
        return None if secret is None else shown_secret(secret, info)

    @property
    def folder(self) -> Path:
        """The folder, once the supervisor has chosen one."""
        assert self.runtime_dir is not None, "the supervisor sets runtime_dir"
        return self.runtime_dir

    @property
    def secret(self) -> str | None:
        """The cluster's secret, in clear."""
        return self.cluster_secret.get_secret_value() if self.cluster_secret else None

    @property
    def server_address(self) -> str:
        """Where the engine listens for the server."""
        return self.server_endpoint or self._socket("server.sock")

    @property
    def predictor_address(self) -> str:
        """Where the predictor listens for the server."""
        return self._socket("predictor.sock")

    @property
    def stage_address(self) -> str:
        """Where the engine listens for the stages."""
        return self.stage_endpoint or self._socket("stages.sock")

    def check_folder(self) -> None:
        """Raise `ValueError` if the path of the folder is too long for sockets in it."""
        for address in (self.server_address, self.predictor_address, self.stage_address):
            if address.startswith(_IPC):
                check_uds(address.removeprefix(_IPC))

    def _socket(self, name: str) -> str:
        return f"{_IPC}{self.folder}/{name}"


def _is_reachable(endpoint: str) -> bool:
    """Whether other hosts may reach it. A name may become any address, but for that of the host."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if endpoint.startswith("ipc://") or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True
