"""The page /docs: interactive API documentation that works without internet access."""

from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from server.http import ranges

PATH = "/docs"
ASSETS_PATH = "/docs-assets"


def install(app: FastAPI) -> None:
    """Add the page. Its script and style sheet are in the package fastapi-offline."""
    assets = _Assets(directory=str(files("fastapi_offline") / "static"))
    app.mount(ASSETS_PATH, assets, name="docs-assets")
    app.add_route(PATH, _page, include_in_schema=False)


class _Assets(StaticFiles):
    """Static files without support for range requests."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(ranges.without(scope), receive, send)


async def _page(request: Request) -> HTMLResponse:
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="tdpipe",
        swagger_js_url=f"{root}{ASSETS_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{ASSETS_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{root}{ASSETS_PATH}/favicon.png",
    )
