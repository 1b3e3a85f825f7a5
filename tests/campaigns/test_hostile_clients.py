"""Clients that send anything at all, slowly, by halves or without end: volumes are served meanwhile, nothing is left.

The socket is root's alone, so such a client is a broken engine rather than an attacker. A server that waits for it
would keep every other container from starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
import string
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.host import PYTHON, REPOSITORY, Host, Server, children_of, eventually
from tests.support.unixhttp import raw

pytestmark = pytest.mark.root

WORST: Final = 5.0  # seconds, for which slow clients go on
ENDPOINTS: Final = (
    "/Plugin.Activate",
    *(f"/VolumeDriver.{v}" for v in ("Capabilities", "Create", "Get", "List", "Mount", "Path", "Remove", "Unmount")),
)
STATUSES: Final = {200, 400, 403, 404, 405, 409, 413, 500, 503}
MANY: Final = 1000


class Watch:
    """An engine with volumes of its own, which it asks for all the time."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers = 0
        self.wrong: list[str] = []

    def _ask(self) -> None:
        with contextlib.closing(self._server.connect()) as kept:
            while not self._over.is_set():
                for verb in ("Get", "Mount", "Unmount"):
                    body = json.dumps({"Name": "mongo", "ID": "c" * 64}).encode()
                    for connection in (kept, self._server.connect()):
                        try:
                            answer = connection.ask(f"/VolumeDriver.{verb}", body)
                            if answer.status != 200:
                                self.wrong.append(f"{verb}: {answer}")
                        except OSError as exc:
                            self.wrong.append(f"{verb}: {exc!r}")
                        finally:
                            self.answers += 1
                            if connection is not kept:
                                connection.close()
                time.sleep(0.002)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        assert not self.wrong, self.wrong[:3]
        assert self.answers > 5


@pytest.fixture(scope="module")
def _open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before[0], 8192), before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def server(host: Host, _open_files: None) -> Iterator[Server]:
    """A server with a volume, which is asked for all through the test; afterwards it has nothing more than before."""
    server = host.serve(HOSTPREP_LOG_LEVEL="error")
    assert server("Create", Name="mongo", Opts={"uid": "184"}).status == 200
    assert server("Mount", Name="mongo").status == 200
    pid = server.process.pid
    before, memory = descriptors(pid), resident(pid)

    with Watch(server) as watch:
        yield server

    watch.check()
    eventually(lambda: descriptors(pid) - before == Counter(), "every descriptor is closed")
    assert len(os.listdir(f"/proc/{pid}/task")) < 75  # 64 that answer, and a few
    assert children_of(pid) == {}
    assert resident(pid) < memory + 40
    for name in server("List").body["Volumes"]:
        assert name["Name"] == "mongo" or server("Remove", Name=name["Name"]).status == 200
    assert host.left_in_volumes() == ["mongo"]
    assert server.terminate() == 0
    assert "Traceback" not in server.log


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind: connections are numbered anew each time."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0]] += 1
    return found


def resident(pid: int) -> float:
    """Megabytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def request(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def check_answers(answered: bytes, *, path: str = "") -> list[int]:
    """Whatever was answered is HTTP, with JSON in it; its statuses."""
    found = []
    while answered:
        head, _, rest = answered.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), answered
        found.append(int(head.split()[1]))
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = json.loads(rest[:length])
        assert found[-1] in STATUSES
        if found[-1] != 200:
            assert body["Err"], answered
            assert body["Err"].isprintable(), body
            assert path != "/VolumeDriver.Get" or found[-1] == 404
        answered = rest[length:]
    return found


def said(server: Server, data: bytes) -> bytes:
    """All that is answered to *data*, after which the client says no more."""
    answered = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(server.socket))
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while got := sock.recv(65536):
                answered += got
    return answered


# -- anything ----------------------------------------------------------------------------------------------------------

FUZZ: Final = settings(
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    max_examples=int(os.environ.get("HOSTPREP_FUZZ", "250")),
)
WORDS: Final = [
    *(word.encode() for word in ENDPOINTS),
    b"POST ", b"GET ", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff",
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999",
    b"Content-Length: 1, 1", b"Content-Length : 1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Expect: 100-continue", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Host: x", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"5\r\n{\"N\"}\r\n",
    b'{"Name": "gone"}', b"{}", b"[" * 5000, b"X: " + b"y" * 9000, b"A:b\r\n" * 120,
]  # fmt: skip


@FUZZ
@given(parts=st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=64)), max_size=12))
def any_bytes(server: Server, parts: list[bytes]) -> None:
    check_answers(said(server, b"".join(parts)))


def test_any_bytes(server: Server) -> None:
    """Whatever comes, the answer is one of the protocol's or none."""
    any_bytes(server)


