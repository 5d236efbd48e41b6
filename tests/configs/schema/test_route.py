"""The settings of `tdpipe route`: the same sources and errors as those of `tdpipe serve`."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import loader
from configs.commands import ROUTE
from configs.config import Config
from configs.loader import ConfigError, load_command
from configs.schema.part import groups_of, paths_of
from configs.schema.route import RouteConfig

# A value other than the default for every setting that `tdpipe serve` does not have.
SAMPLES = {
    "instances": "http://one:1,https://two/llm",
    "instance_api_key": "a-key",
    "instance_ca_certs": "authorities.pem",
    "connect_timeout": "1",
    "max_attempts": "2",
    "max_resume_bytes": "1000",
    "journal": "some/journal",
    "routing": "ecoserve",
    "slack_quantile": "mean",
    "prefix_affinity": "false",
    "predicted_lengths": "false",
    "hopeless_last": "false",
    "stale_after": "3",
    "max_pending": "7",
    "max_pending_time": "5",
    "no_instance_timeout": "6",
    "macro_lower": "2",
    "macro_upper": "20",
    "min_instances": "2",
    "max_instances": "3",
    "scale_signal": "ecoserve",
    "scale_window": "20",
    "scale_cooldown": "60",
    "actuator": "local",
    "instance_start_timeout": "60",
    "instance_stop_timeout": "30",
    "local_args": "some/model",
    "local_devices": "0;1",
    "kube_workload": "deployment/llm",
    "kube_namespace": "here",
    "kube_selector": "app=llm",
    "kube_port": "9000",
    "kube_api": "https://cluster",
    "kube_token_file": "token",
    "kube_ca_file": "ca.pem",
    "webhook_url": "https://hook",
    "webhook_token": "a-token",
    "webhook_interval": "7",
    "runtime_dir": "some/folder",
}
FIELDS = {key: field for _, fields in groups_of(RouteConfig) for key, field in fields.items()}


def load(flags: str = "", **variables: str) -> RouteConfig:
    """The settings of a command line and these environment variables, nothing else."""
    return load_command(ROUTE, shlex.split(flags), variables)


def refusal(flags: str, **variables: str) -> str:
    """The one line that the loader answers."""
    with pytest.raises(ConfigError) as caught:
        load(flags, **variables)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def test_every_setting_of_its_own_has_a_sample_here() -> None:
    shared = set(paths_of(RouteConfig)) & set(paths_of(Config)) - {"journal", "runtime_dir"}
    assert set(SAMPLES) == set(paths_of(RouteConfig)) - shared


@pytest.mark.parametrize("key", SAMPLES)
def test_flag_variable_and_yaml_key_mean_the_same(key: str, tmp_path: Path) -> None:
    text = SAMPLES[key]
    flag = f"--{key.replace('_', '-')}"
    switch = {"true": flag, "false": flag.replace("--", "--no-", 1)}
    by_flag = load(switch.get(text, f"{flag} {text}"))
    assert load(**{f"TDPIPE_ROUTE_{key.upper()}": text}) == by_flag
    file = tmp_path / "settings.yaml"
    is_text = FIELDS[key].annotation is str or "Literal" in repr(FIELDS[key].annotation)
    value: Any = text if is_text else yaml.safe_load(text)
    file.write_text(yaml.safe_dump({key: value}))
    assert load(f"--config {file}") == by_flag
    assert set(loader.non_default(by_flag)) == {key}


def test_the_variables_of_a_daemon_are_not_those_of_a_router() -> None:
    assert load(TDPIPE_PORT="1", TDPIPE_MAX_NUM_SEQS="3") == RouteConfig()
    assert load(TDPIPE_ROUTE_PORT="1").listen.port == 1
    assert loader.load([], {"TDPIPE_ROUTE_PORT": "1"}).server.listen.port == 8000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--instances one:1", ["instances", "one:1", "http://127.0.0.1:8000"]),
        ("--instances ftp://one", ["instances", "ftp://one"]),
        ("--instances http://one:99999", ["instances", "http://one:99999"]),
        ("--instances http://one,http://one/v1", ["instances", "twice"]),
        ("--instances http://one --actuator local", ["instances", "actuator local"]),
        ("--min-instances 5 --max-instances 4", ["min_instances (5)"]),
        ("--macro-lower 5 --macro-upper 4", ["macro_upper"]),
        ("--policy td-pipe", ["unknown flag --policy", "tdpipe route --help"]),
        ("http://one", ["tdpipe route", "only flags", "http://one"]),
    ],
)
def test_a_wrong_value_names_its_key_and_what_is_allowed(flags: str, words: list[str]) -> None:
    line = refusal(flags)
    assert [word for word in words if word not in line] == []


def test_batches_leave_half_of_the_waiting_places_to_clients() -> None:
    assert [load().max_open_lines(num_up) for num_up in (0, 1, 3, 100)] == [256, 256, 768, 2048]
    assert load("--batch-concurrency 7").max_open_lines(3) == 7
    assert load("--batch-concurrency 7 --max-pending 6").max_open_lines(3) == 3
    assert load("--max-pending 1").max_open_lines(3) == 1


def test_an_unknown_variable_names_itself_and_the_nearest() -> None:
    assert refusal("", TDPIPE_ROUTE_INSTANCE="x") == (
        "unknown variable TDPIPE_ROUTE_INSTANCE; did you mean TDPIPE_ROUTE_INSTANCES? "
        "(see tdpipe route --help)"
    )


def test_no_text_shows_the_key_of_the_instances() -> None:
    config = load("--instance-api-key hunter2")
    assert "hunter2" not in f"{config!r} {loader.non_default(config)}"


def test_the_url_of_an_api_names_its_daemon() -> None:
    config = load("--instances http://one:1/v1/ --instances http://two/")
    assert config.instances.instances == ("http://one:1", "http://two")


def test_the_help_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    text = capsys.readouterr().out
    assert [key for key in ROUTE.flagged if f"--{key.replace('_', '-')}" not in text] == []
    assert "usage: tdpipe route [options]" in text
    assert "--help-all" not in text
