"""Clients that send anything at all, slowly, by halves or without end: volumes are served meanwhile, nothing is left.

The socket is root's alone, so such a client is a broken engine rather than an attacker. A server that waits for it
would keep every other container from starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import string
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.host import Server, children_of, eventually
from tests.support.serving import connections, host_for_many, serve_with
from tests.support.unixhttp import raw

pytestmark = pytest.mark.root

ENDPOINTS: Final = (
    "/Plugin.Activate",
    *(f"/VolumeDriver.{v}" for v in ("Capabilities", "Create", "Get", "List", "Mount", "Path", "Remove", "Unmount")),
)
STATUSES: Final = {200, 400, 403, 404, 405, 409, 413, 500, 503}


@pytest.fixture(scope="module")
def open_files() -> Iterator[None]:
    """Files enough for clients on more connections than a server accepts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(before[0], 8192), before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, open_files: None) -> Iterator[Server]:
    """A server with a volume. It waits for slow clients for so long that whoever waits for them, too, fails."""
    with host_for_many(tmp_path_factory) as host:
        server = serve_with(host, {"_SLOW": 600}, HOSTPREP_LOG_LEVEL="error")
        assert server("Create", Name="mongo", Opts={"uid": "184"}).status == 200
        yield server
        assert host.left_in_volumes() == ["mongo"]
        assert server.terminate() == 0
        assert "Traceback" not in server.log


@pytest.fixture
def server(patient: Server) -> Iterator[Server]:
    """The server, which has nothing more after a test than before, and serves its volume."""
    pid = patient.process.pid
    others_are_served(patient, times=2)
    eventually(lambda: connections(patient) == 0, "no connection is left of the test before")
    before, memory = descriptors(pid), resident(pid)
    yield patient
    others_are_served(patient, times=2)
    eventually(lambda: descriptors(pid) == before, "every descriptor is closed")
    eventually(lambda: len(os.listdir(f"/proc/{pid}/task")) < 5, "every thread has ended")
    assert children_of(pid) == {}
    assert resident(pid) < memory + 40
    for volume in patient("List").body["Volumes"]:
        assert volume["Name"] == "mongo" or patient("Remove", Name=volume["Name"]).status == 200


def others_are_served(server: Server, *, times: int = 30) -> None:
    """An engine asks so many times for each of three verbs, on a connection that it keeps, and on fresh ones."""
    body = json.dumps({"Name": "mongo", "ID": "c" * 64}).encode()
    answers = []
    with contextlib.closing(server.connect()) as kept:
        for _ in range(times):
            for verb in ("Get", "Mount", "Unmount"):
                answers.append(kept.ask(f"/VolumeDriver.{verb}", body))
                answers.append(server.ask(verb, body))
    assert [answer.status for answer in answers] == [200] * (times * 6)


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
        sock.settimeout(60)
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


GET: Final = request("/VolumeDriver.Get", b'{"Name": "mongo"}')


@contextlib.contextmanager
def clients(server: Server, number: int) -> Iterator[list[socket.socket]]:
    """That many connections at once."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(60)
            sock.connect(str(server.socket))
            found.append(sock)
        yield found


def is_open(sock: socket.socket) -> bool:
    """Whether the server has neither answered nor closed the connection."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    return not ready.poll(0)


def test_slow_clients(server: Server) -> None:
    """A hundred clients send a request a byte at a time: after every byte another is answered, and so are they."""
    with clients(server, 100) as slow, contextlib.closing(server.connect()) as other:
        for number in range(len(GET)):
            assert other.ask("/VolumeDriver.Get", b'{"Name": "mongo"}').status == 200
            for sock in slow:
                sock.send(GET[number : number + 1])
        for sock in slow:
            assert check_answers(sock.recv(65536)) == [200]


