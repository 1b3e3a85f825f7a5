"""The server on its socket: start, stop, kill, what is refused, and that nobody keeps another waiting."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import BadStatusLine
from pathlib import Path

import pytest

from tests.support.host import PYTHON, REPOSITORY, Answer, Host, Server, catch_pass, eventually, mode, owner, passes_of
from tests.support.trees import make_tree, many, owners
from tests.support.unixhttp import Connection, raw

pytestmark = pytest.mark.root
OK = Answer(200, {"Err": ""})
MONGO = {"uid": "184", "gid": "998"}


@pytest.fixture
def server(host: Host) -> Server:
    """A server that answers."""
    return host.serve()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: plugin.moby.localhost", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


class TestStart:
    def test_the_socket(self, host: Host, server: Server) -> None:
        """The socket is root's, 0600."""
        assert (owner(host.socket), mode(host.socket)) == ((0, 0), "0600")

    def test_the_directory_of_the_socket(self, host: Host) -> None:
        """The directory of the socket is made where it is missing."""
        path = host.socket.parent / "a" / "b" / "hostprep.sock"
        assert host.serve(HOSTPREP_SOCKET=str(path)).answers()

    def test_the_first_answer_of_every_verb(self, host: Host) -> None:
        """Whichever request is the first, it is answered."""
        for number, (path, body) in enumerate(
            [("/VolumeDriver.List", b""), ("/VolumeDriver.Create", b'{"Name": "mongo"}'), ("/nowhere", b"")]
        ):
            process = host.begin("serve")
            eventually(lambda: listens(host.socket), "it listens")
            with contextlib.closing(Connection(host.socket)) as connection:
                assert connection.ask(path, body).status == (404 if number == 2 else 200)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0

    def test_a_stale_socket(self, host: Host) -> None:
        """The socket of a server that was killed is replaced."""
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(host.socket))
        assert host.serve().answers()

    def test_a_live_socket(self, host: Host, server: Server) -> None:
        """A second server on the same socket is refused, in words, and the first goes on."""
        done = host.run("serve")
        assert done.code == 1
        assert done.err.splitlines()[-1] == f"hostprep: a server already answers at {host.socket} (stop it first)"
        assert server.answers()
        assert server.terminate() == 0

    def test_many_starts_at_once(self, host: Host) -> None:
        """Of several servers that start at once on a stale socket, one serves and the others say so."""
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(host.socket))
        processes = [host.begin("serve") for _ in range(4)]
        eventually(lambda: sum(process.poll() is None for process in processes) == 1, "one is left")
        (left,) = [process for process in processes if process.poll() is None]
        server = Server(left, host.socket)
        server.wait()
        assert server.terminate() == 0
        assert not host.socket.exists()

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_something_else_at_its_path(self, host: Host, kind: str) -> None:
        """What is no socket is not replaced."""
        if kind == "file":
            host.socket.write_text("precious")
        elif kind == "directory":
            host.socket.mkdir()
        else:
            host.socket.symlink_to("/etc/passwd")
        done = host.run("serve")
        assert (done.code, "is no socket" in done.err) == (1, True)
        assert os.path.lexists(host.socket)

    def test_a_path_too_long(self, host: Host) -> None:
        """A path that no socket can have is refused, in one line that names the setting."""
        done = host.run("serve", HOSTPREP_SOCKET=f"/tmp/{'x' * 200}.sock")
        assert done.code == 1
        assert "HOSTPREP_SOCKET" in done.err
        assert "Traceback" not in done.err

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("HOSTPREP_SCOPE", "planet"),
            ("HOSTPREP_PATIENCE", "100"),
            ("HOSTPREP_ALLOW", "/etc"),
            ("HOSTPREP_SELINUX", "required"),
            ("HOSTPREP_REQUIRE_MARKER", "1"),
            ("HOSTPREP_ROOT", "relative"),
        ],
    )
    def test_a_wrong_setting(self, host: Host, variable: str, value: str) -> None:
        """A wrong setting stops the start with one line, and nothing is made."""
        done = host.run("serve", **{variable: value})
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("hostprep: ")
        assert len(done.err.splitlines()) == 1
        assert variable in done.err
        assert not host.root.exists()
        assert not host.socket.exists()

    def test_a_damaged_root(self, host: Host) -> None:
        """Where the root cannot be trusted no server starts: no answer is better than a wrong one."""
        host.run("create", "mongo")
        (host.root / "hostprep.json").unlink()
        done = host.run("serve")
        assert done.code == 1
        assert not host.socket.exists()

    def test_flags(self, host: Host) -> None:
        """Flags before the command override the variables."""
        other = host.socket.with_name("other.sock")
        process = host.begin("--socket", str(other), "--scope", "global", "serve", HOSTPREP_SCOPE="local")
        server = Server(process, other)
        server.wait()
        assert server("Capabilities").body == {"Capabilities": {"Scope": "global"}}
        assert not host.socket.exists()

    def test_it_sweeps(self, host: Host) -> None:
        """What interrupted steps left goes at the start."""
        host.run("create", "mongo")
        make_tree(host.root / "volumes", "dir .new-1/_data", "file .new-2")
        host.serve()
        assert host.left_in_volumes() == ["mongo"]


