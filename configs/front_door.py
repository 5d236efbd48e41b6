"""The front door: where the server listens, who may come in, and what it notes of them.

Names are vLLM's wherever it has the setting. What needs a look at the disk (certificates, the
socket's folder) is checked by the server when it opens the door.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    SerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from configs.part import Part, split_commas

# What Linux leaves for a path in a socket's address (unix(7)), without the closing zero.
MAX_UDS_BYTES = 107
SECRETS = frozenset({"api_key", "cluster_secret"})
_KEY = re.compile(r"[!-~]+")  # it travels in a header

Texts = Annotated[tuple[str, ...], BeforeValidator(split_commas)]


def shown_secret(secret: SecretStr, info: SerializationInfo) -> str:
    """Starred out, unless the context of the serialisation says `secrets`."""
    shown = bool(info.context and info.context.get("secrets"))
    return secret.get_secret_value() if shown else str(secret)


class ListenConfig(Part):
    """Where the server listens."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 finds a free one")
    uds: Path | None = Field(
        None, description="Unix socket to listen on, in the place of host and port"
    )
    uds_permissions: str = Field(
        "600", pattern="^[0-7]{3}$", description="rights of the Unix socket, octal"
    )
    ssl_keyfile: Path | None = Field(None, description="TLS: the private key, PEM [SSL_CERTFILE]")
    ssl_certfile: Path | None = Field(None, description="TLS: the certificate and its chain, PEM")
    ssl_ca_certs: Path | None = Field(
        None, description="TLS: certificates that clients' certificates must descend from, PEM"
    )
    ssl_cert_reqs: int = Field(
        0,
        ge=0,
        le=2,
        description="TLS: certificates of clients: 0 not asked for, 1 checked if sent, 2 required",
    )

    @field_validator("uds")
    @classmethod
    def _fits_an_address(cls, value: Path | None) -> Path | None:
        num_bytes = len(bytes(value)) if value else 0
        if num_bytes > MAX_UDS_BYTES:
            raise ValueError(f"a socket's path has at most {MAX_UDS_BYTES} bytes, not {num_bytes}")
        return value


class AccessConfig(Part):
    """Who may come in, and how much they may bring."""

    api_key: Annotated[tuple[SecretStr, ...], BeforeValidator(split_commas)] = Field(
        (),
        description="keys of which clients must send one (Authorization: Bearer KEY), for "
        "everything but /health and open_paths; better in TDPIPE_API_KEY than here, where `ps` "
        "shows it [none]",
    )
    open_paths: Annotated[
        tuple[Literal["/ready", "/metrics", "/load", "/version"], ...],
        BeforeValidator(split_commas),
    ] = Field(
        (),
        description="of /ready, /metrics, /load and /version, those that need no key either, for "
        "probes and Prometheus [none]",
    )
    root_path: str = Field(
        "", description="path under which a proxy offers the server, e.g. /llm [none]"
    )
    allowed_origins: Texts = Field(
        (), description="CORS: origins whose pages may ask, or * for all [none]"
    )
    allowed_methods: Texts = Field(("*",), description="CORS: methods that they may use [*]")
    allowed_headers: Texts = Field(("*",), description="CORS: headers that they may send [*]")
    allow_credentials: bool = Field(False, description="CORS: they may send cookies")
    max_body_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        description="longest body of a JSON request; more gets 413. A million token ids are about "
        "8 MiB, and reading them holds everybody up for a tenth of a second",
    )
    disable_fastapi_docs: bool = Field(False, description="no /docs and no /openapi.json")

    @field_validator("api_key")
    @classmethod
    def _fit_for_a_header(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(_KEY.fullmatch(key.get_secret_value()) for key in keys):
            raise ValueError("a key is printable ASCII without spaces or commas, and not empty")
        return keys

    @field_validator("root_path")
    @classmethod
    def _begins_with_a_slash(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must begin with /")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _credentials_have_an_origin(self) -> Self:
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError("allow_credentials needs allowed_origins by name, not *")
        return self

    @field_serializer("api_key", when_used="json")
    def _hide(self, keys: tuple[SecretStr, ...], info: SerializationInfo) -> list[str]:
        return [shown_secret(key, info) for key in keys]


class LogConfig(Part):
    """What is noted."""

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: an object a line, for log collectors"
    )
    log_file: Path | None = Field(
        None,
        description="file that all processes append their log to; SIGHUP opens it anew, for "
        "logrotate [standard error]",
    )
    access_log: bool = Field(
        True, description="a line for each request but those to /health, /ready and /metrics"
    )
    log_requests: bool = Field(
        False, description="a line for each generation: lengths and settings, never any text"
    )


# Bases in reverse, see EngineConfig.
class FrontDoorConfig(LogConfig, AccessConfig, ListenConfig):
    """All settings of the front door."""
