"""The root path: a proxy's prefix of all paths, whether it takes it off or passes it on."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware. Behind it, `path` begins with `root_path`, as ASGI has it."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on under its whole path."""
        if scope["type"] == "http":
            scope["root_path"] = self._root_path
            if not f"{scope['path']}/".startswith(f"{self._root_path}/"):
                scope["path"] = self._root_path + scope["path"]
        await self._app(scope, receive, send)
