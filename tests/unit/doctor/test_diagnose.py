"""`hostprep doctor` without an engine. Each broken state, with one: tests/engine; with SELinux: tests/enforcing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hostprep.doctor import installation
from tests.support.fixtures import Command
from tests.support.host import LABEL, PYTHON, REPOSITORY, Host, set_label

pytestmark = pytest.mark.root
MONGO = ("-o", "uid=184", "-o", "gid=998")
OK = b"HTTP/1.0 200 OK\r\n\r\n"
ALONE = ("--docker-host", "unix:///none")


@pytest.fixture
def doctor(hostprep: Command) -> Doctor:
    return Doctor(hostprep)


class Doctor:
    """The command, with nobody to ask."""

    def __init__(self, hostprep: Command) -> None:
        self.hostprep = hostprep

    def found(self, *arguments: str, **changed: str) -> dict[str, Any]:
        done = self.hostprep(*ALONE, "doctor", *arguments, "--json", **changed)
        found = json.loads(done.out or "null")
        assert isinstance(found, dict), done.err
        assert done.code == (0 if found["usable"] else 1)
        return found

    def all(self, check: str, *arguments: str, **changed: str) -> list[dict[str, Any]]:
        return [each for each in self.found(*arguments, **changed)["findings"] if each["check"] == check]


class TestVolume:
    def test_nobody_declared(self, doctor: Doctor) -> None:
        """A volume of nobody in particular is looked at for nobody."""
        doctor.hostprep("create", "mongo")
        found = doctor.found("mongo")
        assert (found["whom"], found["usable"]) == ([], True)
        last = found["findings"][-1]
        assert (last["check"], last["verdict"]) == ("engine", "note")
        assert "/none" in last["what"]

    def test_unknown(self, doctor: Doctor, host: Host) -> None:
        """What makes it; and a look at what is not there makes nothing."""
        doctor.hostprep("create", "other")
        finding, note = doctor.found("mongo")["findings"]
        assert note["check"] == "engine"
        assert (finding["check"], finding["fix"]) == ("volume", "docker volume create -d hostprep mongo")
        assert not host.data("mongo").exists()

    def test_no_root(self, doctor: Doctor, host: Host) -> None:
        """No root is made by looking."""
        done = doctor.hostprep(*ALONE, "doctor", "mongo")
        assert (done.code, done.out) == (1, "")
        assert not host.root.exists()

    def test_damaged(self, doctor: Doctor, host: Host) -> None:
        """A record that cannot be read."""
        doctor.hostprep("create", "mongo")
        (host.root / "volumes/mongo/volume.json").write_text("{")
        finding, note = doctor.found("mongo")["findings"]
        assert note["check"] == "engine"
        assert (finding["check"], finding["verdict"], finding["fix"]) == ("volume", "bad", "")

    @pytest.mark.parametrize("user", ["app", "184:", "4294967295", "184:x", "-1", "184:998:1", "١"])
    def test_no_user(self, doctor: Doctor, user: str) -> None:
        """A name needs a container in whose image it is one; and no number is over the largest."""
        doctor.hostprep("create", "mongo")
        done = doctor.hostprep(*ALONE, "doctor", "mongo", "--user", user)
        assert (done.code, done.out) == (1, "")
        assert "--user" in done.err

    def test_user(self, doctor: Doctor) -> None:
        """A user without a group is of group 0, as for engines."""
        doctor.hostprep("create", "mongo", *MONGO)
        assert doctor.found("mongo", "--user", "184")["whom"] == ["184:0"]
        assert doctor.found("mongo", "--user", "0")["usable"]
        assert not doctor.found("mongo", "--user", "5:998")["usable"]

    def test_no_sdk(self, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the Docker SDK it does what it can do without an engine, and says what is missing for the rest."""
        doctor.hostprep("create", "mongo", *MONGO)
        monkeypatch.setitem(sys.modules, "docker.errors", None)
        monkeypatch.delitem(sys.modules, "hostprep.engine.connection", raising=False)
        assert doctor.found("mongo")["usable"]
        done = doctor.hostprep(*ALONE, "doctor", "mongo", "--container", "db")
        assert (done.code, done.out) == (1, "")
        assert "python3-docker" in done.err

    def test_interrupted(self, doctor: Doctor, host: Host) -> None:
        """A pass that was interrupted, which the next start goes on with; and the command that does."""
        doctor.hostprep("create", "mongo", *MONGO)
        mark = host.root / "volumes/mongo/pass.json"
        mark.write_text("{}")
        mark.chmod(0o600)
        (finding,) = doctor.all("drift", "mongo")
        assert (finding["verdict"], finding["fix"]) == ("warning", "hostprep apply mongo")
        assert doctor.hostprep(*finding["fix"].split()[1:]).code == 0
        assert not mark.exists()

    def test_adopted_contents(self, doctor: Doctor, host: Host) -> None:
        """What is in an adopted directory is gone over once, when that is what is wrong, and then again never."""
        tree = host.srv / "mongo"
        tree.mkdir()
        (tree / "file").touch(mode=0o600)
        doctor.hostprep("create", "mongo", *MONGO, "-o", f"path={tree}", "-o", "recurse=never")
        (finding,) = doctor.all("contents", "mongo")
        assert finding["fix"].endswith("-o recurse=always && hostprep apply mongo -o recurse=never")
        assert doctor.hostprep(*ALONE, "doctor", "mongo", "--fix").code == 0
        assert (tree / "file").stat().st_uid == 184
        assert doctor.found("mongo")["usable"]

    def test_readable_contents(self, doctor: Doctor, host: Host) -> None:
        """What can be read and not written, as a configuration of root's may be meant, is a warning."""
        doctor.hostprep("create", "mongo", *MONGO)
        (host.data("mongo") / "file").touch(mode=0o644)
        (host.data("mongo") / "lost+found").mkdir(mode=0o700)
        (host.data("mongo") / "own").touch(mode=0o400)
        os.chown(host.data("mongo") / "own", 184, 998)
        (finding,) = doctor.all("contents", "mongo")
        assert finding["verdict"] == "warning"
        assert "1 of the first 2 entries" in finding["what"]
        assert doctor.hostprep(*ALONE, "doctor", "mongo", "--fix").code == 0
        assert (host.data("mongo") / "file").stat().st_uid == 0

    def test_hostile_names(self, doctor: Doctor, host: Host) -> None:
        """What a container's user may have called a file does nothing to a terminal."""
        doctor.hostprep("create", "mongo", *MONGO)
        (host.data("mongo") / "\x1b[31m\n").touch(mode=0o600)
        done = doctor.hostprep(*ALONE, "doctor", "mongo")
        assert done.code == 1
        assert "\\x1b[31m\\n is 0:0 0600" in done.out
        assert "\x1b" not in done.out

    def test_fifo(self, doctor: Doctor, host: Host) -> None:
        """Nothing that lies in a volume is opened."""
        doctor.hostprep("create", "mongo", *MONGO)
        os.mkfifo(host.data("mongo") / "fifo")
        (host.data("mongo") / "link").symlink_to("/etc/shadow")
        doctor.found("mongo")

    def test_no_longer_allowed(self, doctor: Doctor, host: Host) -> None:
        """A path below no prefix any more."""
        doctor.hostprep("create", "mongo", "-o", f"path={host.srv}/mongo")
        (finding,) = doctor.all("directory", "mongo", HOSTPREP_ALLOW="")
        assert finding["verdict"] == "bad"
        assert "HOSTPREP_ALLOW" in finding["what"]

    def test_labels_without_a_policy(self, doctor: Doctor, host: Host) -> None:
        """Kept as plain attributes labels keep nobody out; what differs is drift."""
        doctor.hostprep("create", "mongo", *MONGO, "-o", "label=container_file_t", HOSTPREP_SELINUX="force")
        set_label(host.data("mongo"), LABEL.replace("container_file_t", "var_t"))
        found = doctor.found("mongo", HOSTPREP_SELINUX="force")
        assert found["usable"]
        (finding,) = [each for each in found["findings"] if each["check"] == "drift"]
        assert finding["verdict"] == "warning"

    def test_on_a_terminal(self, host: Host) -> None:
        """In colours, and the command in one piece, however long."""
        environ = {**os.environ, **host.environ}
        hostprep = [PYTHON, "-m", "hostprep", *ALONE]
        subprocess.run([*hostprep, "create", "mongo", "-o", "uid=5"], cwd=REPOSITORY, env=environ, check=True)
        command = " ".join([*hostprep, "doctor", "mongo", "--user", "184:998"])
        done = subprocess.run(
            ["script", "-qec", f"stty cols 40; {command}", "/dev/null"], cwd=REPOSITORY,
            env={**environ, "TERM": "xterm-256color"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "\x1b[1;31mnot usable" in done.stdout
        assert "hostprep apply mongo -o uid=184 -o gid=998\n" in done.stdout


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


class TestInstallation:
    def test_a_server(self, doctor: Doctor, host: Host) -> None:
        """With a server that answers, all is in order but for the engine, which may be podman."""
        host.serve()
        doctor.hostprep("create", "mongo", *MONGO)
        found = doctor.found()
        assert found["usable"]
        said = {each["check"]: each for each in found["findings"]}
        assert said["socket"]["verdict"] == said["root"]["verdict"] == said["selinux"]["verdict"] == "ok"
        assert said["engine"]["verdict"] == "warning"
        assert said["volume"]["what"].startswith("mongo: 184:998 0755")

    def test_nothing(self, doctor: Doctor, host: Host) -> None:
        """On a host without hostprep's root and server that is said, and nothing is made."""
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
    def test_another_server(self, doctor: Doctor, host: Host, answer: bytes) -> None:
        """What answers and is no volume driver is said not to be."""
        doctor.hostprep("create", "mongo")
        other = Answering(host.socket, answer)
        try:
            (finding,) = doctor.all("socket")
        finally:
            other.close()
        assert finding["verdict"] == "bad"

    def test_an_open_socket(self, doctor: Doctor, host: Host) -> None:
        """A socket that others than root may connect to."""
        host.serve()
        os.chmod(host.socket, 0o666)
        (finding,) = doctor.all("socket")
        assert (finding["verdict"], finding["fix"]) == ("bad", f"chmod 0600 {host.socket}")

    def test_volumes(self, doctor: Doctor, host: Host) -> None:
        """Every volume in one line: damaged, gone, drifted, right."""
        for name in ("damaged", "drifted", "gone", "right"):
            doctor.hostprep("create", name, *MONGO)
        (host.root / "volumes/damaged/volume.json").write_text("{")
        host.data("gone").rmdir()
        os.chown(host.data("drifted"), 0, 0)
        found = doctor.all("volume")
        assert [each["verdict"] for each in found] == ["bad", "warning", "bad", "ok"]
        assert found[1]["fix"] == "hostprep apply drifted"

    @pytest.mark.parametrize(("kernel", "without"), [("5.12", 1), ("5.6", 2)])
    def test_an_old_kernel(self, host: Host, kernel: str, without: int) -> None:
        """What an older kernel does not have is told, and what is done instead; it is no fault."""
        argv = [PYTHON, "-m", "tests.support.old_kernel", kernel, PYTHON, "-m", "hostprep", *ALONE, "doctor", "--json"]
        done = subprocess.run(
            argv, cwd=REPOSITORY, env={**os.environ, **host.environ}, capture_output=True, text=True, check=False
        )
        found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "kernel"]
        assert [each["verdict"] for each in found].count("note") == without
        assert f"Linux {kernel}" in str(found)

    def test_units(self, doctor: Doctor, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Units that are not installed, not enabled, or start too late. In systemd's place a script answers."""
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
