"""The dashboard of the pipeline: stages, bubbles, phases, decoding, the KV cache, predictions."""

from deploy.grafana.source.dashboard import INSTANCE, MODEL, Dashboard, Row
from deploy.grafana.source.panels import (
    COUNT,
    PER_SECOND,
    RATIO,
    SECONDS,
    Query,
    graph,
    mean,
    quantiles,
    stat,
)

_BUSY = "rate(tdpipe_stage_busy_seconds_total{DAEMON}[RATE])"
_BUBBLE = "rate(tdpipe_stage_bubble_seconds_total{DAEMON}[RATE])"
_BY_INSTANCE = "{{instance}}"
_BY_STAGE = "{{instance}} stage {{stage}}"
# On GPUs the daemon shows no busy and bubble seconds otherwise.
_EXACT = "On GPUs only with --exact-times."


def _rate(metric: str) -> str:
    return f"sum by (instance) (rate({metric}{{DAEMON}}[RATE]))"


_STAGES = Row(
    "Stages",
    [
        graph(
            "Bubbles by stage",
            "Share of the time with work in which a stage computed nothing. Time without any "
            f"request does not count. At low load it is high: one sequence keeps one stage busy. "
            f"{_EXACT}",
            RATIO,
            [Query(f"{_BUBBLE} / ({_BUBBLE} + {_BUSY})", _BY_STAGE)],
            maximum=1,
        ),
        graph(
            "Time of the stages",
            f"Mean over the stages: computing, waiting while a step is in flight elsewhere, and "
            f"without any work. {_EXACT}",
            RATIO,
            [
                Query(f"avg({_BUSY})", "busy"),
                Query(f"avg({_BUBBLE})", "bubble"),
                Query(f"clamp_min(1 - avg({_BUSY}) - avg({_BUBBLE}), 0)", "no work"),
            ],
            is_stacked=True,
            maximum=1,
        ),
        graph(
            "Time of a step by stage",
            f"Mean seconds of a forward pass. The slowest stage limits the pipeline: "
            f"--layer-split auto evens them out. {_EXACT}",
            SECONDS,
            [Query(f"{_BUSY} / rate(tdpipe_stage_steps_total{{DAEMON}}[RATE])", _BY_STAGE)],
        ),
        graph(
            "Steps in flight",
            "Micro-batches in the pipeline. While there is work for all stages, as many as there "
            "are stages.",
            COUNT,
            [Query("tdpipe_in_flight_micro_batches{DAEMON}", _BY_INSTANCE)],
        ),
        graph(
            "Steps",
            "Micro-batches that have passed all stages, per second.",
            PER_SECOND,
            [Query(_rate("tdpipe_steps_total"), _BY_INSTANCE)],
        ),
        stat(
            "Attention backends",
            "The attention backend of each stage; plain is the slowest.",
            COUNT,
            [
                Query(
                    "tdpipe_stage_attention_backend{DAEMON}",
                    "{{instance}} stage {{stage}}: {{backend}}",
                )
            ],
            width=8,
            height=8,
            shows_names=True,
        ),
    ],
)

_PHASES = Row(
    "Phases",
    [
        graph(
            "Time by phase",
            "Seconds per second with a step in flight, by phase; the rest is without work.",
            RATIO,
            [Query("avg by (phase) (rate(tdpipe_phase_seconds_total{DAEMON}[RATE]))", "{{phase}}")],
            is_stacked=True,
            maximum=1,
        ),
        graph(
            "Phase now",
            "1 for the phase at the moment of the scrape; phases that are shorter than the scrape "
            "interval are not all seen.",
            COUNT,
            [Query("tdpipe_phase{DAEMON}", "{{instance}} {{phase}}")],
            maximum=1,
        ),
        graph(
            "Switches",
            "Switches between prefill and decode phases per second.",
            PER_SECOND,
            [Query(_rate("tdpipe_phase_switches_total"), _BY_INSTANCE)],
        ),
        graph(
            "Cost of a switch",
            "Mean bubble seconds of a stage before the first steps of the new phase.",
            SECONDS,
            [Query(mean("tdpipe_phase_switch_cost_seconds", "DAEMON", "phase"), "to {{phase}}")],
        ),
        graph(
            "Share of time that switches take",
            "Bubble seconds of switches, divided by the seconds with work.",
            RATIO,
            [
                Query(
                    "sum by (instance) (rate(tdpipe_phase_switch_cost_seconds_sum{DAEMON}[RATE]))"
                    " / sum by (instance) (rate(tdpipe_phase_seconds_total{DAEMON}[RATE]))",
                    _BY_INSTANCE,
                )
            ],
        ),
        graph(
            "Length of a decode phase",
            "Mean seconds with work in the decode phase per switch to it.",
            SECONDS,
            [
                Query(
                    'sum by (instance) (rate(tdpipe_phase_seconds_total{phase="decode",DAEMON}'
                    "[RATE])) / (sum by (instance) "
                    "(rate(tdpipe_phase_switches_total{DAEMON}[RATE])) / 2)",
                    _BY_INSTANCE,
                )
            ],
        ),
    ],
)

