"""A tiny HTTP client over a Unix socket: one connection, which it keeps alive, and raw bytes where needed."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer; the body is JSON, or the test has found a bug."""

    status: int
    body: dict[str, Any]

    @property
    def error(self) -> str:
        return str(self.body.get("Err", ""))


class Connection(http.client.HTTPConnection):
    """One connection to the socket *path*."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        super().__init__("plugin.moby.localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def ask(self, path: str, body: bytes | None = b"", *, method: str = "POST", **headers: str) -> Answer:
        """Send as dockerd does, without a Content-Type, and read the answer."""
        self.putrequest(method, path, skip_accept_encoding=True)
        if body is not None:
            self.putheader("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.putheader(key.replace("_", "-"), value)
        self.endheaders(body)
        response = self.getresponse()
        return Answer(response.status, json.loads(response.read()))


def raw(path: Path, request: bytes, timeout: float = 60.0) -> bytes:
    """Send bytes as they are, and read until the server closes the connection."""
    answered = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        with contextlib.suppress(ConnectionError):  # it has answered, and reads no more
            sock.sendall(request)
        with contextlib.suppress(ConnectionResetError):  # it closed the connection over what it had not read
            while got := sock.recv(65536):
                answered += got
    return answered
