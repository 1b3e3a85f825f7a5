"""Connections: what is HTTP and what is not, how many, how long, and how they end; with the oldest gunicorn, too."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from http.client import BadStatusLine

import pytest

from hostprep.serve.worker import Connection
from tests.support.host import Answer, Host, Server, eventually
from tests.support.serving import (
    GUNICORNS,
    activated,
    connections,
    gunicorn,
    host_for_many,
    serve_with,
    waiting_for_clients,
)
from tests.support.unixhttp import raw

OK = Answer(200, {"Err": ""})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def post(path: str, body: bytes, *headers: str, close: bool = True) -> bytes:
    headers = (*headers, *(["Connection: close"] if close else []))
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: plugin.moby.localhost", *headers, "", ""]).encode() + body


def get(name: str) -> bytes:
    """A Get on a connection that stays open."""
    body = json.dumps({"Name": name}).encode()
    return post("/VolumeDriver.Get", body, f"Content-Length: {len(body)}", close=False)


class TestConnection:
    @pytest.fixture
    def pair(self) -> Iterator[tuple[Connection, socket.socket]]:
        """A connection and its client's end, between which packets stay apart: what is sent at once is seen."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Connection(ours) as connection:
            theirs.settimeout(60)
            yield connection, theirs

    def test_head_and_body(self, pair: tuple[Connection, socket.socket]) -> None:
        """The head of an answer leaves with its body, and a head without a body at the end of the answer."""
        connection, client = pair
        connection.sendall(HEAD)
        connection.sendall(b"{}")
        assert client.recv(1000) == HEAD + b"{}"
        connection.sendall(HEAD)
        connection.end_answer()
        assert client.recv(1000) == HEAD

    def test_a_long_body(self, pair: tuple[Connection, socket.socket]) -> None:
        """A body of any length is sent whole."""
        connection, client = pair
        body = os.urandom(100_000)
        connection.sendall(HEAD)
        connection.sendall(body)
        assert client.recv(1 << 20) + client.recv(1 << 20) == HEAD + body

    def test_an_idle_one_is_cut_off(self, pair: tuple[Connection, socket.socket]) -> None:
        """What had come on an idle connection is still read and answered; the client can send no more."""
        connection, client = pair
        client.sendall(b"a request")
        connection.cut_off(was_idle=True)
        with pytest.raises(BrokenPipeError):
            client.sendall(b"another")
        assert connection.recv(1000) == b"a request"
        connection.sendall(b"an answer")
        assert client.recv(1000) == b"an answer"
        connection.end_answer()
        assert connection.recv(1000) == b""

    def test_a_request_comes_before_the_cut(self, pair: tuple[Connection, socket.socket]) -> None:
        """A request that comes between the choice of an idle connection and its cut is answered."""
        connection, client = pair
        client.sendall(b"a request")
        assert connection.recv(1000) == b"a request"
        connection.cut_off(was_idle=True)
        connection.sendall(b"an answer")
        assert client.recv(1000) == b"an answer"

    def test_one_in_use_is_cut_off(self, pair: tuple[Connection, socket.socket]) -> None:
        """A client that is waited for in the middle of a request gets no answer."""
        connection, client = pair
        client.sendall(b"half a request")
        connection.recv(1000)
        connection.cut_off(was_idle=False)
        assert connection.recv(1000) == b""
        assert client.recv(1000) == b""


