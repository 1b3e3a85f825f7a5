"""`hostprep serve`: the protocol on a Unix socket, by gunicorn's threaded worker. The only module that knows it.

One process, without gunicorn's arbiter above it: less memory, a quicker first answer, one thing to kill. What the
arbiter would do, starting a dead worker anew and keeping the socket meanwhile, systemd does for both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import gunicorn.config
import gunicorn.systemd
import gunicorn.workers.gthread

from . import trash
from .driver import Driver, Images
from .errors import BadSetting, HostprepError, in_words, printable
from .settings import Settings
from .tree import raise_open_files

log = logging.getLogger("hostprep")

_THREADS: Final = 64  # 24 may wait for passes (readiness.py), 24 for an engine (driver.py)
_LINGER: Final = 5  # ms that a connection stays on its thread after an answer
_LAST: Final = 0.2  # seconds that idle connections stay open at the end
_READ: Final = 30  # seconds that a client may take to send the rest of a request
_PURGE_EVERY: Final = 60.0  # seconds
_BACKLOG: Final = 1024
_MEDIA_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"  # as in wire, which is not to be imported yet
_HANDSHAKE: Final = "/Plugin.Activate"

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way, remove the socket and return.

    Raises:
        BadSetting: it cannot start; nothing has been changed.
    """
    logging.basicConfig(stream=sys.stderr, format="hostprep: %(levelname)s %(message)s")
    log.setLevel(settings.log_level.upper())
    raise_open_files()
    driver = Driver.open(settings, create=True, images=_images(settings))
    driver.store.sweep()
    listener, path = listen(settings.socket)
    log.info("serving %s at %s", settings.root, printable(path or "the socket that systemd passed"))
    config = gunicorn.config.Config()
    configure(config)
    worker = Worker(0, os.getppid(), [listener], Application(driver), 0, config, _Log(log))
    worker.driver, worker.path = driver, path
    threading.Thread(target=_purge_now_and_then, args=(driver,), daemon=True).start()
    try:
        worker.init_process()
    finally:
        worker.remove_socket()


def _images(settings: Settings) -> Images | None:
    if not settings.docker_host:
        return None
    from . import engine  # with all that it needs, which nobody else is to pay for

    return engine.Images(settings.docker_host)


def listen(path: str) -> tuple[socket.socket, str]:
    """A listening socket at *path*, 0600, and that path; or the one that systemd passed (sd_listen_fds(3)) and "".

    Raises:
        BadSetting: a live server is there already, or something that is no socket.
    """
    if gunicorn.systemd.listen_fds():
        return socket.socket(fileno=gunicorn.systemd.SD_LISTEN_FDS_START), ""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BadSetting(f"{printable(path)} exists and is no socket", hint="remove it, or set HOSTPREP_SOCKET")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)  # stale: its server is gone
            else:
                raise BadSetting(f"a server already answers at {printable(path)}", hint="stop it first")
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as exc:
        raise BadSetting(f"HOSTPREP_SOCKET: {printable(path)}: {exc.strerror or exc}") from None
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener, path


def configure(config: gunicorn.config.Config) -> None:
    """The settings of gunicorn's that differ from its defaults."""
    config.set("threads", _THREADS)
    config.set("worker_connections", 2000)
    config.set("keepalive", 75)  # seconds
    config.set("graceful_timeout", 30)  # seconds


class Application:
    """What gunicorn's worker asks of an application: the WSGI callable."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def wsgi(self) -> Callable[[Environ, StartResponse], Iterable[bytes]]:
        return _Front(self._driver)


class _Front:
    """Answers the handshake, and brings Flask in behind it: importing it takes longer than all the rest of a start."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._app: Any = None
        self._guard = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._app is None:
            if environ["PATH_INFO"] == _HANDSHAKE and environ["REQUEST_METHOD"] == "POST":
                body = b'{"Implements": ["VolumeDriver"]}\n'
                start_response("200 OK", [("Content-Type", _MEDIA_TYPE), ("Content-Length", str(len(body)))])
                threading.Thread(target=self._load, daemon=True).start()
                return [body]
            self._load()
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def _load(self) -> None:
        with self._guard:
            if self._app is None:
                from .wire import create_app

                self._app = create_app(self._driver)


