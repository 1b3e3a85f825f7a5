"""A disk that hangs: who needs it is answered in words, or not at all where that is the rule, and nobody else waits."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from hostprep.host import looking
from hostprep.serve import waiting, wire
from hostprep.volumes import store
from tests.support.hanging import Hanging, hanging
from tests.support.host import Answer, Host, Server, eventually
from tests.support.serving import serve_after

pytestmark = pytest.mark.root
OK = Answer(200, {"Err": ""})
MONGO = {"uid": "184", "gid": "998"}
BRIEF = "from hostprep.serve import wire\nwire._LOOK = 2\nwire._GRACE = 0\n"
assert {"_LOOK", "_GRACE"} <= vars(wire).keys()


@pytest.fixture
def disk(host: Host) -> Iterator[Hanging]:
    """A disk that answers for now."""
    with hanging(Path(host.srv) / "disk") as disk:
        yield disk


@pytest.fixture
def server(host: Host, disk: Hanging) -> Iterator[Server]:
    """A server with the volumes `slow`, on the disk, and `quick`. It gives a look two seconds, and a Mount three."""
    server = serve(host)
    assert server("Create", Name="slow", Opts={**MONGO, "path": f"{disk.place}/db"}) == OK
    assert server("Create", Name="quick", Opts=MONGO) == OK
    yield server
    disk.go_on()
    assert server.process.poll() == -9 or server.terminate() == 0


def serve(host: Host) -> Server:
    return serve_after(host, BRIEF, HOSTPREP_PATIENCE="3s")


class Asked:
    """Requests of one kind, all at once, each on a connection and a thread of its own."""

    def __init__(self, server: Server, verb: str, name: str, count: int) -> None:
        self.answers: list[Answer | None] = []
        self._request = (server, f"/VolumeDriver.{verb}", json.dumps({"Name": name}).encode())
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        server, path, body = self._request
        with contextlib.closing(server.connect(120)) as connection:
            try:
                self.answers.append(connection.ask(path, body))
            except (HTTPException, OSError):
                self.answers.append(None)

    def join(self) -> list[Answer | None]:
        for thread in self.threads:
            thread.join()
        return self.answers


def ask(server: Server, verb: str, name: str, **more: object) -> Answer | None:
    """One request; None where the connection is closed without an answer."""
    try:
        return server(verb, Name=name, **more)
    except (HTTPException, OSError):
        return None


def served(server: Server) -> int:
    """How many requests for what is not on the disk are answered as always, of 35."""
    answers = [server.ask("/Plugin.Activate").status for _ in range(5)]
    for _ in range(5):
        answers += [server.ask("List").status, server("Get", Name="quick").status, server("Path", Name="quick").status]
        answers += [server("Mount", Name="quick").status, server("Unmount", Name="quick").status]
        answers.append(server("Get", Name="nobody").status - 204)
    return answers.count(200)


def threads(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/task"))


def test_the_disk_of_these_tests(disk: Hanging) -> None:
    """What these tests stand on: whoever looks at such a disk waits until it goes on."""
    disk.hang()
    looked = threading.Thread(target=os.listdir, args=(disk.place,))
    looked.start()
    looked.join(0.5)
    assert looked.is_alive()
    disk.go_on()
    looked.join()


def test_many_that_wait(server: Server, disk: Hanging) -> None:
    """While 300 Mounts and 300 Gets wait for a disk, everything else is answered; each of them is, by its deadline."""
    disk.hang()
    mounts, gets = Asked(server, "Mount", "slow", 300), Asked(server, "Get", "slow", 300)
    assert served(server) == 35
    assert [answer for answer in mounts.answers + gets.answers if answer and answer.status == 200] == []
    for answer in mounts.join():
        assert answer is not None
        assert (answer.status, bool(answer.error)) == (503, True)
    assert set(gets.join()) == {None}
    disk.go_on()
    eventually(
        lambda: ask(server, "Mount", "slow") == Answer(200, {"Err": "", "Mountpoint": f"{disk.place}/db"}), "it is back"
    )


def test_what_hangs_is_bounded(server: Server, disk: Hanging) -> None:
    """A request that hangs keeps one thread, and the next for that volume are refused at once, in words or by none."""
    disk.hang()
    assert ask(server, "Get", "slow") is None
    before = threads(server)
    for _ in range(50):
        assert ask(server, "Get", "slow") is None
    eventually(lambda: threads(server) <= before, "only those that hang are left")
    mount = ask(server, "Mount", "slow")
    assert mount is not None
    assert (mount.status, "the disk of volume slow does not answer" in mount.error) == (503, True)
    before = threads(server)
    for _ in range(50):
        mount = ask(server, "Mount", "slow")
        assert mount is not None
        assert mount.status == 503
    eventually(lambda: threads(server) <= before, "only those that hang are left")
    assert ask(server, "Unmount", "slow") == OK
    assert served(server) == 35
    disk.go_on()
    eventually(lambda: ask(server, "Get", "slow") is not None, "it is back")
    eventually(lambda: threads(server) < before, "the threads that hung are gone")
    assert "slow: given up" in server.log
    assert "slow: its disk answered after" in server.log


def test_other_volumes_of_the_disk(host: Host, disk: Hanging) -> None:
    """Where many requests hang, those for other volumes on that disk are refused at once, and others are answered."""
    code = f"{BRIEF}from hostprep.serve import waiting\nwaiting._MANY_HANG = 2\n"
    assert hasattr(waiting, "_MANY_HANG")
    server = serve_after(host, code, HOSTPREP_PATIENCE="3s")
    for name in ("slow", "second", "third"):
        assert server("Create", Name=name, Opts={"path": f"{disk.place}/{name}"}) == OK
    assert server("Create", Name="quick") == OK
    disk.hang()
    for name in ("slow", "second"):
        assert ask(server, "Get", name) is None
    before = threads(server)
    assert ask(server, "Get", "third") is None
    mount = ask(server, "Mount", "third")
    assert mount is not None
    assert "the disk of volume third does not answer" in mount.error
    eventually(lambda: threads(server) <= before, "only those that hang are left")
    assert served(server) == 35
    disk.go_on()
    eventually(lambda: ask(server, "Get", "third") is not None, "it is back")
    assert server.terminate() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_another_server(host: Host, server: Server, disk: Hanging, how: signal.Signals) -> None:
    """A server that is ended while a thread hangs stays until that comes back; the next one starts, and serves."""
    disk.hang()
    hangs = Asked(server, "Mount", "slow", 1)
    hangs.join()
    server.process.send_signal(how)
    other = Server(host.begin("serve"), host.socket)
    eventually(lambda: "serving" in other.log, "the next one has the socket")  # who asked the killed one waits for it
    assert served(other) == 35
    assert server.process.poll() is None
    disk.go_on()
    assert server.process.wait(60) == (0 if how is signal.SIGTERM else -9)
    eventually(
        lambda: ask(other, "Mount", "slow") == Answer(200, {"Err": "", "Mountpoint": f"{disk.place}/db"}), "it is back"
    )


def test_the_command_line(host: Host, server: Server, disk: Hanging) -> None:
    """`ls` and `status` end. `ls` shows the other volumes as they are, and both name the one whose disk hangs."""
    disk.hang()
    done = host.run("ls", "--json")
    assert done.code == 0
    quick, slow = done.json
    assert (quick["name"], quick["status"]["ready"]) == ("quick", True)
    assert (slow["name"], slow["mountpoint"], slow["status"]["ready"]) == ("slow", None, False)
    assert slow["status"]["warnings"] == ["the disk of volume slow does not answer"]
    assert done.err == "hostprep: the disk of volume slow does not answer\n"
    done = host.run("status", "slow")
    assert (done.code, done.out) == (1, "")
    assert done.err == "hostprep: the disk of volume slow does not answer (see the kernel's log: dmesg)\n"
    assert host.run("status", "quick").code == 0


def test_a_start(host: Host, disk: Hanging) -> None:
    """What many interrupted Creates left on a disk that hangs delays a start once; it is removed when that is back."""
    code = "from hostprep.volumes import store\nstore._UNMADE_WITHIN = 1\n"
    assert hasattr(store, "_UNMADE_WITHIN")
    host.run("create", "slow", "-o", f"path={disk.place}/db")
    host.run("create", "quick")
    record = (host.volume("slow") / "volume.json").read_text()
    for number in range(90):
        left = host.root / "volumes" / f".new-{number:016x}"
        shutil.copytree(host.volume("slow"), left)
        (left / "volume.json").write_text(record.replace('"slow"', f'"slow{number}"').replace("/db", f"/db{number}"))
    host.volume("slow").rename(host.root / "volumes" / ".new-0123456789abcdef")
    disk.hang()
    server = serve_after(host, code)
    assert served(server) == 35
    assert server("Create", Name="other", Opts={"path": f"{host.srv}/other"}) == OK
    disk.go_on()
    eventually(lambda: host.left_in_volumes() == ["other", "quick"], "the rest is gone")
    eventually(lambda: os.listdir(disk.place) == [], "what was made for it is gone")
    assert server.terminate() == 0


def test_a_prefix(host: Host, disk: Hanging) -> None:
    """A prefix of HOSTPREP_ALLOW on a disk that hangs keeps no server from starting, and no command from its end."""
    code = "from hostprep.host import looking\nlooking.WITHIN = 1\n"
    assert hasattr(looking, "WITHIN")
    allow = f"{host.srv}:{disk.place}"
    host.run("create", "slow", "-o", f"path={disk.place}/db", HOSTPREP_ALLOW=allow)
    host.run("create", "quick")
    disk.hang()
    server = serve_after(host, code, HOSTPREP_ALLOW=allow)
    assert served(server) == 35
    assert host.run("rm", "quick", HOSTPREP_ALLOW=allow).code == 0
    disk.go_on()
    mounted = Answer(200, {"Err": "", "Mountpoint": f"{disk.place}/db"})
    eventually(lambda: ask(server, "Mount", "slow") == mounted, "it is back")
    assert server.terminate() == 0
