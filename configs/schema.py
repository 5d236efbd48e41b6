"""The schema: every setting of the daemon, in the parts that the rooms are handed.

The keys are flat and bear vLLM's names wherever vLLM has the setting, so that a command line moves
over. A room takes the part it needs (`def __init__(self, config: SchedulerConfig)`); `Config` is
all of them.
"""

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

from configs.front_door import FrontDoorConfig, Texts, shown_secret
from configs.part import Part

# Who overhears a handshake can try guesses without asking anybody.
MIN_SECRET = 16
DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


def _data_dir() -> Path:
    """The user's folder for applications' data; a user without a home has a shared one."""
    try:
        return Path.home() / ".local" / "share" / "tdpipe"
    except RuntimeError:
        return Path("/var/tmp/tdpipe")


class ModelConfig(Part):
    """Which model, in which precision."""

    model: str = Field(
        str(DEMO_MODEL), description="folder of a checkpoint or a Hugging Face hub id"
    )
    served_model_name: Texts = Field(
        (),
        description="names that clients may use, the first is told them [the last part of MODEL]",
    )
    tokenizer: str | None = Field(None, description="folder or hub id of the tokenizer [MODEL]")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    trust_remote_code: bool = Field(False, description="run model code that comes with the weights")
    load_format: Literal["safetensors", "pt"] = Field(
        "safetensors",
        description="files that weights are read from; pt: pytorch_model.bin, of which nothing but "
        "tensors is unpickled",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="precision of weights and KV cache; auto is the checkpoint's own"
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="longest prompt + output in tokens [the model's, cut to the KV cache's size]",
    )

    @property
    def name(self) -> str:
        """The model's name in the API."""
        return self.names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that clients may use for the model."""
        if self.served_model_name:
            return self.served_model_name
        if self.model == str(DEMO_MODEL):
            return ("tdpipe-demo",)
        path = Path(self.model)
        return (path.resolve().name if path.is_dir() else self.model,)

    @field_validator("served_model_name")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(names):
            raise ValueError("a name must not be empty")
        return names


class PipelineConfig(Part):
    """How the model is cut into stages and where they run."""

    pipeline_parallel_size: int = Field(2, ge=1, le=256, description="number of stages (S)")
    layer_split: tuple[int, ...] | Literal["auto"] | None = Field(
        None,
        description="layers per stage, e.g. 10,10,12,8, or auto: by measured times "
        "[balanced by parameters, embedding and head counted]",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: GPUs if there are any"
    )
    distributed_timeout_seconds: float = Field(
        300.0, gt=0, description="longest wait of a stage for its neighbour, or for its own forward"
    )
    stage_start_timeout: float = Field(
        600.0, gt=0, description="seconds in which every stage must have loaded its weights"
    )
    heartbeat_timeout: float = Field(
        1.5,
        gt=0,
        description="seconds without a heartbeat after which a process is lost, and without "
        "anybody's progress after which a stage that waits for its neighbour is",
    )
    max_restarts: int = Field(
        3, ge=0, description="restarts of stages, and of the engine, in one restart_window"
    )
    restart_window: float = Field(
        600.0, gt=0, description="seconds in which more than max_restarts end the daemon"
    )
    profile: Path | None = Field(
        None, description="what steps cost, from `tdpipe profile` [measured at the first start]"
    )
    profile_seconds: float = Field(
        5.0, ge=0, description="time in which a stage measures its steps at the start; 0 never"
    )
    exact_times: bool = Field(
        False,
        description="GPU stages wait for the end of each step, so that its time is known: for "
        "traces and measurements, at the price of some overlap",
    )
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads per stage [cores divided by stages]"
    )

    @field_validator("layer_split", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if not isinstance(value, str) or value == "auto":
            return value
        return [part.strip() for part in value.split(",")]

    @model_validator(mode="after")
    def _split_fits_stages(self) -> Self:
        split = self.layer_split
        num_stages = self.pipeline_parallel_size
        if isinstance(split, tuple) and (len(split) != num_stages or min(split) < 1):
            given = ",".join(map(str, split)) or "(empty)"
            raise ValueError(
                f"layer_split {given} must name at least one layer for each of the {num_stages} "
                "stages (pipeline_parallel_size)"
            )
        return self


class CacheConfig(Part):
    """How much KV cache a stage holds."""

    block_size: int = Field(16, ge=1, le=1024, description="tokens in one KV block")
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, description="bytes of KV cache per stage [on CPU a part of the free memory]"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="part of a GPU's memory for weights, activations and KV"
    )


class AdmissionConfig(Part):
    """What all policies keep to."""

    max_num_seqs: int | None = Field(
        None, ge=1, description="sequences that may hold KV at one time [256 for each stage]"
    )
    max_num_batched_tokens: int = Field(
        2048, ge=1, description="tokens of one prefill micro-batch; longer prompts go in chunks"
    )
    predicted_output_len: int = Field(
        128, ge=1, description="output length expected of a request that comes without a prediction"
    )
    max_prefill_wait: float = Field(
        0.5, ge=0, description="seconds of decode after which waiting requests are let in anyway"
    )

    def max_live(self, num_stages: int) -> int:
        """Sequences that may hold KV at one time."""
        return self.max_num_seqs or 256 * num_stages


class TdPipeConfig(AdmissionConfig):
    """Policy td-pipe: the constants are those of the paper's code, the switches its ablations."""

    greedy_prefill: bool = Field(
        True, description="td-pipe: end a prefill phase by simulated KV use (section 3.3)"
    )
    kv_occupancy: float = Field(
        0.9,
        gt=0,
        le=1,
        description="td-pipe: simulated KV peak that ends it, as part of all blocks",
    )
    prefill_occupancy: float = Field(
        0.9, gt=0, le=1, description="td-pipe without greedy_prefill: present KV use that ends it"
    )
    prefill_batch_tokens: int = Field(
        192, ge=1, description="td-pipe: padded tokens at which a prefill micro-batch is full"
    )
    prefill_ahead: int = Field(
        2, ge=1, description="td-pipe: prefill micro-batches in flight for each stage"
    )
    work_stealing: bool = Field(
        True, description="td-pipe: keep decode micro-batches equal (section 3.4)"
    )
    intensity: bool = Field(
        True, description="td-pipe: end a decode phase by spatial-temporal intensity (section 3.5)"
    )
    finish_ratio: float = Field(
        0.5, gt=0, le=1, description="td-pipe without intensity: part that must have finished"
    )
    saturating_rows: int = Field(
        256, ge=1, description="td-pipe: micro-batch whose rate is the peak of spatial intensity"
    )
    saturated_rows: int = Field(
        192, ge=1, description="td-pipe: micro-batch from which on spatial intensity is 1"
    )


