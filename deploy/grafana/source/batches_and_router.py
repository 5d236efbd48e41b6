"""The dashboard of batches, in daemons and in routers, and of the routers.

A router's metrics have a label `instance`, the URL of a daemon. Prometheus renames it to
`exported_instance`, because `instance` is its own label for what it scrapes: here, the router.
"""

from deploy.grafana.source.dashboard import INSTANCE, MODEL, ROUTER, Dashboard, Row
from deploy.grafana.source.panels import (
    BYTES,
    COUNT,
    PER_SECOND,
    RATIO,
    REQUESTS_PER_SECOND,
    SECONDS,
    Query,
    graph,
    quantiles,
    stat,
)

_OF_DAEMON = "{{exported_instance}}"
_NO_MODEL = "The choice of a model does not apply to routers."

_BATCHES = Row(
    "Batches",
    [
        graph(
            "Open batches",
            "Batches that have not ended, of daemons and of routers.",
            COUNT,
            [
                Query("tdpipe_open_batches{DAEMON}", "{{instance}}"),
                Query("tdpipe_router_open_batches{ROUTER}", "router {{instance}}"),
            ],
        ),
        graph(
            "Lines of the daemons' batches",
            "Requests of batches per second by outcome. A retry follows the loss of an engine.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (outcome) (rate(tdpipe_batch_requests_total{DAEMON}[RATE]))",
                    "{{outcome}}",
                )
            ],
            is_stacked=True,
        ),
        graph(
            "Lines of the routers' batches",
            "Requests of routers' batches per second by outcome. A retry follows a refusal or the "
            "loss of an instance.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (outcome) (rate(tdpipe_router_batch_requests_total{ROUTER}[RATE]))",
                    "{{outcome}}",
                )
            ],
            is_stacked=True,
        ),
    ],
)

_INSTANCES = Row(
    "Instances of the routers",
    [
        stat(
            "Instances up",
            "Instances that take requests from some router. Each belongs to one router at a time. "
            f"{_NO_MODEL}",
            COUNT,
            [
                Query(
                    "sum(max by (exported_instance) (tdpipe_router_instance_up{ROUTER}))",
                    "up",
                )
            ],
            width=4,
            height=8,
            bounds=((None, "red"), (1, "green")),
        ),
        graph(
            "Instances",
            "1 if an instance takes requests from some router; 0 if it is stale, lost, draining or "
            "not ready.",
            COUNT,
            [
                Query(
                    "max by (exported_instance) (tdpipe_router_instance_up{ROUTER})",
                    _OF_DAEMON,
                )
            ],
            width=10,
            maximum=1,
        ),
        graph(
            "Open requests by instance",
            "Requests that an instance is answering for routers.",
            COUNT,
            [
                Query(
                    "sum by (exported_instance) (tdpipe_router_open_requests{ROUTER})",
                    _OF_DAEMON,
                )
            ],
            width=10,
            is_stacked=True,
        ),
        graph(
            "Requests by instance",
            "Requests that ended, by the instance that had them last; none: not sent to any.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (exported_instance) (rate(tdpipe_router_requests_total{ROUTER}[RATE]))",
                    _OF_DAEMON,
                )
            ],
            is_stacked=True,
        ),
        graph(
            "Online load",
            "What online requests take of the instances with the same models. At 1, no time or "
            "no KV is left; with --scale-signal load, a router asks for one more at 0.9. Nothing "
            "is shown without targets.",
            RATIO,
            [Query("max by (models) (tdpipe_router_load{ROUTER})", "{{models}}")],
        ),
        graph(
            "Losses by instance",
            "How often a router has lost an instance since the router was started.",
            COUNT,
            [
                Query(
                    "sum by (exported_instance) (tdpipe_router_instance_losses_total{ROUTER})",
                    _OF_DAEMON,
                )
            ],
        ),
        graph(
            "Retries by instance",
            "Requests per second that were sent to another instance because this one failed or "
            "refused them.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (exported_instance) (rate(tdpipe_router_retries_total{ROUTER}[RATE]))",
                    _OF_DAEMON,
                )
            ],
        ),
    ],
)

_ROUTING = Row(
    "Requests of the routers",
    [
        graph(
            "Requests by outcome",
            "Requests that ended at a router, by outcome.",
            REQUESTS_PER_SECOND,
            [
                Query(
                    "sum by (outcome) (rate(tdpipe_router_requests_total{ROUTER}[RATE]))",
                    "{{outcome}}",
                )
            ],
            is_stacked=True,
        ),
        graph(
            "Pending requests",
            "Requests without an instance, lines of batches too.",
            COUNT,
            [Query("tdpipe_router_pending_requests{ROUTER}", "{{instance}}")],
        ),
        graph(
            "Wait for an instance",
            "From an online request's arrival to the choice of its first instance.",
            SECONDS,
            quantiles("tdpipe_router_wait_seconds", "ROUTER", 0.5, 0.95, 0.99),
        ),
        graph(
            "Resumed streams",
            "Streams per second whose instance was lost: resumed on another, or not possible.",
            PER_SECOND,
            [
                Query(
                    "sum by (outcome) (rate(tdpipe_router_resumptions_total{ROUTER}[RATE]))",
                    "{{outcome}}",
                )
            ],
        ),
        graph(
            "Events kept",
            "Memory for the events of open streams, which allow resuming them; at most "
            "--max-resume-bytes.",
            BYTES,
            [Query("tdpipe_router_kept_bytes{ROUTER}", "{{instance}}")],
        ),
        graph(
            "CPU of the routers",
            "CPU seconds per second of a router's process. At 1, the router is the limit.",
            SECONDS,
            [
                Query(
                    "rate(process_cpu_seconds_total[RATE]) "
                    "and on (job, instance) tdpipe_router_pending_requests{ROUTER}",
                    "{{instance}}",
                )
            ],
        ),
        graph(
            "Memory of the routers",
            "Resident memory of a router's process.",
            BYTES,
            [
                Query(
                    "process_resident_memory_bytes "
                    "and on (job, instance) tdpipe_router_pending_requests{ROUTER}",
                    "{{instance}}",
                )
            ],
        ),
    ],
)

DASHBOARD = Dashboard(
    uid="tdpipe-batches-and-router",
    title="tdpipe / Batches and router",
    description="Batches of daemons and routers, and how routers spread requests over instances.",
    variables=[MODEL, INSTANCE, ROUTER],
    rows=[_BATCHES, _INSTANCES, _ROUTING],
)