class TestSystemd:
    @contextlib.contextmanager
    def activated(self, host: Host, kind: socket.SocketKind) -> Iterator[Server]:
        """A server with a socket that was made for it, as systemd's socket activation does."""
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.bind(str(host.socket))
            listener.listen(16)
            script = (
                "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
                "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
                "os.execv(sys.executable, [sys.executable, '-m', 'hostprep', 'serve'])"
            )
            process = subprocess.Popen(
                [PYTHON, "-c", script, str(listener.fileno())],
                cwd=REPOSITORY,
                env=host.process_environ({"HOSTPREP_SOCKET": "/nowhere/else.sock"}),
                pass_fds=[listener.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            host.started.append(process)
            yield Server(process, host.socket)

    @pytest.fixture
    def passed(self, host: Host) -> Iterator[Server]:
        with self.activated(host, socket.SOCK_STREAM) as server:
            server.wait()
            yield server

    @pytest.mark.parametrize("path", ["/VolumeDriver.Capabilities", "/nowhere"])
    def test_in_one_piece(self, host: Host, path: str) -> None:
        """Head and body of an answer leave together: a server killed in between would be an error to the engine."""
        # A socket that keeps packets apart shows what was sent at once.
        with (
            self.activated(host, socket.SOCK_SEQPACKET),
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
        ):
            client.settimeout(20)
            client.connect(str(host.socket))
            client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{{}}\n".encode())
            head, _, body = client.recv(65536).partition(b"\r\n\r\n")

        assert head.startswith(b"HTTP/1.1 ")
        assert json.loads(body)

    def test_it_serves(self, passed: Server) -> None:
        """A socket that systemd passed takes the place of HOSTPREP_SOCKET."""
        assert passed("Create", Name="mongo") == OK
        assert not Path("/nowhere").exists()

    def test_it_is_left(self, passed: Server, host: Host) -> None:
        """At its end the server leaves systemd's socket: who comes meanwhile waits for the next."""
        assert passed.terminate() == 0
        assert host.socket.exists()

    def test_variables_for_another_process(self, host: Host) -> None:
        """LISTEN_FDS that were meant for another process are not taken."""
        server = host.serve(LISTEN_FDS="1", LISTEN_PID="1")
        assert server.answers()


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals(self, host: Host, server: Server, number: signal.Signals) -> None:
        """SIGTERM and SIGINT end it with status 0, and the socket goes."""
        server.process.send_signal(number)
        assert server.ended() == 0
        assert not host.socket.exists()

    def test_with_idle_connections(self, host: Host, server: Server) -> None:
        """Connections that the engine keeps alive do not delay the end."""
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                connection = stack.enter_context(contextlib.closing(server.connect()))
                connection.ask("/VolumeDriver.List")
            assert server.terminate() == 0

    def test_with_silent_connections(self, host: Host, server: Server) -> None:
        """Nor do those on which nothing was ever said: an engine that many ask at once keeps some."""
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                silent = stack.enter_context(socket.socket(socket.AF_UNIX))
                silent.connect(str(host.socket))
            with contextlib.closing(server.connect()) as connection:
                for _ in range(20):  # by now all are back with the poller
                    connection.ask("/VolumeDriver.List")
            time.sleep(0.2)
            assert server.terminate() == 0

    def test_requests_under_way_are_answered(self, host: Host, server: Server) -> None:
        """SIGTERM during many requests: every one that was sent gets its whole answer, or finds no server."""
        answers: list[int] = []

        def ask(number: int) -> None:
            with (
                contextlib.suppress(ConnectionError, FileNotFoundError),
                contextlib.closing(server.connect()) as connection,
            ):
                for each in range(200):
                    answers.append(
                        connection.ask(
                            "/VolumeDriver.Create", json.dumps({"Name": f"v{number}-{each}"}).encode()
                        ).status
                    )

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) > 20, "some are answered")
        assert server.terminate() == 0
        for thread in threads:
            thread.join()
        assert set(answers) == {200}
        made = host.left_in_volumes()
        assert len(answers) <= len(made) <= len(answers) + 4
        assert [name for name in made if name.startswith(".")] == []

    def test_who_waits_for_a_pass_is_woken(self, host: Host, server: Server) -> None:
        """A Mount that waits for a pass is answered 503 at SIGTERM, and the next server completes the pass."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo")))
        waiting.start()
        catch_pass(server.process.pid)
        assert server.terminate() == 0
        waiting.join()
        assert [answer.status for answer in answers] == [503]
        assert host.serve()("Mount", Name="mongo").status == 200
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "a") == (184, 998)

    def test_killed(self, host: Host, server: Server) -> None:
        """After SIGKILL the next server starts on the same socket, and everything promised is there."""
        for number in range(5):
            assert server("Create", Name=f"v{number}", Opts=MONGO) == OK
        server.process.kill()
        server.ended()
        assert host.socket.exists()
        again = host.serve()
        assert len(again("List").body["Volumes"]) == 5
        assert again("Create", Name="v0", Opts=MONGO) == OK

    def test_killed_again_and_again(self, host: Host) -> None:
        """Killed at any moment under load, it leaves whole volumes only, and every answer that was given holds."""
        promised: set[str] = set()
        for round_ in range(4):
            server = host.serve()

            def ask(number: int, server: Server = server, round_: int = round_) -> None:
                with contextlib.suppress(Exception), contextlib.closing(server.connect()) as connection:
                    for each in range(1000):
                        name = f"v{round_}-{number}-{each}"
                        body = json.dumps({"Name": name, "Opts": MONGO}).encode()
                        if connection.ask("/VolumeDriver.Create", body).status == 200:
                            promised.add(name)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.05 + 0.07 * round_)
            server.process.kill()
            server.ended()
            for thread in threads:
                thread.join()
        server = host.serve()
        names = {volume["Name"] for volume in server("List").body["Volumes"]}
        assert promised <= names
        assert all("Mountpoint" in volume for volume in server("List").body["Volumes"])
        assert {name for name in host.left_in_volumes() if name.startswith(".")} == set()

    def test_killed_during_a_pass(self, host: Host, server: Server) -> None:
        """A pass whose server is killed ends or goes on by itself; the next Mount finds the mark and completes it."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        many(host.data("mongo"), 2000)
        os.chown(host.data("mongo"), 55, 66)
        waiting = threading.Thread(target=_ask_to_mount, args=(server,))
        waiting.start()
        pid = catch_pass(server.process.pid)
        server.process.kill()
        server.ended()
        waiting.join()
        assert (host.volume("mongo") / "pass.json").exists()
        assert owner(host.data("mongo")) == (55, 66)
        again = host.serve(HOSTPREP_PATIENCE="1s")
        assert again("Mount", Name="mongo").status == 503, "the orphan has the pass"
        assert passes_of(again.process.pid) == []
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: again("Mount", Name="mongo").status == 200, "the pass is completed")
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}
        assert owner(host.data("mongo")) == (184, 998)
        assert not (host.volume("mongo") / "pass.json").exists()

    def test_a_pass_killed_in_the_middle(self, host: Host, server: Server) -> None:
        """A pass that is killed half-way leaves the root as it was and the mark; the next Mount completes the rest."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        many(host.data("mongo"), 20_000)
        os.chown(host.data("mongo"), 55, 66)
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo")))
        waiting.start()
        pid = catch_pass(server.process.pid)
        os.kill(pid, signal.SIGCONT)
        some = [next(directory.iterdir()) for directory in host.data("mongo").iterdir()]
        eventually(lambda: any(owner(each)[0] == 184 for each in some), "the first entries are changed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        waiting.join()
        found = set(owners(host.data("mongo")).values())
        assert answers[0].status == 500
        assert found == {(0, 0), (184, 998)}, "it was killed in the middle"
        assert owner(host.data("mongo")) == (55, 66)
        assert (host.volume("mongo") / "pass.json").exists()
        assert server("Mount", Name="mongo").status == 200
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}
        assert owner(host.data("mongo")) == (184, 998)


def listens(path: Path) -> bool:
    """Whether somebody accepts connections there: a socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _ask_to_mount(server: Server) -> None:
    with contextlib.suppress(Exception):
        server("Mount", Name="mongo")