@FUZZ
@given(
    path=st.sampled_from(ENDPOINTS),
    body=st.binary(max_size=64),
    cut=st.integers(-200, 200),
    where=st.integers(0, 200),
    what=st.binary(max_size=8),
)
def mutated(server: Server, path: str, body: bytes, cut: int, where: int, what: bytes) -> None:
    whole = request(path, b'{"Name": "gone"}' + body, "Connection: close")
    whole = whole[:where] + what + whole[where + len(what) :]
    check_answers(said(server, whole[: cut or None]))


def test_almost_a_request(server: Server) -> None:
    """Requests with some bytes exchanged, and cut off anywhere, are refused or not answered."""
    mutated(server)


TEXT: Final = st.text(max_size=30) | st.sampled_from(
    ["gone", "a" * 256, "..", "/", "a/b", "\0", "\x1b[2J", "\ud800", "-"]
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OPTION: Final = st.sampled_from(
    ["uid", "gid", "mode", "label", "path", "mountpoint", "recurse", "on_remove", "image", "at"]
)
OPTS: Final = JSON | st.dictionaries(OPTION | TEXT, TEXT | JSON, max_size=4)
BODY: Final = st.fixed_dictionaries({}, optional={"Name": TEXT | JSON, "ID": JSON, "Opts": OPTS})


@FUZZ
@given(
    path=st.sampled_from(ENDPOINTS),
    body=JSON | st.fixed_dictionaries({}, optional={"Name": TEXT | JSON, "ID": JSON, "Opts": OPTS}),
)
def any_json(server: Server, path: str, body: Any) -> None:
    if isinstance(body, dict) and body.get("Name") == "mongo":
        return
    statuses = check_answers(said(server, request(path, json.dumps(body).encode(), "Connection: close")), path=path)
    assert statuses or path == "/VolumeDriver.Get"
    if path == "/VolumeDriver.Create" and statuses == [200]:
        assert server("Remove", Name=body["Name"]).status == 200


def test_any_json(server: Server) -> None:
    """Any JSON to any endpoint gets an answer of the protocol's, but for a Get in doubt, which gets none."""
    any_json(server)


# -- slowly, by halves, without end ------------------------------------------------------------------------------------


@contextlib.contextmanager
def connections(server: Server, number: int) -> Iterator[list[socket.socket]]:
    """That many connections at once."""
    with contextlib.ExitStack() as stack:
        found = []
        for made in range(number):
            if made % 100 == 99:
                time.sleep(0.1)  # all at once they would try this machine, rather than the server
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(30)
            sock.connect(str(server.socket))
            found.append(sock)
        yield found


def test_slow_clients(server: Server) -> None:
    """Two hundred clients send a request each, a byte at a time; the volumes of others are served as ever."""
    whole = request("/VolumeDriver.Get", b'{"Name": "mongo"}')
    with connections(server, 200) as slow:
        for number in range(40):
            for sock in slow:
                with contextlib.suppress(ConnectionError):
                    sock.send(whole[number : number + 1])
            time.sleep((WORST + 2) / 40)


def test_stuck_clients(server: Server) -> None:
    """Two hundred clients stop in the middle of a request, in its head or in its body, and say no more."""
    whole = request("/VolumeDriver.Get", b'{"Name": "mongo"}')
    with connections(server, 200) as stuck:
        for number, sock in enumerate(stuck):
            sock.send(whole[: (5, 40, len(whole) - 3, len(whole) - 1)[number % 4]])
        time.sleep(WORST + 2)


def test_clients_that_do_not_read(server: Server) -> None:
    """A hundred clients ask on and on, and take none of the answers."""
    many = request("/VolumeDriver.Get", b'{"Name": "mongo"}') * 1000
    with connections(server, 100) as deaf:
        for sock in deaf:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    sock.send(many)
        time.sleep(WORST + 2)


@pytest.fixture
def hasty(host: Host) -> Iterator[Server]:
    """A server that waits for slow clients for a second."""
    script = (
        "import hostprep.serve.server, hostprep.__main__; hostprep.serve.server._READ = 1; hostprep.__main__.main()"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", script, "serve"],
        cwd=REPOSITORY,
        env=host.process_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    host.started.append(process)
    server = Server(process, host.socket)
    server.wait()
    assert server("Create", Name="mongo").status == 200
    yield server
    assert server.terminate() == 0


def test_cut_off(hasty: Server) -> None:
    """Who keeps a thread waiting for too long, for his request or to take the answers, is cut off; others follow."""
    whole = request("/VolumeDriver.Get", b'{"Name": "mongo"}')
    for _ in range(2):
        with connections(hasty, 8) as slow:
            for number, sock in enumerate(slow):
                if number % 2:
                    sock.send(whole[:-1])
                    continue
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock.send(whole * 1000)
            for number, sock in enumerate(slow):
                sock.settimeout(20)
                answered = 0
                with contextlib.suppress(ConnectionError):
                    while got := sock.recv(65536):
                        answered += len(got)
                assert (answered == 0) == (number % 2 == 1)
    with connections(hasty, 1) as (slow_but_not_too_slow,):
        slow_but_not_too_slow.send(whole[:-1])
        time.sleep(0.3)
        slow_but_not_too_slow.send(whole[-1:])
        assert check_answers(slow_but_not_too_slow.recv(65536)) == [200]


def test_the_end_with_slow_clients(host: Host) -> None:
    """A server that is to stop waits for slow clients no longer than some seconds."""
    server = host.serve()
    with connections(server, 20) as stuck:
        for sock in stuck:
            sock.send(b"POST /VolumeDriver.Get HTTP/1.1\r\n")
        time.sleep(0.5)
        assert server.terminate() == 0


def test_half_closed(server: Server) -> None:
    """Who says no more than a whole request gets his answer; who leaves before it is there harms nobody."""
    whole = request("/VolumeDriver.Get", b'{"Name": "mongo"}')
    assert check_answers(said(server, whole)) == [200]
    for number in range(300):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(server.socket))
            sock.send(whole if number % 2 else whole[: number % len(whole)])
            if number % 3 == 0:
                sock.shutdown(socket.SHUT_RDWR)


def test_a_thousand_connections(server: Server) -> None:
    """A thousand connections at once, half of which never say anything, are all answered when they ask."""
    whole = request("/VolumeDriver.Get", b'{"Name": "mongo"}')
    with connections(server, MANY) as open_, selectors.DefaultSelector() as selector:
        asking = open_[::2]
        for number, sock in enumerate(asking):
            if number % 100 == 99:
                time.sleep(0.1)
            sock.send(whole)
            selector.register(sock, selectors.EVENT_READ)
        answered: dict[socket.socket, bytes] = dict.fromkeys(asking, b"")
        end = time.monotonic() + 60
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(1):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                answered[ready] += ready.recv(65536)
                if answered[ready].endswith(b'"Err": ""}\n'):
                    selector.unregister(ready)
        assert [check_answers(each) for each in answered.values()] == [[200]] * len(asking)


def until_refused(server: Server, begin: bytes, again: bytes, *, most: int) -> tuple[int, bytes]:
    """Send *again* until the server closes the connection or *most* bytes are sent; how many were, and the answer."""
    sent = 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(server.socket))
        with contextlib.suppress(ConnectionError):
            sock.sendall(begin)
            while sent < most:
                sock.sendall(again)
                sent += len(again)
        answered = b""
        with contextlib.suppress(ConnectionError):
            while got := sock.recv(65536):
                answered += got
    return sent, answered


