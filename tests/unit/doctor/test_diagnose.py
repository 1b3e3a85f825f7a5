"""`hostprep doctor NAME` without an engine. With one: tests/engine; with SELinux: tests/enforcing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.host import LABEL, PYTHON, REPOSITORY, Host, set_label

from .conftest import ALONE, MONGO, Doctor

pytestmark = pytest.mark.root


def test_no_owner_declared(doctor: Doctor) -> None:
    """A volume without a declared owner is looked at for nobody."""
    doctor.hostprep("create", "mongo")
    found = doctor.found("mongo")
    assert (found["whom"], found["usable"]) == ([], True)
    last = found["findings"][-1]
    assert (last["check"], last["verdict"]) == ("engine", "note")
    assert "/none" in last["what"]


def test_unknown(doctor: Doctor, host: Host) -> None:
    """For an unknown volume it prints the command that creates it, and creates nothing."""
    doctor.hostprep("create", "other")
    finding, note = doctor.found("mongo")["findings"]
    assert note["check"] == "engine"
    assert (finding["check"], finding["fix"]) == ("volume", "docker volume create -d hostprep mongo")
    assert not host.data("mongo").exists()


def test_no_root(doctor: Doctor, host: Host) -> None:
    """Without a root it fails, and makes none."""
    done = doctor.hostprep(*ALONE, "doctor", "mongo")
    assert (done.code, done.out) == (1, "")
    assert not host.root.exists()


def test_damaged(doctor: Doctor, host: Host) -> None:
    """A record that cannot be read is named, and no command."""
    doctor.hostprep("create", "mongo")
    (host.root / "volumes/mongo/volume.json").write_text("{")
    finding, note = doctor.found("mongo")["findings"]
    assert note["check"] == "engine"
    assert (finding["check"], finding["verdict"], finding["fix"]) == ("volume", "bad", "")


@pytest.mark.parametrize("user", ["app", "184:", "4294967295", "184:x", "-1", "184:998:1", "١"])
def test_malformed_user(doctor: Doctor, user: str) -> None:
    """--user without a container takes ids in range, and no names."""
    doctor.hostprep("create", "mongo")
    done = doctor.hostprep(*ALONE, "doctor", "mongo", "--user", user)
    assert (done.code, done.out) == (1, "")
    assert "--user" in done.err


def test_user(doctor: Doctor) -> None:
    """A user without a group has group 0, as for engines."""
    doctor.hostprep("create", "mongo", *MONGO)
    assert doctor.found("mongo", "--user", "184")["whom"] == ["184:0"]
    assert doctor.found("mongo", "--user", "0")["usable"]
    assert not doctor.found("mongo", "--user", "5:998")["usable"]


def test_no_engine(doctor: Doctor) -> None:
    """Without an engine the declared owner is looked at; a container cannot be."""
    doctor.hostprep("create", "mongo", *MONGO)
    done = doctor.hostprep(*ALONE, "doctor", "mongo")
    assert done.out.startswith("volume mongo for 184:998: usable\n")
    done = doctor.hostprep(*ALONE, "doctor", "mongo", "--container", "db")
    assert (done.code, done.out) == (1, "")
    assert "/none" in done.err


def test_no_sdk(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Docker SDK it does what needs no engine, and names the missing package for the rest."""
    doctor.hostprep("create", "mongo", *MONGO)
    monkeypatch.setitem(sys.modules, "docker.errors", None)
    monkeypatch.delitem(sys.modules, "hostprep.engine.connection", raising=False)
    assert doctor.found("mongo")["usable"]
    done = doctor.hostprep(*ALONE, "doctor", "mongo", "--container", "db")
    assert (done.code, done.out) == (1, "")
    assert "python3-docker" in done.err


def test_interrupted(doctor: Doctor, host: Host) -> None:
    """An interrupted pass is a warning, and the printed command finishes it."""
    doctor.hostprep("create", "mongo", *MONGO)
    mark = host.root / "volumes/mongo/pass.json"
    mark.write_text("{}")
    mark.chmod(0o600)
    (finding,) = doctor.all("drift", "mongo")
    assert (finding["verdict"], finding["fix"]) == ("warning", "hostprep apply mongo")
    assert doctor.hostprep(*finding["fix"].split()[1:]).code == 0
    assert not mark.exists()


def test_an_interrupted_repair(doctor: Doctor, host: Host) -> None:
    """With recurse=never no start finishes what was interrupted, and the printed command does."""
    doctor.hostprep("create", "mongo", *MONGO, "-o", "recurse=never")
    mark = host.root / "volumes/mongo/pass.json"
    mark.write_text("{}")
    mark.chmod(0o600)
    (finding,) = doctor.all("drift", "mongo")
    assert (finding["verdict"], finding["fix"]) == ("warning", "hostprep repair mongo")
    assert "no start" in finding["what"]
    assert doctor.hostprep(*finding["fix"].split()[1:]).code == 0
    assert not mark.exists()
    assert [each["verdict"] for each in doctor.all("drift", "mongo")] == ["ok"]


