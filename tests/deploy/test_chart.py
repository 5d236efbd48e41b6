"""The Helm chart: what it renders is valid for Kubernetes, and its settings for tdpipe."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import loader
from configs.commands import ROUTE
from configs.config import Config
from tests.deploy.tools import ROOT, chart

pytestmark = pytest.mark.deploy

CHART = ROOT / "deploy" / "helm" / "tdpipe"
SCHEMAS = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (
        json.loads(path.read_text()) for path in Path(__file__).with_name("schemas").glob("*.json")
    )
}
KEYS = {"apiKeys": {"keys": ["one", "two"]}}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one host with GPUs": {
        **KEYS,
        "model": "org/name",
        "gpusPerHost": 4,
        "stages": 4,
        "config": {"max_num_seqs": 128, "served_model_name": "llm"},
        "huggingFace": {"existingSecret": "hub"},
        "tls": {"existingSecret": "certificate"},
        "persistence": {
            "cache": {"enabled": True, "storageClass": "fast"},
            "models": {"existingClaim": "models"},
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "runtimeClassName": "nvidia",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}},
        "extraArgs": ["--ttft-slo=5"],
        "extraEnv": [{"name": "NCCL_DEBUG", "value": "INFO"}],
        "podLabels": {"team": "llm"},
        "podAnnotations": {"note": "text"},
    },
    "several hosts": {
        "hosts": 3,
        "stages": 6,
        "gpusPerHost": 2,
        "networkPolicy": {"enabled": True},
        "serviceMonitor": {"enabled": True},
    },
    "a router that scales": {
        **KEYS,
        "persistence": {"data": {"enabled": False}},
        "router": {"enabled": True, "config": {"routing": "ecoserve"}},
        "serviceMonitor": {"enabled": True},
    },
    "a router that scales groups of hosts": {
        "hosts": 2,
        "persistence": {"data": {"accessModes": ["ReadWriteMany"]}},
        "router": {"enabled": True},
    },
    "a router with fixed instances": {
        "router": {
            "enabled": True,
            "actuator": "fixed",
            "instances": ["http://a:8000", "http://b:8000"],
            "persistence": {"enabled": False},
        },
        "podDisruptionBudget": {"enabled": False},
        "serviceAccount": {"create": False},
        "preStopSeconds": 0,
    },
}


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """Manifests and notes, or an error."""
    answer = chart("render", chart=str(CHART), values=values, name="rel", namespace="llms")
    assert isinstance(answer, dict)
    return answer


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specs of all pods, by names."""
    found = {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["spec"]
        for manifest in of_kind(manifests, "Deployment")
    }
    for manifest in of_kind(manifests, "LeaderWorkerSet"):
        for role in ("leader", "worker"):
            template = manifest["spec"]["leaderWorkerTemplate"][f"{role}Template"]
            found[f"{manifest['metadata']['name']} {role}"] = template["spec"]
    return found


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_valid(case: str, version: str) -> None:
    manifests = rendered(CASES[case])["manifests"]
    problems = chart("validate", manifests=manifests, version=version, schemas=SCHEMAS)
    assert problems == []


def test_an_unknown_kind_or_field_is_a_problem() -> None:
    unknown = {"apiVersion": "x/v1", "kind": "Unknown", "metadata": {"name": "a"}}
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}, "spec": {"prots": 1}}
    problems = chart("validate", manifests=[unknown, wrong], version="1.37", schemas=SCHEMAS)
    assert [problem.split(":")[0] for problem in problems] == ["Unknown a", "Service b"]


