"""Settings of the decisions of the router (`tdpipe route`)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.schema.part import Part
from configs.schema.scaling import ScalingConfig


class RoutingConfig(Part, title="Routing"):
    """How the router chooses an instance for a request; the switches are for ablations."""

    routing: Literal["adaptive", "ecoserve", "round-robin", "least-loaded", "prefix"] = Field(
        "adaptive",
        description="adaptive: by what instances can promise; ecoserve: the paper's Algorithm 1; "
        "the others ignore targets",
    )
    slack_quantile: Literal["0", "0.05", "0.1", "0.25", "0.5", "0.75", "mean"] = Field(
        "0.1",
        description="adaptive: which of the slacks of decoding requests must cover the prefills",
    )
    prefix_affinity: bool = Field(
        True, description="adaptive: prefer the instance that has the beginning of a prompt cached"
    )
    predicted_lengths: bool = Field(
        True,
        description="adaptive: count the predicted rest of answers, for KV and for slack",
    )
    hopeless_last: bool = Field(
        True,
        description="adaptive: serve requests that have missed their target after those that can "
        "still meet theirs",
    )
    stale_after: float = Field(
        1.5, gt=0, description="time without a status after which an instance gets no requests"
    )
    max_pending: int = Field(
        4096, ge=1, description="maximum requests that wait for an instance; further ones get 429"
    )
    max_pending_time: float = Field(
        300.0,
        gt=0,
        description="time after which a waiting request goes to the least loaded instance, "
        "whatever the targets",
    )
    no_instance_timeout: float = Field(
        60.0, gt=0, description="time without any instance after which waiting requests get 503"
    )
    macro_lower: int = Field(
        6, ge=1, description="instances of a new macro instance (N_l of EcoServe)"
    )
    macro_upper: int = Field(
        11, ge=1, description="maximum instances of a macro instance (N_u); then it is split"
    )

    @model_validator(mode="after")
    def _can_split(self) -> Self:
        if self.macro_upper < self.macro_lower:
            raise ValueError("macro_upper must be at least macro_lower")
        return self


class RouterCoreConfig(Part):
    """What the decisions of the router depend on; its journal begins with these."""

    routing: RoutingConfig = Field(default_factory=RoutingConfig)
    scaling: ScalingConfig = Field(default_factory=ScalingConfig)
