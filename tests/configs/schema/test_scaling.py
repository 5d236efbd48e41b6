"""Settings of scaling: what does not go together is refused in words of the operator."""

import pytest
from pydantic import ValidationError

from configs.schema.scaling import ScalingConfig

WORKLOAD = {"actuator": "kubernetes", "kube_workload": "leaderworkerset/llama-70b"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"actuator": "local", "local_args": "some/model -pp 4", "local_devices": "0,1;2,3"},
        WORKLOAD,
        {"actuator": "webhook", "webhook_url": "https://scaler/instances"},
    ],
)
def test_these_settings_are_valid(settings: dict[str, str]) -> None:
    assert ScalingConfig.of(**settings).max_instances == 8


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"actuator": "docker"}, "Input should be 'fixed', 'local', 'kubernetes' or 'webhook'"),
        ({"actuator": "kubernetes"}, "actuator kubernetes needs kube_workload"),
        ({"actuator": "webhook"}, "actuator webhook needs webhook_url"),
        ({"min_instances": 9}, r"min_instances \(9\) exceeds max_instances \(8\)"),
        ({"min_instances": 0}, "greater than or equal to 1"),
        ({"scale_cooldown": -1}, "greater than or equal to 0"),
        ({"kube_workload": "job/llm"}, "must be deployment/NAME, statefulset/NAME or"),
        ({"kube_workload": "deployment/a/b"}, "must be deployment/NAME, statefulset/NAME or"),
        ({"kube_api": "10.0.0.1:443"}, "must begin with http:// or https://"),
        ({"webhook_url": "http:///instances"}, "must name a host"),
        ({"webhook_url": "http://scaler:70000"}, "Port out of range"),
        ({"kube_api": "https://[::1"}, "Invalid IPv6 URL"),
        ({"webhook_url": "scaler"}, "must begin with http:// or https://"),
        ({"local_args": "model --port=80"}, "--port cannot be given"),
        ({"local_args": "model --uds /tmp/s"}, "--uds cannot be given"),
        ({"local_args": "model 'open"}, "No closing quotation"),
        (
            {"actuator": "local", "local_devices": "0;1", "min_instances": 3},
            "names the GPUs of 2 instances, fewer than min_instances",
        ),
    ],
)
def test_these_settings_are_refused(settings: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        ScalingConfig.of(**settings)


def test_the_token_is_shown_to_the_daemon_only() -> None:
    config = ScalingConfig(webhook_token="a-secret")
    assert "a-secret" not in config.model_dump_json()
    assert "a-secret" in config.model_dump_json(context={"secrets": True})


def test_groups_of_gpus_are_separated_by_semicolons() -> None:
    assert ScalingConfig(local_devices="0,1; 2,3;").device_groups == ("0,1", "2,3")
    assert ScalingConfig().device_groups == ()