@pytest.mark.parametrize("case", CASES)
def test_helm_has_nothing_to_say_about_the_chart(case: str) -> None:
    report = chart("lint", chart=str(CHART), values=CASES[case])
    assert report["errors"] == []
    findings = [each for each in report["messages"] if each["severity"] > 1]
    assert findings == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stages": 0}, ["stages"]),
        ({"stages": "two"}, ["stages"]),
        ({"replica": 2}, ["replica"]),
        ({"image": {"tags": "x"}}, ["tags"]),
        ({"config": {"max-num-seqs": 1}}, ["max-num-seqs"]),
        ({"config": {"port": 9000}}, ["port"]),
        ({"apiKeys": {"keys": ["a,b"]}}, ["keys"]),
        ({"router": {"actuator": "local"}}, ["actuator"]),
        ({"sharedMemory": "a lot"}, ["sharedMemory"]),
        ({"serviceMonitor": {"interval": "often"}}, ["interval"]),
        ({"hosts": 3, "stages": 2}, ["2 stages", "3 hosts"]),
        ({"replicas": 2}, ["persistence.data", "ReadWriteMany"]),
        ({"router": {"enabled": True}}, ["persistence.data", "ReadWriteMany"]),
        ({"router": {"enabled": True, "actuator": "fixed"}}, ["router.instances"]),
        (
            {
                "router": {"enabled": True},
                "tls": {"existingSecret": "certificate"},
                "persistence": {"data": {"enabled": False}},
            },
            ["tls.existingSecret"],
        ),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], words: list[str]) -> None:
    answer = rendered(values)
    assert "error" in answer, "it was rendered"
    assert all(word in answer["error"] for word in words), answer["error"]


def settings_of(
    pod: dict[str, Any], manifests: list[dict[str, Any]], folder: Path, index: int = 1
) -> Any:
    """The settings that tdpipe reads from the arguments and variables of a pod."""
    (container,) = pod["containers"]
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(manifests, "ConfigMap")}
    name = next(v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "config")
    (folder / "config.yaml").write_text(maps[name]["config.yaml"])
    filled = {
        "$(POD_IP)": "10.0.0.1",
        "$(LWS_LEADER_ADDRESS)": "rel-tdpipe-0.rel-tdpipe.llms",
        "$(LWS_WORKER_INDEX)": str(index),
        "/etc/tdpipe/": f"{folder}/",
    }
    command, *arguments = container["args"]
    for old, new in filled.items():
        arguments = [argument.replace(old, new) for argument in arguments]
    variables = {
        each["name"]: each.get("value", "a-secret-of-24-characters")
        for each in container.get("env", [])
    }
    if command == "route":
        return loader.load_command(ROUTE, arguments, variables)
    assert command == "serve"
    return loader.load(arguments, variables)


@pytest.mark.parametrize("case", CASES)
def test_the_flags_and_settings_are_those_of_tdpipe(case: str, tmp_path: Path) -> None:
    manifests = rendered(CASES[case])["manifests"]
    for pod in pods(manifests).values():
        settings = settings_of(pod, manifests, tmp_path)
        if isinstance(settings, Config):
            assert settings.pipeline.pipeline_parallel_size == CASES[case].get("stages", 2)


