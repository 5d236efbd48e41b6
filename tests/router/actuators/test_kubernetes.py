"""The Kubernetes actuator against a small API server: discovery, scaling up, removal of one pod."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from configs.schema.scaling import ScalingConfig
from router.actuators import kubernetes
from router.actuators.actuator import ActuatorError
from router.actuators.kube_api import KubeApi, KubeError
from router.actuators.kubernetes import KubernetesActuator
from tests.router.actuators.kube_server import COST, NAMESPACE, TOKEN, FakeCluster
from tests.router.actuators.running import Reports, running, serving, until

KINDS = {
    "deployments": "deployment",
    "statefulsets": "statefulset",
    "leaderworkersets": "leaderworkerset",
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ScalingConfig]:
    """The settings for a cluster at a URL."""
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")

    def of(url: str, resource: str = "deployments", **settings: Any) -> ScalingConfig:
        return ScalingConfig.of(
            **{
                "actuator": "kubernetes",
                "kube_workload": f"{KINDS[resource]}/llm",
                "kube_api": url,
                "kube_namespace": NAMESPACE,
                "kube_token_file": token,
                "scale_cooldown": 0,
                "instance_stop_timeout": 10,
            }
            | settings
        )

    return of


Config = Callable[..., ScalingConfig]


@asynccontextmanager
async def scaling(
    cluster: FakeCluster, config: Config, **settings: Any
) -> AsyncIterator[tuple[KubernetesActuator, Reports]]:
    """An actuator of the cluster, which has seen all pods that are ready."""
    async with serving(cluster.app()) as url:
        chosen = config(url, cluster.resource, **settings)
        actuator = KubernetesActuator(chosen, KubeApi(chosen), pause_s=0.01)
        async with running(actuator) as reports:
            await until(lambda: cluster.num_watches == 1)
            yield actuator, reports


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own."""
    asyncio.run(test)