class Worker(gunicorn.workers.gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker, but for a few milliseconds after an answer the connection stays on its thread.

    Handing it back to the poller and out to a thread again wakes two threads: `make bench` shows what that costs.
    An engine's requests come one right after the other; a connection that stays idle goes back, and uses up no thread.
    """

    driver: Driver
    path: str
    """Where the socket is; empty where it is systemd's."""
    _made: os.stat_result | None = None

    def init_signals(self) -> None:
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        self._made = os.stat(self.path) if self.path else None
        gunicorn.systemd.sd_notify("READY=1", self.log)

    def is_parent_alive(self) -> bool:
        return True  # there is no arbiter: who started this process may go

    def handle(self, conn: Any) -> Any:
        # Idle connections wait in the poller; who began a request has to go on with it.
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _READ, 0))
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        if not conn.initialized and not poll.poll(_LINGER):
            # gunicorn would wait 5 s here: who connects and says nothing uses up no thread either.
            return getattr(gunicorn.workers.gthread, "_DEFER", False)
        while (kept := super().handle(conn)) is True and self.alive:
            if not poll.poll(_LINGER):
                break
        return kept

    def handle_request(self, req: Any, conn: Any) -> Any:
        sock, conn.sock = conn.sock, _InOnePiece(conn.sock)
        try:
            kept = super().handle_request(req, conn)
            conn.sock.flush()
            return kept
        finally:
            conn.sock = sock

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP, as JSON: gunicorn would send a page, and an engine shows it to its user as it is.

        What was a request, and failed beyond what wire puts into words, is not answered: it may have been a Get.
        """
        log.error("request not served: %s", printable(in_words(exc)))
        if req is not None:
            return
        body = b'{"Err": "the request is not HTTP/1.1 as hostprep understands it"}\n'
        head = f"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError):
            client.sendall(f"{head}Content-Type: {_MEDIA_TYPE}\r\n\r\n".encode() + body)

    def _cap_keepalive(self, deadline: float) -> None:
        # At its end gunicorn gives idle connections two seconds more, in which nobody else could answer.
        super()._cap_keepalive(min(deadline, time.monotonic() + _LAST))

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.remove_socket()  # at once: who comes now is to wait for the next server
        self.driver.passes.stop()  # wakes the requests that wait for one
        super().handle_exit(sig, frame)

    def remove_socket(self) -> None:
        """Remove the socket, unless it is systemd's, or another server's by now."""
        with contextlib.suppress(FileNotFoundError):
            if self._made is not None and os.path.samestat(os.lstat(self.path), self._made):
                os.unlink(self.path)


class _InOnePiece:
    """A connection on which the head of an answer waits for the body.

    gunicorn sends them apart. An engine asks again when a server dies without a word, but not after the head alone:
    to its user that is an "unexpected EOF".
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        head, self._head = self._head, b""
        self._sock.sendall(head + data)

    def flush(self) -> None:
        """Send a head that no body follows."""
        if self._head:
            self.sendall(b"")


def _purge_now_and_then(driver: Driver) -> None:
    """Start a purge in a process of its own whenever something is due, or one was interrupted."""
    settings = driver.settings
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HOSTPREP_")},
        "HOSTPREP_ROOT": settings.root,
        "HOSTPREP_TRASH_KEEP": f"{settings.trash_keep}s",
        "HOSTPREP_SELINUX": settings.selinux.value,  # what it asks for is asked of that process, too
        "HOSTPREP_MANAGED": "1" if settings.managed else "0",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    while True:
        try:
            if trash.interrupted(driver.store) or trash.due(driver.store, settings.trash_keep):
                subprocess.run(
                    [sys.executable, "-P", "-m", "plugin", "purge"],
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    check=False,
                )
        except (HostprepError, OSError) as exc:
            log.warning("purge: %s", printable(in_words(exc)))
        driver.removed.wait(_PURGE_EVERY)
        driver.removed.clear()


class _Log(logging.LoggerAdapter[logging.Logger]):
    """gunicorn's own messages in hostprep's log; requests are logged where they are understood, in wire."""

    def access(self, *_: object) -> None:
        """Nothing."""

    def close_on_exec(self) -> None:
        """Nothing: standard error is passed on."""
