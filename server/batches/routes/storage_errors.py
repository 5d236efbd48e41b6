"""Storage errors: the answer of file and batch routes when the disk is full or gone."""

import logging

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from server.batches.storage.database import DatabaseError
from server.http.errors import unavailable
from server.http.request_record import record_of

logger = logging.getLogger("tdpipe")


def install(app: Starlette) -> None:
    """Answer 503 in place of a traceback."""
    app.add_exception_handler(DatabaseError, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    # The reason is only in the log: clients must not see paths.
    logger.error("a request for files or batches failed: %s", error)
    answer = unavailable("Files and batches cannot be stored at the moment.", "batches_unavailable")
    record_of(request.scope).reason = answer.reason
    return answer.response()