class HybridConfig(AdmissionConfig):
    """Policy hybrid: the throttled setting's constants are gLLM's."""

    hybrid: Literal["vllm", "throttled"] = Field(
        "throttled", description="hybrid: all idle decodes in one micro-batch, or spread evenly"
    )
    throttle_iterations: int = Field(
        8, ge=1, description="hybrid throttled: steps over which waiting prompts are spread"
    )
    throttle_min_tokens: int = Field(
        32, ge=1, description="hybrid throttled: least prefill tokens of a step"
    )
    throttle_max_tokens: int = Field(
        2048, ge=1, description="hybrid throttled: most prefill tokens of a step"
    )
    throttle_kv_free: float = Field(
        0.05, ge=0, lt=1, description="hybrid throttled: part of the KV that is kept free"
    )


class TemporalConfig(TdPipeConfig):
    """Policy temporal: its parts, each of which can be switched off to see what it is worth."""

    knee_tolerance: float = Field(
        0.08, ge=0, description="temporal: how much dearer a token of a refill's steps may be"
    )
    refill_rounds: int = Field(
        16, ge=1, description="temporal: rounds of S steps in which what has room is fed"
    )
    topup: bool = Field(True, description="temporal: decode goes on during a refill")
    balance_time: bool = Field(
        True, description="temporal: equal seconds for decode micro-batches, not equal rows"
    )
    lazy_refill: bool = Field(
        True, description="temporal: refill when idle blocks have cost as much as a switch"
    )
    survival: bool = Field(
        True, description="temporal: plan KV by survival, not by predicted lengths alone"
    )
    horizon: float = Field(
        0.25, ge=0, description="temporal: plan KV for so many times what pays a pre-emption, 0 all"
    )
    forecast: bool = Field(
        True, description="temporal: larger steps where offline work is reckoned to end sooner"
    )
    critical_slack: float = Field(
        1.5,
        gt=0,
        description="temporal: admit answers first that may need one in so many rounds left",
    )
    critical_sigmas: float = Field(
        3.0, ge=0, description="temporal: as many deviations longer than expected may they be"
    )
    prior_sigma: float = Field(
        0.5, gt=0, description="temporal: spread of ln(real / predicted length) assumed at first"
    )
    longest_first: bool = Field(
        True, description="temporal: admit offline requests with long predicted outputs first"
    )


class SchedulerConfig(HybridConfig, TemporalConfig):
    """What the next micro-batch is made of."""

    policy: Literal["td-pipe", "temporal", "separate", "hybrid"] = Field(
        "td-pipe", description="scheduling policy"
    )


# Bases in reverse: pydantic collects the fields of the last base first, and --help shows them so.
class EngineConfig(SchedulerConfig, CacheConfig, PipelineConfig, ModelConfig):
    """What decisions depend on; a journal begins with these."""


