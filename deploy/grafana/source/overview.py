"""The dashboard for on-call: is it up, is it answering, how fast, how full, what has failed."""

from deploy.grafana.source.dashboard import INSTANCE, MODEL, Dashboard, Row
from deploy.grafana.source.panels import (
    BYTES,
    COUNT,
    PER_SECOND,
    RATIO,
    REQUESTS_PER_SECOND,
    SECONDS,
    Query,
    graph,
    mean,
    quantiles,
    stat,
)

_ALARMING = ((None, "green"), (0.01, "orange"), (0.05, "red"))
_FULL = ((None, "green"), (0.9, "orange"), (0.98, "red"))
_SOME = ((None, "red"), (1, "green"))
_NONE = ((None, "green"), (1, "red"))
_PLAIN = ((None, "blue"),)


def _share(outcome: str) -> str:
    """The share of a request outcome among all requests."""
    some = f'sum(rate(tdpipe_requests_total{{outcome="{outcome}",DAEMON}}[RATE]))'
    return f"{some} / sum(rate(tdpipe_requests_total{{DAEMON}}[RATE]))"


_STATE = Row(
    "State",
    [
        stat(
            "Ready instances",
            "Instances that schedule requests. Compare with the instances that are scraped.",
            COUNT,
            [Query("sum(tdpipe_ready{DAEMON})", "ready")],
            bounds=_SOME,
        ),
        stat(
            "Firing alerts",
            "Alerts of deploy/prometheus/rules/alerts.yml that fire, of all models and instances. "
            "0 also if the rules are not loaded. docs/runbook.md says what to do for each.",
            COUNT,
            [
                Query(
                    'count(ALERTS{alertname=~"Tdpipe.*",alertstate="firing"}) or vector(0)',
                    "firing",
                )
            ],
            bounds=_NONE,
        ),
        stat(
            "Errors",
            "Share of requests that failed in the server (500).",
            RATIO,
            [Query(_share("error"), "errors")],
            bounds=_ALARMING,
        ),
        stat(
            "Refused",
            "Share of valid requests that were refused for lack of capacity (429, 503).",
            RATIO,
            [Query(_share("refused"), "refused")],
            bounds=_ALARMING,
        ),
        stat(
            "Time to first token, p95",
            "Of all sequences, from the request's arrival to the first token.",
            SECONDS,
            quantiles("tdpipe_time_to_first_token_seconds", "DAEMON", 0.95),
            bounds=_PLAIN,
        ),
        stat(
            "Time per output token, p95",
            "Of all sequences, the mean time between the tokens of one sequence.",
            SECONDS,
            quantiles("tdpipe_time_per_output_token_seconds", "DAEMON", 0.95),
            bounds=_PLAIN,
        ),
        stat(
            "Output",
            "Generated tokens per second, of all selected instances together.",
            PER_SECOND,
            [Query("sum(rate(tdpipe_generated_tokens_total{DAEMON}[RATE]))", "tokens")],
            bounds=_PLAIN,
        ),
        stat(
            "KV cache, fullest",
            "Used share of the KV cache of the fullest instance. A full cache is normal for "
            "batches; with online requests it makes them wait.",
            RATIO,
            [Query("max(tdpipe_kv_blocks_used{DAEMON} / tdpipe_kv_blocks{DAEMON})", "used")],
            bounds=_FULL,
        ),
    ],
)

_REQUESTS = Row(
    "Requests",
    [
        graph(
            "Requests by outcome",
            "Requests that ended, by outcome: success, invalid (error of the client), refused "
            "(429, 503), timeout (408), disconnect (the client left), error (500).",
            REQUESTS_PER_SECOND,
            [Query("sum by (outcome) (rate(tdpipe_requests_total{DAEMON}[RATE]))", "{{outcome}}")],
            is_stacked=True,
        ),
        graph(
            "Refusals by reason",
            "Refused requests (429, 503) by what was exhausted; docs/metrics.md lists the limits.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (reason) (rate(tdpipe_refused_requests_total{DAEMON}[RATE]))",
                    "{{reason}}",
                )
            ],
            is_stacked=True,
        ),
        graph(
            "Invalid requests by reason",
            "Requests with an error of the client (4xx), by the code of the error.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (reason) (rate(tdpipe_invalid_requests_total{DAEMON}[RATE]))",
                    "{{reason}}",
                )
            ],
            is_stacked=True,
        ),
    ],
)

_LATENCY = Row(
    "Latency",
    [
        graph(
            "Time to first token",
            "From a request's arrival to a sequence's first token: the time in the queue and the "
            "prefill of the prompt.",
            SECONDS,
            quantiles("tdpipe_time_to_first_token_seconds", "DAEMON", 0.5, 0.95, 0.99),
        ),
        graph(
            "Time per output token",
            "The mean time between the tokens of a sequence, of the sequences that ended.",
            SECONDS,
            quantiles("tdpipe_time_per_output_token_seconds", "DAEMON", 0.5, 0.95, 0.99),
        ),
        graph(
            "Inter-token latency",
            "Between two consecutive tokens of a sequence. Prefill phases show here and hardly in "
            "the time per output token.",
            SECONDS,
            quantiles("tdpipe_inter_token_latency_seconds", "DAEMON", 0.5, 0.95, 0.99),
        ),
        graph(
            "Request duration",
            "From a request's arrival to its last byte, whatever its outcome.",
            SECONDS,
            quantiles("tdpipe_request_duration_seconds", "DAEMON", 0.5, 0.95, 0.99),
        ),
        graph(
            "Where a sequence's time goes",
            "Mean seconds of a sequence in each part: queue (until its first step), prefill (until "
            "its first token), decode (until its end).",
            SECONDS,
            [
                Query(
                    f"sum(rate(tdpipe_request_{part}_time_seconds_sum{{DAEMON}}[RATE])) / "
                    f"sum(rate(tdpipe_request_{part}_time_seconds_count{{DAEMON}}[RATE]))",
                    part,
                )
                for part in ("queue", "prefill", "decode")
            ],
            is_stacked=True,
        ),
        graph(
            "Lengths",
            "Mean tokens of the prompts and of the complete answers. Longer ones explain longer "
            "latencies.",
            COUNT,
            [
                Query(
                    mean("tdpipe_request_prompt_tokens", "DAEMON", "model_name"),
                    "{{model_name}} prompt",
                ),
                Query(
                    mean("tdpipe_request_generation_tokens", "DAEMON", "model_name"),
                    "{{model_name}} answer",
                ),
            ],
        ),
    ],
)