class TestWire:
    def test_as_dockerd_sends(self, host: Host, server: Server) -> None:
        """An empty Host, no Content-Type, the plugin's Accept, Opts null and a line end at the end are understood."""
        body = b'{"Name":"mongo","Opts":null}\n'
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
        answer = raw(host.socket, b"POST /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.endswith(b'{"Implements": ["VolumeDriver"]}\n')

    @pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
    def test_a_body_over_a_mebibyte(self, host: Host, server: Server, chunked: bool) -> None:  # noqa: FBT001
        """A body over 1 MiB is 413, with its length declared or in chunks, and the next request is served."""
        body = b'{"Name": "mongo"' + b" " * (1 << 20) + b"}"
        if chunked:
            size = f"{len(body):x}".encode()
            request = post(
                "/VolumeDriver.Create", size + b"\r\n" + body + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"
            )
        else:
            request = post("/VolumeDriver.Create", body, f"Content-Length: {len(body)}")
        answer = raw(host.socket, request)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]
        assert server("Get", Name="mongo").status == 404

    def test_a_length_that_is_a_lie(self, host: Host, server: Server) -> None:
        """A declared length of gigabytes is refused at once, without reading on."""
        answer = raw(host.socket, post("/VolumeDriver.Create", b"{}", f"Content-Length: {1 << 40}"))
        assert answer.startswith(b"HTTP/1.1 413 ")

    def test_a_body_in_chunks(self, host: Host, server: Server) -> None:
        """A body in chunks is read like any."""
        body = b'10\r\n{"Name": "mongo"\r\n1\r\n}\r\n0\r\n\r\n'
        answer = raw(host.socket, post("/VolumeDriver.Create", body, "Transfer-Encoding: chunked"))
        assert answer.startswith(b"HTTP/1.1 200 ")

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
    def test_other_methods(self, server: Server, method: str) -> None:
        """A method other than POST is 405, as JSON."""
        for path in ("/Plugin.Activate", "/VolumeDriver.Create", "/VolumeDriver.Get"):
            answer = server.ask(path, None, method=method)
            assert answer.status == 405
            assert "POST" in answer.error

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
            b"\x16\x03\x01",
        ],
    )
    def test_what_is_no_http(self, host: Host, server: Server, request_: bytes) -> None:
        """What is no HTTP harms nobody, and where it is answered it is as JSON."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(host.socket))
            sock.sendall(request_)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            answer = sock.recv(65536)
        if answer:
            assert answer.startswith(b"HTTP/1.1 4"), answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["Err"]
        assert server.answers()

    def test_a_get_in_doubt(self, host: Host, server: Server) -> None:
        """A Get in doubt is closed without a byte of an answer, and the connection is not used on."""
        server("Create", Name="mongo")
        host.record("mongo").write_text("{")
        for body in (b'{"Name": "mongo"}', b"", b"{", b'{"Name": ""}', b"x" * (1 << 20) + b"x"):
            assert raw(host.socket, post("/VolumeDriver.Get", body, f"Content-Length: {len(body)}")) == b""
        with contextlib.closing(server.connect()) as connection:
            connection.ask("/VolumeDriver.List")
            with pytest.raises((ConnectionError, BadStatusLine), match="closed|reset|without response|pipe"):
                connection.ask("/VolumeDriver.Get", b'{"Name": "mongo"}')
        assert server("Get", Name="other").status == 404
        host.record("mongo").unlink()
        assert "Traceback" not in server.log

    def test_one_connection_for_long(self, server: Server) -> None:
        """Many requests go over one connection, at once and after pauses."""
        with contextlib.closing(server.connect()) as connection:
            connection.connect()
            kept = connection.sock
            for pause in (0, 0, 0.002, 0.006, 0.02, 0.2, 0):
                time.sleep(pause)
                assert connection.ask("/VolumeDriver.List", b"{}").status == 200
            assert connection.sock is kept

    def test_two_requests_at_once_on_one_connection(self, host: Host, server: Server) -> None:
        """A second request that comes before the first is answered is answered after it."""
        first = b'POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n{"Name": "mongo"}'
        answer = raw(host.socket, first + post("/VolumeDriver.Get", b'{"Name": "mongo"}', "Content-Length: 17"))
        assert answer.count(b"HTTP/1.1 200 OK") == 2

    def test_idle_connections(self, server: Server) -> None:
        """Two hundred kept-alive connections that are idle keep nobody waiting, and are served when they come back."""
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(200)]
            for connection in idle:
                assert connection.ask("/VolumeDriver.Capabilities").status == 200
            for number in range(20):
                assert server("Create", Name=f"v{number}") == OK
            assert all(connection.ask("/VolumeDriver.List").status == 200 for connection in idle)

    def test_connections_that_say_nothing(self, server: Server) -> None:
        """Two hundred connections on which nothing was sent keep nobody waiting."""
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(200)]
            for each in silent:
                each.connect(str(server.socket))
            assert server("Create", Name="mongo") == OK
            for each in silent:  # none was closed to make room
                with pytest.raises(BlockingIOError):
                    each.recv(1, socket.MSG_DONTWAIT)

    def test_connections_that_are_not_closed(self, server: Server) -> None:
        """Twenty clients that are answered, are to close the connection, and do not, keep nobody waiting."""
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                kept = stack.enter_context(socket.socket(socket.AF_UNIX))
                kept.connect(str(server.socket))
                kept.sendall(b"GARBAGE\r\n\r\n")
            assert server("Create", Name="mongo") == OK


class TestParallel:
    def test_other_volumes_during_a_pass(self, host: Host) -> None:
        """While a pass runs and thirty Mounts wait for it, other volumes are served, on other connections."""
        server = host.serve(HOSTPREP_PATIENCE="10m")
        for name in ("mongo", "redis"):
            assert server("Create", Name=name, Opts=MONGO) == OK
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo").status)) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        pid = catch_pass(server.process.pid)
        for _ in range(5):
            assert server("Mount", Name="redis").status == 200
            assert server("Get", Name="mongo").body["Volume"]["Status"]["ready"] is False
            assert server("List").status == 200
        assert answers == []
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert set(answers) == {200}
        assert 200 in answers

    def test_a_second_server(self, host: Host, server: Server) -> None:
        """A second server on the same root, with a socket of its own, sees and changes the same volumes."""
        other = host.serve(HOSTPREP_SOCKET=str(host.socket.with_name("other.sock")))
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        assert other("Get", Name="mongo").status == 200
        assert other("Remove", Name="mongo") == OK
        assert server("Get", Name="mongo").status == 404
        assert server("List").body["Volumes"] == []
        assert server("Remove", Name="mongo") == OK
        assert server.terminate() == 0
        assert other.answers()

    def test_commands_beside_the_server(self, host: Host, server: Server) -> None:
        """What the command line does is in the server's very next answer."""
        assert host.run("create", "mongo", "-o", "uid=184").code == 0
        assert [volume["Name"] for volume in server("List").body["Volumes"]] == ["mongo"]
        assert host.run("apply", "mongo", "-o", "uid=185").code == 0
        assert server("Get", Name="mongo").body["Volume"]["Status"]["uid"] == 185
        assert host.run("rm", "mongo").code == 0
        assert server("List").body["Volumes"] == []
        assert host.run("restore", "mongo").code == 0
        assert server("Get", Name="mongo").body["Volume"]["Status"]["options"] == {"uid": "185"}

    def test_create_by_many_processes_at_once(self, host: Host, server: Server) -> None:
        """Command lines and server that create one volume at once all succeed, and make one."""
        processes = [host.begin("create", "mongo", "-o", "uid=184") for _ in range(5)]
        answers = [server("Create", Name="mongo", Opts={"uid": "184"}) for _ in range(20)]
        assert [process.wait(30) for process in processes] == [0] * 5
        assert set(map(repr, answers)) == {repr(OK)}
        assert host.left_in_volumes() == ["mongo"]


