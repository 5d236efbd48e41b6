"""The front door: what a request passes before the app. Its name and log line, CORS, its key.

All of it stands outside of FastAPI's own layers, so that its answers to bugs pass through it too.
"""

from starlette.types import ASGIApp

from configs.front_door import FrontDoorConfig
from server.http.access import HEADER, Access
from server.http.api_keys import ApiKeys
from server.http.cors import Cors
from server.http.root_path import RootPath


def with_middleware(app: ASGIApp, config: FrontDoorConfig) -> ASGIApp:
    """The app with as much of it before it as the settings ask for."""
    if config.api_key:
        app = ApiKeys(app, config.api_key, open_paths=config.open_paths, root_path=config.root_path)
    if config.allowed_origins:
        app = Cors(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=[HEADER.decode()],
        )
    app = Access(app, root_path=config.root_path, access_log=config.access_log)
    return RootPath(app, config.root_path) if config.root_path else app