CHUNK: Final = b"10000\r\n" + b" " * 65536 + b"\r\n"
HEAD: Final = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("begin", "again", "status"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK, 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 5000, 413),
        (HEAD + b"Content-Length: 99999999999999\r\n\r\n", b" " * 65536, 413),
        (HEAD, b"X: y\r\n" * 1000, 400),
        (HEAD + b"X: ", b"y" * 65536, 400),
        (HEAD + b"X: y\r\n", b" continued\r\n" * 1000, 400),
        (b"POST /", b"y" * 65536, 400),
        (b"", b"\r\n" * 5000, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"T: x\r\n" * 5000, 400),
    ],
    ids=[
        "chunks", "small chunks", "a length", "headers", "a header", "a folded header", "a path", "line ends",
        "a chunk extension", "a chunk size", "trailers",
    ],
)  # fmt: skip
def test_without_end(server: Server, begin: bytes, again: bytes, status: int) -> None:
    """What has no end is refused after little more than a mebibyte, by several clients at once."""
    clients = 2 if again.startswith(b"1\r\n") else 8  # what is cut into single bytes takes long to put together
    results: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: results.append(until_refused(server, begin, again, most=64 << 20)))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sent, answered in results:
        assert sent < (9 if clients == 2 else 4) << 20  # where every byte is a chunk, six are sent for each
        assert check_answers(answered) in ([status], [])
    assert len(results) == clients


def test_one_after_the_other_without_waiting(server: Server) -> None:
    """Three hundred requests that are sent at once on a connection are all answered, in their order."""
    names = [string.ascii_letters[n % 52] * (n % 9 + 1) for n in range(300)]
    whole = b"".join(request("/VolumeDriver.Path", json.dumps({"Name": name}).encode()) for name in names)
    answered = raw(server.socket, whole + request("/VolumeDriver.List", b"{}", "Connection: close"))
    assert check_answers(answered) == [404] * 300 + [200]
