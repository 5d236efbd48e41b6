"""The commands that have settings: `tdpipe serve` and `tdpipe route`."""

from configs.command_line import Command
from configs.config import Config
from configs.schema.part import ENV_PREFIX, groups_of
from configs.schema.route import RouteConfig
from configs.schema.scheduler import SchedulerConfig

ROUTE_PREFIX = f"{ENV_PREFIX}ROUTE_"
# Where the type does not say what to type.
_HTTP_METAVARS = {
    "host": "ADDRESS",
    "uds": "PATH",
    "uds_permissions": "MODE",
    "root_path": "PATH",
    "api_key": "KEY,...",
    "open_paths": "PATH,...",
    "allowed_origins": "ORIGIN,...",
    "allowed_methods": "METHOD,...",
    "allowed_headers": "HEADER,...",
    "forwarded_allow_ips": "ADDRESS,...",
    "otlp_traces_endpoint": "URL",
}

SERVE = Command(
    name="serve",
    schema=Config,
    description="Serve a model over an OpenAI-compatible HTTP API, on a pipeline of stages.",
    prefix=ENV_PREFIX,
    foreign_prefixes=(ROUTE_PREFIX,),
    common=(
        "served_model_name",
        "pipeline_parallel_size",
        "tensor_parallel_size",
        "max_model_len",
        "gpu_memory_utilization",
        "max_num_seqs",
        "policy",
        "host",
        "port",
        "api_key",
    ),
    metavars={
        **_HTTP_METAVARS,
        "served_model_name": "NAME,...",
        "tokenizer": "DIR|ID",
        "revision": "REVISION",
        "generation_config": "auto|vllm|DIR",
        "layer_split": "10,10,12,8|auto",
        "predictor": "histogram|constant:N|oracle|DIR",
        "server_endpoint": "ADDRESS",
        "stage_endpoint": "ADDRESS",
        "cluster_secret": "SECRET",
        "master_addr": "ADDRESS",
        "node_ip": "ADDRESS",
        "ttft_slo": "SECONDS",
        "tpot_slo": "SECONDS",
        "stream_comment_interval": "SECONDS",
        "distributed_timeout_seconds": "SECONDS",
        "restart_window": "SECONDS",
        "max_prefill_wait": "SECONDS",
        "max_stream_interval": "SECONDS",
        "log_stats_interval": "SECONDS",
    },
    short={"pipeline_parallel_size": "-pp", "tensor_parallel_size": "-tp"},
    positional=("model", "MODEL"),
    hidden=frozenset(part for part, _ in groups_of(SchedulerConfig) if part is not SchedulerConfig),
    constants="the constants of the scheduling policies",
)

ROUTE = Command(
    name="route",
    schema=RouteConfig,
    description="Serve one OpenAI-compatible HTTP API on many daemons (`tdpipe serve`).",
    prefix=ROUTE_PREFIX,
    common=("instances", "instance_api_key", "host", "port", "api_key"),
    metavars={
        **_HTTP_METAVARS,
        "instances": "URL,...",
        "instance_api_key": "KEY",
        "max_pending_time": "SECONDS",
        "no_instance_timeout": "SECONDS",
        "log_stats_interval": "SECONDS",
        "stale_after": "SECONDS",
        "local_args": "'MODEL --flags'",
        "local_devices": "0,1;2,3",
        "kube_workload": "KIND/NAME",
        "kube_namespace": "NAMESPACE",
        "kube_selector": "LABEL=VALUE,...",
        "kube_api": "URL",
        "webhook_url": "URL",
        "webhook_token": "TOKEN",
        "webhook_interval": "SECONDS",
        "scale_window": "SECONDS",
        "scale_cooldown": "SECONDS",
    },
)