_LOAD = Row(
    "Load",
    [
        graph(
            "Tokens",
            "Prompt tokens admitted and output tokens generated per second.",
            PER_SECOND,
            [
                Query("sum(rate(tdpipe_prompt_tokens_total{DAEMON}[RATE]))", "prompt"),
                Query("sum(rate(tdpipe_generated_tokens_total{DAEMON}[RATE]))", "output"),
            ],
        ),
        graph(
            "Sequences",
            "Queued: without a first token yet. Waiting: in the engine without KV blocks. Live: "
            "with KV blocks.",
            COUNT,
            [
                Query("sum(tdpipe_queued_sequences{DAEMON})", "queued"),
                Query("sum(tdpipe_waiting_sequences{DAEMON})", "waiting"),
                Query("sum(tdpipe_live_sequences{DAEMON})", "live"),
            ],
        ),
        graph(
            "KV cache",
            "Used share of the KV cache by instance.",
            RATIO,
            [Query("tdpipe_kv_blocks_used{DAEMON} / tdpipe_kv_blocks{DAEMON}", "{{instance}}")],
            maximum=1,
        ),
    ],
)

_FAULTS = Row(
    "Faults and resources",
    [
        graph(
            "Restarts",
            "Restarts of the stages and of the engine, and requests ended because a stage failed "
            "with them each time, since the engine or the daemon was started.",
            COUNT,
            [
                Query("sum(tdpipe_pipeline_restarts_total{DAEMON})", "stages"),
                Query("sum(tdpipe_engine_restarts_total{DAEMON})", "engine"),
                Query("sum(tdpipe_poison_requests_total{DAEMON})", "poison requests"),
            ],
        ),
        graph(
            "Losses of stages",
            "Losses by the stage that caused them, cause, and signal or exit code, since the "
            "engine was started. Empty if there were none.",
            COUNT,
            [
                Query(
                    "sum by (stage, cause, code) (tdpipe_stage_losses_total{DAEMON})",
                    "stage {{stage}}: {{cause}} {{code}}",
                )
            ],
        ),
        graph(
            "Heartbeats",
            "Seconds since the last heartbeat of a stage; a stage is taken for lost after "
            "--heartbeat-timeout (1.5 s).",
            SECONDS,
            [
                Query(
                    "tdpipe_stage_heartbeat_age_seconds{DAEMON}",
                    "{{instance}} stage {{stage}}",
                )
            ],
        ),
        graph(
            "CPU",
            "CPU seconds per second of the server's process, and busy seconds per second of the "
            "engine's process. At 1, that process is the limit.",
            SECONDS,
            [
                Query(
                    "rate(process_cpu_seconds_total[RATE]) "
                    "and on (job, instance) tdpipe_build_info{DAEMON}",
                    "{{instance}} server",
                ),
                Query(
                    "rate(tdpipe_scheduler_busy_seconds_total{DAEMON}[RATE])",
                    "{{instance}} engine",
                ),
            ],
        ),
        graph(
            "CPU starvation of stages",
            "Seconds per second in which a stage without progress was starved of CPU by other "
            "processes.",
            SECONDS,
            [Query("rate(tdpipe_stage_starved_seconds_total{DAEMON}[RATE])", "{{instance}}")],
        ),
        graph(
            "Memory of the server",
            "Resident memory of the server's process; engine and stages are not included.",
            BYTES,
            [
                Query(
                    "process_resident_memory_bytes "
                    "and on (job, instance) tdpipe_build_info{DAEMON}",
                    "{{instance}}",
                )
            ],
        ),
        graph(
            "File descriptors",
            "Used share of the file descriptors that the server may open; each connection needs "
            "one.",
            RATIO,
            [
                Query(
                    "process_open_fds / process_max_fds "
                    "and on (job, instance) tdpipe_build_info{DAEMON}",
                    "{{instance}}",
                )
            ],
        ),
        graph(
            "Uptime of the engine",
            "Age of the engine process; it falls to 0 at each restart.",
            SECONDS,
            [Query("tdpipe_engine_uptime_seconds{DAEMON}", "{{instance}}")],
        ),
        stat(
            "Versions",
            "Version of tdpipe, and of torch, by instance.",
            COUNT,
            [
                Query(
                    "tdpipe_build_info{DAEMON}",
                    "{{instance}}: {{version}}, torch {{torch_version}}",
                )
            ],
            width=8,
            height=8,
            shows_names=True,
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="tdpipe-overview",
    title="tdpipe / Overview",
    description="For on-call: availability, errors, latencies, load and faults of daemons.",
    variables=[MODEL, INSTANCE],
    rows=[_STATE, _REQUESTS, _LATENCY, _LOAD, _FAULTS],
)
