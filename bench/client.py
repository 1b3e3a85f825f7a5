"""A volume plugin's client as dockerd is one: HTTP/1.1 over the socket, kept alive, one request after the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent


class Client:
    """One kept-alive connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, endpoint: str, body: dict[str, Any] | None = None) -> tuple[float, bytes]:
        """Seconds from the request to the whole answer, and its body.

        Raises:
            RuntimeError: it is no success.
        """
        return self.request("POST", f"/{endpoint}", body)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[float, bytes]:
        """`call`, with any method: an engine's own API is asked in the same way."""
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode() + b"\n"
        kind = "Content-Type: application/json\r\n" if path.startswith("/v1.") else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: plugin.moby.localhost\r\nUser-Agent: Go-http-client/1.1\r\n{kind}"
            f"Content-Length: {len(data)}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n"
        )
        request = head.encode() + data
        begun = time.perf_counter()
        self._socket.sendall(request)
        answer = self._socket.recv(1 << 20)
        while b"\r\n\r\n" not in answer:
            answer += self._more()
        head_end = answer.index(b"\r\n\r\n")
        fields = answer[:head_end].lower()
        length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in fields else 0
        while b"chunked" in fields and not answer.endswith(b"0\r\n\r\n"):
            answer += self._more()
        parts, got = [answer], len(answer) - head_end - 4
        while got < length:
            parts.append(self._more())
            got += len(parts[-1])
        spent = time.perf_counter() - begun
        if not answer.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{path}: {answer[:300]!r}")
        return spent, b"".join(parts)[head_end + 4 :]

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise RuntimeError("the connection was closed")
        return data


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A fresh directory that is root's alone: ext4 slows down where much was just deleted."""
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/var/lib") as made:
        yield Path(made)


@contextlib.contextmanager
def served(command: list[str], directory: Path, **extra: str) -> Iterator[tuple[str, int, float]]:
    """Run a plugin; yields its socket, its process id and the seconds to its first answer."""
    path = str(directory / "bench.sock")
    environ = {
        **os.environ,
        "PYTHONPATH": f"{TOP / 'plugin'}:{TOP}",
        "HOSTPREP_ROOT": str(directory / "r"),
        "HOSTPREP_KNOWN_ROOTS": str(directory / "known"),
        "HOSTPREP_SOCKET": path,
    }
    environ |= {"HOSTPREP_LOG_LEVEL": "warning", **extra}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environ, cwd="/", stdin=subprocess.DEVNULL)
    try:
        first = _first_answer(path, process, begun)
        yield path, process.pid, first
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_answer(path: str, process: subprocess.Popen[bytes], begun: float) -> float:
    while time.perf_counter() < begun + 60 and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), Client(path) as client:
            client.call("Plugin.Activate")
            return time.perf_counter() - begun
        time.sleep(0.001)
    raise RuntimeError(f"{process.args!r} did not answer")


HOSTPREP = [sys.executable, "-P", "-m", "hostprep", "serve"]
STOCK = [sys.executable, "-P", "-m", "bench.stock"]
PLAIN = [sys.executable, "-P", "-m", "bench.plain"]
