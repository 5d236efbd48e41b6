"""The doors' words: every message that crosses between server, engine and stages.

Messages are frozen values. Numbers in bulk travel as packed little-endian bytes (`int32` unless
said otherwise), because decoding them as Python integers would cost more than the rest of the step.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
Phase = Literal["prefill", "decode", "mixed"]
Doing = Literal["loads", "idle", "waits", "computes"]


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages: the class name travels as the tag, the fields in order."""


# --- server -> engine -----------------------------------------------------------------------


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How one sequence picks its tokens.

    `temperature` 0 is greedy. `top_k` 0 means all tokens. `seed` is always set (the server draws
    one where the client gave none): the draw for output token `i` depends on `seed` and `i` alone,
    so the same request gives the same text whatever else is in the batch, before and after a
    pre-emption. Penalties as OpenAI (presence, frequency: of what was generated) and vLLM
    (repetition: of the prompt as well) have them. `bias_ids` (int32) get `biases` (float32) added;
    with `allowed_token_ids` (int32) no other can be picked; a sequence of `bad_words` (int32 each)
    is never completed. `num_logprobs` likeliest tokens are told with each token (-1: nothing is
    told), `num_prompt_logprobs` with each of the prompt's. A `grammar` (llguidance's, as text) says
    what the output may be.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias_ids: bytes = b""
    biases: bytes = b""
    allowed_token_ids: bytes = b""
    bad_words: tuple[bytes, ...] = ()
    num_logprobs: int = -1
    num_prompt_logprobs: int = -1
    grammar: str = ""


class Submit(Message, frozen=True):
    """Generate from `prompt_token_ids` (packed int32, at least one).

    The sequence ends after `max_tokens` tokens ("length") or with the first of `stop_token_ids`
    ("stop"; empty for `ignore_eos`), which cannot be sampled before `min_tokens` tokens are out.
    Ids are unique for the life of an engine process. `predicted_len` is the mean number of output
    tokens that a predictor expects, 0 where none was asked, and `spread` the standard deviation of
    their logarithm, 0 where it does not say. `offline` work is nobody's to wait for: it gives way
    to the rest and may be reordered. `output_token_ids` (packed int32) were generated before, by an
    engine that is gone: they are fed like the prompt, and counted and judged as what they are.
    """

    sequence_id: int
    prompt_token_ids: bytes
    max_tokens: int
    sampling: Sampling = Sampling()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    predicted_len: int = 0
    offline: bool = False
    spread: float = 0.0
    output_token_ids: bytes = b""


class Expect(Message, frozen=True):
    """A predictor's answer that has come after the `Submit`; see there. Unknown ids are ignored."""

    sequence_id: int
    predicted_len: int
    spread: float = 0.0


class Abort(Message, frozen=True):
    """Forget the sequence and free its blocks at once. Unknown ids are ignored; no answer comes."""

    sequence_id: int


class Hello(Message, frozen=True):
    """Somebody has (re)connected and asks the other end to introduce itself.

    From a server: abort all that is open, and answer with EngineReady if there is a pipeline; each
    one says which `number` was heard last. From an engine, to a stage: answer with StageReady once
    all plans before this are done.
    """

    number: int = 1


# --- engine -> server -----------------------------------------------------------------------