_DECODING = Row(
    "Decoding",
    [
        graph(
            "Work stealing",
            "Rows moved per second from full decode micro-batches to others.",
            PER_SECOND,
            [Query(_rate("tdpipe_work_steals_total"), _BY_INSTANCE)],
        ),
        graph(
            "Top-ups",
            "Decode steps per second that prompts were added to (policy temporal).",
            PER_SECOND,
            [Query(_rate("tdpipe_topups_total"), _BY_INSTANCE)],
        ),
        graph(
            "Tokens of top-ups",
            "Prompt tokens per second that were added to decode steps (policy temporal).",
            PER_SECOND,
            [Query(_rate("tdpipe_topup_tokens_total"), _BY_INSTANCE)],
        ),
        graph(
            "Tokens per step",
            "Generated tokens per micro-batch: the size of decode micro-batches, lowered by "
            "prefill steps.",
            COUNT,
            [
                Query(
                    f"{_rate('tdpipe_generated_tokens_total')} / {_rate('tdpipe_steps_total')}",
                    _BY_INSTANCE,
                )
            ],
        ),
        graph(
            "Prefill",
            "Prompt tokens of accepted sequences per second, those from the prefix cache included.",
            PER_SECOND,
            [Query(_rate("tdpipe_prefilled_tokens_total"), _BY_INSTANCE)],
        ),
        graph(
            "Busy share of the engine",
            "Seconds per second in which the engine process was busy. Near 1, the stages wait for "
            "their plans.",
            RATIO,
            [Query(_rate("tdpipe_scheduler_busy_seconds_total"), _BY_INSTANCE)],
            maximum=1,
        ),
    ],
)

_CACHE = Row(
    "KV cache",
    [
        graph(
            "KV blocks",
            "Blocks in use, and those that there are.",
            COUNT,
            [
                Query("sum by (instance) (tdpipe_kv_blocks_used{DAEMON})", "{{instance}} used"),
                Query("sum by (instance) (tdpipe_kv_blocks{DAEMON})", "{{instance}} all"),
            ],
        ),
        graph(
            "Sequences with and without KV",
            "Live: hold KV blocks. Waiting: in the engine without KV blocks.",
            COUNT,
            [
                Query("sum by (instance) (tdpipe_live_sequences{DAEMON})", "{{instance}} live"),
                Query(
                    "sum by (instance) (tdpipe_waiting_sequences{DAEMON})", "{{instance}} waiting"
                ),
            ],
        ),
        graph(
            "Prefix cache hits",
            "Share of the tokens of admitted sequences that were in the prefix cache.",
            RATIO,
            [
                Query(
                    f"{_rate('tdpipe_prefix_cache_hits_total')} / "
                    f"{_rate('tdpipe_prefix_cache_queries_total')}",
                    _BY_INSTANCE,
                )
            ],
            maximum=1,
        ),
        graph(
            "Preemptions",
            "Sequences per second that lost their KV blocks to others and are recomputed.",
            PER_SECOND,
            [Query(_rate("tdpipe_preemptions_total"), _BY_INSTANCE)],
        ),
        graph(
            "Recomputed tokens",
            "Tokens per second that were computed again after preemptions and restarts.",
            PER_SECOND,
            [Query(_rate("tdpipe_recomputed_tokens_total"), _BY_INSTANCE)],
        ),
        graph(
            "Messages dropped",
            "Messages and peers per second that the engine's sockets rejected.",
            PER_SECOND,
            [Query(_rate("tdpipe_dropped_messages_total"), _BY_INSTANCE)],
        ),
    ],
)

_PREDICTIONS = Row(
    "Predictions",
    [
        graph(
            "Error of the sum of output lengths",
            "(predicted - real) / real of the sums over the last 256 ended sequences. The decode "
            "phase ends too early above 0, and too late below.",
            RATIO,
            [Query("tdpipe_prediction_sum_error_ratio{DAEMON}", _BY_INSTANCE)],
            is_signed=True,
        ),
        graph(
            "Predicted over real tokens",
            "Predicted output tokens divided by real ones, of the sequences that ended, by source "
            "and class of lengths.",
            RATIO,
            [
                Query(
                    "sum by (source, length_class) "
                    "(rate(tdpipe_predicted_output_tokens_total{DAEMON}[RATE]))"
                    " / sum by (source, length_class) "
                    "(rate(tdpipe_real_output_tokens_total{DAEMON}[RATE]))",
                    "{{source}}, class {{length_class}}",
                )
            ],
        ),
        graph(
            "Predictions by source",
            "Ended sequences per second, by what has predicted their length.",
            PER_SECOND,
            [Query("sum by (source) (rate(tdpipe_predictions_total{DAEMON}[RATE]))", "{{source}}")],
        ),
        graph(
            "Latency of the predictor",
            "From a request to the encoder to its prediction. Only with --predictor FOLDER.",
            SECONDS,
            quantiles("tdpipe_predictor_latency_seconds", "DAEMON", 0.5, 0.95),
        ),
        graph(
            "Fallbacks of the predictor",
            "Ended sequences per second whose prediction had not arrived in time, so that the "
            "histogram was used.",
            PER_SECOND,
            [Query(_rate("tdpipe_predictor_fallbacks_total"), _BY_INSTANCE)],
        ),
        graph(
            "Cost model",
            "Predicted over measured seconds of the last steps, by stage; 1 is exact.",
            RATIO,
            [Query("tdpipe_cost_model_ratio{DAEMON}", _BY_STAGE)],
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="tdpipe-pipeline",
    title="tdpipe / Pipeline",
    description="What the stages do: bubbles, phases, decoding, the KV cache, predictions.",
    variables=[MODEL, INSTANCE],
    rows=[_STAGES, _PHASES, _DECODING, _CACHE, _PREDICTIONS],
)
