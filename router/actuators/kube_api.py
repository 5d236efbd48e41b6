"""The API of Kubernetes, as far as scaling needs it: scales of workloads, and pods.

Only the fields that are used are decoded. Reference: Kubernetes API, `autoscaling/v1` Scale, `v1`
Pod, and "Efficient detection of changes" (list and watch).
"""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import ActuatorError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = httpx.Timeout(10.0, connect=5.0)
# A watch is silent while nothing changes; the server ends it after the seconds that it was given.
WATCH_MARGIN_S = 10.0
MAX_EVENT_BYTES = 8 << 20  # etcd holds objects of up to 1.5 MiB
CONFLICT, GONE, TOO_MANY_REQUESTS = 409, 410, 429

Decoded = TypeVar("Decoded")


class KubeError(ActuatorError):
    """The API server refuses a request, or cannot be reached (status 0)."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status

    @property
    def is_passing(self) -> bool:
        """Whether a later try may succeed; this one may have been served nevertheless."""
        return self.status == 0 or self.status == TOO_MANY_REQUESTS or self.status >= 500


class Meta(msgspec.Struct, rename="camel", omit_defaults=True):
    """The metadata of an object."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None


class ScaleSpec(msgspec.Struct):
    """The wanted number of replicas."""

    replicas: int = 0


class ScaleStatus(msgspec.Struct):
    """The label selector of the pods."""

    replicas: int = 0
    selector: str = ""


class Scale(msgspec.Struct, rename="camel"):
    """The scale of a workload; replacing it fails if it has changed since it was read."""

    metadata: Meta
    spec: ScaleSpec = msgspec.field(default_factory=ScaleSpec)
    status: ScaleStatus = msgspec.field(default_factory=ScaleStatus)
    api_version: str = "autoscaling/v1"
    kind: str = "Scale"


class Condition(msgspec.Struct):
    """A condition of a pod, such as Ready."""

    type: str
    status: str


class PodStatus(msgspec.Struct):
    """Where a pod is, and in which condition."""

    ip: str = msgspec.field(name="podIP", default="")
    conditions: list[Condition] = []


class Pod(msgspec.Struct):
    """A pod."""

    metadata: Meta
    status: PodStatus = msgspec.field(default_factory=PodStatus)

    @property
    def is_ready(self) -> bool:
        """Whether it can be reached and is to stay."""
        ready = any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)
        return ready and bool(self.status.ip) and self.metadata.deletion_timestamp is None


class PodList(msgspec.Struct):
    """The pods at a version."""

    metadata: Meta
    items: list[Pod]


class WatchEvent(msgspec.Struct):
    """A change; `object` is a pod, or a status if the type is ERROR."""

    type: str
    object: msgspec.Raw


class Failure(msgspec.Struct):
    """A status of the API server."""

    code: int = 0
    message: str = ""


class KubeApi:
    """A client of the API server. All methods raise `KubeError`."""

    def __init__(self, config: ScalingConfig, service_account: Path = SERVICE_ACCOUNT) -> None:
        """Raises `KubeError` where neither settings nor a service account say what is needed."""
        self._token_file = config.kube_token_file or service_account / "token"
        ca_file = config.kube_ca_file or (None if config.kube_api else service_account / "ca.crt")
        base_url = config.kube_api or _own_cluster()
        try:
            self.namespace = config.kube_namespace or _text(service_account / "namespace")
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise KubeError(
                f"{error.filename or ca_file}: {error.strerror}; outside of a cluster, actuator "
                "kubernetes needs kube_api, kube_namespace and kube_token_file"
            ) from error
        self._http = httpx.AsyncClient(base_url=base_url, verify=context, timeout=TIMEOUT)

    async def scale(self, path: str) -> Scale:
        """The scale of the workload with this path."""
        return _decode(await self._request("GET", f"{path}/scale"), Scale)

    async def replace_scale(self, path: str, scale: Scale) -> None:
        """Replace it; the status of the error is `CONFLICT` if it has changed meanwhile."""
        await self._request("PUT", f"{path}/scale", content=msgspec.json.encode(scale))

    async def pods(self, selector: str) -> PodList:
        """The pods with these labels, and the version from which to watch."""
        return _decode(
            await self._request("GET", self._pods, params={"labelSelector": selector}), PodList
        )

    async def annotate(self, pod: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a pod, or remove those that are None."""
        patch = msgspec.json.encode({"metadata": {"annotations": annotations}})
        kind = {"content-type": "application/merge-patch+json"}
        await self._request("PATCH", f"{self._pods}/{pod}", content=patch, headers=kind)

    async def watch(
        self, selector: str, version: str, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Pod], None]:
        """The changes of pods since a version, for about so many seconds.

        The status of the error is `GONE` if the version is too old: the pods must be listed again.
        """
        params = {
            "labelSelector": selector,
            "watch": "1",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(timeout_s))),
        }
        timeout = httpx.Timeout(timeout_s + WATCH_MARGIN_S, connect=5.0)
        with _http_errors():
            async with self._http.stream(
                "GET", self._pods, params=params, headers=await self._headers(), timeout=timeout
            ) as answer:
                if not answer.is_success:
                    raise _refusal(answer.status_code, await answer.aread())
                async for line in _lines(answer):
                    event = _decode(line, WatchEvent)
                    if event.type == "ERROR":
                        failure = _decode(event.object, Failure)
                        raise KubeError(f"the watch ended: {failure.message}", failure.code)
                    yield event.type, _decode(event.object, Pod)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    async def _request(self, method: str, path: str, **request: Any) -> bytes:
        headers = await self._headers() | request.pop("headers", {})
        with _http_errors():
            answer = await self._http.request(method, path, headers=headers, **request)
        if not answer.is_success:
            raise _refusal(answer.status_code, answer.content)
        return answer.content

    async def _headers(self) -> dict[str, str]:
        """With the token, which is replaced about once an hour."""
        try:
            token = await asyncio.to_thread(_text, self._token_file)
        except OSError as error:
            raise KubeError(
                f"cannot read the token {self._token_file}: {error.strerror}"
            ) from error
        return {"authorization": f"Bearer {token}", "content-type": "application/json"}


def _own_cluster() -> str:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    if not host:
        raise KubeError("actuator kubernetes needs kube_api: the router is not in a cluster")
    return f"https://{f'[{host}]' if ':' in host else host}:{port or 443}"


def _text(path: Path) -> str:
    return path.read_text().strip()


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body; unlike httpx's, they end with line feeds only, as JSON may hold others.

    Raises `KubeError` for a line that is too long.
    """
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_EVENT_BYTES:
            raise KubeError("an event of the watch exceeds 8 MiB")


def _decode(body: bytes | msgspec.Raw, kind: type[Decoded]) -> Decoded:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeError(f"the API server's answer is no {kind.__name__}: {error}") from error


def _refusal(status: int, body: bytes) -> KubeError:
    try:
        message = msgspec.json.decode(body, type=Failure).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = ""
    return KubeError(f"the API server answered {status}: {message or 'no reason'}", status)


@contextmanager
def _http_errors() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise KubeError(f"the API server cannot be reached: {reason}") from error
