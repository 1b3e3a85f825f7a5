"""`hostprep doctor` without a name: the installation. An installed one: tests/enforcing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from hostprep.doctor import installation
from tests.support.host import PYTHON, REPOSITORY, Host

from .conftest import ALONE, MONGO, Doctor

pytestmark = pytest.mark.root
OK = b"HTTP/1.0 200 OK\r\n\r\n"


class Answering:
    """Something that answers each request on a socket with *answer*."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                if not connection.recv(4096):
                    return
                with contextlib.suppress(OSError):  # it reads no more than it has to
                    connection.sendall(self.answer)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.listener.getsockname())
        self.thread.join()
        self.listener.close()


def test_server(doctor: Doctor, host: Host) -> None:
    """With a server that answers only the engine is missing, which is a warning: it may be Podman."""
    host.serve()
    doctor.hostprep("create", "mongo", *MONGO)
    found = doctor.found()
    assert found["usable"]
    said = {each["check"]: each for each in found["findings"]}
    assert said["socket"]["verdict"] == said["root"]["verdict"] == said["selinux"]["verdict"] == "ok"
    assert said["engine"]["verdict"] == "warning"
    assert said["volume"]["what"].startswith("mongo: 184:998 0755")


def test_no_server(doctor: Doctor, host: Host) -> None:
    """A missing root and a missing server are named, and nothing is made."""
    found = doctor.found()
    assert not found["usable"]
    assert {each["check"] for each in found["findings"] if each["verdict"] == "bad"} == {"root", "socket"}
    assert not host.root.exists()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        OK,
        b"x" * (1 << 18),
        OK + b'{"Implements": ["NetworkDriver"]}',
        OK + b"[]",
    ],
    ids=["nothing", "no body", "too much", "another driver", "no object"],
)
def test_other_server(doctor: Doctor, host: Host, answer: bytes) -> None:
    """Whatever else answers on the socket is not taken for a volume driver."""
    doctor.hostprep("create", "mongo")
    other = Answering(host.socket, answer)
    try:
        (finding,) = doctor.all("socket")
    finally:
        other.close()
    assert finding["verdict"] == "bad"


def test_open_socket(doctor: Doctor, host: Host) -> None:
    """A socket that other users may connect to is bad, and the command closes it."""
    host.serve()
    os.chmod(host.socket, 0o666)
    (finding,) = doctor.all("socket")
    assert (finding["verdict"], finding["fix"]) == ("bad", f"chmod 0600 {host.socket}")


def test_volumes(doctor: Doctor, host: Host) -> None:
    """Every volume has one line: damaged, gone, drifted or right."""
    for name in ("damaged", "drifted", "gone", "right"):
        doctor.hostprep("create", name, *MONGO)
    (host.root / "volumes/damaged/volume.json").write_text("{")
    host.data("gone").rmdir()
    os.chown(host.data("drifted"), 0, 0)
    found = doctor.all("volume")
    assert [each["verdict"] for each in found] == ["bad", "warning", "bad", "ok"]
    assert found[1]["fix"] == "hostprep apply drifted"


@pytest.mark.parametrize(("kernel", "without"), [("5.12", 1), ("5.6", 2)])
def test_old_kernel(host: Host, kernel: str, without: int) -> None:
    """What an older kernel lacks is a note, not a fault."""
    argv = [PYTHON, "-m", "tests.support.old_kernel", kernel, PYTHON, "-m", "hostprep", *ALONE, "doctor", "--json"]
    done = subprocess.run(
        argv, cwd=REPOSITORY, env={**os.environ, **host.environ}, capture_output=True, text=True, check=False
    )
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "kernel"]
    assert [each["verdict"] for each in found].count("note") == without
    assert f"Linux {kernel}" in str(found)


def test_units(doctor: Doctor, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are not installed, not enabled or start too late are named. A script answers for systemd."""
    monkeypatch.setattr(installation, "_systemd", lambda: True)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    systemctl = tmp_path / "systemctl"
    systemctl.touch(mode=0o755)
    for script, fix in [
        ("echo not-found", "make install"),
        ("exit 1", "make install"),
        ("echo disabled", "systemctl enable --now hostprep.socket hostprep.service"),
        ("case $1 in show) echo shutdown.target;; *) echo enabled;; esac", "make install"),
        ("case $1 in show) echo docker.service podman.service;; *) echo enabled;; esac", ""),
    ]:
        systemctl.write_text(f"#!/bin/sh\n{script}\n")
        (finding,) = doctor.all("start order")
        assert finding["fix"] == fix, script


@pytest.mark.parametrize(
    ("states", "fix"),
    [("loaded inactive", "systemctl start docker.service"), ("loaded active", ""), ("not-found inactive", "")],
)
def test_an_engine_that_does_not_answer(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: str, fix: str
) -> None:
    """Starting Docker is proposed where it is installed and stopped, and not for a wrong socket. A script answers."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    systemctl = tmp_path / "systemctl"
    systemctl.touch(mode=0o755)
    systemctl.write_text(f"#!/bin/sh\nprintf '%s\\n' {states}\n")
    (finding,) = doctor.all("engine")
    assert (finding["verdict"], finding["fix"]) == ("warning", fix)