class TestPurge:
    def test_keeping_nothing(self, host: Host) -> None:
        """With HOSTPREP_TRASH_KEEP=0 removed data is purged at once, in the background, and that is logged."""
        server = host.serve(HOSTPREP_TRASH_KEEP="0")
        server("Create", Name="mongo")
        many(host.data("mongo"), 100)
        assert server("Remove", Name="mongo") == OK
        eventually(lambda: host.trash() == [], "the trash is empty")
        eventually(lambda: "purged mongo" in server.log, "it is logged")
        assert server("Remove", Name="mongo") == OK

    def test_what_has_expired(self, host: Host) -> None:
        """What is older than HOSTPREP_TRASH_KEEP goes at the start, and the rest stays."""
        for name in ("a", "b"):
            host.run("create", name)
            host.run("rm", name)
        old, young = host.trash()
        (host.root / "trash" / old).rename(host.root / "trash" / ("20200101T000000Z" + old[16:]))
        host.serve()
        eventually(lambda: host.trash() == [young], "the old one is gone")

    @pytest.mark.parametrize(
        ("flags", "changed"),
        [
            ((), {"HOSTPREP_TRASH_KEEP": "99999d"}),
            (("--patience", "5s"), {"HOSTPREP_PATIENCE": "wrong"}),
            (("--trash-keep", "1h"), {"HOSTPREP_TRASH_KEEP": "wrong"}),
            (("--root", "{root}"), {"HOSTPREP_ROOT": "wrong"}),
        ],
        ids=["very-long", "a-flag-for-a-wrong-variable", "its-own-flag", "root-flag"],
    )
    def test_whatever_the_settings(self, host: Host, flags: tuple[str, ...], changed: dict[str, str]) -> None:
        """With any settings with which the server starts, an interrupted purge is ended."""
        host.run("create", "mongo")
        host.run("rm", "mongo")
        (entry,) = host.trash()
        (host.root / "trash" / entry).rename(host.root / "trash" / f".purge-{entry}")
        server = host.serve(*(flag.format(root=host.root) for flag in flags), **changed)
        eventually(lambda: host.trash() == [], f"it is gone; {server.log}")


