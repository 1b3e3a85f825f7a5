"""`hostprep serve`: the protocol on a Unix socket, by gunicorn's threaded worker. The only module that knows it.

One process, without gunicorn's arbiter above it: less memory, a quicker first answer, one thing to kill. What the
arbiter would do, starting a dead worker anew and keeping the socket meanwhile, systemd does for both.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import gunicorn.config
import gunicorn.systemd
import gunicorn.util
import gunicorn.workers.gthread

from ..errors import BadSetting, HostprepError, in_words, printable
from ..host.process import raise_open_files
from ..settings import Settings
from ..volumes import trash
from ..volumes.driver import Driver, Images

log = logging.getLogger("hostprep")

_THREADS: Final = 64  # 24 may wait for passes (readiness.py), 24 for an engine (driver.py)
_LINGER: Final = 5  # ms that a connection stays on its thread after an answer
_LAST: Final = 0.2  # seconds that a connection stays open at the end
_READ: Final = 30  # seconds that a client may take to send the rest of a request, or to read the rest of an answer
_READ_AT_THE_END: Final = 2  # seconds, once the server is to stop
_PARTS: Final = 0.1  # seconds in which the parts of a request come that was sent at once
_TAKES: Final = 5.0  # seconds that a client may take over a long answer before it counts as slow
_STALLS: Final = 250  # ms in which it takes nothing of it, which count as slow, too
_SLOW: Final = 8  # clients at once that may make a thread wait for their bytes
_PEEKED: Final = 8192  # bytes; an engine's requests have some hundred
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*0*([0-9]*)", re.IGNORECASE)
_TOGETHER: Final = 65536  # bytes of an answer that leave with its head
_PAUSE: Final = 0.05  # seconds before a connection that could not be accepted is tried again
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
    from ..engine import client

    return client.Engine(settings.docker_host)


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
    _refused = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._slow = threading.BoundedSemaphore(_SLOW)
        self._waited_for: dict[socket.socket, tuple[float, int]] = {}

    def init_signals(self) -> None:
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        self._made = os.stat(self.path) if self.path else None
        gunicorn.systemd.sd_notify("READY=1", self.log)

    def is_parent_alive(self) -> bool:
        return True  # there is no arbiter: who started this process may go

    def accept(self, *listener: Any) -> None:
        """Accept who has connected; where no descriptor is left they wait, and this server does not end for it."""
        try:
            super().accept(*listener)  # older gunicorns pass two
        except OSError as exc:
            if not self._refused:
                log.error("no connection can be accepted: %s", exc.strerror)
            self._refused = True
            time.sleep(_PAUSE)  # it is asked again at once
        else:
            self._refused = False

    def enqueue_req(self, conn: Any) -> None:
        """Give a request to a thread; where none is free and none can be started, its sender gets no answer."""
        try:
            super().enqueue_req(conn)
        except RuntimeError as exc:
            log.error("request not served: %s", exc)
            self.nr_conns -= 1
            conn.close()

    def handle(self, conn: Any) -> Any:
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        if not conn.initialized and not poll.poll(_LINGER):
            # gunicorn would wait 5 s here: who connects and says nothing uses up no thread either.
            return getattr(gunicorn.workers.gthread, "_DEFER", False)
        conn.data_ready = True  # or gunicorn would look itself, with a descriptor of its own for it
        while (kept := self._answer(conn)) is True and self.alive:
            if not poll.poll(_LINGER):
                break
        if not kept:
            # gunicorn would wait for the client's own end in the poller's thread, and nobody be served meanwhile.
            gunicorn.util.close_graceful(conn.sock, _LAST)
            conn.close = lambda graceful=False: None
        return kept

    def _answer(self, conn: Any) -> Any:
        """Answer one request. Who has sent only a part of it may take up a thread if not too many others do."""
        if _is_whole(conn) or _is_whole_soon(conn):
            return super().handle(conn)
        with contextlib.suppress(BrokenPipeError), self._waiting_for(conn.sock, socket.SHUT_RD):
            return super().handle(conn)
        conn.sock.close()
        return False

    @contextlib.contextmanager
    def _waiting_for(self, sock: socket.socket, how: int) -> Iterator[None]:
        """Do what may wait for a client's bytes, or for him to take some; after _READ seconds he is cut off (*how*).

        Raises:
            BrokenPipeError: too many are waited for already. gunicorn takes it for a client that went away.
        """
        if not self._slow.acquire(blocking=False):
            raise BrokenPipeError(errno.EPIPE, "too many clients are slow")
        before = self._waited_for.get(sock)
        self._waited_for[sock] = time.monotonic(), how
        try:
            yield
        finally:
            if before is None:
                del self._waited_for[sock]
            else:
                self._waited_for[sock] = before
            self._slow.release()

    def notify(self) -> None:
        """Called every second or sooner, by gunicorn's main loop."""
        super().notify()
        longest = _READ if self.alive else _READ_AT_THE_END
        for sock, (since, how) in list(self._waited_for.items()):
            if time.monotonic() > since + longest:
                with contextlib.suppress(OSError):
                    sock.shutdown(how)

    def handle_request(self, req: Any, conn: Any) -> Any:
        sock, conn.sock = conn.sock, _InOnePiece(conn.sock, self._waiting_for)
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
        # At its end gunicorn gives idle connections two seconds more, in which nobody else could answer, and those on
        # which nothing was ever said, of which an engine keeps some too, all the time that a request may take.
        deadline = min(deadline, time.monotonic() + _LAST)
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout if self.alive else min(timeout, _LAST))

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.remove_socket()  # at once: who comes now is to wait for the next server
        self.driver.passes.stop()  # wakes the requests that wait for one
        super().handle_exit(sig, frame)

    def remove_socket(self) -> None:
        """Remove the socket, unless it is systemd's, or another server's by now."""
        with contextlib.suppress(FileNotFoundError):
            if self._made is not None and os.path.samestat(os.lstat(self.path), self._made):
                os.unlink(self.path)


