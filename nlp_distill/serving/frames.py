"""How the web process and an engine talk: a length, a head in JSON, a line's end, a body that is passed on unread."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

LENGTH = 4
MOST = 256 << 20
"""Bytes of a frame: above what any answer within the caps can have."""


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """A frame."""
    start = json.dumps(head, separators=(",", ":")).encode()
    return (len(start) + 1 + len(body)).to_bytes(LENGTH, "big") + start + b"\n" + body


def unpack(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Head and body of a frame without its length."""
    start, _, body = frame.partition(b"\n")
    return json.loads(start), body


def read(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None where the other side has gone."""
    length = stream.read(LENGTH)
    if len(length) < LENGTH:
        return None
    frame = stream.read(int.from_bytes(length, "big"))
    return unpack(frame)


async def receive(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None where the other side has gone."""
    try:
        length = int.from_bytes(await stream.readexactly(LENGTH), "big")
        if length > MOST:
            return None
        return unpack(await stream.readexactly(length))
    except (EOFError, ConnectionError):
        return None
