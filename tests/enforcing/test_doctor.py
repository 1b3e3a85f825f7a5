"""`hostprep doctor` where the kernel denies: each label that keeps a container out, named, and mended as printed.

And the file systems that this needs a kernel of Debian's for: vfat, NFS, and quotas.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .guest import CONTAINER_FILE, IDS, Audit, Docker, Hostprep, checked, command, label, set_label

Found = dict[str, Any]
WRITE = "echo written > /data/file; cat /data/file"
HOME = "system_u:object_r:user_home_t:s0"


class Doctor:
    """The installed command."""

    def __init__(self, hostprep: Hostprep, docker: Docker) -> None:
        self.hostprep = hostprep
        self.docker = docker

    def found(self, *arguments: str) -> Found:
        done = self.hostprep.command("doctor", *arguments, "--json")
        found = json.loads(done.stdout or "null")
        assert isinstance(found, dict), done.stderr
        assert done.returncode == (0 if found["usable"] else 1)
        return found

    def all(self, check: str, *arguments: str) -> list[Found]:
        return [each for each in self.found(*arguments)["findings"] if each["check"] == check]

    def first_bad(self, check: str, name: str = "mongo") -> Found:
        """What is broken, for the container db."""
        found = self.found(name, "--container", "db")
        bad = [each for each in found["findings"] if each["verdict"] == "bad"]
        assert bad, found
        assert bad[0]["check"] == check, bad
        return dict(bad[0])

    def mended(self, check: str, fix: str, script: str = WRITE) -> None:
        """The container db is denied *script*; *check* says so; the *fix* is printed, and pasted; then it is not."""
        assert "enied" in self.docker.exec("db", script)
        found = self.first_bad(check)
        assert found["fix"] == fix, found
        checked("sh", "-euc", fix)
        assert "enied" not in self.docker.exec("db", script)
        assert self.found("mongo", "--container", "db")["usable"]


@pytest.fixture
def doctor(hostprep: Hostprep, docker: Docker) -> Doctor:
    return Doctor(hostprep, docker)


def test_well(doctor: Doctor, docker: Docker, audit: Audit) -> None:
    """A volume that is right: the policy, asked, lets the container write it, and nothing was denied."""
    docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    found = doctor.found("mongo", "--container", "db")
    assert found["usable"]
    said = {each["check"]: each["what"] for each in found["findings"]}
    assert said["label"] == f"{CONTAINER_FILE}: the policy lets container_t read and write it"
    assert said["denials"].startswith("none for this volume's files in /var/log/audit/audit.log")
    assert docker.exec("db", WRITE) == "written"
    assert audit.denials() == []


def test_label_of_a_home(doctor: Doctor, docker: Docker) -> None:
    """Who relabelled the directory under a running container: what the kernel denied is told, then and later."""
    directory = docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    set_label(directory, HOME)
    assert "enied" in docker.exec("db", WRITE)
    (denial, *_) = doctor.all("denials", "mongo", "--container", "db")
    assert f"sh (container_t) was denied write on the volume's directory, labelled {HOME}" in denial["what"]
    doctor.mended("label", "hostprep apply mongo")
    (denial, *_) = doctor.all("denials", "mongo", "--container", "db")
    assert denial["verdict"] == "note"
    assert f"its label is now {CONTAINER_FILE}, which allows it" in denial["what"]


def test_label_that_was_asked_for(doctor: Doctor, docker: Docker) -> None:
    """A label that no container may write, set as asked."""
    docker.create("mongo", label="user_home_t")
    docker.daemon("db", "mongo:/data")
    doctor.mended("label", "hostprep apply mongo -o label=container_file_t")


def test_adopted(doctor: Doctor, docker: Docker, srv: Path) -> None:
    """A directory of the host with what was in it, which keeps its label as long as none is declared."""
    tree = srv / "mongodb"
    tree.mkdir()
    (tree / "from_outside").write_text("from outside\n")
    docker.create("mongo", path=str(tree))
    docker.daemon("db", "mongo:/data")
    doctor.mended(
        "label", "hostprep apply mongo -o label=container_file_t -o recurse=mismatch", "cat /data/from_outside"
    )


def test_categories(doctor: Doctor, docker: Docker) -> None:
    """A label with categories that the container does not have, as `:Z` of another leaves it."""
    docker.create("mongo", label="container_file_t:s0:c1,c2")
    flags = ("-d", "--name", "db", "-u", IDS, "-v", "mongo:/data", "--stop-signal=KILL")
    docker("run", *flags, "--security-opt=label=level:s0:c3,c4", "busybox", "sleep", "600")
    assert "runs with c3,c4, not with c1,c2" in doctor.first_bad("categories")["what"]
    doctor.mended("categories", "hostprep apply mongo -o label=container_file_t")


def test_unconfined(doctor: Doctor, docker: Docker) -> None:
    """A container for which labels count nothing is told so."""
    directory = docker.create("mongo")
    set_label(directory, HOME)
    flags = ("-d", "--name", "db", "-u", IDS, "-v", "mongo:/data", "--security-opt=label=disable")
    docker("run", *flags, "busybox", "sleep", "600")
    set_label(directory, HOME)
    assert docker.exec("db", WRITE) == "written"
    found = doctor.found("mongo", "--container", "db")
    assert found["usable"], found
    docker("kill", "db")


def test_contents(doctor: Doctor, docker: Docker) -> None:
    """A file that was moved into the volume, with its label from elsewhere."""
    directory = docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    (directory / "file").write_text("moved\n")
    os.chown(directory / "file", 184, 998)
    set_label(directory / "file", HOME)
    fix = "hostprep apply mongo -o label=container_file_t && hostprep repair mongo"
    doctor.mended("contents", fix)


def test_deep(doctor: Doctor, docker: Docker) -> None:
    """A file deep down, found by what was denied: by device and inode."""
    directory = docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    docker.exec("db", "mkdir -p /data/a/b; echo deep > /data/a/b/file")
    set_label(directory / "a/b/file", HOME)
    fix = "hostprep apply mongo -o label=container_file_t && hostprep repair mongo"
    doctor.mended("denials", fix, "cat /data/a/b/file")
    assert label(directory / "a/b/file") == CONTAINER_FILE


def test_journal(doctor: Doctor, docker: Docker) -> None:
    """Without an audit log the journal is read."""
    log = Path("/var/log/audit/audit.log")
    directory = docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    set_label(directory, HOME)
    pid = checked("cat", "/run/auditd.pid")
    os.kill(int(pid), 15)
    log.rename(log.with_suffix(".away"))
    try:
        docker.exec("db", WRITE)
        told = [each["what"] for each in doctor.all("denials", "mongo", "--container", "db")]
        assert any("sh (container_t) was denied write on the volume's directory" in each for each in told), told
    finally:
        log.with_suffix(".away").rename(log)
        checked("systemctl", "start", "auditd")


# -- file systems --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(srv: Path, docker: Docker, *make: str, mount: tuple[str, ...] = ()) -> Iterator[Path]:
    """A disk of its own, made by *make*, mounted below /srv."""
    image, point = Path("/var/tmp/disk.img"), srv / "disk"
    image.touch()
    os.truncate(image, 32 << 20)
    checked(*make, str(image))
    point.mkdir()
    device = checked("losetup", "--find", "--show", str(image))
    checked("mount", "-o", ",".join(["rw", *mount]), device, str(point))
    try:
        yield point
    finally:
        docker.remove_everything()
        command("umount", str(point))
        checked("losetup", "--detach", device)
        image.unlink()


def test_no_labels(doctor: Doctor, docker: Docker, srv: Path) -> None:
    """On vfat neither owner nor label can be set: both are given when it is mounted."""
    with disk(srv, docker, "mkfs.vfat") as point:
        (point / "mongo").mkdir()
        docker("volume", "create", "-d", "hostprep", "-o", f"path={point}/mongo", "mongo")
        docker.daemon("db", "mongo:/data")
        assert "enied" in docker.exec("db", WRITE)
        fix = doctor.first_bad("no labels")["fix"]
        assert f"umount {point} && mount -t vfat -o 'uid=184,gid=998,context=" in fix
        docker("stop", "db")
        checked("sh", "-euc", fix)
        docker("start", "db")
        assert docker.exec("db", WRITE) == "written"
        assert doctor.found("mongo", "--container", "db")["usable"]


def test_quota(doctor: Doctor, docker: Docker, srv: Path) -> None:
    """A user whose quota is used up, on a disk with room."""
    with disk(srv, docker, "mkfs.ext4", "-q", "-O", "quota", mount=("usrquota",)) as point:
        docker.create("mongo", path=f"{point}/mongo", label="container_file_t")
        checked("setquota", "-u", "184", "0", "1024", "0", "0", str(point))
        docker.daemon("db", "mongo:/data")
        docker.exec("db", "cat /dev/zero > /data/big || :")
        assert "rror" in docker.exec("db", "head -c 200000 /dev/zero > /data/more")
        found = doctor.first_bad("quota")
        assert found["fix"] == f"setquota -u 184 0 2048 0 0 {point}"
        checked("sh", "-euc", found["fix"])
        assert docker.exec("db", "head -c 200000 /dev/zero > /data/more") == ""
        assert doctor.found("mongo", "--container", "db")["usable"]
        # Mounted so that it is counted, and nobody is kept to it.
        docker("stop", "db")
        device = checked("findmnt", "-no", "SOURCE", str(point))
        checked("umount", str(point))
        checked("mount", device, str(point))
        checked("setquota", "-u", "184", "0", "512", "0", "0", str(point))
        docker("start", "db")
        assert docker.exec("db", "head -c 200000 /dev/zero > /data/again") == ""
        assert doctor.found("mongo", "--container", "db")["usable"]


@pytest.fixture
def nfs(docker: Docker, srv: Path) -> Iterator[Path]:
    """A directory of an NFS server, this host, that does not heed root; and where it is mounted."""
    export, point = srv / "export", srv / "nfs"
    (export / "mongo").mkdir(parents=True)
    point.mkdir()
    checked("systemctl", "start", "nfs-server")
    checked("exportfs", "-o", "rw,root_squash,no_subtree_check,insecure,fsid=7", f"127.0.0.1:{export}")
    checked("mount", "-t", "nfs4", "-o", f"soft,actimeo=0,context={CONTAINER_FILE}", f"127.0.0.1:{export}", str(point))
    yield export
    docker.remove_everything()
    checked("umount", str(point))
    checked("exportfs", "-u", f"127.0.0.1:{export}")
    checked("systemctl", "stop", "nfs-server")


def test_root_squash(doctor: Doctor, docker: Docker, srv: Path, nfs: Path, tmp_path: Path) -> None:
    """On a server that does not heed root, hostprep cannot mend: the server's own command does."""
    os.chown(nfs / "mongo", 184, 998)
    docker.create("mongo", path=f"{srv}/nfs/mongo")
    docker.daemon("db", "mongo:/data")
    assert docker.exec("db", WRITE) == "written"
    (note,) = doctor.all("root_squash", "mongo", "--container", "db")
    assert note["verdict"] == "note"
    os.chown(nfs / "mongo", 0, 0)

    assert "enied" in docker.exec("db", "echo more > /data/more")
    fix = doctor.first_bad("root_squash")["fix"]
    assert fix == f"ssh 127.0.0.1 chown 184:998 {nfs}/mongo"
    # The server is this host: what is to be typed there is run here.
    checked("sh", "-euc", fix.removeprefix("ssh 127.0.0.1 "))

    assert docker.exec("db", "echo more > /data/more; cat /data/more") == "more"
    assert doctor.found("mongo", "--container", "db")["usable"]