@pytest.mark.root
class TestHTTP:
    @pytest.fixture(scope="class", params=GUNICORNS)
    @classmethod
    def host(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
        """A host for all tests of this class, with a server of its own for each gunicorn."""
        with host_for_many(tmp_path_factory) as host:
            host.environ |= gunicorn(request.param)
            yield host

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, host: Host) -> Iterator[Server]:
        server = host.serve(HOSTPREP_LOG_LEVEL="debug")
        yield server
        assert server.terminate() == 0
        lines = server.log.splitlines()
        assert all(line.isprintable() and line.startswith("hostprep: ") for line in lines), lines
        assert "Traceback" not in server.log

    def test_as_dockerd_sends(self, host: Host, server: Server) -> None:
        """An empty Host, no Content-Type, the plugin's Accept, Opts null and a line end at the end are understood."""
        body = b'{"Name":"dockerd","Opts":null}\n'
        request = (
            b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\n"
            b"Content-Length: %d\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n"
            % len(body)
        )
        answer = raw(host.socket, request + body)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b'{"Err": ""}\n')

    def test_activate_with_an_empty_body(self, host: Host, server: Server) -> None:
        """Activate has an empty body, without a length."""
        answer = raw(host.socket, post("/Plugin.Activate", b""))
        assert answer.endswith(b'{"Implements": ["VolumeDriver"]}\n')

    @pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
    def test_a_body_over_a_mebibyte(self, host: Host, server: Server, chunked: bool) -> None:  # noqa: FBT001
        """A body over 1 MiB is 413, with its length declared or in chunks, and the next request is served."""
        body = b'{"Name": "large"' + b" " * (1 << 20) + b"}"
        if chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            request = post("/VolumeDriver.Create", body, "Transfer-Encoding: chunked")
        else:
            request = post("/VolumeDriver.Create", body, f"Content-Length: {len(body)}")
        answer = raw(host.socket, request)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]
        assert server("Get", Name="large").status == 404

    def test_a_length_that_is_a_lie(self, host: Host, server: Server) -> None:
        """A declared length of gigabytes is refused at once, without reading on."""
        answer = raw(host.socket, post("/VolumeDriver.Create", b"{}", f"Content-Length: {1 << 40}"))
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_a_chunk_whose_size_has_no_end(self, server: Server) -> None:
        """Of the size of a chunk that does not end only some megabytes are read."""
        with clients(server, 1) as (client,), pytest.raises(ConnectionError):
            client.sendall(post("/VolumeDriver.Get", b"", "Transfer-Encoding: chunked") + b"0" * (16 << 20))

    def test_a_body_in_chunks(self, host: Host, server: Server) -> None:
        """A body in chunks is read like any."""
        body = b'11\r\n{"Name": "chunks"\r\n1\r\n}\r\n0\r\n\r\n'
        answer = raw(host.socket, post("/VolumeDriver.Create", body, "Transfer-Encoding: chunked"))
        assert answer.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("body", [b"[" * (1 << 20), b'{"a":' * 200_000], ids=["lists", "objects"])
    def test_a_deep_body(self, host: Host, server: Server, body: bytes) -> None:
        """A body that is nested as deeply as it can be is refused, and fits into a thread's stack."""
        answer = raw(host.socket, post("/VolumeDriver.Create", body, f"Content-Length: {len(body)}"))
        assert answer.startswith(b"HTTP/1.1 400 ")

    def test_a_body_that_is_waited_for(self, host: Host, server: Server) -> None:
        """A client that asks whether it may send its body is told so."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(host.socket))
            sock.sendall(post("/VolumeDriver.Path", b"", "Content-Length: 16", "Expect: 100-continue"))
            assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b'{"Name": "gone"}')
            assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
    def test_other_methods(self, server: Server, method: str) -> None:
        """A method other than POST is 405, as JSON."""
        for path in ("/Plugin.Activate", "/VolumeDriver.Create", "/VolumeDriver.Get"):
            answer = server.ask(path, None, method=method)
            assert answer.status == 405
            assert "POST" in answer.error

    def test_a_head_alone(self, host: Host, server: Server) -> None:
        """HEAD is answered with a head and nothing else."""
        answer = raw(host.socket, b"HEAD /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert answer.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/VolumeDriver.Nothing",
            "/VolumeDriver.List/",
            "/%ff%00",
            "/x//VolumeDriver.List",
            "/VolumeDriver.List//",
        ],
    )
    def test_unknown_endpoints(self, host: Host, server: Server, path: str) -> None:
        """An unknown endpoint is 404, as JSON."""
        answer = raw(host.socket, post(path, b"{}", "Content-Length: 2"))
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]

    @pytest.mark.parametrize(
        "request_",
        [
            b"\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"POST\r\n\r\n",
            b"POST / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nA\r\n\r\n",
            b"POST /\x1b[31m\x85 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01",
        ],
    )
    def test_what_is_no_http(self, host: Host, server: Server, request_: bytes) -> None:
        """What is no HTTP harms nobody, and where it is answered it is as JSON."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(host.socket))
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(60)
            answer = sock.recv(65536)
        if answer:
            assert re.match(rb"HTTP/\d\.\d 4", answer), (
                answer
            )  # gunicorn 20.1 takes HTTP/9.9 for one, and answers in it
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]
        assert server.answers()

    def test_a_get_in_doubt(self, host: Host, server: Server) -> None:
        """A Get in doubt is closed without a byte of an answer, and the connection is not used on."""
        server("Create", Name="damaged")
        whole = host.record("damaged").read_text()
        host.record("damaged").write_text("{")
        for body in (b'{"Name": "damaged"}', b"", b"{", b'{"Name": ""}', b"x" * (1 << 20) + b"x"):
            assert raw(host.socket, post("/VolumeDriver.Get", body, f"Content-Length: {len(body)}")) == b""
        with contextlib.closing(server.connect()) as connection:
            connection.ask("/VolumeDriver.List")
            with pytest.raises((ConnectionError, BadStatusLine), match="closed|reset|without response|pipe"):
                connection.ask("/VolumeDriver.Get", b'{"Name": "damaged"}')
        assert server("Get", Name="other").status == 404
        host.record("damaged").write_text(whole)
        assert server("Remove", Name="damaged") == OK

    def test_one_connection_for_long(self, server: Server) -> None:
        """Many requests go over one connection."""
        with contextlib.closing(server.connect()) as connection:
            connection.connect()
            kept = connection.sock
            for _ in range(20):
                assert connection.ask("/VolumeDriver.List", b"{}").status == 200
            assert connection.sock is kept

    def test_two_requests_at_once_on_one_connection(self, host: Host, server: Server) -> None:
        """A second request that comes before the first is answered is answered after it."""
        first = post("/VolumeDriver.Create", b'{"Name": "both"}', "Content-Length: 16", close=False)
        answer = raw(host.socket, first + post("/VolumeDriver.Get", b'{"Name": "both"}', "Content-Length: 16"))
        assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.root