class EngineReady(Message, frozen=True):
    """All stages are loaded; sent again whenever a lost pipeline has come back.

    `max_model_len` is the longest prompt + output in tokens that this engine accepts, `hello` the
    number of the last Hello before this.
    """

    num_stages: int
    num_blocks: int
    block_size: int
    max_model_len: int
    hello: int = 0


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of the model itself, before penalties and temperature, at some positions.

    `indices` (int32) say which positions. For each: `chosen` (float32) is the token's that came,
    `ranks` (int32) its place among all, from 1; then the `num_tops` (int32) likeliest tokens,
    ragged: `top_ids` (int32) and `tops` (float32).
    """

    indices: bytes
    chosen: bytes
    ranks: bytes
    num_tops: bytes
    top_ids: bytes
    tops: bytes


class Generated(Message, frozen=True):
    """One step's new tokens: `sequence_ids` packed int64, `token_ids` packed int32, side by side.

    A stop token that ends a sequence is included. The indices of `logprobs` count in these.
    """

    sequence_ids: bytes
    token_ids: bytes
    logprobs: Logprobs | None = None


class Scored(Message, frozen=True):
    """Log-probabilities of a prompt's tokens, whose positions are the indices of `logprobs`."""

    sequence_id: int
    logprobs: Logprobs


class Finished(Message, frozen=True):
    """The last message about a sequence. `message` says why in the client's words on "error".

    It `is_final` where the same would be said of the same request again.
    """

    sequence_id: int
    reason: FinishReason
    message: str = ""
    is_final: bool = False


class StageStats(msgspec.Struct, frozen=True, array_like=True):
    """One stage as the engine last heard of it.

    `busy_s` counts seconds in forwards since start; `cost_ratio` is what the cost model predicted
    for its last steps over what they took, 0 before any.
    """

    stage: int
    pid: int
    heartbeat_age_s: float
    progress: int
    steps: int
    busy_s: float
    cost_ratio: float = 0.0


class Stats(Message, frozen=True):
    """The engine's counters (since its start) and gauges (now); sent four times a second.

    It is the engine's heartbeat as well, and `engine` is another number for each process, and after
    each message that could not be delivered. `phase` is the scheduler's present phase. `trouble`
    says why the pipeline was lost that is not back yet. `dropped` counts strangers' messages, and
    strangers who were not let in.
    """

    ready: bool
    phase: Phase
    waiting: int = 0
    live: int = 0
    in_flight: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    recomputed_tokens: int = 0
    switches: int = 0
    steals: int = 0
    preemptions: int = 0
    steps: int = 0
    restarts: int = 0
    poison_requests: int = 0
    uptime_s: float = 0.0
    busy_s: float = 0.0
    stages: tuple[StageStats, ...] = ()
    trouble: str = ""
    engine: int = 0
    dropped: int = 0


# --- engine -> stages, which hear Hello as well ----------------------------------------------


class SamplerSetup(msgspec.Struct, frozen=True, array_like=True):
    """What the last stage must know of a sequence that does not just take the likeliest token.

    It is sent once, with the first step that samples for the sequence; from then on the stage
    counts with its own tokens, and a row names only the `sampler_slot`. Until `min_tokens` tokens
    are out, none of `stop_token_ids` is picked. Token ids are packed int32.
    """

    sampler_slot: int
    sampling: Sampling
    min_tokens: int
    stop_token_ids: tuple[int, ...]
    prompt_token_ids: bytes
    output_token_ids: bytes


class ScoredRow(msgspec.Struct, frozen=True, array_like=True):
    """A row of a prompt whose tokens' log-probabilities are asked for.

    `next_token_id` follows the row's last token, -1 where that is still to be sampled.
    """

    row: int
    num_logprobs: int
    next_token_id: int


class Step(Message, frozen=True):
    """A whole micro-batch plan; every stage gets the same one and runs it in the order received.

    One entry per row, rows in order:
      `sequence_ids`     int64 [rows]
      `start_positions`  int32 [rows], position of the row's first token
      `num_tokens`       int32 [rows], tokens fed for the row (>= 1)
      `samples`          uint8 [rows], 1 where the row's last token is to be followed by a new one
    Ragged, row after row:
      `token_ids`        int32 [sum num_tokens]
      `block_tables`     int32, ceil((start_position + num_tokens) / block_size) blocks per row
    `sampler_slots` int32 [sampling rows], -1 for rows that take the likeliest token; empty where
    all are -1. `setups` come before the step's own draws. `scored` rows are of prompts.
    """

    epoch: int
    step_id: int
    phase: Phase
    sequence_ids: bytes
    start_positions: bytes
    num_tokens: bytes
    samples: bytes
    token_ids: bytes
    block_tables: bytes
    sampler_slots: bytes = b""
    setups: tuple[SamplerSetup, ...] = ()
    scored: tuple[ScoredRow, ...] = ()


