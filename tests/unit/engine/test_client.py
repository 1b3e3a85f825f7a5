"""Asking an engine, in whose place something else answers: slow, wrong, not at all. A real one: tests/engine."""

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

from hostprep.engine.client import Images
from hostprep.errors import NoImage
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
    ("GET", "json"),
    ("GET", "info"),
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


def ids(engine: Fake, *, image: str = "app", at: str | None = None, seconds: float = 5) -> Any:
    return Images(engine.host).ids(image, at, soon(seconds))


def refused(engine: Fake, **named: Any) -> str:
    with pytest.raises(NoImage) as caught:
        ids(engine, **named)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_it(engine: Fake) -> None:
    """The numbers of the directory and of the user; the container that showed them is gone."""
    assert ids(engine) == {"uid": "5", "gid": "7"}
    assert engine.containers == set()


def test_the_container(engine: Fake) -> None:
    """The container has no network, no volume, a program that is none, and a label by which it can be found."""
    ids(engine)
    assert engine.body["Entrypoint"] == ["hostprep-probe"]
    assert engine.body["Labels"] == {"hostprep.probe": ""}
    assert engine.body["NetworkDisabled"] is True
    assert engine.body["HostConfig"]["NetworkMode"] == "none"
    assert [(m["Type"], m["Target"]) for m in engine.body["HostConfig"]["Mounts"]] == [("tmpfs", "/data")]
    assert not any(end == "start" for _, end in engine.asked)


def test_another_place(engine: Fake) -> None:
    """With `at` no other directory is looked at, and one that the image lacks is its user's."""
    assert ids(engine, at="/none") == {"uid": "5", "gid": "6"}


def test_absent(engine: Fake) -> None:
    """An image that is not there is told with how to pull it; no container was made."""
    assert "docker pull other" in refused(engine, image="other")
    assert ("POST", "create") not in engine.asked


@pytest.mark.parametrize("option", ["name=userns", "name=rootless"])
def test_other_numbers(engine: Fake, option: str) -> None:
    """An engine whose containers have other numbers than the host cannot be asked for the host's."""
    engine.changed["GET", "info"] = lambda *_: Fake.json({"SecurityOptions": [option]})
    assert "userns-remap" in refused(engine)


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
    """Whatever an engine answers, it is the numbers or one printable line, and no container stays."""
    engine.changed[step] = wrong
    try:
        assert set(ids(engine)) == {"uid", "gid"}
    except NoImage as exc:
        assert str(exc).isprintable()
    assert engine.containers == set()


@pytest.mark.parametrize("step", STEPS, ids=" ".join)
def test_no_answer(engine: Fake, step: tuple[str, str]) -> None:
    """An engine that does not answer is waited for until the deadline; a container that it makes late is removed."""

    def late(target: str, body: bytes) -> Answer:
        del engine.changed[step]
        time.sleep(1.2)  # longer than anybody waits
        answer = engine.answer(step[0], target, body)
        answered.set()
        return answer

    answered = threading.Event()
    engine.changed[step] = late
    assert "does not answer in time" in refused(engine, seconds=0.7)
    assert answered.wait(60)
    assert engine.containers == set()


def test_a_container_that_stays(engine: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the container cannot be removed its name is told, with the command that does it."""

    answer = engine.answer

    def busy(method: str, target: str, body: bytes) -> Answer:
        return (500, b'{"message": "busy"}', {}) if method == "DELETE" else answer(method, target, body)

    monkeypatch.setattr(engine, "answer", busy)
    said = refused(engine)
    assert "docker rm hostprep-probe-" in said
    assert "busy" in said


def test_links(engine: Fake) -> None:
    """A symlink is followed by what the image says, step by step."""
    engine.files["/data"] = tar("data", type=tarfile.SYMTYPE, linkname="../srv/real")
    engine.kinds["/data"] = 1 << 27
    engine.files["/srv/real"] = tar("real", type=tarfile.DIRTYPE, uid=8, gid=9)
    engine.kinds["/srv/real"] = 1 << 31
    (found,) = Images(engine.host).look("app", (), "0", seconds=5).directories
    assert (found.real, found.uid, found.gid) == ("/srv/real", 8, 9)


def test_links_of_any_bytes(engine: Fake) -> None:
    """A link to what is no text is followed as any other."""
    engine.files["/data"] = tar("data", type=tarfile.SYMTYPE, linkname="/\udcff\x1b")
    engine.kinds["/data"] = 1 << 27
    (found,) = Images(engine.host).look("app", (), None, seconds=5).directories
    assert (found.real, found.entry) == ("/\udcff\x1b", None)
    assert all(why.isprintable() for why in found.why)


def test_a_large_passwd(engine: Fake) -> None:
    """A passwd without measure is refused."""
    engine.files["/etc/passwd"] = tar("passwd", size=2 << 20)
    assert "more than" in refused(engine)


@pytest.mark.parametrize("kind", ["missing", "file", "refused"])
def test_no_engine(run_dir: Path, kind: str) -> None:
    """Where no engine listens, that and the socket are told."""
    path = run_dir / "docker.sock"
    if kind == "file":
        path.touch()
    elif kind == "refused":
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))
    with pytest.raises(NoImage, match=f"{path} cannot be asked: (No such file|Connection refused)"):
        Images(f"unix://{path}").ids("app", None, soon())


@pytest.mark.root
def test_serve_does_not_pay(host: Host) -> None:
    """Without HOSTPREP_DOCKER_HOST a server has neither the SDK nor engine.py in memory; with it, not the SDK."""
    code = (
        "import sys, threading; from hostprep.serve import server\n"
        "class Done(Exception): pass\n"
        "def listen(path): raise Done\n"
        "server.listen = listen\n"
        "from hostprep.settings import Settings; import os\n"
        "try: server.serve(Settings.read(os.environ))\n"
        "except Done: pass\n"
        "import hostprep.serve.wire\n"
        "names = ('docker', 'requests', 'hostprep.engine.client', 'hostprep.engine.archive')\n"
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
