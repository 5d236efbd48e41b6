"""Settings of several hosts: which node this is, and how it finds the first one."""

import re
from ipaddress import ip_address
from typing import Self

from pydantic import Field, field_validator, model_validator

from configs.schema.part import Part
from configs.schema.pipeline import PipelineConfig

ANY_ADDRESS = ("0.0.0.0", "[::]", "*")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_AS_NUMBER = re.compile(r"[0-9.]+|0x[0-9A-Fa-f.x]*")


class NodesConfig(Part, title="Several hosts"):
    """The nodes that run the stages; the first one (rank 0) also runs server and engine."""

    nnodes: int = Field(1, ge=1, le=256, description="number of hosts (nodes) that run stages")
    node_rank: int = Field(
        0, ge=0, description="number of this node; the first one, 0, runs server and engine"
    )
    headless: bool = Field(
        False, description="run stages only, without a server: on all nodes but the first"
    )
    master_addr: str = Field(
        "127.0.0.1", min_length=1, description="address at which the other nodes reach the first"
    )
    master_port: int = Field(
        29500,
        ge=1,
        le=65534,
        description="port of the first node for the engine, encrypted; the store in which the "
        "stages find each other has the next port",
    )
    node_ip: str | None = Field(
        None,
        description="address of this node for the traffic between stages; gloo and NCCL use its "
        "interface, unless GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME is set [that of the route to "
        "master_addr]",
    )
    nproc_per_node: int | None = Field(
        None,
        ge=1,
        description="processes on this node: its stages, times tensor_parallel_size "
        "[pipeline_parallel_size / nnodes stages; the first nodes get one more of the rest]",
    )

    @field_validator("master_addr")
    @classmethod
    def _is_a_host(cls, value: str) -> str:
        if "://" in value or "/" in value:
            raise ValueError(f"is a name or an address, without tcp:// or a path{_example(value)}")
        if value.startswith("["):
            raise ValueError(f"an IPv6 address is given without brackets{_example(value)}")
        if value == "*" or _is_wildcard(value):
            raise ValueError(
                "is the address at which the other nodes reach the first one; all interfaces are "
                "no such address"
            )
        if value.count(":") == 1:
            raise ValueError(f"has no port: that is master_port{_example(value)}")
        if not (_is_address(value) or (_NAME.fullmatch(value) and not _AS_NUMBER.fullmatch(value))):
            raise ValueError("is neither an IPv4 or IPv6 address nor a host's name")
        return value

    @field_validator("node_ip")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and (not _is_address(value) or _is_wildcard(value)):
            raise ValueError("must be an IPv4 or IPv6 address of this node")
        return value

    @model_validator(mode="after")
    def _rank_fits(self) -> Self:
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"node_rank {self.node_rank} is not one of the {self.nnodes} nodes (nnodes); ranks "
                "begin with 0"
            )
        if self.headless and not self.node_rank:
            raise ValueError("headless: the first node runs the server; give --node-rank too")
        if self.node_rank and not self.headless:
            raise ValueError("headless is needed on all nodes but the first (node_rank 0)")
        if self.nproc_per_node is not None and self.nnodes == 1:
            raise ValueError("nproc_per_node is for several nodes (nnodes)")
        return self

    def endpoint(self, given: str | None = None) -> str:
        """Where the engine listens for stages and nodes if there are several nodes.

        That is the `given` stage_endpoint, or else the master's address and port. The engine may
        listen on all interfaces; other nodes then connect to the master's address.
        """
        host = f"[{self.master_addr}]" if ":" in self.master_addr else self.master_addr
        if given is None:
            return f"tcp://{host}:{self.master_port}"
        listens_at, _, port = given.removeprefix("tcp://").rpartition(":")
        is_everywhere = given.startswith("tcp://") and listens_at in ANY_ADDRESS
        return f"tcp://{host}:{port}" if self.node_rank and is_everywhere else given

    @property
    def store_port(self) -> int:
        """The port of the store, on the first node."""
        return self.master_port + 1

    def num_local_stages(self, pipeline: PipelineConfig) -> int:
        """The stages on this node: consecutive ones, so that most links stay on one node."""
        if self.nproc_per_node is not None:
            return self.nproc_per_node // pipeline.tensor_parallel_size
        each, more = divmod(pipeline.pipeline_parallel_size, self.nnodes)
        return each + (self.node_rank < more)

    def num_local_ranks(self, pipeline: PipelineConfig) -> int:
        """The processes on this node: all ranks of its stages."""
        return self.num_local_stages(pipeline) * pipeline.tensor_parallel_size


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def _is_wildcard(value: str) -> bool:
    return _is_address(value) and ip_address(value).is_unspecified


def _example(value: str) -> str:
    """How the value was probably meant, if that is known."""
    host = value.rpartition("://")[2].partition("/")[0]
    host = host[1:].partition("]")[0] if host.startswith("[") else host
    host = host.partition(":")[0] if host.count(":") == 1 else host
    return f", e.g. {host}" if _is_address(host) or _NAME.fullmatch(host) else ""
