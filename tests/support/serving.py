"""Servers that tests share, with limits of their own, with another gunicorn, on a socket that was passed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.serve import worker
from tests.support.host import PYTHON, REPOSITORY, Host, Server, eventually

GUNICORNS = ["installed", "20.1.0"]
"""The two ends of what hostprep works with: the newest, or what is installed, and Debian bookworm's."""


@contextlib.contextmanager
def host_for_many(factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that several tests share."""
    run = Path(tempfile.mkdtemp(prefix="hp-"))
    host = Host(factory.mktemp("host"), run)
    yield host
    host.stop()
    shutil.rmtree(run)


def gunicorn(version: str) -> dict[str, str]:
    """What to add to a server's environment, so that it runs with this gunicorn. It is fetched once."""
    if version == "installed":
        return {}
    cache = Path(os.environ.get("HOSTPREP_TEST_CACHE") or Path.home() / ".cache" / "hostprep-tests")
    place = cache / f"gunicorn-{version}"
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as new:
            command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{new}/it"]
            done = subprocess.run([*command, f"gunicorn=={version}"], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"gunicorn {version} cannot be had: {done.stderr.strip()}")
            with contextlib.suppress(FileExistsError, NotADirectoryError):  # fetched by two at once
                os.rename(f"{new}/it", place)
    return {"PYTHONPATH": str(place)}


def serve_with(host: Host, limits: dict[str, float], **changed: str) -> Server:
    """A server with other limits than those in `hostprep.serve.worker`."""
    assert all(hasattr(worker, name) for name in limits)
    lines = [f"worker.{name} = {value}" for name, value in limits.items()]
    return serve_after(host, "\n".join(["from hostprep.serve import worker", *lines]), **changed)


def serve_after(host: Host, code: str, **changed: str) -> Server:
    """A server that has run *code* first, in its own process."""
    script = f"{code}\nimport hostprep.__main__\nhostprep.__main__.main()"
    server = _begin(host, [PYTHON, "-c", script, "serve"], changed)
    server.wait()
    eventually(lambda: connections(server) == 0, "the client that waited for it is gone")
    return server


@contextlib.contextmanager
def activated(host: Host, kind: socket.SocketKind = socket.SOCK_STREAM, **changed: str) -> Iterator[Server]:
    """A server with a socket that was made for it, as systemd's socket activation does."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(host.socket))
        listener.listen(16)
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
            "os.execv(sys.executable, [sys.executable, '-m', 'hostprep', 'serve'])"
        )
        command = [PYTHON, "-c", script, str(listener.fileno())]
        changed = {"HOSTPREP_SOCKET": "/nowhere/else.sock", **changed}
        yield _begin(host, command, changed, pass_fds=[listener.fileno()])


def _begin(host: Host, command: list[str], changed: dict[str, str], *, pass_fds: list[int] | None = None) -> Server:
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=host.process_environ(changed),
        pass_fds=pass_fds or [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    host.started.append(process)
    return Server(process, host.socket)


def connections(server: Server) -> int:
    """How many connections the server has open: all its sockets but the one that listens."""
    found = -1
    for fd in os.listdir(f"/proc/{server.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/{server.process.pid}/fd/{fd}").startswith("socket:")
    return found


_RECVFROM = {"x86_64": "45"}.get(os.uname().machine, "207")


def waiting_for_clients(server: Server) -> int:
    """How many threads of the server are in recv(2) now, as proc_pid_syscall(5) says it."""
    found = 0
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += (task / "syscall").read_text().split()[0] == _RECVFROM
    return found
