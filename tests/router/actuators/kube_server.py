"""A small API server: pods and the scale of one workload, and a controller that obeys it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN, NAMESPACE, SELECTOR = "a-token", "models", "app=llm"
COST = "controller.kubernetes.io/pod-deletion-cost"
Object = dict[str, Any]


class FakeCluster:
    """A workload `llm`, whose pods are ready at once unless `makes_ready` is false."""

    def __init__(self, resource: str, replicas: int = 0, *, makes_ready: bool = True) -> None:
        self.resource = resource
        self.makes_ready = makes_ready
        self.token = TOKEN
        self.replicas = 0
        self.scale_version = 1
        self.pods: dict[str, Object] = {}
        self.requests: list[str] = []
        self.num_conflicts = 0
        """So many replacements of the scale find that somebody else has just changed it."""
        self.lost_answers: list[int] = []
        """Statuses with which the next replacements are answered, though they are served."""
        self.stops_pods = True
        self._version = 100
        self._oldest = 0
        self._changes: list[tuple[int, str, Object]] = []
        self._changed = asyncio.Event()
        self._num_made = 0
        self._watches: set[asyncio.Event] = set()
        self._scale_to(replicas)

    @property
    def has_ordinals(self) -> bool:
        return self.resource != "deployments"

    @property
    def num_watches(self) -> int:
        return len(self._watches)

    def app(self) -> Starlette:
        group = "leaderworkerset.x-k8s.io/v1" if self.resource.startswith("leader") else "apps/v1"
        scale = f"/apis/{group}/namespaces/{NAMESPACE}/{self.resource}/llm/scale"
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        return Starlette(
            routes=[
                Route(scale, self._get_scale, methods=["GET"]),
                Route(scale, self._put_scale, methods=["PUT"]),
                Route(pods, self._get_pods, methods=["GET"]),
                Route(pods + "/{name}", self._patch_pod, methods=["PATCH"]),
            ]
        )

    # --- what happens in the cluster --------------------------------------------------------------

    def add_pod(self, *, ready: bool = True, labels: Object | None = None) -> str:
        """A new pod; returns its name."""
        number = self._num_made
        if self.has_ordinals:
            number = next(i for i in range(99) if f"llm-{i}" not in self.pods)
        self._num_made += 1
        name = f"llm-{number}" if self.has_ordinals else f"llm-7d9f-x{number}"
        pod: Object = {
            "metadata": {
                "name": name,
                "labels": labels or {"app": "llm"},
                "annotations": {},
                "creationTimestamp": self._num_made,
            },
            "spec": {"containers": [{"name": "tdpipe \u2028 line"}]},
            "status": {"phase": "Pending", "conditions": []},
        }
        self.pods[name] = pod
        if ready:
            self._make_ready(pod)
        self._note("ADDED", pod)
        return name

    def set_ready(self, name: str, *, ready: bool) -> None:
        self._make_ready(self.pods[name], "True" if ready else "False")
        self._note("MODIFIED", self.pods[name])

    def terminate(self, name: str) -> None:
        """A pod is to be deleted, and still runs."""
        self.pods[name]["metadata"]["deletionTimestamp"] = "2026-11-29T12:00:00Z"
        self._note("MODIFIED", self.pods[name])

    def delete(self, name: str) -> None:
        self._note("DELETED", self.pods.pop(name))

    def forget_changes(self) -> None:
        """Compact etcd: earlier versions are gone, also for the watches that are open."""
        self._version += 1
        self._oldest = self._version
        self._changes.clear()
        self._changed.set()

    def end_watches(self) -> None:
        for end in self._watches:
            end.set()
        self._changed.set()

    def url(self, name: str) -> str:
        return f"http://{self.pods[name]['status']['podIP']}:8000"

    def urls(self) -> set[str]:
        return {self.url(name) for name in self.pods}

    # --- the controller ---------------------------------------------------------------------------

    def _scale_to(self, replicas: int) -> None:
        self.replicas = replicas
        self.scale_version += 1
        while len(self.pods) < replicas:
            self.add_pod(ready=self.makes_ready)
        while self.stops_pods and len(self.pods) > replicas:
            self.delete(max(self.pods, key=self._rank))

    def _rank(self, name: str) -> tuple[Any, ...]:
        """The pod with the highest rank goes first: ReplicaSet's order, or that of ordinals."""
        if self.has_ordinals:
            return (int(name.rpartition("-")[2]),)
        pod = self.pods[name]
        cost = int(pod["metadata"]["annotations"].get(COST, "0"))
        return (not _is_ready(pod), -cost, pod["metadata"]["creationTimestamp"])

    def _make_ready(self, pod: Object, status: str = "True") -> None:
        number = pod["metadata"]["creationTimestamp"]
        pod["status"] = {
            "phase": "Running",
            "podIP": f"10.0.0.{number}",
            "conditions": [{"type": "Ready", "status": status, "lastProbeTime": None}],
        }

    def _note(self, kind: str, pod: Object) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self._changes.append((self._version, kind, json.loads(json.dumps(pod))))
        self._changed.set()

    # --- the API ----------------------------------------------------------------------------------

    def _refusal(self, request: Request) -> Response | None:
        self.requests.append(f"{request.method} {request.url.path.rpartition('/')[2]}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _failure(401, "Unauthorized")
        return None

    async def _get_scale(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(self._scale())

    def _scale(self) -> Object:
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {
                "name": "llm",
                "namespace": NAMESPACE,
                "uid": "5c2b",
                "resourceVersion": str(self.scale_version),
                "creationTimestamp": None,
            },
            "spec": {"replicas": self.replicas} if self.replicas else {},
            "status": {"replicas": len(self.pods), "selector": SELECTOR},
        }

    async def _put_scale(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        scale = await request.json()
        assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
        if self.num_conflicts:
            self.num_conflicts -= 1
            self.scale_version += 1
        if scale["metadata"]["resourceVersion"] != str(self.scale_version):
            return _failure(409, "the object has been modified")
        self._scale_to(scale["spec"]["replicas"])
        if self.lost_answers:
            return _failure(self.lost_answers.pop(0), "etcdserver: request timed out")
        return JSONResponse(self._scale())

    async def _get_pods(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        key, value = request.query_params["labelSelector"].split("=")
        if "watch" in request.query_params:
            return self._watch(request, key, value)
        pods = [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(key) == value]
        meta = {"resourceVersion": str(self._version)}
        return JSONResponse({"kind": "PodList", "metadata": meta, "items": pods})

    def _watch(self, request: Request, key: str, value: str) -> Response:
        since = int(request.query_params["resourceVersion"])
        seconds = int(request.query_params["timeoutSeconds"])
        if since < self._oldest:
            return _failure(410, "too old resource version")

        async def changes() -> AsyncIterator[bytes]:
            end, seen = asyncio.Event(), since
            self._watches.add(end)
            try:
                async with asyncio.timeout(seconds):
                    while not end.is_set():
                        self._changed.clear()
                        if seen < self._oldest:
                            yield _line("ERROR", _status(410, "The resourceVersion is too old."))
                            return
                        for version, kind, pod in self._changes:
                            if version > seen and pod["metadata"]["labels"].get(key) == value:
                                yield _line(kind, pod)
                        seen = self._version
                        await self._changed.wait()
            except TimeoutError:
                pass
            finally:
                self._watches.discard(end)

        return StreamingResponse(changes(), media_type="application/json")

    async def _patch_pod(self, request: Request) -> Response:
        if refused := self._refusal(request):
            return refused
        assert request.headers["content-type"] == "application/merge-patch+json"
        name = request.path_params["name"]
        if name not in self.pods:
            return _failure(404, f'pods "{name}" not found')
        annotations = self.pods[name]["metadata"]["annotations"]
        for key, text in (await request.json())["metadata"]["annotations"].items():
            annotations.pop(key, None)
            if text is not None:
                annotations[key] = text
        self._note("MODIFIED", self.pods[name])
        return JSONResponse(self.pods[name])


def _is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _line(kind: str, pod: Object) -> bytes:
    return json.dumps({"type": kind, "object": pod}, ensure_ascii=False).encode() + b"\n"


def _status(code: int, message: str) -> Object:
    return {"kind": "Status", "status": "Failure", "message": message, "code": code}


def _failure(code: int, message: str) -> Response:
    return JSONResponse(_status(code, message), status_code=code)
