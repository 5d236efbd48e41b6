"""The loader: precedence of the sources, and one line that names the key of an error."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from configs import loader
from configs.config import Config
from configs.loader import ConfigError
from configs.schema.model import DEMO_MODEL
from configs.schema.part import groups_of, paths_of

# A value other than the default for every setting, as one would type it.
SAMPLES = {
    "model": "some/model",
    "served_model_name": "first,second",
    "tokenizer": "some/tokenizer",
    "revision": "v1.0",
    "trust_remote_code": "true",
    "load_format": "pt",
    "dtype": "float32",
    "max_model_len": "100",
    "generation_config": "vllm",
    "pipeline_parallel_size": "3",
    "tensor_parallel_size": "2",
    "virtual_pipeline_size": "4",
    "layer_split": "2,3",
    "attention_backend": "triton",
    "batch_invariant": "true",
    "enforce_eager": "true",
    "remeasure": "true",
    "device": "cpu",
    "distributed_timeout_seconds": "1.5",
    "stage_start_timeout": "60",
    "heartbeat_timeout": "5",
    "max_restarts": "0",
    "restart_window": "60",
    "profile": "some/steps.csv",
    "profile_seconds": "0",
    "exact_times": "true",
    "num_threads": "2",
    "block_size": "32",
    "kv_cache_dtype": "fp8_e5m2",
    "kv_cache_memory_bytes": "1000000",
    "gpu_memory_utilization": "0.5",
    "enable_prefix_caching": "false",
    "policy": "hybrid",
    "max_num_seqs": "4",
    "max_num_batched_tokens": "512",
    "ttft_slo": "5",
    "tpot_slo": "0.1",
    "async_scheduling": "true",
    "predicted_output_len": "64",
    "max_prefill_wait": "0",
    "greedy_prefill": "false",
    "kv_occupancy": "0.8",
    "prefill_occupancy": "0.7",
    "prefill_batch_tokens": "256",
    "prefill_ahead": "1",
    "work_stealing": "false",
    "intensity": "false",
    "finish_ratio": "0.25",
    "saturating_rows": "128",
    "saturated_rows": "96",
    "knee_tolerance": "0.02",
    "refill_rounds": "4",
    "online_steps": "4",
    "topup": "false",
    "balance_time": "false",
    "lazy_refill": "false",
    "survival": "false",
    "horizon": "0",
    "forecast": "false",
    "critical_slack": "2",
    "critical_sigmas": "1",
    "prior_sigma": "1",
    "longest_first": "false",
    "hybrid": "vllm",
    "throttle_iterations": "4",
    "throttle_min_tokens": "16",
    "throttle_max_tokens": "1024",
    "throttle_kv_free": "0.1",
    "predictor": "constant:64",
    "host": "0.0.0.0",
    "port": "0",
    "uds": "some/socket",
    "uds_permissions": "660",
    "ssl_keyfile": "key.pem",
    "ssl_certfile": "certificate.pem",
    "ssl_ca_certs": "authorities.pem",
    "ssl_cert_reqs": "1",
    "api_key": "key-one,key-two",
    "cluster_secret": "0123456789abcdef",
    "log_file": "some/log",
    "open_paths": "/metrics,/ready",
    "root_path": "/llm",
    "allowed_origins": "https://one,https://two",
    "allowed_methods": "GET,POST",
    "allowed_headers": "X-One",
    "allow_credentials": "true",
    "max_body_bytes": "2048",
    "max_intake_bytes": "4096",
    "disable_fastapi_docs": "true",
    "disable_pipeline_page": "true",
    "log_format": "json",
    "access_log": "false",
    "log_requests": "true",
    "log_stats_interval": "60",
    "forwarded_allow_ips": "10.0.0.0/8",
    "otlp_traces_endpoint": "https://collector/otlp",
    "max_num_queued_reqs": "10",
    "max_num_queued_tokens": "1000",
    "request_timeout": "60",
    "send_timeout": "30",
    "strict_fields": "true",
    "enable_tokenizer_info_endpoint": "true",
    "max_logprobs": "5",
    "max_stream_interval": "0.1",
    "stream_comment_interval": "5",
    "max_file_bytes": "1000",
    "max_batch_requests": "100",
    "batch_concurrency": "7",
    "chat_template": "some/template.jinja",
    "trust_request_chat_template": "true",
    "tool_call_parser": "hermes",
    "reasoning_parser": "think",
    "shutdown_timeout": "3",
    "log_level": "debug",
    "runtime_dir": "/tmp/somewhere",
    "server_endpoint": "tcp://127.0.0.1:5000",
    "stage_endpoint": "ipc:///tmp/stages",
    "data_dir": "some/data",
    "journal": "some/journal",
    "trace": "some/trace.json",
    "nnodes": "2",
    "node_rank": "1",
    "headless": "true",
    "master_addr": "10.0.0.1",
    "master_port": "30000",
    "node_ip": "10.0.0.2",
    "nproc_per_node": "1",
}


SECRET = {"cluster_secret": "a-secret-of-24-characters"}
COMPANIONS: dict[str, dict[str, str]] = {
    "nnodes": SECRET,
    "nproc_per_node": {"nnodes": "2"} | SECRET,
    "node_rank": {"nnodes": "2", "headless": "true"} | SECRET,
    "headless": {"nnodes": "2", "node_rank": "1"} | SECRET,
}
"""Settings without which another one is refused."""

FIELDS = {key: field for _, fields in groups_of(Config) for key, field in fields.items()}


def load(flags: str = "", **variables: str) -> Config:
    """The settings of a command line and these environment variables, nothing else."""
    return loader.load(shlex.split(flags), variables)


def variables_of(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment with these settings."""
    return {f"TDPIPE_{key.upper()}": text for key, text in settings.items()}


