"""Settings of the scheduler: admission, the policy, and the constants of each policy."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from configs.schema.part import Part

SHORTEST_LIMIT = 3
"""From so many tokens per step on, every prompt can be cut into chunks of two or more."""


class TdPipeConfig(Part, title="Policy td-pipe"):
    """Constants of policy td-pipe (those of the paper's code), and switches for ablations."""

    greedy_prefill: bool = Field(
        True,
        description="end a prefill phase when simulated KV use reaches its limit (paper, section "
        "3.3)",
    )
    kv_occupancy: float = Field(
        0.9,
        gt=0,
        le=1,
        description="simulated peak KV use that ends a prefill phase, as a fraction of all blocks",
    )
    prefill_occupancy: float = Field(
        0.9,
        gt=0,
        le=1,
        description="without greedy_prefill: present KV use that ends a prefill phase, as a "
        "fraction of all blocks",
    )
    prefill_batch_tokens: int = Field(
        192, ge=1, description="padded tokens at which a prefill micro-batch is full"
    )
    prefill_ahead: int = Field(2, ge=1, description="prefill micro-batches in flight per stage")
    work_stealing: bool = Field(
        True, description="keep decode micro-batches equal in size (paper, section 3.4)"
    )
    intensity: bool = Field(
        True,
        description="end a decode phase by spatial-temporal intensity (paper, section 3.5)",
    )
    finish_ratio: float = Field(
        0.5,
        gt=0,
        le=1,
        description="without intensity: fraction of sequences that must have finished before a "
        "decode phase ends",
    )
    saturating_rows: int = Field(
        256, ge=1, description="rows of the micro-batch that defines peak spatial intensity"
    )
    saturated_rows: int = Field(
        192, ge=1, description="rows of a micro-batch from which spatial intensity is 1"
    )


class TemporalConfig(Part, title="Policy temporal"):
    """Constants of policy temporal, and switches to measure the effect of each of its parts."""

    knee_tolerance: float = Field(
        0.08,
        ge=0,
        description="additional cost per token that a refill step accepts, relative to the "
        "cheapest step size",
    )
    refill_rounds: int = Field(16, ge=1, description="pipeline turns over which a refill is spread")
    online_steps: int = Field(
        16, ge=1, description="steps over which the prompts of online requests are spread"
    )
    topup: bool = Field(True, description="continue decoding during a refill")
    balance_time: bool = Field(
        True, description="balance decode micro-batches by time instead of rows"
    )
    lazy_refill: bool = Field(
        True, description="refill only when idle blocks have cost as much time as a phase switch"
    )
    survival: bool = Field(
        True,
        description="plan KV use by the probability that sequences are still running, instead of "
        "predicted lengths only",
    )
    horizon: float = Field(
        0.0625,
        ge=0,
        description="how far ahead KV use is planned, as a multiple of the time after which a "
        "preemption has paid for itself; 0: unlimited",
    )
    forecast: bool = Field(
        True,
        description="use larger steps if offline work is estimated to finish earlier with them",
    )
    critical_slack: float = Field(
        1.5,
        gt=0,
        description="admit first the offline requests that may need more than the remaining "
        "pipeline turns divided by this",
    )
    critical_sigmas: float = Field(
        3.0,
        ge=0,
        description="output length that critical_slack assumes, in standard deviations above the "
        "predicted length",
    )
    prior_sigma: float = Field(
        0.5,
        gt=0,
        description="initial standard deviation of ln(real length / predicted length)",
    )
    longest_first: bool = Field(
        True, description="admit offline requests with long predicted outputs first"
    )


class HybridConfig(Part, title="Policy hybrid"):
    """Constants of policy hybrid; the defaults of its throttled variant are those of gLLM."""

    hybrid: Literal["vllm", "throttled"] = Field(
        "throttled",
        description="vllm: all idle decodes in one micro-batch; throttled: spread evenly",
    )
    throttle_iterations: int = Field(
        8, ge=1, description="throttled: steps over which waiting prompts are spread"
    )
    throttle_min_tokens: int = Field(
        32, ge=1, description="throttled: minimum prefill tokens of a step"
    )
    throttle_max_tokens: int = Field(
        2048, ge=1, description="throttled: maximum prefill tokens of a step"
    )
    throttle_kv_free: float = Field(
        0.05, ge=0, lt=1, description="throttled: fraction of KV blocks to keep free"
    )


class SchedulerConfig(Part, title="Scheduler"):
    """Settings that all policies share, and the constants of each policy."""

    policy: Literal["temporal", "td-pipe", "separate", "hybrid"] = Field(
        "temporal", description="how micro-batches are formed"
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="maximum sequences that hold KV at one time [256 per stage]"
    )
    max_num_batched_tokens: int = Field(
        2048,
        ge=1,
        description="maximum tokens of a prefill micro-batch; longer prompts are processed in "
        "chunks of at most this size",
    )
    predicted_output_len: int = Field(
        128, ge=1, description="output tokens assumed for a request without a prediction"
    )
    max_prefill_wait: float = Field(
        0.5, ge=0, description="maximum wait of online requests for the end of a decode phase"
    )
    ttft_slo: float | None = Field(
        None,
        gt=0,
        description="target: seconds to the first token of an online request. With both targets "
        "set, prefills wait or hurry as the targets allow, and the daemon can be an instance of "
        "`tdpipe route` [no target]",
    )
    tpot_slo: float | None = Field(
        None,
        gt=0,
        description="target: seconds per output token after the first, as the mean of an online "
        "request [no target]",
    )
    async_scheduling: bool = Field(
        False,
        description="plan the next decode step of a micro-batch before its tokens have arrived: "
        "the last stage hands them to the first, and the engine learns them meanwhile",
    )
    td_pipe: TdPipeConfig = Field(default_factory=TdPipeConfig)
    temporal: TemporalConfig = Field(default_factory=TemporalConfig)
    hybrid: HybridConfig = Field(default_factory=HybridConfig)

    def max_live(self, num_stages: int) -> int:
        """Sequences that may hold KV at one time."""
        return self.max_num_seqs or 256 * num_stages


class PredictorConfig(Part, title="Output length prediction"):
    """Source of predicted output lengths."""

    predictor: str = Field(
        "histogram",
        description="source of predicted output lengths. histogram: learnt from finished "
        "requests; constant:N: N tokens; oracle: max_tokens of the request; DIR: an encoder from "
        "`tdpipe train-predictor`",
    )

    @field_validator("predictor")
    @classmethod
    def _known_predictor(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if kind == "constant" and (not rest.isdecimal() or not int(rest)):
            raise ValueError("must be constant:N with N tokens, e.g. constant:128")
        return value

    @property
    def predictor_folder(self) -> Path | None:
        """The folder of the encoder, if one is configured."""
        is_embedded = self.predictor in ("histogram", "oracle") or self.constant_len
        return None if is_embedded else Path(self.predictor)

    @property
    def constant_len(self) -> int | None:
        """The N of constant:N."""
        kind, _, rest = self.predictor.partition(":")
        return int(rest) if kind == "constant" else None
