"""Streamlit's scripts, packed for the wire, and the headers of every answer.

Streamlit sends its scripts as they are, 8 MB for a page with a figure; packed they are a quarter of it.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import streamlit as st
from anyio import to_thread

STATIC = Path(st.__file__).parent / "static"
PACKED = re.compile(r"/(static/(?:js|css)/[A-Za-z0-9_.$-]+\.(js|css))")
TYPES = {"js": b"text/javascript; charset=utf-8", "css": b"text/css; charset=utf-8"}
YEAR = b"public, max-age=31536000, immutable"  # their names hold a hash of what is in them
SAFE = [  # headers of every answer
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


@lru_cache(maxsize=1024)  # more than there are; a name that is none takes a place, too
def packed(name: str) -> bytes | None:
    """One of Streamlit's own scripts as gzip, packed once; None where there is no such file."""
    path = STATIC / name
    return gzip.compress(path.read_bytes(), 6, mtime=0) if path.is_file() else None


def pack(*names: str) -> None:
    """Packs the scripts whose names begin so."""
    for path in (STATIC / "static" / "js").glob("*.js"):
        if path.name.startswith(names):
            packed(str(path.relative_to(STATIC)))


class Wire:
    """Answers for Streamlit's scripts itself, packed, and gives every other answer its headers."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = PACKED.fullmatch(scope["path"]) if scope["method"] == "GET" and takes_gzip(scope) else None
        body = await to_thread.run_sync(packed, asked[1]) if asked else None
        if asked and body is not None:
            kind = [(b"content-type", TYPES[asked[2]]), (b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
            length = [(b"content-length", str(len(body)).encode()), (b"cache-control", YEAR)]
            await send({"type": "http.response.start", "status": 200, "headers": [*kind, *length, *SAFE]})
            await send({"type": "http.response.body", "body": body})
            return

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SAFE]
            await send(message)

        await self.app(scope, receive, safely)


def takes_gzip(scope: Message) -> bool:
    return any(k == b"accept-encoding" and b"gzip" in v for k, v in scope["headers"])
