"""gunicorn's HTTP on a thread for each connection. The only module that knows gunicorn.

A client that sends or reads slowly, or not at all, keeps its own thread waiting and nobody else. A thread that does not
come back in time, since a disk hangs, is given up: its client is answered without it, and another gets its place.

One process, without gunicorn's arbiter above it: less memory, a quicker first answer, one thing to kill. What the
arbiter would do, restarting a dead worker and keeping the socket meanwhile, systemd does for both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Final
from wsgiref.types import WSGIApplication

import gunicorn.config
import gunicorn.systemd
import gunicorn.workers.base_async

from ..errors import in_words, printable
from ..host import dockerd
from .protocol import failure, whole_answer

log = logging.getLogger("hostprep")

_CONNECTIONS: Final = 1000
_STACK: Final = 4 << 20  # bytes, most of which are never touched; CPython 3.12 may need 1.3 MB for deeply nested JSON
_IDLE: Final = 75  # seconds that a connection may be idle
_SLOW: Final = 30  # seconds that a client may take to send the rest of a request, or to read an answer
_SLOW_AT_THE_END: Final = 2  # seconds, once the server is to stop
_GIVEN_UP: Final = 500  # threads that are given up at most, and then come on top of those of the connections
_GRACEFUL: Final = 30  # seconds that requests under way may take at the end
_TICK: Final = 1.0  # seconds between two looks for clients that took too long
_PAUSE: Final = 0.05  # seconds before what the kernel refused is tried again
_BETWEEN: Final = 1 << 20  # bytes: the rest of a body that nobody read, and the head of the next request
_BODY: Final = 8 << 20  # bytes of a body in chunks (of one byte: 6 MiB for 1): gunicorn 20 reads a size without end
_TOGETHER: Final = 65536  # bytes of an answer that leave with its head


class Connection(socket.socket):
    """A client's connection, which knows for how long the client keeps its thread waiting."""

    idle = True
    """Whether nothing of a next request has come."""
    waiting = False
    """Whether the thread waits for the client: for bytes of a request, or for room for those of an answer."""
    since: float
    """When it was accepted, a request began, or an answer began, whichever was last; on time.monotonic()'s clock."""
    room = _BETWEEN
    """How many bytes are read at most before a request is understood, and then of its body, if wire reads that."""
    _head = b""

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.since = time.monotonic()
        self.accepted = dockerd.now()
        self._due: tuple[float, Callable[[], bytes]] | None = None
        self._turn = threading.Lock()  # either the thread answers, or it is given up

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.room <= 0:
            return b""
        self.waiting = True
        data = super().recv(size, flags)
        self.waiting = False
        self.room -= len(data)
        if self.idle:
            self.idle, self.since = False, time.monotonic()
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send *data*; but the head of an answer, which gunicorn sends first, waits for its body.

        An engine asks again when a server dies without a word, but not after the head alone: to its user that is an
        "unexpected EOF".
        """
        if not self._head and data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        head, self._head = self._head, b""
        self.idle, self.since, self.waiting = False, time.monotonic(), True
        super().sendall(head + data[:_TOGETHER], flags)
        if len(data) > _TOGETHER:  # not copied: List may be long
            super().sendall(memoryview(data)[_TOGETHER:], flags)
        self.waiting = False

    def send(self, data: Any, flags: int = 0) -> int:
        """Send "100 Continue", which is no head of an answer."""
        self.idle, self.since, self.waiting = False, time.monotonic(), True
        sent = super().send(data, flags)
        self.waiting = False
        return sent

    def end_answer(self) -> None:
        """Send a head that no body followed. The client's next request is waited for from now on."""
        if self._head:
            self.sendall(b"")
        self.idle, self.room = True, _BETWEEN

    def answer_by(self, deadline: float, give_up: Callable[[], bytes]) -> None:
        """If `came_back` is not called before *deadline*, send what *give_up* returns, and close the connection."""
        self._due = deadline, give_up

    def came_back(self) -> bool:
        """Whether the thread is to answer. If it was given up, its client has been answered."""
        with self._turn:
            due, self._due = self._due, None
            return due is not None

    def give_up(self, now: float) -> bool:
        """Give the thread up if it is overdue; return whether it is."""
        with self._turn:
            if self._due is None or now < self._due[0]:
                return False
            answer, self._due = self._due[1](), None
            with contextlib.suppress(OSError):
                super().send(answer, socket.MSG_DONTWAIT)
                self.shutdown(socket.SHUT_RDWR)
            return True

    def cut_off(self, *, was_idle: bool) -> None:
        """Let the thread wait no longer. If the connection *was_idle* when it was chosen, what has come is still read.

        A request that came since is answered. The client can send no more, and so knows that its next was not read.
        """
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RD if was_idle else socket.SHUT_RDWR)


