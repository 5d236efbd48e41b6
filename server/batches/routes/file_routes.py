"""/v1/files: the routes for the input and output files of batches.

Reference: https://platform.openai.com/docs/api-reference/files.
"""

import logging
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from server.batches.routes.upload import MultipartForm, receive
from server.batches.service import BatchService
from server.batches.storage.database import DatabaseError
from server.batches.storage.lifecycle import new_id
from server.batches.storage.page import UnknownCursorError
from server.batches.storage.store import FileInUseError
from server.http import ranges
from server.http.bodies.unknown_fields import IGNORED, FoundFields, UnknownFields
from server.http.connection import run_while_connected
from server.http.errors import ApiError, failed, invalid, invalid_value, too_busy
from server.http.openapi import FILES, failures
from server.openai.fields.batch import (
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
    FileQuery,
    UploadForm,
)

MAX_UPLOADS = 16

logger = logging.getLogger("tdpipe")

_FORM = UploadForm.model_json_schema()
_BYTES: dict[str, Any] = {"application/octet-stream": {}}
_FIELDS = set(_FORM["properties"]) - {"file"}


class FileRoutes:
    """The routes; files are streamed, never held in memory as a whole."""

    def __init__(
        self,
        service: BatchService,
        max_file_bytes: int,
        unknown_fields: UnknownFields = IGNORED,
    ) -> None:
        self._service = service
        self._unknown_fields = unknown_fields
        self._max_file_bytes = max_file_bytes
        self._num_uploads = 0

    def router(self) -> APIRouter:
        """The routes as a FastAPI router."""
        router = APIRouter(prefix="/v1/files", tags=[FILES], responses=failures(503))
        router.add_api_route(
            "",
            self.upload,
            methods=["POST"],
            summary="Upload a file",
            response_model=FileObject,
            responses=failures(400, 408, 413, 415, 429),
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"multipart/form-data": {"schema": _FORM}},
                }
            },
        )
        get = router.add_api_route
        get(
            "",
            self.files,
            summary="List files",
            response_model=FileList,
            responses=failures(400, 404),
        )
        get(
            "/{file_id}",
            self.file,
            summary="Describe a file",
            response_model=FileObject,
            responses=failures(404),
        )
        get(
            "/{file_id}/content",
            self.content,
            summary="Read a file",
            response_class=Response,
            responses={
                200: {"content": _BYTES},
                206: {"content": _BYTES, "description": "The range that was asked for"},
                **failures(404, 416),
            },
        )
        router.add_api_route(
            "/{file_id}",
            self.delete,
            methods=["DELETE"],
            summary="Delete a file",
            response_model=FileDeleted,
            responses=failures(404, 409),
        )
        return router

    async def upload(self, request: Request) -> FileObject:
        """Store a file; 429 while too many uploads are running."""
        store = self._service.store
        if self._num_uploads >= MAX_UPLOADS:
            raise too_busy(f"Too many uploads: {MAX_UPLOADS} may run at one time.", "uploads")
        upload = store.new_upload()
        self._num_uploads += 1
        try:
            form = await receive(request, upload, self._max_file_bytes)
            file = _describe(form, self._unknown_fields)
            await store.add_file(file, upload)
        except (DatabaseError, OSError) as error:
            # The reason is only in the log: clients must not see paths.
            logger.error("cannot store an upload in %s: %s", store.folder, error)
            raise failed("The file cannot be stored.") from error
        finally:
            self._num_uploads -= 1
            upload.unlink(missing_ok=True)
        return file

    async def files(self, query: Annotated[FileQuery, Query()]) -> Response:
        """A page of files."""
        try:
            page = await self._service.store.files(
                _now(),
                after=query.after,
                limit=query.limit,
                order=query.order,
                purpose=query.purpose,
            )
        except UnknownCursorError as error:
            raise no_such_file(str(error), "after") from error
        return Response(page, media_type="application/json")

    async def file(self, file_id: str) -> FileObject:
        """One file."""
        file = await self._service.store.file(file_id, _now())
        if file is None:
            raise no_such_file(file_id)
        return file

    async def content(self, file_id: str) -> Response:
        """A file's content, or a range of it."""
        file = await self.file(file_id)
        path = self._service.store.content(file_id)
        if not path.is_file():
            raise no_such_file(file_id)
        return _Content(path, filename=file.filename, media_type="application/octet-stream")

    async def delete(self, file_id: str) -> FileDeleted:
        """Delete a file, unless an open batch needs it."""
        try:
            was_there = await self._service.store.delete_file(file_id)
        except FileInUseError as error:
            message = f"The file is the input of {error}, which has not ended. Cancel that first."
            headers = {"x-should-retry": "false"}
            raise ApiError(
                409, message, param="file_id", code="file_in_use", headers=headers
            ) from error
        if not was_there:
            raise no_such_file(file_id)
        return FileDeleted(id=file_id)


def no_such_file(file_id: str, param: str = "file_id") -> ApiError:
    """Return the 404 for an unknown file."""
    return ApiError(404, f"No such File object: {file_id}", param=param, code="file_not_found")


class _Content(FileResponse):
    """A file response that ends when its client disconnects."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response. Raises `ApiError` (416)."""
        scope = ranges.within(scope, Path(self.path).stat().st_size)
        await run_while_connected(super().__call__(scope, receive, send), receive)


def _describe(form: MultipartForm, unknown_fields: UnknownFields) -> FileObject:
    """Return the file object for an upload's form. Raises `ApiError` (400)."""
    unknown = FoundFields()
    for name in sorted(form.fields.keys() - _FIELDS):
        if unknown_fields.strict:
            message = f"Unrecognized request argument supplied: {name}"
            raise invalid(message, name, "unknown_parameter")
        unknown.add(UploadForm.__name__, name)
    unknown_fields.ignore(unknown)
    purpose = form.fields.get("purpose")
    if form.filename is None or purpose is None:
        missing = "purpose" if purpose is None else "file"
        message = f"Missing required parameter: '{missing}'."
        raise invalid(message, missing, "missing_required_parameter")
    if purpose != "batch":
        message = f"Purpose '{purpose}' is not supported here; only 'batch' is."
        raise invalid(message, "purpose", "invalid_value")
    if not form.num_bytes:
        raise invalid("The file is empty.", "file", "empty_file")
    now, lifetime_s = _now(), _lifetime_s(form.fields)
    return FileObject(
        id=new_id("file-"),
        bytes=form.num_bytes,
        created_at=now,
        expires_at=None if lifetime_s is None else now + lifetime_s,
        filename=form.filename,
        purpose="batch",
    )


def _lifetime_s(fields: dict[str, str]) -> int | None:
    """Return the file's lifetime in seconds; None if it does not expire."""
    given = {
        field.removeprefix("expires_after[").removesuffix("]"): value
        for field, value in fields.items()
        if field.startswith("expires_after")
    }
    if not given:
        return None
    try:
        return ExpiresAfter.model_validate(given, strict=False).seconds
    except ValidationError as error:
        problem = error.errors()[0]
        field = f"expires_after.{problem['loc'][0]}"
        raise invalid_value(field, problem, "expires_after") from error


def _now() -> int:
    return int(time.time())