def refusal(flags: str = "", environ: Mapping[str, str] | None = None) -> str:
    """The one line that the loader answers."""
    with pytest.raises(ConfigError) as caught:
        loader.load(shlex.split(flags), environ or {})
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its YAML."""
    return tmp_path / "settings.yaml"


def test_without_any_setting_all_are_the_defaults() -> None:
    assert load() == Config()


def test_flags_win_over_environment_over_yaml_over_defaults(file: Path) -> None:
    file.write_text("port: 1\nhost: from-yaml\nblock_size: 1\n")
    variables = {"TDPIPE_PORT": "2", "TDPIPE_HOST": "from-environment"}
    config = load(f"--port 3 --config {file}", **variables)
    listen = config.server.listen
    assert (listen.port, listen.host, config.cache.block_size) == (3, "from-environment", 1)
    assert config.scheduler == Config().scheduler


def test_a_flag_that_repeats_the_default_still_wins(file: Path) -> None:
    file.write_text("port: 1\n")
    assert load(f"--port 8000 --no-trust-remote-code --config {file}").server.listen.port == 8000


def test_every_setting_has_a_sample_here() -> None:
    assert set(SAMPLES) == set(paths_of(Config))


@pytest.mark.parametrize("key", SAMPLES)
def test_flag_variable_and_yaml_key_mean_the_same(key: str, file: Path) -> None:
    text = SAMPLES[key]
    flag = f"--{key.replace('_', '-')}"
    switch = {"true": flag, "false": flag.replace("--", "--no-", 1)}
    command = text if key == "model" else switch.get(text, f"{flag} {text}")
    companions = COMPANIONS.get(key, {})
    beside = variables_of(companions)
    by_flag = load(command, **beside)
    assert load(**beside, **variables_of({key: text})) == by_flag
    is_text = FIELDS[key].annotation in (str, str | None)
    value = text if is_text else yaml.safe_load(text)
    for name in (key, key.replace("_", "-")):
        file.write_text(yaml.safe_dump({name: value}))
        assert load(f"--config {file}", **beside) == by_flag
    assert set(loader.non_default(by_flag)) == {key, *companions}


def test_the_yaml_file_can_be_named_by_the_environment(file: Path) -> None:
    file.write_text("port: 1\n")
    assert load(TDPIPE_CONFIG=str(file)).server.listen.port == 1


def test_the_flag_names_the_yaml_file_before_the_environment_does(file: Path) -> None:
    file.write_text("port: 1\n")
    assert load(f"--config {file}", TDPIPE_CONFIG="/nowhere.yaml").server.listen.port == 1


def test_variables_without_the_prefix_are_ignored() -> None:
    assert load(PORT="1", PATH="/bin", NOT_TDPIPE_PORT="2") == Config()


def test_an_empty_yaml_file_sets_nothing(file: Path) -> None:
    file.write_text("# port: 1\n")
    assert load(f"--config {file}") == Config()


def test_pp_is_short_for_the_number_of_stages() -> None:
    assert load("-pp 5") == load("--pipeline-parallel-size 5")
    assert load("-pp 5").pipeline.pipeline_parallel_size == 5


def test_the_model_is_the_one_positional_argument() -> None:
    assert load("--port 1 some/model --host h").model.model == "some/model"
    assert load("some/model", TDPIPE_MODEL="other").model.model == "some/model"
    assert load().model.model == str(DEMO_MODEL)


@pytest.mark.parametrize("typed", ["--layer-split 10,10", "--layer-split '10, 10'"])
def test_a_layer_split_is_typed_with_commas(typed: str) -> None:
    assert load(typed).pipeline.layer_split == (10, 10)


@pytest.mark.parametrize("text", ["[10, 10]", "'10,10'", "10,10", "\n- 10\n- 10"])
def test_a_layer_split_in_yaml_is_a_list_or_has_commas(text: str, file: Path) -> None:
    file.write_text(f"layer_split: {text}\n")
    assert load(f"--config {file}").pipeline.layer_split == (10, 10)


def test_a_layer_split_of_one_stage_is_one_number() -> None:
    assert load("-pp 1 --layer-split 12").pipeline.layer_split == (12,)


@pytest.mark.parametrize("typed", ["--blok-size 3", "--blok-size=3"])
def test_an_unknown_flag_names_itself_and_the_nearest(typed: str) -> None:
    assert refusal(typed) == (
        "unknown flag --blok-size; did you mean --block-size? (see tdpipe serve --help)"
    )


@pytest.mark.parametrize("flag", ["--max-num-s", "-p"])
def test_a_flag_is_not_abbreviated(flag: str) -> None:
    assert f"unknown flag {flag}" in refusal(f"{flag} 3")


def test_an_unknown_variable_names_itself_and_the_nearest() -> None:
    assert refusal(environ={"TDPIPE_POTR": "3"}) == (
        "unknown variable TDPIPE_POTR; did you mean TDPIPE_PORT? (see tdpipe serve --help)"
    )


def test_an_unknown_yaml_key_names_itself_its_file_and_the_nearest(file: Path) -> None:
    file.write_text("port: 1\nmax_num_seq: 4\n")
    assert refusal(f"--config {file}") == (
        f"unknown key max_num_seq in {file}; did you mean max_num_seqs? (see tdpipe serve --help)"
    )


@pytest.mark.parametrize("key", ["colour", "cache", "td_pipe"])
def test_an_unknown_name_is_refused_even_where_a_part_has_it(key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {key}"):
        loader.validate({key: {}})


def test_a_far_off_key_gets_no_hint() -> None:
    assert "did you mean" not in refusal(environ={"TDPIPE_ZZZZZZZZZZ_QQQ": "3"})


def test_a_yaml_file_cannot_name_another() -> None:
    assert "config" not in paths_of(Config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--port abc", ["port", "integer", "'abc'"]),
        ("--port 65536", ["port", "less than or equal to 65535", "'65536'"]),
        ("--dtype float8", ["dtype", "'auto', 'bfloat16', 'float16' or 'float32'", "'float8'"]),
        ("--device gpu", ["device", "'auto', 'cpu' or 'cuda'"]),
        ("--policy fifo", ["policy", "td-pipe"]),
        ("--kv-occupancy 0", ["kv_occupancy", "greater than 0"]),
        ("--kv-occupancy 1.5", ["kv_occupancy", "less than or equal to 1"]),
        ("--block-size 0 --max-num-seqs 0", ["block_size", "max_num_seqs"]),
        ("--layer-split 1,x", ["layer_split", "integer", "'x'"]),
        ("--layer-split ''", ["layer_split", "integer"]),
        ("--layer-split 4,4,4", ["layer_split 4,4,4", "2 stages", "pipeline_parallel_size"]),
        ("--layer-split 4,0", ["layer_split 4,0", "at least one layer"]),
        ("-pp 3 --layer-split 4,4", ["layer_split 4,4", "3 stages"]),
        (
            "-pp 2 --virtual-pipeline-size 3 --layer-split 4,4",
            ["layer_split 4,4", "6 virtual stages", "pipeline_parallel_size x 3"],
        ),
        (
            "--virtual-pipeline-size 2 --layer-split auto",
            ["layer_split auto", "virtual_pipeline_size 1"],
        ),
        (
            "--virtual-pipeline-size 2 -tp 2",
            ["tensor_parallel_size", "virtual_pipeline_size 1"],
        ),
        (
            "--virtual-pipeline-size 2 --async-scheduling",
            ["async_scheduling", "virtual_pipeline_size above 1"],
        ),
        ("--server-endpoint http://x", ["server_endpoint", "ipc://", "tcp://"]),
        ("--stage-endpoint udp://x", ["stage_endpoint", "ipc://", "tcp://"]),
        (f"--stage-endpoint ipc:///{'x' * 107}", ["stage_endpoint", "at most 107 bytes"]),
        ("--shutdown-timeout inf", ["shutdown_timeout", "finite"]),
        ("--shutdown-timeout nan", ["shutdown_timeout", "nan"]),
        ("--port", ["--port"]),
        ("--stage-endpoint tcp://0.0.0.0:7000", ["stage_endpoint tcp://0.0.0.0:7000", "secret"]),
        ("--server-endpoint tcp://*:7000", ["server_endpoint tcp://*:7000", "openssl rand"]),
        ("--stage-endpoint tcp://gpu-1:7000", ["other hosts"]),
        ("--stage-endpoint tcp://[::]:7000", ["other hosts"]),
        ("--stage-endpoint tcp://10.0.0.1:7000", ["other hosts"]),
        ("--cluster-secret short", ["cluster_secret", "16"]),
        ("--nnodes 2", ["2 nodes", "cluster_secret"]),
        ("--nnodes 3 --cluster-secret 0123456789abcdef", ["3 nodes", "2 stages"]),
        ("--node-rank 1", ["node_rank 1", "nnodes"]),
        ("--headless", ["headless", "node-rank"]),
        ("--nnodes 2 --node-rank 1 --cluster-secret 0123456789abcdef", ["headless"]),
        ("--nproc-per-node 2", ["nproc_per_node", "nnodes"]),
        ("--open-paths /v1/models", ["open_paths", "/metrics"]),
    ],
)
def test_a_wrong_value_names_its_key_and_what_is_allowed(flags: str, words: list[str]) -> None:
    line = refusal(flags)
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    "endpoint",
    ["ipc:///run/stages", "tcp://127.0.0.1:7000", "tcp://[::1]:7000", "tcp://localhost:1"],
)
def test_an_endpoint_that_only_this_host_reaches_needs_no_secret(endpoint: str) -> None:
    assert load(f"--stage-endpoint {endpoint}").runtime.stage_address == endpoint


def test_an_endpoint_for_other_hosts_is_taken_with_a_secret() -> None:
    flags = "--stage-endpoint tcp://0.0.0.0:7000"
    config = load(flags, TDPIPE_CLUSTER_SECRET="sixteen letters!")
    assert config.runtime.secret == "sixteen letters!"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--cluster-secret hunter2", "cluster_secret: hunter2"),
        ("--api-key hunter2(ü", "api_key: hunter2(ü"),
        ("--api-keys=hunter2", "api_key: [hunter2"),
        ("--stage-endpoint tcp://*:1 --api-key hunter2", "api_key: 'hunter2"),
    ],
)
def test_no_error_shows_a_secret(flags: str, text: str, file: Path) -> None:
    file.write_text(text + "\n")
    assert "hunter2" not in refusal(flags)
    assert "hunter2" not in refusal(f"--config {file}")


def test_a_wrong_value_is_named_wherever_it_stands(file: Path) -> None:
    file.write_text("port: [1]\n")
    assert refusal(f"--config {file}").startswith("port: ")
    assert refusal(environ={"TDPIPE_PORT": "one"}).startswith("port: ")


@pytest.mark.parametrize("text", ["a: [", "- port: 1", "port", "\tport: 1", "a: b: c"])
def test_a_file_that_is_no_settings_is_named(text: str, file: Path) -> None:
    file.write_text(text)
    assert str(file) in refusal(f"--config {file}")


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert str(file) in refusal(f"--config {file}")
    file.write_bytes(b"port: \xff\xfe\n")
    assert str(file) in refusal(f"--config {file}")


@pytest.mark.parametrize("key", [None, *SAMPLES])
def test_saved_settings_come_back_the_same(key: str | None, tmp_path: Path) -> None:
    given = COMPANIONS.get(key, {}) | {key: SAMPLES[key]} if key else {}
    config = load(**variables_of(given))
    loader.save(config, tmp_path)
    assert loader.load_saved(tmp_path) == config


def test_nothing_saved_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        loader.load_saved(tmp_path)


def test_only_what_differs_from_the_defaults_is_listed() -> None:
    assert loader.non_default(load()) == {}
    config = load("--port 8000 --layer-split 1,2 --journal some/where")
    assert loader.non_default(config) == {"layer_split": [1, 2], "journal": "some/where"}


@pytest.mark.parametrize("key", ["cluster_secret", "served_model_name", "data_dir", "model"])
def test_bytes_that_are_no_text_are_refused_with_their_setting(key: str) -> None:
    value = b"abcdefghijklmnop\xff".decode(errors="surrogateescape")
    for given in (value, [value]):
        with pytest.raises(loader.ConfigError, match=f"^{key}: must be text in UTF-8$"):
            loader.validate({key: given})
