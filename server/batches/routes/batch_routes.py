"""/v1/batches: the routes that create, list, return and cancel batches.

Reference: https://platform.openai.com/docs/api-reference/batch.
"""

import re
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.batches.routes.file_routes import no_such_file
from server.batches.service import BatchService
from server.batches.storage.lifecycle import StoredBatch, new_id
from server.batches.storage.page import UnknownCursorError
from server.batches.storage.store import UnknownFileError
from server.http.bodies.body import parse
from server.http.bodies.body_reader import BodyMemory
from server.http.bodies.unknown_fields import IGNORED, UnknownFields
from server.http.errors import ApiError, invalid, too_busy
from server.http.openapi import BATCHES, BODY_FAILURES, failures, takes
from server.openai.fields.batch import Batch, BatchList, BatchQuery, CreateBatch

MAX_OPEN_BATCHES = 1000
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_LONGEST_WINDOW_S = 366 * 24 * 3600


class BatchRoutes:
    """The routes; the runner does the work."""

    def __init__(
        self,
        service: BatchService,
        body_memory: BodyMemory,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        self._service = service
        self._unknown_fields = unknown_fields
        self._body_memory = body_memory

    def router(self) -> APIRouter:
        """The routes as a FastAPI router."""
        router = APIRouter(prefix="/v1/batches", tags=[BATCHES], responses=failures(503))
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            summary="Create a batch",
            response_model=Batch,
            responses=failures(*BODY_FAILURES, 404, 429),
            openapi_extra=takes(CreateBatch),
        )
        get = router.add_api_route
        get(
            "",
            self.batches,
            summary="List batches",
            response_model=BatchList,
            responses=failures(400, 404),
        )
        get(
            "/{batch_id}",
            self.batch,
            summary="Describe a batch",
            response_model=Batch,
            responses=failures(404),
        )
        router.add_api_route(
            "/{batch_id}/cancel",
            self.cancel,
            methods=["POST"],
            summary="Cancel a batch",
            response_model=Batch,
            responses=failures(404, 409),
        )
        return router

    async def create(self, request: Request) -> Batch:
        """Create a batch; its file is validated afterwards."""
        store, runner = self._service.store, self._service.runner
        async with self._body_memory.body(request) as content:
            body = parse(CreateBatch, content, self._unknown_fields)
        batch = self._new_batch(body)
        try:
            was_taken = await store.add_batch(batch, MAX_OPEN_BATCHES)
        except UnknownFileError as error:
            raise no_such_file(body.input_file_id, "input_file_id") from error
        if not was_taken:
            raise too_busy(
                f"Too many batches: {MAX_OPEN_BATCHES} are open.", "batches", retry=False
            )
        runner.begin(batch)
        return batch

    async def batches(self, query: Annotated[BatchQuery, Query()]) -> Response:
        """A page of batches."""
        store = self._service.store
        try:
            batches, has_more = await store.batches(after=query.after, limit=query.limit)
        except UnknownCursorError as error:
            raise no_such_batch(str(error), "after") from error
        # The reference lets the ids of an empty list be absent, but not null.
        ids = {"first_id": batches[0].id, "last_id": batches[-1].id} if batches else {}
        page = BatchList(data=batches, has_more=has_more, **ids)
        absent = set() if ids else {"first_id", "last_id"}
        return Response(page.model_dump_json(exclude=absent), media_type="application/json")

    async def batch(self, batch_id: str) -> Batch:
        """One batch."""
        batch = await self._service.store.batch(batch_id)
        if batch is None:
            raise no_such_batch(batch_id)
        return batch

    async def cancel(self, batch_id: str) -> Batch:
        """Abort open requests; existing answers stay."""
        batch = await self._service.runner.cancel(batch_id)
        if batch is None:
            raise no_such_batch(batch_id)
        if batch.status not in ("cancelling", "cancelled"):
            message = f"Cannot cancel a batch with status '{batch.status}'."
            headers = {"x-should-retry": "false"}
            raise ApiError(409, message, code="batch_not_cancellable", headers=headers)
        return batch

    def _new_batch(self, body: CreateBatch) -> StoredBatch:
        if body.endpoint not in self._service.paths:
            allowed = " and ".join(self._service.paths)
            message = f"Invalid value for 'endpoint': '{body.endpoint}'. Supported: {allowed}."
            raise invalid(message, "endpoint", "invalid_value")
        window_s = _window_s(body.completion_window)
        now = int(time.time())
        expires_after = body.output_expires_after
        return StoredBatch(
            id=new_id("batch_"),
            endpoint=body.endpoint,
            model=self._service.model,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            status="validating",
            created_at=now,
            expires_at=now + window_s,
            metadata=body.metadata,
            output_name=new_id("file-"),
            error_name=new_id("file-"),
            output_expires_s=expires_after.seconds if expires_after else None,
        )


def no_such_batch(batch_id: str, param: str = "batch_id") -> ApiError:
    """Return the 404 for an unknown batch."""
    return ApiError(404, f"No batch found with id '{batch_id}'.", param=param)


def _window_s(window: str) -> int:
    """Return the completion window in seconds. Raises `ApiError` (400)."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", window)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_WINDOW_S:
        message = (
            f"Invalid value for 'completion_window': '{window}'. It must be 24h or another number "
            "of s, m, h or d, at most a year."
        )
        raise invalid(message, "completion_window", "invalid_value")
    return seconds