def test_files_of_others(doctor: Doctor, host: Host) -> None:
    """Files of others below a right root are a warning, even if the container's user may use them; repair mends it."""
    doctor.hostprep("create", "mongo", *MONGO)
    (host.data("mongo") / "file").touch(mode=0o644)
    (finding,) = doctor.all("contents", "mongo", "--user", "0")
    assert (finding["verdict"], finding["fix"]) == ("warning", "hostprep repair mongo")
    assert finding["what"] == "1 of the first 1 entries belong to others than 184:998"
    assert doctor.hostprep(*ALONE, "doctor", "mongo", "--user", "0", "--fix").code == 0
    assert (host.data("mongo") / "file").stat().st_uid == 0, "it may be meant so"
    assert doctor.hostprep(*finding["fix"].split()[1:]).code == 0
    assert doctor.all("contents", "mongo", "--user", "0") == []


def test_adopted_contents(doctor: Doctor, host: Host) -> None:
    """--fix repairs the contents of an adopted directory once, although recurse is never."""
    tree = host.srv / "mongo"
    tree.mkdir()
    (tree / "file").touch(mode=0o600)
    doctor.hostprep("create", "mongo", *MONGO, "-o", f"path={tree}", "-o", "recurse=never")
    (finding,) = doctor.all("contents", "mongo")
    assert finding["fix"] == "hostprep repair mongo"
    assert doctor.hostprep(*ALONE, "doctor", "mongo", "--fix").code == 0
    assert (tree / "file").stat().st_uid == 184
    assert json.loads(doctor.hostprep("status", "mongo", "--json").out)["status"]["options"]["recurse"] == "never"
    assert doctor.found("mongo")["usable"]


def test_readable_contents(doctor: Doctor, host: Host) -> None:
    """Files that may be read but not written are a warning, and --fix leaves them: it may be intended."""
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


def test_prepare_in_a_volume(doctor: Doctor, host: Host) -> None:
    """prepare takes a directory in a volume, as doctor prints it, and nothing else of hostprep's root."""
    doctor.hostprep("create", "mongo", *MONGO)
    data = host.data("mongo")
    (data / "logs").mkdir()
    (data / "link").symlink_to("logs")
    for path in (data, data.parent, host.root / "volumes", host.root / "trash", host.root, data / "link"):
        done = doctor.hostprep("prepare", str(path), "-o", "uid=7")
        assert (done.code, done.out) == (1, ""), path
    assert doctor.hostprep("prepare", str(data / "logs"), "-o", "uid=7").code == 0
    assert [(data / "logs").stat().st_uid, data.stat().st_uid] == [7, 184]


def test_hostile_names(doctor: Doctor, host: Host) -> None:
    """Control characters in a file's name are escaped."""
    doctor.hostprep("create", "mongo", *MONGO)
    (host.data("mongo") / "\x1b[31m\n").touch(mode=0o600)
    done = doctor.hostprep(*ALONE, "doctor", "mongo")
    assert done.code == 1
    assert "\\x1b[31m\\n is 0:0 0600" in done.out
    assert "\x1b" not in done.out


def test_fifo(doctor: Doctor, host: Host) -> None:
    """Nothing in a volume is opened: a FIFO would block, a symlink lead elsewhere."""
    doctor.hostprep("create", "mongo", *MONGO)
    os.mkfifo(host.data("mongo") / "fifo")
    (host.data("mongo") / "link").symlink_to("/etc/shadow")
    doctor.found("mongo")


def test_no_longer_allowed(doctor: Doctor, host: Host) -> None:
    """A path that HOSTPREP_ALLOW no longer covers is named."""
    doctor.hostprep("create", "mongo", "-o", f"path={host.srv}/mongo")
    (finding,) = doctor.all("directory", "mongo", HOSTPREP_ALLOW="")
    assert finding["verdict"] == "bad"
    assert "HOSTPREP_ALLOW" in finding["what"]


def test_labels_without_a_policy(doctor: Doctor, host: Host) -> None:
    """Labels that are plain attributes deny nothing; one that differs is drift."""
    doctor.hostprep("create", "mongo", *MONGO, "-o", "label=container_file_t", HOSTPREP_SELINUX="force")
    set_label(host.data("mongo"), LABEL.replace("container_file_t", "var_t"))
    found = doctor.found("mongo", HOSTPREP_SELINUX="force")
    assert found["usable"]
    (finding,) = [each for each in found["findings"] if each["check"] == "drift"]
    assert finding["verdict"] == "warning"


def test_on_a_terminal(host: Host) -> None:
    """On a terminal it prints colours, and the command in one line, however long."""
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
    assert "hostprep apply mongo -o uid=184\n" in done.stdout