def _is_whole(conn: Any) -> bool:
    """Whether a whole request is there, so that nobody has to wait for the rest; or the end of the connection."""
    data: bytes = conn.parser.unreader.buf.getvalue() if conn.parser else b""  # of one that came with the one before
    try:
        data += conn.sock.recv(_PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        if not data:
            return False
    except OSError:
        return True
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or b"\r\ntransfer-encoding:" in head.lower():
        return not data
    length = _LENGTH.search(head)
    return length is None or (len(length[1]) < 9 and len(body) >= int(length[1] or b"0"))


def _is_whole_soon(conn: Any) -> bool:
    over, end = select.poll(), time.monotonic() + _PARTS
    over.register(conn.sock, select.POLLRDHUP)
    while time.monotonic() < end:
        if over.poll(_LINGER) or _is_whole(conn):
            return True
    return False


class _InOnePiece:
    """A connection on which the head of an answer waits for the body.

    gunicorn sends them apart. An engine asks again when a server dies without a word, but not after the head alone:
    to its user that is an "unexpected EOF".
    """

    def __init__(self, sock: socket.socket, waiting_for: Callable[[socket.socket, int], Any]) -> None:
        self._sock = sock
        self._waiting_for = waiting_for
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        if not self._head and data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        head, self._head = self._head, b""
        self._send(memoryview(head + data[:_TOGETHER]), stalls=0)
        # A long List is not copied; and who takes it as fast as he can is not slow, though it is more than the kernel
        # keeps for him.
        self._send(memoryview(data)[_TOGETHER:], stalls=_STALLS)

    def _send(self, data: memoryview, *, stalls: int) -> None:
        room, end = select.poll(), time.monotonic() + _TAKES
        room.register(self._sock, select.POLLOUT)
        while data and time.monotonic() < end and room.poll(stalls):
            with contextlib.suppress(BlockingIOError):
                data = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
        if data:
            with self._waiting_for(self._sock, socket.SHUT_RDWR):
                self._sock.sendall(data)

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
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    while True:
        try:
            if trash.interrupted(driver.store) or trash.due(driver.store, settings.trash_keep):
                subprocess.run(
                    [sys.executable, "-P", "-m", "hostprep", "purge"],
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

    def exception(self, msg: object, *args: object, **_: Any) -> None:
        """What is caught at this moment, in one line as every event."""
        exc = sys.exc_info()[1]
        told = in_words(exc) if isinstance(exc, OSError) else "".join(traceback.format_exception(exc))
        self.error(f"{msg}: %s", *args, printable(told))

    def close_on_exec(self) -> None:
        """Nothing: standard error is passed on."""
