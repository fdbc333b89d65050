"""Uploads: rows of a person's own, streamed to disk under a name of ours."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy import Row, Text, cast, delete, insert, select
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from nlp_distill.service.api.jobs import check_room, seconds
from nlp_distill.service.api.models import File, Listed, Preview
from nlp_distill.service.api.recipes import beside
from nlp_distill.service.api.service import FileId, Reader, Served, Service, Submitter, missing, row_or_missing
from nlp_distill.service.home import new_id, now_ms
from nlp_distill.service.store.queue import TERMINAL
from nlp_distill.service.store.tables import files, jobs
from nlp_distill.web.problems import Problem, problems

router = APIRouter(prefix="/v1/files", tags=["files"])
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")
BLOCK, LOOKED_EACH = 1 << 20, 32 << 20
BODY = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "additionalProperties": False,
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
    },
}


def shown_file(row: Row[tuple[object, ...]]) -> File:
    """A row as the API shows it."""
    values = row._mapping
    return File(
        **{name: values[name] for name in ("id", "name", "bytes", "sha256")},
        format=values["ending"],
        created_at=seconds(values["created_at"]),
    )


@router.post("", status_code=201, openapi_extra={"requestBody": BODY}, responses=problems(413, 415, 422, 503))
async def upload(
    request: Request,
    service: Served,
    _: Submitter,
    name: Annotated[str, Query(max_length=200, description="Its name; the ending says the format.")] = "",
    sha256: Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$", description="Checked, if given.")] = None,
) -> File:
    """Upload rows: CSV, TSV, JSON lines or Parquet, as the body itself or as the field `file` of a form."""
    await asyncio.to_thread(check_room, service)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with _parts(request, kind) as (form_name, blocks):
        name = _clean(name or form_name)
        ending = name.rpartition(".")[2].lower()
        if "." not in name or ending not in FORMATS:
            raise Problem(415, "format_unknown", f"The name must end in one of {', '.join('.' + f for f in FORMATS)}.")
        file_id = new_id("file")
        target = service.home.file(file_id, ending)
        with _kept_if_well(target) as handle:
            size, digest = await _write(service, handle, blocks)
            if size == 0:
                raise Problem(422, "empty_file", "The file is empty.")
            if sha256 is not None and sha256 != digest:
                raise Problem(422, "digest_differs", "What arrived has another sha256; send it again.")
            values = {"id": file_id, "created_at": now_ms(), "name": name, "ending": ending, "bytes": size}
            with service.database.writing() as connection:
                connection.execute(insert(files).values(**values, sha256=digest))
                return shown_file(connection.execute(select(files).where(files.c.id == file_id)).one())


@contextlib.asynccontextmanager
async def _parts(request: Request, kind: str) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    """The name and the blocks of what is uploaded."""
    if kind != "multipart/form-data":
        yield "", request.stream()
        return
    try:
        form = await request.form(max_files=1, max_fields=4)
    except HTTPException as error:
        raise Problem(400, "form_unreadable", "The form cannot be read; send one field 'file'.") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(422, "file_missing", "The form has no file in its field 'file'.")

        async def blocks() -> AsyncIterator[bytes]:
            while block := await file.read(BLOCK):
                yield block

        yield file.filename or "", blocks()
    finally:
        await form.close()


def _clean(name: str) -> str:
    """A name to show; it is never part of a path."""
    name = re.split(r"[/\\]", name.encode("utf-8", "replace").decode())[-1]
    return "".join(letter for letter in name if letter.isprintable())[-200:]


@contextlib.contextmanager
def _kept_if_well(target: Path) -> Iterator[int]:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        yield handle
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


async def _write(service: Service, handle: int, blocks: AsyncIterator[bytes]) -> tuple[int, str]:
    """Bytes written and their sha256. Raises `Problem` where runs would be left no room."""
    size, looked, digest = 0, 0, hashlib.sha256()
    try:
        async for block in blocks:
            digest.update(block)
            size += len(block)
            if size - looked >= LOOKED_EACH:
                looked = size
                await asyncio.to_thread(check_room, service)
            await asyncio.to_thread(_write_all, handle, block)
        await asyncio.to_thread(os.fsync, handle)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem(503, "unavailable", "The server's disk is full.", {"Retry-After": "60"}) from error
    return size, digest.hexdigest()


def _write_all(handle: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(handle, view) :]


@router.get("")
def listed(service: Served, _: Reader) -> Listed[File]:
    """Uploads, newest first; the last thousand."""
    with service.database.reading() as connection:
        rows = connection.execute(select(files).order_by(files.c.created_at.desc(), files.c.id.desc()).limit(1000))
        return Listed(data=[shown_file(row) for row in rows])


def _find(service: Service, file_id: str) -> Row[tuple[object, ...]]:
    with service.database.reading() as connection:
        row: Row[tuple[object, ...]] = row_or_missing(
            connection.execute(select(files).where(files.c.id == file_id)).first(), "file"
        )
        return row


@router.get("/{file_id}", responses=problems(404, 422))
def show(file_id: FileId, service: Served, _: Reader) -> File:
    """An upload."""
    return shown_file(_find(service, file_id))


@router.get("/{file_id}/preview", responses=problems(404, 422, 429, 503))
async def preview(file_id: FileId, service: Served, _: Reader) -> Preview:
    """Its columns, five rows, and which column seems to be what."""
    row = await asyncio.to_thread(_find, service, file_id)
    file = service.home.file(file_id, row._mapping["ending"])
    return Preview(**await beside(service, service.home.files, "nlp_distill.service.look", str(file)))


@router.delete("/{file_id}", status_code=204, responses=problems(404, 409, 422))
def remove(file_id: FileId, service: Served, _: Submitter) -> None:
    """Forget an upload that no job needs any more."""
    row = _find(service, file_id)
    with service.database.writing() as connection:
        needed = select(jobs.c.id).where(jobs.c.status.not_in(TERMINAL), cast(jobs.c.recipe, Text).contains(file_id))
        if connection.execute(needed.limit(1)).first() is not None:
            raise Problem(409, "file_in_use", "A job that is not over needs this file.")
        if connection.execute(delete(files).where(files.c.id == file_id)).rowcount != 1:
            raise missing("file")
    service.home.file(file_id, row._mapping["ending"]).unlink(missing_ok=True)
