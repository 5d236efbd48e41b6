"""CORS: what pages of other origins may ask, refused in the envelope where they may not."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from server.http.errors import invalid


class Cors(CORSMiddleware):
    """Starlette's, but for its refusal in plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether it may ask."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        # "Disallowed CORS origin, method"
        refusal = invalid(f"{bytes(response.body).decode()}.", code="cors_refused").response()
        for name, value in response.headers.items():
            refusal.headers.setdefault(name, value)
        return refusal