def test_stuck_clients(server: Server) -> None:
    """While two hundred clients are in the middle of a request, in its head or in its body, others are served."""
    cuts = [(5, 40, len(GET) - 3, len(GET) - 1)[number % 4] for number in range(200)]
    with clients(server, 200) as stuck:
        for sock, cut in zip(stuck, cuts, strict=True):
            sock.send(GET[:cut])
        others_are_served(server)
        assert all(is_open(sock) for sock in stuck)
        for sock, cut in zip(stuck, cuts, strict=True):
            sock.send(GET[cut:])
            assert check_answers(sock.recv(65536)) == [200]


def test_clients_that_do_not_read(server: Server) -> None:
    """While a hundred clients have asked on and on, and taken none of the answers, others are served."""
    long = request("/" + "x" * 4000, b"")  # the answer says it again, so that some are more than the kernel keeps
    with clients(server, 100) as deaf:
        for sock in deaf:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(long * 20)
        others_are_served(server)
        assert connections(server) >= 100, "none was cut off"


def test_half_closed(server: Server) -> None:
    """Who says no more than a whole request gets his answer; who leaves before it is there harms nobody."""
    assert check_answers(said(server, GET)) == [200]
    for number in range(100):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(server.socket))
            sock.send(GET if number % 2 else GET[: number % len(GET)])
            if number % 3 == 0:
                sock.shutdown(socket.SHUT_RDWR)


def test_a_thousand_connections(server: Server) -> None:
    """A thousand connections at once, half of which never say anything, are all answered when they ask."""
    with clients(server, 990) as many:
        for sock in many[::2]:
            sock.send(GET)
        for sock in many[::2]:
            assert check_answers(sock.recv(65536)) == [200]
        others_are_served(server, times=5)
        assert all(is_open(sock) for sock in many)


def test_more_connections_than_are_accepted(server: Server) -> None:
    """However many connections are idle, others are served, and one that is used again and again is kept."""
    body = b'{"Name": "mongo"}'
    with clients(server, 950) as idle, contextlib.closing(server.connect()) as used:
        for _ in range(4):
            assert used.ask("/VolumeDriver.Get", body).status == 200
            kept = used.sock
            with clients(server, 100) as more:
                for sock in more:
                    sock.send(GET)
                for sock in more:
                    assert check_answers(sock.recv(65536)) == [200]
                others_are_served(server, times=1)
            assert used.ask("/VolumeDriver.Get", body).status == 200
            assert used.sock is kept
        assert not is_open(idle[0]), "it was the longest idle, and made room"


def until_refused(server: Server, begin: bytes, again: bytes, *, most: int) -> tuple[int, bytes]:
    """Send *again* until the server closes the connection or *most* bytes are sent; how many were, and the answer."""
    sent = 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
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
    """What has no end is refused after little more than a mebibyte, by several clients at once where it is quick."""
    number = 1 if again.startswith(b"1\r\n") else 8  # what is cut into single bytes takes long to put together
    results: list[tuple[int, bytes]] = []
    threads = [
        threading.Thread(target=lambda: results.append(until_refused(server, begin, again, most=64 << 20)))
        for _ in range(number)
    ]
    for thread in threads:
        thread.start()
    others_are_served(server, times=2)
    for thread in threads:
        thread.join()
    for sent, answered in results:
        assert sent < (9 if number == 1 else 4) << 20  # where every byte is a chunk, six are sent for each
        assert check_answers(answered) in ([status], [])
    assert len(results) == number


def test_one_after_the_other_without_waiting(server: Server) -> None:
    """Three hundred requests that are sent at once on a connection are all answered, in their order."""
    names = [string.ascii_letters[n % 52] * (n % 9 + 1) for n in range(300)]
    whole = b"".join(request("/VolumeDriver.Path", json.dumps({"Name": name}).encode()) for name in names)
    answered = raw(server.socket, whole + request("/VolumeDriver.List", b"{}", "Connection: close"), timeout=60)
    assert check_answers(answered) == [404] * 300 + [200]