def test_the_nodes_of_a_group_are_those_of_one_daemon(tmp_path: Path) -> None:
    manifests = rendered(CASES["several hosts"])["manifests"]
    specs = pods(manifests)
    leader = settings_of(specs["rel-tdpipe leader"], manifests, tmp_path)
    workers = [
        settings_of(specs["rel-tdpipe worker"], manifests, tmp_path, index) for index in (1, 2)
    ]
    assert [each.nodes.node_rank for each in (leader, *workers)] == [0, 1, 2]
    assert [each.nodes.headless for each in (leader, *workers)] == [False, True, True]
    assert {each.nodes.nnodes for each in (leader, *workers)} == {3}
    (service,) = of_kind(manifests, "Service")
    assert service["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"


def test_a_worker_waits_until_its_leader_has_drained() -> None:
    """Its hook is run here, with a leader that listens for a moment."""
    values = CASES["several hosts"] | {"shutdownTimeout": 60}
    (container,) = pods(rendered(values)["manifests"])["rel-tdpipe worker"]["containers"]
    _, *arguments = container["lifecycle"]["preStop"]["exec"]["command"]
    with socket.create_server(("127.0.0.1", 0)) as leader:
        program = arguments[1].replace("8000", str(leader.getsockname()[1]))
        environment = {**os.environ, "LWS_LEADER_ADDRESS": "localhost"}
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as hook:
            leader.settimeout(30)
            for _ in range(2):  # it has asked twice, so it waits
                leader.accept()[0].close()
            assert hook.poll() is None
            leader.close()
            hook.wait(30)


@pytest.mark.parametrize("case", CASES)
def test_no_pod_can_write_into_its_image_or_gain_rights(case: str) -> None:
    for pod in pods(rendered(CASES[case])["manifests"]).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        writable = {
            mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
        }
        assert {"/tmp", "/home/tdpipe/.local/share/tdpipe"} <= writable


@pytest.mark.parametrize("case", CASES)
def test_a_pod_is_given_more_time_than_its_drain_takes(case: str) -> None:
    values = CASES[case] | {"shutdownTimeout": 100}
    for pod in pods(rendered(values)["manifests"]).values():
        before_s = values.get("preStopSeconds", 5)
        assert pod["terminationGracePeriodSeconds"] >= 100 + before_s + 15


def test_probes_ask_for_life_and_readiness() -> None:
    manifests = rendered(CASES["one host with GPUs"])["manifests"]
    (container,) = pods(manifests)["rel-tdpipe"]["containers"]
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert {name: get["path"] for name, get in paths.items()} == {
        "startup": "/ready",
        "liveness": "/live",
        "readiness": "/ready",
    }
    assert {get["scheme"] for get in paths.values()} == {"HTTPS"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


@pytest.mark.parametrize(
    ("case", "workload"),
    [
        ("a router that scales", "deployment/rel-tdpipe"),
        ("a router that scales groups of hosts", "leaderworkerset/rel-tdpipe"),
    ],
)
def test_a_router_may_scale_its_workload_and_nothing_else(
    case: str, workload: str, tmp_path: Path
) -> None:
    manifests = rendered(CASES[case])["manifests"]
    settings = settings_of(pods(manifests)["rel-tdpipe-router"], manifests, tmp_path)
    assert settings.scaling.kube_workload == workload
    (role,) = of_kind(manifests, "Role")
    rules = {rule["resources"][0]: rule for rule in role["rules"]}
    assert set(rules["pods"]["verbs"]) == {"get", "list", "watch", "patch"}
    scale = rules[f"{workload.split('/')[0]}s/scale"]
    assert set(scale["verbs"]) == {"get", "update"}
    assert scale["resourceNames"] == ["rel-tdpipe"]
    kind = "LeaderWorkerSet" if workload.startswith("leader") else "Deployment"
    (daemon,) = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == "rel-tdpipe"]
    assert "replicas" not in daemon["spec"], "Helm would reset the router's number"


def test_keys_are_secrets_and_a_router_has_one_of_them() -> None:
    manifests = rendered(CASES["a router that scales"])["manifests"]
    (secret,) = of_kind(manifests, "Secret")
    assert secret["stringData"] == {"keys": "one,two", "router-key": "one"}
    others = [manifest for manifest in manifests if manifest["kind"] != "Secret"]
    assert "one,two" not in json.dumps(others)


def test_all_rules_of_prometheus_are_in_the_chart() -> None:
    manifests = rendered(CASES["one host with GPUs"])["manifests"]
    given = [
        group
        for path in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    found = [
        group for rule in of_kind(manifests, "PrometheusRule") for group in rule["spec"]["groups"]
    ]
    assert len(found) == len(given) > 0
    assert sorted(found, key=json.dumps) == sorted(given, key=json.dumps)


def test_the_notes_name_the_service_that_clients_ask() -> None:
    assert "service/rel-tdpipe 8000:8000" in rendered({})["notes"]
    assert "no API key" in rendered({})["notes"]
    several = rendered(CASES["several hosts"])["notes"]
    assert "service/rel-tdpipe-http" in several
    router = rendered(CASES["a router that scales"])["notes"]
    assert "service/rel-tdpipe-router" in router
    assert "no API key" not in router


def test_every_value_is_described() -> None:
    """Without Helm: the schema knows each default, and no other."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(values: dict[str, Any], described: dict[str, Any], path: str) -> None:
        properties = described.get("properties")
        if described.get("additionalProperties") is not False or not properties:
            return
        assert set(values) == set(properties) - {"global"}, path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, properties[key], f"{path}.{key}")

    compare(defaults, schema, "values")