class Worker(gunicorn.workers.base_async.AsyncWorker):  # type: ignore[misc]  # gunicorn has no types
    """Answers each connection on a thread of its own, a thousand at once.

    One more takes the place of the one that has been idle for the longest time. Where none is idle it waits in the
    listener's backlog until one is, or ends. An idle connection takes 40 kB of memory.
    """

    def __init__(self, listener: socket.socket, application: WSGIApplication, *, at_end: Callable[[], None]) -> None:
        """*at_end* is called at SIGTERM and SIGINT, before the last answers."""
        super().__init__(0, os.getppid(), [listener], application, 0, gunicorn.config.Config(), _Log(log))
        self._at_end = at_end
        self._room = threading.Semaphore(_CONNECTIONS)
        self._open: set[Connection] = set()
        self._given_up: set[Connection] = set()
        self._guard = threading.Lock()  # of the two: a connection that leaves the first makes room, once
        self._refused = False

    def load_wsgi(self) -> None:
        self.wsgi = self.app

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._at_end()

    def timeout_ctx(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # run() looks at the clock

    def run(self) -> None:
        """Accept connections until a signal ends it, then see the requests under way through."""
        (listener,) = self.sockets
        listener.settimeout(0)
        threading.stack_size(_STACK)
        signal.signal(signal.SIGINT, self.handle_exit)
        ready = select.poll()
        ready.register(listener, select.POLLIN)
        ready.register(self.PIPE[0], select.POLLIN)  # a signal writes into it
        gunicorn.systemd.sd_notify("READY=1", self.log)
        while self.alive:
            for fd, _ in ready.poll(_TICK * 1000):
                if fd == listener.fileno():
                    self._accept(listener)
                else:
                    os.read(fd, 512)
            self._cut_off(idle=_IDLE, slow=_SLOW)
            self._give_up()
        listener.close()
        end = time.monotonic() + _GRACEFUL
        while self._open and time.monotonic() < end:
            self._cut_off(idle=0, slow=_SLOW_AT_THE_END)
            self._give_up()
            time.sleep(0.01)

    def _accept(self, listener: socket.socket) -> None:
        if not self._room.acquire(blocking=False):
            idle = (each for each in self._open.copy() if each.idle and each.waiting)
            if longest := min(idle, key=lambda each: each.since, default=None):
                longest.cut_off(was_idle=True)
            if not self._room.acquire(timeout=_PAUSE):
                return
        try:
            accepted, address = listener.accept()
        except OSError as exc:  # no descriptor is left: who connects waits
            self._room.release()
            if not self._refused:
                log.error("no connection can be accepted: %s", exc.strerror)
            self._refused = True
            time.sleep(_PAUSE)
            return
        self._refused = False
        connection = Connection(accepted)
        self._open.add(connection)
        try:
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()
        except RuntimeError as exc:  # no thread can be started: its client asks again
            log.error("request not served: %s", exc)
            self._end(connection)

    def _serve(self, connection: Connection, address: Any) -> None:
        try:
            self.handle(connection, connection, address)  # it is asked for the listener's name, which is its own
        finally:
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.close()
        self._leave(connection)
        self._given_up.discard(connection)

    def _leave(self, connection: Connection) -> None:
        with self._guard:
            if connection in self._open:
                self._open.remove(connection)
                self._room.release()

    def _give_up(self) -> None:
        """Answer in the place of the threads that are overdue, and make room for others."""
        now = time.monotonic()
        for each in self._open.copy():
            if each.give_up(now) and len(self._given_up) < _GIVEN_UP:
                with self._guard:
                    if each in self._open:
                        self._given_up.add(each)
                self._leave(each)

    def _cut_off(self, *, idle: float, slow: float) -> None:
        """Cut off who has kept a thread waiting for so many seconds."""
        now = time.monotonic()
        for each in self._open.copy():
            was_idle = each.idle
            if each.waiting and now - each.since > (idle if was_idle else slow):
                each.cut_off(was_idle=was_idle)

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> Any:
        sock.room = _BODY
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.end_answer()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP, as JSON: gunicorn would send a page, and an engine shows it to its user as it is.

        What was a request, and failed beyond what wire puts into words, is not answered: it may have been a Get. Nor
        is the rest of a body too long to be read: its request has been answered.
        """
        log.error("request not served: %s", printable(in_words(exc)))
        if req is None and client.room > 0:
            body = failure("the request is not HTTP/1.1 as hostprep understands it")
            with contextlib.suppress(OSError):
                client.sendall(whole_answer("400 Bad Request", body))


class _Log(logging.LoggerAdapter[logging.Logger]):
    """gunicorn's own messages in hostprep's log, each on one line. Wire logs the requests."""

    def log(self, level: int, msg: object, *args: object, exc_info: Any = None, **_: Any) -> None:
        if self.isEnabledFor(level):
            what = str(msg) % args if args else str(msg)
            self.logger.log(level, "%s", printable(f"{what}: {traceback.format_exc()}" if exc_info else what))

    def nothing(self, *_: object) -> None:
        """What gunicorn does with log files of its own."""

    access = close_on_exec = reopen_files = nothing