@pytest.mark.parametrize("resource", KINDS)
def test_ready_pods_are_instances_and_unready_ones_are_not(resource: str, config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster(resource, 2)
        other = cluster.add_pod(labels={"app": "other"})
        async with scaling(cluster, config) as (_, reports):
            wanted = cluster.urls() - {cluster.url(other)}
            assert set(reports.present) == wanted
            late = cluster.add_pod(ready=False)
            cluster.set_ready(late, ready=True)
            await until(lambda: cluster.url(late) in reports.present)
            cluster.set_ready(late, ready=False)
            await reports.until_number(2)
            cluster.set_ready(late, ready=True)
            await reports.until_number(3)
            cluster.terminate(late)
            await reports.until_number(2)
        assert len(cluster.requests) == 3  # scale, list, watch: the changes came by the watch

    run(test())


def test_pods_that_vanish_without_an_event_are_missed_by_the_next_list(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        async with scaling(cluster, config) as (_, reports):
            del cluster.pods[next(iter(cluster.pods))]
            cluster.end_watches()
            await reports.until_number(1)
            assert set(reports.present) == cluster.urls()

    run(test())


def test_a_watch_whose_version_is_gone_lists_again(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        async with scaling(cluster, config) as (_, reports):
            name = cluster.add_pod()
            cluster.forget_changes()  # an ERROR event with code 410, and the addition is lost
            await until(lambda: cluster.url(name) in reports.present)
            await until(lambda: cluster.num_watches == 1)
            assert [kind for kind, _ in reports.history] == ["joined", "joined"]
        assert not caplog.records

    run(test())


def test_a_version_that_is_gone_before_the_watch_lists_again(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        async with serving(cluster.app()) as url:
            api = KubeApi(config(url))
            cluster.forget_changes()
            with pytest.raises(KubeError, match="410: too old resource version") as refused:
                await anext(api.watch("app=llm", "1", 1.0))
            assert refused.value.status == 410
            await api.close()

    run(test())


def test_an_unreachable_server_keeps_the_instances(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        async with scaling(cluster, config) as (_, reports):
            cluster.token = "another token"
            cluster.end_watches()
            await until(lambda: cluster.requests.count("GET scale") > 3)
            assert len(reports.present) == 2
            cluster.token = TOKEN
            await until(lambda: cluster.num_watches == 1)
            assert len(reports.history) == 2
        assert caplog.messages == [
            "the API server answered 401: Unauthorized; the instances last seen are kept"
        ]

    run(test())


def test_a_token_that_was_replaced_is_read_again(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        async with scaling(cluster, config) as (actuator, reports):
            cluster.token = "the next token"
            token_file = config("http://unused").kube_token_file
            assert token_file is not None
            token_file.write_text("the next token")
            await actuator.grow()
            await reports.until_number(2)

    run(test())


@pytest.mark.parametrize("resource", KINDS)
def test_growing_adds_one_replica_until_it_is_ready(resource: str, config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster(resource, 1)
        cluster.makes_ready = False
        async with scaling(cluster, config) as (actuator, reports):
            for _ in range(3):
                await actuator.grow()
            assert cluster.replicas == 2
            cluster.set_ready(max(cluster.pods), ready=True)
            await reports.until_number(2)
            await actuator.grow()
            assert cluster.replicas == 3

    run(test())


def test_growing_ends_at_the_maximum(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        async with scaling(cluster, config, max_instances=2) as (actuator, _):
            await actuator.grow()
            assert cluster.replicas == 2
            assert "PUT scale" not in cluster.requests

    run(test())


def test_missing_replicas_are_added_at_the_start(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 0)
        async with scaling(cluster, config, min_instances=3) as (_, reports):
            await reports.until_number(3)
            assert cluster.replicas == 3

    run(test())


def test_a_scale_that_somebody_else_has_changed_is_read_again(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        cluster.num_conflicts = 2
        async with scaling(cluster, config) as (actuator, _):
            await actuator.grow()
            assert cluster.replicas == 2
            assert cluster.requests.count("PUT scale") == 3

    run(test())


def test_conflicts_without_end_are_an_error(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        cluster.num_conflicts = 1000
        async with scaling(cluster, config) as (actuator, _):
            with pytest.raises(ActuatorError, match="answered 409: the object has been modified"):
                await actuator.grow()
            assert cluster.requests.count("PUT scale") == kubernetes.NUM_TRIES

    run(test())


@pytest.mark.parametrize("resource", ["deployments", "statefulsets"])
def test_a_change_whose_answer_is_lost_is_made_once(resource: str, config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster(resource, 3)
        cluster.lost_answers = [500, 504]
        async with scaling(cluster, config) as (actuator, reports):
            await actuator.grow()
            assert cluster.replicas == 4
            await reports.until_number(4)
            name = actuator.pick(reports.present[::-1])
            assert name is not None
            await actuator.remove(name)
            assert cluster.replicas == 3

    run(test())


def test_the_drained_pod_of_a_deployment_goes(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 3)
        async with scaling(cluster, config) as (actuator, reports):
            oldest = reports.present[0]  # without a deletion cost, the newest one would go
            assert actuator.pick([oldest]) == oldest
            await actuator.remove(oldest)
            assert oldest not in reports.present
            assert set(reports.present) == cluster.urls()
            assert reports.history[-1] == ("gone", oldest)

    run(test())


@pytest.mark.parametrize("resource", ["statefulsets", "leaderworkersets"])
def test_with_ordinals_only_the_last_pod_goes(resource: str, config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster(resource, 11)  # 10 comes after 9, as a number
        async with scaling(cluster, config, max_instances=20) as (actuator, reports):
            first, last = cluster.url("llm-0"), cluster.url("llm-10")
            assert actuator.pick([first]) is None
            assert actuator.pick([first, last]) == last
            with pytest.raises(ActuatorError, match="pods with higher ordinals go first"):
                await actuator.remove(first)
            assert cluster.replicas == 11
            assert reports.history[-1] == ("joined", first)
            await actuator.remove(last)
            assert "llm-10" not in cluster.pods
            assert not any(request.startswith("PATCH") for request in cluster.requests)

    run(test())


def test_a_last_pod_that_is_not_ready_keeps_the_others(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("statefulsets", 3)
        async with scaling(cluster, config) as (actuator, reports):
            cluster.set_ready("llm-2", ready=False)
            await reports.until_number(2)
            assert actuator.pick(reports.present) is None

    run(test())


def test_no_pod_is_removed_while_another_one_would_go(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 3)
        async with scaling(cluster, config) as (actuator, reports):
            drained = reports.present[0]
            cluster.set_ready(max(cluster.pods), ready=False)
            await reports.until_number(2)
            with pytest.raises(ActuatorError, match="2 pods of 3 replicas are ready"):
                await actuator.remove(drained)
            assert cluster.replicas == 3
            assert not any(COST in p["metadata"]["annotations"] for p in cluster.pods.values())
            assert reports.history[-1] == ("joined", drained)

    run(test())


def test_a_pod_that_stays_is_reported_again(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        cluster.stops_pods = False
        async with scaling(cluster, config, instance_stop_timeout=0.05) as (actuator, reports):
            name = reports.present[0]
            with pytest.raises(ActuatorError, match=r"still runs 0\.05 s"):
                await actuator.remove(name)
            assert reports.history[2:] == [("joined", name)]

    run(test())


def test_the_last_instances_are_kept(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        async with scaling(cluster, config, min_instances=2) as (actuator, reports):
            name = reports.present[0]
            assert actuator.pick(reports.present) is None
            with pytest.raises(ActuatorError, match="min_instances"):
                await actuator.remove(name)
            assert cluster.replicas == 2

    run(test())


def test_two_routers_remove_one_pod_if_one_is_spare(config: Config) -> None:
    """Which of the two goes is not certain: both have the lowest cost. Both have drained."""

    async def test() -> None:
        cluster = FakeCluster("deployments", 3)
        settings = {"min_instances": 2, "instance_stop_timeout": 0.2}
        async with (
            scaling(cluster, config, **settings) as (one, reports),
            serving(cluster.app()) as url,
        ):
            chosen = config(url, **settings)
            other = KubernetesActuator(chosen, KubeApi(chosen), pause_s=0.01)
            async with running(other) as seen:
                await seen.until_number(3)
                kept = reports.present[0]
                first, second = reports.present[1:]
                await asyncio.gather(
                    one.remove(first), other.remove(second), return_exceptions=True
                )
                assert cluster.replicas == 2
                assert kept in cluster.urls()
                await until(lambda: set(reports.present) == cluster.urls())
                await until(lambda: set(seen.present) == cluster.urls())

    run(test())


def test_an_unknown_instance_is_not_removed(config: Config) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 2)
        async with scaling(cluster, config) as (actuator, _):
            with pytest.raises(ActuatorError, match="it is no ready pod of /apis/apps/v1/"):
                await actuator.remove("http://10.9.9.9:8000")

    run(test())


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Response(b"<html>", 502), "the API server answered 502: no reason"),
        (Response(b"\xff", 403), "the API server answered 403: no reason"),
        (Response(b"<html>"), "the API server's answer is no Scale: JSON is malformed"),
        (Response(b'{"metadata": {"name": "\xff"}}'), "the API server's answer is no Scale"),
        (Response(b'{"spec": {"replicas": 1}}'), "the API server's answer is no Scale"),
    ],
)
def test_answers_of_something_else_are_errors_of_one_line(
    answer: Response, line: str, config: Config
) -> None:
    async def anything(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)

    async def test() -> None:
        async with serving(anything) as url:
            chosen = config(url)
            actuator = KubernetesActuator(chosen, KubeApi(chosen), pause_s=0.001)
            with pytest.raises(ActuatorError) as refused:
                await actuator.grow()
            assert str(refused.value).startswith(line)
            assert len(str(refused.value).splitlines()) == 1
            await actuator.close()

    run(test())


def test_a_server_that_is_not_there_is_an_error_of_one_line(config: Config) -> None:
    async def test() -> None:
        chosen = config("http://127.0.0.1:1")
        actuator = KubernetesActuator(chosen, KubeApi(chosen), pause_s=0.001)
        with pytest.raises(ActuatorError, match=r"^the API server cannot be reached: "):
            await actuator.grow()
        await actuator.close()

    run(test())


def test_outside_of_a_cluster_the_settings_must_say_where_it_is(tmp_path: Path) -> None:
    config = ScalingConfig(actuator="kubernetes", kube_workload="deployment/llm")
    with pytest.raises(KubeError, match="needs kube_api: the router is not in a cluster"):
        KubeApi(config, tmp_path)
    beside = ScalingConfig(kube_api="https://cluster", kube_workload="deployment/llm")
    with pytest.raises(KubeError, match="namespace: No such file or directory; outside of a"):
        KubeApi(beside, tmp_path)


def test_in_a_cluster_the_service_account_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        cluster = FakeCluster("deployments", 1)
        async with serving(cluster.app()) as url:
            (tmp_path / "namespace").write_text(NAMESPACE)
            (tmp_path / "token").write_text(TOKEN)
            api = KubeApi(ScalingConfig(kube_api=url), tmp_path)
            assert api.namespace == NAMESPACE
            assert len((await api.pods("app=llm")).items) == 1
            await api.close()

    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (tmp_path / "namespace").write_text(NAMESPACE)
    with pytest.raises(KubeError, match=r"ca\.crt"):
        KubeApi(ScalingConfig(), tmp_path)
    run(test())