# --- stages -> engine -----------------------------------------------------------------------


class StageCosts(msgspec.Struct, frozen=True, array_like=True):
    """What a step costs on one stage, as a sum.

    `seconds` of a forward over `num_tokens` (ascending); `kv_s_per_token` for each token of
    resident KV that its rows read (all before a row's first new one); `row_s` for each row; and
    `pair_s` for each pair of a new token with itself or one before it in a row of several new
    tokens, which is a prompt's own attention.
    """

    num_tokens: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    kv_s_per_token: float = 0.0
    row_s: float = 0.0
    pair_s: float = 0.0


class StageReady(Message, frozen=True):
    """The stage has its weights and room for `num_blocks` KV blocks, and waits for plans.

    `epoch` names one life of the whole stage group: all stages of a group share it, a restarted
    group has a greater one. `max_model_len` is the model's own limit in tokens. `costs` are empty
    where nothing was measured. `last_step_id` is the last step that it was given, -1 for none.
    """

    stage: int
    epoch: int
    num_blocks: int
    max_model_len: int
    costs: StageCosts = StageCosts()
    last_step_id: int = -1


class StepDone(Message, frozen=True):
    """The last stage has run a step: `token_ids` int32, one for each sampling row in order.

    The indices of `logprobs` count in these. `scores` are of the step's scored rows in order; their
    indices are positions in the prompt, of the token that is scored.
    """

    epoch: int
    step_id: int
    token_ids: bytes
    logprobs: Logprobs | None = None
    scores: tuple[Logprobs, ...] = ()


class Heartbeat(Message, frozen=True):
    """A stage is alive; `progress` grows with every chore it finishes.

    It `loads` until it is ready, and `waits` for the stage before it, or for the one after to take
    what it has sent. All stages of a group begin to beat at the same time.

    With it, the steps that were run since the last one: `step_ids` packed int64, `began_at` and
    `ended_at` packed float64, side by side, in seconds of the stage's own monotonic clock, as is
    `sent_at`. They are `exact` unless a GPU was only told what to do.
    """

    stage: int
    epoch: int
    pid: int
    progress: int
    steps: int
    busy_s: float
    sent_at: float = 0.0
    step_ids: bytes = b""
    began_at: bytes = b""
    ended_at: bytes = b""
    exact: bool = True
    doing: Doing = "idle"


class StageFailed(Message, frozen=True):
    """The stage ends because of step `step_id`, and none of its neighbours is the reason.

    Or it could not start: then `step_id` is -1. Where it `is_apart`, that is because the others
    could not be reached.
    """

    stage: int
    epoch: int
    step_id: int
    reason: str
    is_apart: bool = False


# --- the engine's own events ----------------------------------------------------------------


class StageLost(Message, frozen=True):
    """The stage group `epoch` is gone or hangs: nothing it still owes will come.

    `step_id` is the step that a stage failed in, -1 where none has said so.
    """

    epoch: int
    reason: str
    step_id: int = -1


class StageTimes(Message, frozen=True):
    """What steps have taken on a stage: `step_ids` packed int64, `seconds` packed float64."""

    stage: int
    epoch: int
    step_ids: bytes
    seconds: bytes


Event = Submit | Expect | Abort | StepDone | StageReady | StageLost | StageTimes
"""What the scheduler is handed."""

FromServer = Submit | Expect | Abort | Hello
ToServer = EngineReady | Generated | Scored | Finished | Stats
FromStage = StageReady | StepDone | StageFailed | Heartbeat
ToStage = Step | Hello
