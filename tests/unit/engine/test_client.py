"""Asking an engine that answers slowly, wrongly or not at all: a fake one. A real one: tests/engine."""

from __future__ import annotations

import base64
import io
import json
import socket
import socketserver
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from hostprep.engine import client, connection
from hostprep.engine.client import Engine
from hostprep.errors import NoEngine, NoImage
from hostprep.host import userns
from tests.support.host import PYTHON, REPOSITORY, Host, soon

Answer = tuple[int, bytes, dict[str, str]]

USERS = b"app:x:5:6:::\n"


def tar(name: str, *, size: int = 0, contents: bytes = b"", **changed: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        info = tarfile.TarInfo(name)
        info.size = size or len(contents)
        for key, value in changed.items():
            setattr(info, key, value)
        packed.addfile(info, io.BytesIO(contents + bytes(info.size - len(contents))))
    return buffer.getvalue()


STEPS = [
    ("GET", "version"),
    ("GET", "info"),
    ("GET", "json"),
    ("POST", "create"),
    ("HEAD", "archive"),
    ("GET", "archive"),
]


class Fake:
    """An engine with one image, app, whose answers a test may change: by method and end of the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, str]] = []
        self.body: dict[str, Any] = {}
        self.changed: dict[tuple[str, str], Callable[[str, bytes], Answer]] = {}
        self.containers: set[str] = set()
        self.files = {
            "/etc/passwd": tar("passwd", contents=USERS),
            "/data": tar("data", type=tarfile.DIRTYPE, uid=5, gid=7, mode=0o750),
        }
        self.kinds = dict.fromkeys(self.files, 0)

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        path, _, query = target.partition("?")
        end = path.rpartition("/")[2]
        self.asked.append((method, end))
        if special := self.changed.get((method, end)):
            return special(target, body)
        if end == "version":
            return self.json({"ApiVersion": "1.41"})
        if path.endswith("/images/app/json"):
            return self.json({"Id": "sha256:1", "Os": "linux", "Config": {"User": "app", "Volumes": {"/data": {}}}})
        if end == "info":
            return self.json({"SecurityOptions": ["name=seccomp"]})
        if end == "create":
            self.body = json.loads(body)
            self.containers.add(query.partition("name=")[2])
            return 201, b'{"Id": "1"}', {}
        if end == "archive":
            asked = unquote(query.partition("path=")[2])
            if asked in self.files:
                stat = base64.b64encode(json.dumps({"mode": self.kinds[asked]}).encode()).decode()
                return 200, self.files[asked], {"X-Docker-Container-Path-Stat": stat}
            return 404, b'{"message": "Could not find the file"}', {}
        if method == "DELETE":
            found = end in self.containers
            self.containers.discard(end)
            return (204, b"", {}) if found else (404, b'{"message": "No such container"}', {})
        return 404, b'{"message": "No such image: other"}', {}

    @staticmethod
    def json(found: object, status: int = 200) -> Answer:
        return status, json.dumps(found).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def engine(nothing_left: None, run_dir: Path) -> Iterator[Fake]:
    fake = Fake(run_dir / "docker.sock")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, data, headers = fake.answer(self.command, self.path, body)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = do_DELETE = do

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def address_string(self) -> str:
            return "unix"

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        block_on_close = True

    server = Server(str(fake.path), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


def owner(engine: Fake, *, image: str = "app", at: str | None = None, deadline: float | None = None) -> Any:
    return Engine(engine.host).owner_options(image, at, soon() if deadline is None else deadline)


def refused(engine: Fake, **named: Any) -> str:
    with pytest.raises((NoEngine, NoImage)) as caught:
        owner(engine, **named)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_owner_options(engine: Fake) -> None:
    """The owner is that of the directory and of the user; the container that showed it is gone."""
    assert owner(engine) == {"uid": "5", "gid": "7"}
    assert engine.containers == set()


def test_container_of_a_probe(engine: Fake) -> None:
    """A probe's container has no network, no volume and no real program, and is never started; its label finds it."""
    owner(engine)
    assert engine.body["Entrypoint"] == ["hostprep-probe"]
    assert engine.body["Labels"] == {"hostprep.probe": ""}
    assert engine.body["NetworkDisabled"] is True
    assert engine.body["HostConfig"]["NetworkMode"] == "none"
    assert [(m["Type"], m["Target"]) for m in engine.body["HostConfig"]["Mounts"]] == [("tmpfs", "/data")]
    assert not any(end == "start" for _, end in engine.asked)


def test_at(engine: Fake) -> None:
    """With `at` no other directory is looked at, and one that the image lacks is its user's."""
    assert owner(engine, at="/none") == {"uid": "5", "gid": "6"}


def test_absent_image(engine: Fake) -> None:
    """For an image that the engine does not have it makes no container, and pulls nothing."""
    assert "no image other" in refused(engine, image="other")
    assert {method for method, _ in engine.asked} == {"GET"}


@pytest.mark.parametrize("option", ["name=userns", "name=rootless"])
def test_mapped_ids(engine: Fake, option: str) -> None:
    """An engine that maps ids is not asked for an owner where the map is not known: it shows the host's ids."""
    engine.changed["GET", "info"] = lambda *_: Fake.json({"SecurityOptions": [option]})
    assert "userns-remap" in refused(engine)


def test_userns_remap(engine: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's ids that it packs are taken back to the container's; one that the map lacks is refused in words."""
    (tmp_path / "ranges").write_text("lab:100000:6\nlab:400000:1000\n")
    monkeypatch.setattr(userns, "SUBUID", str(tmp_path / "ranges"))
    monkeypatch.setattr(userns, "SUBGID", str(tmp_path / "ranges"))
    info = {"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/100000.100000"}
    engine.changed["GET", "info"] = lambda *_: Fake.json(info)
    engine.files["/data"] = tar("data", type=tarfile.DIRTYPE, uid=100005, gid=400001, mode=0o750)
    assert owner(engine) == {"uid": "5", "gid": "7"}
    engine.files["/data"] = tar("data", type=tarfile.DIRTYPE, uid=100005, gid=7, mode=0o750)
    assert "/data as 100005:7, which its user namespace 0:100000:6,6:400000:1000 does not have" in refused(engine)


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda *_: (500, b'{"message": "out of \x1b[31morder\\n"}', {}),
        lambda *_: (500, b"\xff\0", {}),
        lambda *_: (200, b"", {}),
        lambda *_: (200, b"[]", {"Content-Type": "application/json"}),
        lambda *_: (200, b"{}", {"X-Docker-Container-Path-Stat": "!"}),
        lambda *_: (200, b"x" * 2000, {"X-Docker-Container-Path-Stat": base64.b64encode(b'{"mode": "x"}').decode()}),
    ],
    ids=["500", "500-odd", "empty", "array", "object", "odd"],
)
def test_wrong_answers(engine: Fake, step: tuple[str, str], wrong: Any) -> None:
    """Whatever an engine answers, the result is an owner or one printable line, and no container stays."""
    engine.changed[step] = wrong
    try:
        assert set(owner(engine)) == {"uid", "gid"}
    except (NoEngine, NoImage) as exc:
        assert str(exc).isprintable()
    assert engine.containers == set()


class Clock:
    """A clock on which 9 s are left until *deadline*, but 0.3 s when the engine has been asked *number* questions."""

    deadline = 1000.0
    sleep = staticmethod(time.sleep)

    def __init__(self, engine: Fake, number: int) -> None:
        self.engine = engine
        self.number = number
        self.passed = 0.0

    def monotonic(self) -> float:
        self.passed += 0.001
        return self.deadline - (0.3 if len(self.engine.asked) == self.number else 9) + self.passed


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
def test_no_answer(engine: Fake, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str]) -> None:
    """An engine that does not answer is waited for until the deadline; a container that it makes late is removed."""
    owner(engine)
    clock = Clock(engine, engine.asked.index(step))
    engine.asked.clear()
    answer, given_up, answered = engine.answer, threading.Event(), threading.Event()

    def late(target: str, body: bytes) -> Answer:
        del engine.changed[step]
        assert given_up.wait(60)
        found = answer(step[0], target, body)
        answered.set()
        return found

    def late_before_a_removal(method: str, target: str, body: bytes) -> Answer:
        found = answer(method, target, body)
        if method == "DELETE":
            given_up.set()
            assert answered.wait(60)
        return found

    engine.changed[step] = late
    monkeypatch.setattr(engine, "answer", late_before_a_removal)
    for module in (client, connection):
        monkeypatch.setattr(module, "time", clock)
    assert "does not answer in time" in refused(engine, deadline=clock.deadline)
    given_up.set()
    assert answered.wait(60)
    assert engine.containers == set()


def test_no_time_left(engine: Fake) -> None:
    """After the deadline nothing is asked."""
    assert "does not answer in time" in refused(engine, deadline=time.monotonic())
    assert engine.asked == []


def test_container_not_removed(engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the container cannot be removed, the error gives the command that removes it."""

    answer = engine.answer

    def busy(method: str, target: str, body: bytes) -> Answer:
        return (500, b'{"message": "busy"}', {}) if method == "DELETE" else answer(method, target, body)

    monkeypatch.setattr(engine, "answer", busy)
    said = refused(engine)
    assert "docker rm hostprep-probe-" in said
    assert "busy" in said


def test_symlink(engine: Fake) -> None:
    """A symlink is followed within the image."""
    engine.files["/data"] = tar("data", type=tarfile.SYMTYPE, linkname="../srv/real")
    engine.kinds["/data"] = 1 << 27
    engine.files["/srv/real"] = tar("real", type=tarfile.DIRTYPE, uid=8, gid=9)
    engine.kinds["/srv/real"] = 1 << 31
    (found,) = Engine(engine.host).probe("app", (), "0", seconds=5).directories
    assert (found.real, found.uid, found.gid) == ("/srv/real", 8, 9)


def test_symlink_of_any_bytes(engine: Fake) -> None:
    """A symlink whose target is not text is followed like any other."""
    engine.files["/data"] = tar("data", type=tarfile.SYMTYPE, linkname="/\udcff\x1b")
    engine.kinds["/data"] = 1 << 27
    (found,) = Engine(engine.host).probe("app", (), None, seconds=5).directories
    assert (found.real, found.entry) == ("/\udcff\x1b", None)
    assert all(why.isprintable() for why in found.why)


def test_large_passwd(engine: Fake) -> None:
    """A passwd over the limit is refused."""
    engine.files["/etc/passwd"] = tar("passwd", size=2 << 20)
    assert "more than" in refused(engine)


@pytest.mark.parametrize("kind", ["missing", "file", "refused"])
def test_no_engine(run_dir: Path, kind: str) -> None:
    """If no engine listens, the error names the socket and the reason."""
    path = run_dir / "docker.sock"
    if kind == "file":
        path.touch()
    elif kind == "refused":
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    with pytest.raises(NoEngine, match=f"{path} cannot be asked: (No such file|Connection refused)"):
        Engine(f"unix://{path}").owner_options("app", None, soon())


@pytest.mark.root
def test_memory_of_serve(host: Host) -> None:
    """A server has nothing of this in memory without HOSTPREP_DOCKER_HOST; with it client.py, but not the SDK."""
    code = (
        "import sys, threading; from hostprep.serve import server\n"
        "class Done(Exception): pass\n"
        "def listen(path): raise Done\n"
        "server.listen = listen\n"
        "from hostprep.settings import Settings; import os\n"
        "try: server.serve(Settings.read(os.environ))\n"
        "except Done: pass\n"
        "import hostprep.serve.wire\n"
        "names = ('docker', 'requests', *('hostprep.engine.' + name for name in ('archive', 'client', 'connection')))\n"
        "print(*(name for name in names if name in sys.modules))"
    )

    def loaded(**more: str) -> str:
        command = [PYTHON, "-c", code]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=host.process_environ(more), capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert loaded() == ""
    assert loaded(HOSTPREP_DOCKER_HOST="unix:///run/docker.sock") == "hostprep.engine.client"
