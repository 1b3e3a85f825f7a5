"""What the answers have in common, whether Flask is loaded already or not."""

from __future__ import annotations

import json
from typing import Final

from ..errors import printable

MEDIA_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"
HANDSHAKE: Final = "/Plugin.Activate"
HANDSHAKE_ANSWER: Final = b'{"Implements": ["VolumeDriver"]}\n'


def failure(message: str) -> bytes:
    """The body of an answer that is no success."""
    return json.dumps({"Err": printable(message)}).encode() + b"\n"


def whole_answer(status: str, body: bytes) -> bytes:
    """An answer with its head, after which the connection is closed."""
    head = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\nContent-Type: {MEDIA_TYPE}\r\n\r\n"
    )
    return head.encode() + body
