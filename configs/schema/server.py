"""Settings of the HTTP server: where it listens, access to it, limits of requests, batches.

Names are vLLM's wherever it has the setting. What needs a look at the disk (certificates, the
socket's folder) is checked by the server when it starts to listen.
"""

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

from configs.schema.model import Texts
from configs.schema.part import Part, fit_for_a_header, shown_secret, split_commas
from configs.uds import check_uds


class ListenConfig(Part, title="HTTP server"):
    """Where the server listens."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: a free one")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of host and port")
    uds_permissions: str = Field(
        "600", pattern="^[0-7]{3}$", description="permissions of the Unix socket, octal"
    )
    ssl_keyfile: Path | None = Field(
        None, description="TLS: private key, PEM [also in ssl_certfile]"
    )
    ssl_certfile: Path | None = Field(None, description="TLS: certificate chain, PEM [no TLS]")
    ssl_ca_certs: Path | None = Field(
        None, description="TLS: CA certificates that verify client certificates, PEM"
    )
    ssl_cert_reqs: int = Field(
        0,
        ge=0,
        le=2,
        description="TLS: client certificates; 0: not requested, 1: verified if sent, 2: required",
    )
    forwarded_allow_ips: str | None = Field(
        None,
        description="addresses or networks of proxies whose X-Forwarded-For is believed, for the "
        "log; *: any, also on a Unix socket [FORWARDED_ALLOW_IPS or 127.0.0.1,::1]",
    )
    root_path: str = Field(
        "", description="path prefix under which a reverse proxy publishes the server, e.g. /llm"
    )

    @field_validator("uds")
    @classmethod
    def _fits_an_address(cls, value: Path | None) -> Path | None:
        if value is not None:
            check_uds(value)
        return value

    @field_validator("root_path")
    @classmethod
    def _begins_with_a_slash(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError("must begin with /")
        return value.rstrip("/")


class PagesConfig(Part, title="Optional pages"):
    """Which pages are served besides the API."""

    enable_tokenizer_info_endpoint: bool = Field(
        False,
        description="serve the tokenizer's configuration and chat template at /tokenizer_info",
    )
    disable_fastapi_docs: bool = Field(False, description="do not serve /docs and /openapi.json")
    disable_pipeline_page: bool = Field(
        False, description="serve neither the page at / nor its data at /pipeline/status"
    )


class AccessConfig(Part, title="Access"):
    """API keys and CORS."""

    api_key: Annotated[tuple[SecretStr, ...], BeforeValidator(split_commas)] = Field(
        (),
        description="API keys; clients must send one of them (Authorization: Bearer KEY), except "
        "to /health, /live, /ready and open_paths. Prefer the environment: `ps` shows flags",
    )
    open_paths: Annotated[
        tuple[Literal["/ready", "/metrics", "/load", "/version"], ...],
        BeforeValidator(split_commas),
    ] = Field(
        (),
        description="paths that require no API key, for probes and Prometheus: any of "
        "/metrics, /load and /version",
    )
    allowed_origins: Texts = Field(
        (), description="CORS: origins that may send requests; *: all [no CORS]"
    )
    allowed_methods: Texts = Field(("*",), description="CORS: allowed methods")
    allowed_headers: Texts = Field(("*",), description="CORS: allowed headers")
    allow_credentials: bool = Field(False, description="CORS: allow cookies")

    @field_validator("api_key")
    @classmethod
    def _fit_for_a_header(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        return tuple(map(fit_for_a_header, keys))

    @model_validator(mode="after")
    def _credentials_have_an_origin(self) -> Self:
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError("allow_credentials needs allowed_origins by name, not *")
        return self

    @field_serializer("api_key", when_used="json")
    def _hide(self, keys: tuple[SecretStr, ...], info: SerializationInfo) -> list[str]:
        return [shown_secret(key, info) for key in keys]


class ConnectionConfig(Part, title="Bodies and timeouts"):
    """Limits of bodies, and of the time of requests and connections."""

    max_body_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        description="maximum size of a JSON request body; larger ones get 413. A million token ids "
        "are about 8 MiB, and parsing them blocks the event loop for 0.1 s",
    )
    max_intake_bytes: int = Field(
        256 * 1024 * 1024,
        ge=1024,
        description="maximum memory for the bodies of generation requests, which a daemon keeps "
        "until their prompts are parsed and a router until they are answered, not counting the "
        "first 64 KiB of each; further requests get 429",
    )
    request_timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="maximum time of a request, queued or running, unless it sets a shorter "
        "timeout itself; does not apply to batches [no limit]",
    )
    send_timeout: float = Field(
        60.0,
        gt=0,
        description="time after which the connection of a client that reads none of its pending "
        "output is closed",
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, description="time that open requests have to finish after SIGTERM"
    )


class LimitsConfig(Part, title="Request limits"):
    """Limits of what requests may send, wait for and receive."""

    max_num_queued_reqs: int = Field(
        1024,
        ge=1,
        description="maximum sequences that wait for their first token; further requests get 429",
    )
    max_num_queued_tokens: int = Field(
        1024 * 4096,
        ge=1,
        description="maximum total prompt tokens of these sequences; further requests get 429",
    )
    strict_fields: bool = Field(
        False, description="refuse unknown fields of requests instead of ignoring them"
    )
    max_logprobs: int = Field(
        20,
        ge=-1,
        description="maximum number of top logprobs that a request may ask for; -1: no limit",
    )
    max_stream_interval: float = Field(
        0.05,
        ge=0,
        description="maximum flush interval of streams; used when so many streams are open that "
        "writing each token by itself would saturate the server",
    )
    stream_comment_interval: float = Field(
        10.0,
        ge=0,
        description="time without output after which a stream gets a comment, so that proxies do "
        "not close it; 0: never",
    )


class ServerConfig(Part):
    """All settings of the HTTP server."""

    listen: ListenConfig = Field(default_factory=ListenConfig)
    access: AccessConfig = Field(default_factory=AccessConfig)
    pages: PagesConfig = Field(default_factory=PagesConfig)
    connections: ConnectionConfig = Field(default_factory=ConnectionConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)


class BatchConfig(Part, title="Batches"):
    """Files and batches."""

    max_file_bytes: int = Field(2**30, ge=1, description="maximum size of an uploaded file")
    max_batch_requests: int = Field(
        1_000_000, ge=1, description="maximum requests (lines) of a batch"
    )
    batch_concurrency: int | None = Field(
        None,
        ge=1,
        description="maximum batch requests that are open in the engine at one time; only these "
        "are taken into account by the scheduler [twice max_num_seqs]",
    )