class TestLog:
    def test_one_line_an_event(self, host: Host, server: Server) -> None:
        """Every change is one line with verb, volume and duration."""
        server("Create", Name="mongo", Opts=MONGO)
        server("Mount", Name="mongo")
        server("Unmount", Name="mongo")
        server("Remove", Name="mongo")
        server("Create", Name="redis", Opts={"uid": "x"})
        server.terminate()
        for verb, volume in [
            ("Create", "mongo"),
            ("Mount", "mongo"),
            ("Unmount", "mongo"),
            ("Remove", "mongo"),
            ("Create", "redis"),
        ]:
            assert any(verb in line and volume in line and " ms" in line for line in server.log.splitlines()), (
                server.log
            )
        assert all(line.startswith("hostprep: ") for line in server.log.splitlines())

    def test_control_characters(self, server: Server) -> None:
        """Names and options cannot forge lines or reach a terminal."""
        server("Create", Name="a\nhostprep: INFO forged\x1b[31m")
        server("Create", Name="mongo", Opts={"uid\nforged": "1"})
        server("Create", Name="mongo", Opts={"uid": "1\nforged\x1b]0;x\x07"})
        server.ask("/%0aforged%1b", b"")
        server.terminate()
        assert all(line.isprintable() and line.startswith("hostprep: ") for line in server.log.splitlines()), server.log

    @pytest.mark.parametrize(
        ("level", "shown"), [("debug", True), ("info", True), ("warning", False), ("error", False)]
    )
    def test_levels(self, host: Host, level: str, shown: bool) -> None:  # noqa: FBT001
        """HOSTPREP_LOG_LEVEL says which lines are written."""
        server = host.serve(HOSTPREP_LOG_LEVEL=level)
        server("Create", Name="mongo")
        server("Get", Name="mongo")
        server.terminate()
        assert any("Create mongo" in line for line in server.log.splitlines()) is shown
        assert any("Get mongo" in line for line in server.log.splitlines()) is (level == "debug")
