"""The socket: made, stale, live, somebody else's, or passed by systemd."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import Answer, Host, Server, eventually, mode, owner
from tests.support.serving import activated
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


def waiting_for_locks() -> str:
    """Who waits for a lock of a file now (proc(5), /proc/locks)."""
    return "".join(line for line in Path("/proc/locks").read_text().splitlines() if " -> " in line)


class TestStart:
    def test_the_socket(self, host: Host) -> None:
        """The socket is root's, 0600; at the end it goes."""
        server = host.serve()
        assert (owner(host.socket), mode(host.socket)) == ((0, 0), "0600")
        assert server.terminate() == 0
        assert not host.socket.exists()

    def test_the_directory_of_the_socket(self, host: Host) -> None:
        """The directory of the socket is made where it is missing."""
        path = host.socket.parent / "a" / "b" / "hostprep.sock"
        assert host.serve(HOSTPREP_SOCKET=str(path)).answers()

    def test_a_stale_socket(self, host: Host) -> None:
        """The socket of a server that was killed is replaced."""
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(host.socket))
        assert host.serve().answers()

    def test_a_live_socket(self, host: Host) -> None:
        """A second server on the same socket is refused, in words, and the first goes on."""
        server = host.serve()
        done = host.run("serve")
        assert done.code == 1
        assert done.err.splitlines()[-1] == f"hostprep: a server already answers at {host.socket} (stop it first)"
        assert server.answers()

    def test_many_starts_at_once(self, host: Host) -> None:
        """Of several servers that start at once on a stale socket, one serves and the others say so."""
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(host.socket))
        processes = [host.begin("serve") for _ in range(4)]
        eventually(lambda: sum(process.poll() is None for process in processes) == 1, "one is left", 60)
        (left,) = [process for process in processes if process.poll() is None]
        server = Server(left, host.socket)
        server.wait()
        assert server.terminate() == 0
        assert not host.socket.exists()

    def test_between_bind_and_listen(self, host: Host) -> None:
        """A server that starts while another has bound its socket, and does not listen yet, does not remove it."""
        gate = host.socket.parent / "closed"
        gate.touch()
        first = host.begin_script(
            "import os, socket, sys, time\n"
            "class Slow(socket.socket):\n"
            "    def listen(self, *backlog):\n"
            f"        while os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
            "        super().listen(*backlog)\n"
            "socket.socket = Slow\n",
            "serve",
        )
        eventually(host.socket.exists, "the first has bound its socket")
        made = os.lstat(host.socket).st_ino
        second = host.begin("serve")
        eventually(lambda: f" {second.pid} " in waiting_for_locks() or second.poll() is not None, "the second waits")
        assert second.poll() is None
        gate.unlink()
        server = Server(first, host.socket)
        server.wait()
        assert second.wait(60) == 1
        assert os.lstat(host.socket).st_ino == made
        assert server.terminate() == 0

    def test_a_socket_that_does_not_listen_yet(self, host: Host) -> None:
        """A socket that another program has bound, as systemd does, is not removed before that program listens."""
        waits = host.socket.parent / "waits"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(host.socket))
            process = host.begin_script(
                "import os, pathlib, time\n"
                "from hostprep.serve import listen\n"
                "class Clock:\n"
                "    def sleep(seconds):\n"
                f"        pathlib.Path({str(waits)!r}).touch()\n"
                f"        while os.path.exists({str(waits)!r}): time.sleep(0.01)\n"
                "listen.time = Clock\n",
                "serve",
            )
            eventually(lambda: waits.exists() or process.poll() is not None, "it waits")
            bound.listen()
            waits.unlink()
            assert process.wait(60) == 1
            assert host.socket.exists()

    def test_a_socket_that_never_listens(self, host: Host) -> None:
        """Who binds a socket of that name, as any user can in a mount namespace of his own, stops no start for long."""
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(host.socket))
            assert host.serve().answers()

    def test_a_full_backlog(self, host: Host) -> None:
        """A server that has not accepted anybody for a while is one that is there."""
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
            busy.bind(str(host.socket))
            busy.listen(0)
            client.connect(str(host.socket))
            done = host.run("serve")
            assert (done.code, "a server already answers" in done.err) == (1, True)
            assert host.socket.exists()

    def test_nobody_delays_a_start(self, host: Host) -> None:
        """A lock on the directory of the socket, which every user who may read it can take, delays no start."""
        held = os.open(host.socket.parent, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert host.serve().answers()
        finally:
            os.close(held)

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o777], ids=oct)
    def test_directories_that_are_made(self, host: Host, umask: int) -> None:
        """What is missing of /run/docker/plugins is made with modes of its own, whatever umask it was started with."""
        path = host.socket.parent / "run" / "docker" / "plugins" / "hostprep.sock"
        before = os.umask(umask)
        try:
            assert host.serve(HOSTPREP_SOCKET=str(path)).answers()
        finally:
            os.umask(before)
        assert [mode(above) for above in path.parents[:3]] == ["0755", "0700", "0755"]
        assert (mode(path), mode(Path(f"{path}.lock"))) == ("0600", "0600")

    @pytest.mark.parametrize(
        ("ids", "bits", "below"),
        [
            ("0:0", "777", ""),
            ("0:0", "1777", ""),
            ("0:0", "775", ""),
            ("1000:1000", "755", ""),
            ("0:0", "777", "/docker/plugins"),
            ("1000:1000", "755", "/docker/plugins"),
        ],
    )
    def test_a_directory_that_others_can_write(self, host: Host, ids: str, bits: str, below: str) -> None:
        """Where somebody other than root could put a socket in its place, it does not start, and makes nothing."""
        make_tree(host.socket.parent, f"dir run {ids} {bits}")
        done = host.run("serve", HOSTPREP_SOCKET=f"{host.socket.parent}/run{below}/hostprep.sock")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert done.err.startswith("hostprep: HOSTPREP_SOCKET: somebody other than root could put")
        assert os.listdir(host.socket.parent / "run") == []

    def test_behind_roots_link(self, host: Host) -> None:
        """A symlink of root's leads to the socket, as /var/run does."""
        make_tree(host.socket.parent, "dir run", "symlink var run")
        server = host.serve(HOSTPREP_SOCKET=f"{host.socket.parent}/var/hostprep.sock")
        assert server.answers()
        assert server.terminate() == 0
        assert os.listdir(host.socket.parent / "run") == ["hostprep.sock.lock"]

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

    def test_another_servers_socket(self, host: Host) -> None:
        """At its end a server leaves a socket that has taken the place of its own."""
        server = host.serve()
        host.socket.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(host.socket))
        assert server.terminate() == 0
        assert host.socket.exists()


class TestSystemd:
    @pytest.fixture
    def passed(self, host: Host) -> Iterator[Server]:
        with activated(host) as server:
            server.wait()
            yield server

    def test_it_serves(self, passed: Server, host: Host) -> None:
        """A socket that systemd passed takes the place of HOSTPREP_SOCKET, and is there at the end: who comes waits."""
        assert passed("Create", Name="mongo") == Answer(200, {"Err": ""})
        assert not Path("/nowhere").exists()
        passed.process.send_signal(signal.SIGTERM)
        assert passed.ended() == 0
        assert host.socket.exists()
        assert "at the socket that systemd passed" in passed.log

    def test_variables_for_another_process(self, host: Host) -> None:
        """LISTEN_FDS that were meant for another process are not taken."""
        assert host.serve(LISTEN_FDS="1", LISTEN_PID="1").answers()