@pytest.mark.parametrize("version", GUNICORNS)
def test_in_one_piece(host: Host, version: str) -> None:
    """Head and body of an answer leave together: a server killed in between would be an error to the engine."""
    with activated(host, socket.SOCK_SEQPACKET, **gunicorn(version)):
        for path in ("/Plugin.Activate", "/VolumeDriver.Capabilities", "/nowhere"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(60)
                client.connect(str(host.socket))
                client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{{}}\n".encode())
                head, _, body = client.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 ")
            assert json.loads(body)


@contextlib.contextmanager
def clients(server: Server, number: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """That many connections, on each of which *data* was sent."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(number):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(60)
            sock.connect(str(server.socket))
            sock.sendall(data)
            found.append(sock)
        yield found


def fill(sock: socket.socket) -> None:
    """Ask on and on without taking an answer, until the server reads no more."""
    sock.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.sendall(get("gone") * 1000)


@pytest.mark.root
class TestLimits:
    def test_the_longest_idle_makes_room(self, host: Host) -> None:
        """One connection more than there may be is served, and the one that was idle for the longest time is closed."""
        server = serve_with(host, {"_CONNECTIONS": 6})
        assert server("Get", Name="gone").status == 404  # what the first request waits for is loaded
        eventually(lambda: connections(server) == 0, "its client is gone")
        with clients(server, 6) as kept:
            for sock in [*kept[3:], *kept[:3]]:
                sock.sendall(get("gone"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
                eventually(lambda: waiting_for_clients(server) == 6, "the server knows that the client is idle")
            assert server("Create", Name="mongo") == OK
            assert kept[3].recv(65536) == b""
            for sock in [*kept[:3], *kept[4:]]:
                sock.sendall(get("mongo"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")

    def test_where_none_is_idle(self, host: Host) -> None:
        """Where every connection is in the middle of a request the next one waits, and is answered when one ends."""
        server = serve_with(host, {"_CONNECTIONS": 4, "_SLOW": 600})
        with clients(server, 4, get("gone")[:-1]) as busy, clients(server, 3, get("gone")) as waiting:
            eventually(lambda: connections(server) == 4, "four are accepted")
            for sock in waiting:
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
                sock.settimeout(60)
            assert connections(server) == 4
            busy[0].close()
            for sock in waiting:
                assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
            for sock in busy[1:]:
                sock.sendall(get("gone")[-1:])
                assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")

    def test_idle_for_too_long(self, host: Host) -> None:
        """A connection that stays idle is closed, and so is one on which nothing was ever said."""
        server = serve_with(host, {"_IDLE": 0.2, "_TICK": 0.1, "_SLOW": 600})
        with clients(server, 1) as (silent,), clients(server, 1, get("gone")) as (idle,):
            assert silent.recv(65536) == b""
            assert idle.recv(65536).startswith(b"HTTP/1.1 404 ")
            assert idle.recv(65536) == b""

    def test_too_slow(self, host: Host) -> None:
        """Who stays in the middle of a request, or takes no answers, is cut off. Who is slow in time is answered."""
        server = serve_with(host, {"_SLOW": 1, "_TICK": 0.1})
        asks = post("/VolumeDriver.Path", b'{"Name": "x"}', "Content-Length: 13", "Expect: 100-continue", close=False)
        with clients(server, 4, get("gone")[:-1]) as stuck, clients(server, 4) as deaf:
            for number, sock in enumerate(deaf):
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    while True:
                        sock.send((asks if number % 2 else get("gone")) * 1000)
            for sock in stuck:
                assert sock.recv(65536) == b""
            eventually(lambda: connections(server) == 0, "the server has closed them")
        with clients(server, 1, get("gone")[:-1]) as (slow,):
            slow.sendall(get("gone")[-1:])
            assert slow.recv(65536).startswith(b"HTTP/1.1 404 ")


@pytest.mark.root
@pytest.mark.parametrize("version", GUNICORNS)
class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_nobody_delays_it(self, host: Host, version: str, number: signal.Signals) -> None:
        """Neither idle and silent connections delay the end, nor clients that do not read or end their requests."""
        # Whoever is waited for would be for ten minutes.
        server = serve_with(host, {"_GRACEFUL": 600, "_SLOW": 600, "_SLOW_AT_THE_END": 0.5}, **gunicorn(version))
        with (
            clients(server, 5),
            clients(server, 5, get("gone")),
            clients(server, 5, get("gone")[:-1]),
            clients(server, 5, get("gone")[:20]),
            clients(server, 1) as (deaf,),
        ):
            fill(deaf)
            eventually(lambda: connections(server) == 21, "all are accepted")
            server.process.send_signal(number)
            assert server.ended() == 0
        assert not host.socket.exists()

    def test_requests_under_way_are_answered(self, host: Host, version: str) -> None:
        """SIGTERM during many requests: every one that was sent gets its whole answer, or finds no server."""
        server = host.serve(**gunicorn(version))
        answers: list[int] = []

        def ask(number: int) -> None:
            with (
                contextlib.suppress(ConnectionError, FileNotFoundError),
                contextlib.closing(server.connect()) as connection,
            ):
                for each in range(200):
                    body = json.dumps({"Name": f"v{number}-{each}"}).encode()
                    answers.append(connection.ask("/VolumeDriver.Create", body).status)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) > 20, "some are answered")
        assert server.terminate() == 0
        for thread in threads:
            thread.join()
        assert set(answers) == {200}
        assert len(answers) < 800, "it ended in the middle"
        made = host.left_in_volumes()
        assert len(made) == len(answers), "none was made whose client does not know"
        assert [name for name in made if name.startswith(".")] == []