# -- the installation ----------------------------------------------------------------------------------------------


def test_installation(hostprep: Hostprep, docker: Docker) -> None:
    """What `make install` leaves is in order: SELinux, socket, start order, engine, kernel, and each volume."""
    docker.create("mongo")
    done = hostprep.command("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    said = {each["check"]: each["what"] for each in found["findings"]}
    assert said["selinux"].startswith("on, and its policy can be asked")
    assert "start before the engine" in said["start order"]
    assert said["volume"] == f"mongo: 184:998 0755 {CONTAINER_FILE}"


def test_start_order(hostprep: Hostprep, docker: Docker) -> None:
    """Units that do not start with the host: so it is said, and what is printed mends it."""
    checked("systemctl", "disable", "hostprep.socket", "hostprep.service")
    done = command("hostprep", "doctor", "--json")
    (bad,) = [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "bad"]
    assert (done.returncode, bad["check"]) == (1, "start order")
    checked("sh", "-euc", bad["fix"])
    assert hostprep.command("doctor").returncode == 0


def test_bindings(hostprep: Hostprep) -> None:
    """Without the binding to SELinux's library nothing works, and the package is named."""
    package = Path("/usr/lib/python3/dist-packages/selinux")
    package.rename(package.with_name("selinux.away"))
    try:
        done = hostprep.command("doctor", "--json")
    finally:
        package.with_name("selinux.away").rename(package)
    bad = [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "bad"]
    assert (bad[0]["check"], bad[0]["fix"]) == ("selinux", "apt-get install python3-selinux")
