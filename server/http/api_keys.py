"""API keys: who sends none of them is turned away, whatever the path but few that are open."""

import hmac
from collections.abc import Iterable, Sequence
from hashlib import sha256

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import ApiError

ALWAYS_OPEN = "/health"


class ApiKeys:
    """ASGI middleware. A key is compared with all keys in a time that tells nothing of them.

    `open_paths` need no key, nor does `ALWAYS_OPEN`.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[SecretStr],
        *,
        open_paths: Iterable[str] = (),
        root_path: str,
    ) -> None:
        self._app = app
        # Digests, because compare_digest tells the lengths of what it compares.
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]
        self._open_paths = {root_path + path for path in (ALWAYS_OPEN, *open_paths)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            await _refusal(scope).response()(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        digest = _digest(_bearer(scope))
        # All keys are compared, also after one that fits.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _bearer(scope: Scope) -> bytes:
    """The key that the client sent; empty when it sent none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
    return b""


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _refusal(scope: Scope) -> ApiError:
    if _bearer(scope):
        message = "Incorrect API key provided."
    else:
        message = "You didn't provide an API key: send it as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
