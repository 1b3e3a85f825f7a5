"""A server that may open, start or remember no more: no wrong answer, an error in words, and later all goes on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.host import Host, Server, eventually, owner
from tests.support.trees import make_tree
from tests.support.unixhttp import Answer

pytestmark = pytest.mark.root


class Group:
    """A control group for one server, of cgroup v1 or v2."""

    def __init__(self, controller: str) -> None:
        top = Path("/sys/fs/cgroup")
        self.unified = (top / "cgroup.controllers").exists()
        self.directory = (top if self.unified else top / controller) / f"hostprep-test-{os.getpid()}"
        try:
            if self.unified and controller not in (top / "cgroup.subtree_control").read_text().split():
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
            self.directory.mkdir()
        except OSError as exc:
            pytest.skip(f"no control group for {controller} can be made here: {exc}")

    def take(self, pid: int) -> None:
        (self.directory / "cgroup.procs").write_text(str(pid))

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """This process is in it, so that what it starts is."""
        before = self._found()
        self.take(os.getpid())
        try:
            yield
        finally:
            (before / "cgroup.procs").write_text(str(os.getpid()))

    def _found(self) -> Path:
        """Where this process is."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers.split(",") == ([""] if self.unified else [self.directory.parent.name]):
                return self.directory.parent / path.lstrip("/")
        raise AssertionError("this process is in no control group")

    def write(self, file: str, value: str) -> None:
        (self.directory / file).write_text(value)

    def read(self, file: str) -> str:
        return (self.directory / file).read_text()

    def remove(self) -> None:
        """Its processes have ended, or are about to."""
        eventually(self._is_removed, "its processes have ended")

    def _is_removed(self) -> bool:
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        return not self.directory.exists()


@contextlib.contextmanager
def group(controller: str, host: Host) -> Iterator[Group]:
    """A control group, and at its end an end of all that the host has started."""
    made = Group(controller)
    try:
        yield made
    finally:
        host.stop()
        made.remove()


def ask(server: Server, verb: str, **body: object) -> Answer | None:
    """One request; None where the connection is closed without an answer, or nobody takes it within a second."""
    try:
        with contextlib.closing(server.connect(1.0)) as connection:
            return connection.ask(f"/VolumeDriver.{verb}", json.dumps(body).encode())
    except (OSError, ValueError):
        return None


def knows(server: Server, name: str) -> bool | None:
    answer = ask(server, "Get", Name=name)
    return None if answer is None else answer.status == 200


def done_or_refused(answer: Answer | None) -> bool:
    """Whether it is no answer, a success, or an error in words."""
    if answer is None or answer.status == 200:
        return True
    return answer.status >= 500 and bool(answer.error) and "internal" not in answer.error


def spoiled(host: Host, name: str) -> None:
    """A volume whose next Mount needs a pass."""
    os.chown(host.data(name), 77, 78)
    os.chown(host.data(name) / "file", 77, 78)


@pytest.fixture
def server(host: Host) -> Server:
    server = host.serve()
    for name in ("mongo", "redis"):
        assert server("Create", Name=name, Opts={"uid": "184", "gid": "0"}).status == 200
        make_tree(host.data(name), "file file 184:0 600 precious")
    return server


def is_whole(server: Server, host: Host) -> None:
    """Everything is served, and right."""
    assert server.process.poll() is None, server.log
    for name in ("mongo", "redis"):
        assert server("Get", Name=name).status == 200
        assert server("Mount", Name=name, ID="c").status == 200
        assert owner(host.data(name)) == owner(host.data(name) / "file") == (184, 0)
    assert server("Get", Name="nobody").status == 404
    assert server("Create", Name="later").status == 200
    assert all(line.startswith("hostprep: ") for line in server.log.splitlines()), server.log


def test_no_more_descriptors(host: Host, server: Server) -> None:
    """With however few descriptors left nobody is told that a volume is not there, and with more all goes on."""
    pid = server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    spoiled(host, "mongo")
    for more in range(16):
        opened = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (opened + more, before[1]))
        assert knows(server, "mongo") is not False
        assert knows(server, "nobody") is not True
        for verb, body in (("Create", {"Name": f"v{more}"}), ("Mount", {"Name": "mongo", "ID": "c"})):
            answer = ask(server, verb, **body)
            assert done_or_refused(answer), answer
        assert server.process.poll() is None, server.log
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: server("Get", Name="mongo").status == 200, "it is served again")
    is_whole(server, host)


def test_no_more_processes(host: Host, server: Server) -> None:
    """Where neither a thread nor a process can be started, what is ready is served, and a pass is refused in words."""
    spoiled(host, "mongo")
    with group("pids", host) as pids:
        pids.take(server.process.pid)
        for more in range(6):
            pids.write("pids.max", str(int(pids.read("pids.current")) + more))
            with contextlib.ExitStack() as stack:
                for _ in range(8):  # connections that keep threads
                    stack.enter_context(contextlib.closing(server.connect()))
                assert knows(server, "redis") is not False
                assert knows(server, "nobody") is not True
                answer = ask(server, "Mount", Name="mongo", ID="c")
                assert done_or_refused(answer), answer
            assert server.process.poll() is None, server.log
        pids.write("pids.max", "max")
        eventually(lambda: server("Get", Name="mongo").status == 200, "it is served again")
        is_whole(server, host)


def test_64_megabytes(host: Host) -> None:
    """A server of 10,000 volumes that may have 64 MB, with what it starts: every verb, List by twenty at once too."""
    count = 10_000
    volumes = host.root / "volumes"
    assert host.run("ls").code == 1
    assert host.run("create", "v0").code == 0
    record = host.record("v0").read_text()
    for number in range(1, count):
        (volumes / f"v{number}" / "_data").mkdir(parents=True)
        (volumes / f"v{number}").chmod(0o700)
        file = os.open(volumes / f"v{number}" / "volume.json", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(file, record.replace('"v0"', f'"v{number}"').encode())
        os.close(file)
    with group("memory", host) as memory:
        memory.write("memory.max" if memory.unified else "memory.limit_in_bytes", str(64 << 20))
        with memory.joined():
            server = host.serve()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: len(server("List").body["Volumes"]), range(40)))
        assert answers == [count] * 40
        with contextlib.closing(server.connect()) as connection:
            for number in range(0, count, 10):
                body = json.dumps({"Name": f"v{number}"}).encode()
                assert connection.ask("/VolumeDriver.Get", body).status == 200
        assert server("Create", Name="mongo", Opts={"uid": "184", "gid": "0"}).status == 200
        make_tree(host.data("mongo"), "file file 184:0 600 precious")
        spoiled(host, "mongo")
        assert server("Mount", Name="mongo", ID="c").status == 200
        assert owner(host.data("mongo") / "file") == (184, 0)
        assert server("Remove", Name="mongo").status == 200
        assert server("Get", Name="mongo").status == 404
        assert server.process.poll() is None
        peak = int(Path(f"/proc/{server.process.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        assert peak < 64 << 10, f"{peak} kB"
        print(f"peak of the server's own memory: {peak / 1024:.1f} MB")