class PredictorConfig(Part):
    """Who says how long an answer will be."""

    predictor: str = Field(
        "histogram",
        description="histogram: learnt from finished requests; constant:N tokens; oracle: "
        "max_tokens; or the folder of an encoder from `tdpipe train-predictor`",
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
        """The folder of the encoder, where one predicts."""
        is_embedded = self.predictor in ("histogram", "oracle") or self.constant_len
        return None if is_embedded else Path(self.predictor)

    @property
    def constant_len(self) -> int | None:
        """The N of constant:N."""
        kind, _, rest = self.predictor.partition(":")
        return int(rest) if kind == "constant" else None


class ServerConfig(FrontDoorConfig):
    """The HTTP door."""

    max_num_queued_reqs: int = Field(
        1024, ge=1, description="sequences that may wait for their first token; more get 429"
    )
    max_num_queued_tokens: int = Field(
        1024 * 4096, ge=1, description="tokens that their prompts may have in all; more get 429"
    )
    request_timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a request may take, queued or running, unless its own timeout is "
        "shorter; not for batches [no limit]",
    )
    send_timeout: float = Field(
        60.0,
        gt=0,
        description="seconds after which a client that reads nothing of what is there for it is "
        "hung up on",
    )
    max_stream_interval: float = Field(
        0.05,
        ge=0,
        description="seconds for which a stream's tokens are gathered at most, where so many "
        "streams are open that writing each by itself would keep the server busy",
    )
    max_logprobs: int = Field(
        20, ge=0, description="likeliest tokens that a request may ask for with each token"
    )
    shutdown_timeout: float = Field(
        30.0, ge=0, description="seconds in which open requests may finish after SIGTERM"
    )


class BatchConfig(Part):
    """Files and batches."""

    max_file_bytes: int = Field(2**30, ge=1, description="largest file that may be uploaded")
    max_batch_requests: int = Field(
        1_000_000, ge=1, description="requests that a batch may have, one a line"
    )
    batch_concurrency: int | None = Field(
        None,
        ge=1,
        description="requests of batches that are open in the engine at one time; the scheduler "
        "sees their lengths [twice max_num_seqs]",
    )


class ChatConfig(Part):
    """How conversations become prompts, and answers messages."""

    chat_template: Path | None = Field(
        None, description="file with a jinja chat template [the model's own]"
    )
    trust_request_chat_template: bool = Field(
        False, description="let requests bring a chat_template: it may take any time and memory"
    )
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "none"] = Field(
        "auto", description="how the model writes tool calls; auto: by its chat template"
    )
    reasoning_parser: Literal["auto", "think", "none"] = Field(
        "auto", description="how the model marks its reasoning; auto: by its chat template"
    )


class RuntimeConfig(Part):
    """Where the daemon's own processes meet."""

    runtime_dir: Path | None = Field(
        None, description="folder for sockets and the resolved settings [a fresh temporary one]"
    )
    server_endpoint: str | None = Field(
        None,
        description="engine's address for the server, ipc:// or tcp:// [a socket in the folder]",
    )
    stage_endpoint: str | None = Field(
        None,
        description="engine's address for the stages, ipc:// or tcp:// [a socket in the folder]",
    )
    cluster_secret: SecretStr | None = Field(
        None,
        description="what all processes of the daemon know, and strangers on a tcp endpoint do "
        "not; better in TDPIPE_CLUSTER_SECRET or YAML than here, where `ps` shows it [none]",
    )
    data_dir: Path = Field(
        default_factory=_data_dir,
        description="folder for what is kept across restarts: profiles, lengths of answers "
        "[~/.local/share/tdpipe]",
    )
    journal: Path | None = Field(
        None, description="write every event and decision here, for `tdpipe replay`"
    )
    trace: Path | None = Field(
        None, description="write every stage's steps here, for `tdpipe timeline` and Perfetto"
    )

    @field_validator("server_endpoint", "stage_endpoint")
    @classmethod
    def _known_transport(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("ipc://", "tcp://")):
            raise ValueError("must begin with ipc:// or tcp://")
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
        if secret is not None and len(secret) < MIN_SECRET:
            raise ValueError(f"must have at least {MIN_SECRET} characters")
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
        return self.server_endpoint or f"ipc://{self.folder}/server.sock"

    @property
    def predictor_address(self) -> str:
        """Where the predictor listens for the server."""
        return f"ipc://{self.folder}/predictor.sock"

    @property
    def stage_address(self) -> str:
        """Where the engine listens for the stages."""
        return self.stage_endpoint or f"ipc://{self.folder}/stages.sock"


def _is_reachable(endpoint: str) -> bool:
    """Whether other hosts may reach it. A name may become any address, but for that of the host."""
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if endpoint.startswith("ipc://") or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True


class Config(RuntimeConfig, ChatConfig, BatchConfig, ServerConfig, PredictorConfig, EngineConfig):
    """All settings of `tdpipe serve`."""

    @property
    def max_open_batch_requests(self) -> int:
        """Requests of batches that are open at one time: what runs, and as much to choose from."""
        return self.batch_concurrency or 2 * self.max_live(self.pipeline_parallel_size)
