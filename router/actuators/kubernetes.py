"""Kubernetes: instances are the replicas of a Deployment, a StatefulSet or a LeaderWorkerSet.

The pods are listed and watched; those that are ready are instances. Of a LeaderWorkerSet, these are
the leaders. Scales are replaced with the version that was read, so several routers may scale one
workload. A workload is scaled down by one pod only while all of its pods are ready: otherwise one
of those that are not ready would go instead of the one that has drained.

Which pod goes depends on the workload: of a Deployment the one with the lowest deletion cost, which
is set first (KEP-2255); of the others the one with the highest ordinal, so `pick` names only that.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from configs.schema.instance_url import checked_url
from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import ActuatorError, GrowthLimit, Lifetime, Report
from router.actuators.kube_api import CONFLICT, GONE, KubeApi, KubeError, Pod, Scale
from router.actuators.membership import Membership

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
LOWEST_COST = "-1000000"
WATCH_S = 30.0
"""The pods are listed again after each watch: what it has missed lasts no longer."""
PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
NUM_TRIES = 5

log = logging.getLogger("tdpipe")


class _Workload(NamedTuple):
    group: str
    resource: str
    has_ordinals: bool


WORKLOADS = {
    "deployment": _Workload("apps/v1", "deployments", has_ordinals=False),
    "statefulset": _Workload("apps/v1", "statefulsets", has_ordinals=True),
    "leaderworkerset": _Workload(
        "leaderworkerset.x-k8s.io/v1", "leaderworkersets", has_ordinals=True
    ),
}


class KubernetesActuator:
    """An `Actuator` that scales `kube_workload`."""

    def __init__(self, config: ScalingConfig, api: KubeApi, pause_s: float = PAUSE_S) -> None:
        assert config.kube_workload is not None, "the settings are validated"
        self._config = config
        self._api = api
        self._pause_s = pause_s
        kind, name = config.kube_workload.split("/")
        self._workload = WORKLOADS[kind]
        group, resource = self._workload.group, self._workload.resource
        self._path = f"/apis/{group}/namespaces/{api.namespace}/{resource}/{name}"
        self._members = Membership(config.min_instances)
        self._growth = GrowthLimit(config.max_instances, config.scale_cooldown)
        self._pods: dict[str, Pod] = {}  # by name, those that are to stay
        self._scaling = asyncio.Lock()
        self._lifetime = Lifetime()

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """See `Actuator`; replicas below `min_instances` are added."""
        self._members.begin(on_joined, on_gone)
        await self._lifetime.run(self._discover())

    async def grow(self) -> None:
        """See `Actuator`; a replica that is not ready counts as being started."""
        if not self._growth.allows(len(self._members)):
            return

        def more(scale: Scale) -> int:
            is_starting = scale.spec.replicas > len(self._members)
            is_full = scale.spec.replicas >= self._config.max_instances
            return scale.spec.replicas + (not is_starting and not is_full)

        if await self._scale(more):
            self._growth.start()

    async def remove(self, name: str) -> None:
        """See `Actuator`."""
        pod = self._pod_at(name)
        if pod is None:
            raise ActuatorError(f"{name} is not removed: it is no ready pod of {self._path}")

        def fewer(scale: Scale) -> int:
            self._check_removal(pod, scale)
            return scale.spec.replicas - 1

        try:
            if not self._workload.has_ordinals:
                await self._api.annotate(pod, {DELETION_COST: LOWEST_COST})
            await self._scale(fewer)
            if not await self._members.wait_gone(name, self._config.instance_stop_timeout):
                raise ActuatorError(
                    f"pod {pod} ({name}) still runs {self._config.instance_stop_timeout:g} s "
                    "(instance_stop_timeout) after its workload was scaled down"
                )
        except ActuatorError:
            await self._keep(pod, name)
            raise

    def pick(self, names: Sequence[str]) -> str | None:
        """See `Actuator`; with ordinals the last one, if it is ready and one of these."""
        if not self._workload.has_ordinals:
            return self._members.pick(names)
        last = max(self._pods, key=_ordinal, default="")
        return self._members.pick([name for name in names if self._pod_at(name) == last])

    async def close(self) -> None:
        """End `run`, and close the connections. The workload keeps its replicas."""
        await self._lifetime.close()
        await self._api.close()

    async def _discover(self) -> None:
        pause_s, problem = self._pause_s, ""
        while True:
            started = time.monotonic()
            try:
                await self._follow()
            except KubeError as error:
                if error.status != GONE:
                    if str(error) != problem:
                        log.warning("%s; the instances last seen are kept", error)
                    problem = str(error)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
                    await asyncio.sleep(pause_s)
                    continue
            pause_s, problem = self._pause_s, ""
            # A server that ends watches at once must not be asked all the time.
            await asyncio.sleep(self._pause_s - (time.monotonic() - started))

    async def _follow(self) -> None:
        """List the pods, then watch them for `WATCH_S`. Raises `KubeError`."""
        scale = await self._api.scale(self._path)
        if scale.spec.replicas < self._config.min_instances:
            await self._scale(lambda scale: max(scale.spec.replicas, self._config.min_instances))
        selector = self._config.kube_selector or scale.status.selector
        if not selector:
            raise KubeError(f"{self._path} has no label selector yet; or set kube_selector")
        listed = await self._api.pods(selector)
        self._pods = {p.metadata.name: p for p in listed.items if not p.metadata.deletion_timestamp}
        self._report()
        version = listed.metadata.resource_version
        async with aclosing(self._api.watch(selector, version, WATCH_S)) as changes:
            async for kind, pod in changes:
                self._pods.pop(pod.metadata.name, None)
                if kind != "DELETED" and pod.metadata.deletion_timestamp is None:
                    self._pods[pod.metadata.name] = pod
                self._report()

    def _report(self) -> None:
        self._members.update([self._url(pod) for pod in self._pods.values() if pod.is_ready])

    def _url(self, pod: Pod) -> str:
        ip = pod.status.ip
        return checked_url(f"http://{f'[{ip}]' if ':' in ip else ip}:{self._config.kube_port}")

    def _pod_at(self, name: str) -> str | None:
        """The name of the ready pod with this URL."""
        pods = self._pods.items()
        return next((key for key, pod in pods if pod.is_ready and self._url(pod) == name), None)

    def _check_removal(self, pod: str, scale: Scale) -> None:
        """Raises `ActuatorError` unless one replica fewer means that this pod goes."""
        num_ready = len(self._members)
        if scale.spec.replicas <= self._config.min_instances:
            raise ActuatorError(f"pod {pod} is not removed: min_instances are left")
        if not scale.spec.replicas == num_ready == len(self._pods):
            raise ActuatorError(
                f"pod {pod} is not removed: {num_ready} pods of {scale.spec.replicas} replicas are "
                "ready, and one of the others would go"
            )
        if self._workload.has_ordinals and pod != max(self._pods, key=_ordinal):
            raise ActuatorError(f"pod {pod} is not removed: pods with higher ordinals go first")

    async def _scale(self, wanted: Callable[[Scale], int]) -> bool:
        """Set the replicas to what is wanted of the present scale; whether they have changed.

        Raises `KubeError`.
        """
        aim: int | None = None  # of a request without an answer: it may have been served
        async with self._scaling:
            for attempt in range(NUM_TRIES):
                if attempt:
                    await asyncio.sleep(self._pause_s * attempt)
                scale = await self._api.scale(self._path)
                if scale.spec.replicas == aim:
                    return True
                before, aim = scale.spec.replicas, None
                scale.spec.replicas = wanted(scale)
                if scale.spec.replicas == before:
                    return False
                try:
                    await self._api.replace_scale(self._path, scale)
                except KubeError as error:
                    if error.status != CONFLICT and not error.is_passing:
                        raise
                    aim = scale.spec.replicas if error.is_passing else None
                    problem = error
                else:
                    log.info("%s: %d -> %d replicas", self._path, before, scale.spec.replicas)
                    return True
        raise problem

    async def _keep(self, pod: str, name: str) -> None:
        """A pod that was to be removed stays."""
        if not self._workload.has_ordinals:
            try:
                await self._api.annotate(pod, {DELETION_COST: None})
            except KubeError as error:
                log.warning("pod %s keeps its deletion cost: %s", pod, error)
        self._members.rejoin(name)


def _ordinal(pod: str) -> int:
    """The number at the end of the pod's name; -1 without one."""
    tail = pod.rpartition("-")[2]
    return int(tail) if tail.isdigit() else -1
