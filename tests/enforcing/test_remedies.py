"""Each remedy that doctor prints holds, where it takes a kernel that enforces, or a Debian's: see tests/engine.

A row is slow here: --fix is tried once for a volume, and once for a sub-directory of one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.remedies import STATE, Row, Table, content, hold, remedy

from .guest import CONTAINER_FILE, IDS, ROOT, SRV, Docker, Hostprep, checked, command, set_label

HOME = "system_u:object_r:user_home_t:s0"
MORE = "head -c 200000 /dev/zero > /data/more"
RELABEL = "hostprep apply mongo -o label=container_file_t && hostprep repair mongo"
BELOW = "hostprep prepare DIRECTORY -o label=container_file_t"


class Guest:
    """The guest, with what a row may need."""

    def __init__(self, hostprep: Hostprep, run: Docker, tmp_path: Path, undo: ExitStack) -> None:
        self.hostprep = hostprep
        self.run = run
        self.tmp_path = tmp_path
        self.undo = undo

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.hostprep.command("doctor", *arguments)

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """The NFS server is this host: what is to be typed there is run here, as sshd does."""
        ssh = self.tmp_path / "ssh"
        ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
        ssh.chmod(0o755)
        return command("sh", "-euc", line, env={**os.environ, "PATH": f"{self.tmp_path}:{os.environ['PATH']}"})

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command("docker", *arguments)

    def state(self, directory: str) -> str:
        return checked(sys.executable, "-c", STATE, directory)

    def volume(self, **options: str) -> Path:
        """Have the volume mongo, and the container db with it."""
        data = self.run.create("mongo", **options)
        self.run.daemon("db", "mongo:/data")
        return data

    def below(self) -> Path:
        """Have the container db with a sub-directory of the volume, beside another user's."""
        data = self.run.create("mongo")
        for name, ids in {"mine": (184, 998), "theirs": (7, 8)}.items():
            (data / name).mkdir()
            os.chown(data / name, *ids)
            set_label(data / name, CONTAINER_FILE)
        mount = "type=volume,src=mongo,dst=/data,volume-subpath=mine"
        self.run(
            "run", "-d", "--name", "db", "-u", IDS, "--mount", mount, "--stop-signal=KILL", "busybox", "sleep", "600"
        )
        return data / "mine"

    def disk(self, *make: str, mount: str = "rw") -> Path:
        """A disk of its own, made by *make*."""
        image, point = self.tmp_path / "disk.img", SRV / "disk"
        image.touch()
        os.truncate(image, 32 << 20)
        checked(*make, str(image))
        point.mkdir()
        self.undo.callback(point.rmdir)
        device = checked("losetup", "--find", "--show", str(image))
        self.undo.callback(checked, "losetup", "--detach", device)
        checked("mount", "-o", mount, device, str(point))
        self.undo.callback(checked, "umount", str(point))
        self.undo.callback(self.run.remove_everything)
        return point

    def nfs(self) -> tuple[Path, Path]:
        """A directory of an NFS server, this host, that does not heed root; and where it is mounted."""
        export, point = SRV / "export", SRV / "nfs"
        (export / "mongo").mkdir(parents=True)
        point.mkdir()
        checked("systemctl", "start", "nfs-server")
        self.undo.callback(checked, "systemctl", "stop", "nfs-server")
        checked("exportfs", "-o", "rw,root_squash,no_subtree_check,insecure,fsid=7", f"127.0.0.1:{export}")
        self.undo.callback(checked, "exportfs", "-u", f"127.0.0.1:{export}")
        options = f"soft,actimeo=0,context={CONTAINER_FILE}"
        checked("mount", "-t", "nfs4", "-o", options, f"127.0.0.1:{export}", str(point))
        self.undo.callback(checked, "umount", str(point))
        self.undo.callback(self.run.remove_everything)
        return export / "mongo", point / "mongo"


@pytest.fixture
def guest(hostprep: Hostprep, docker: Docker, srv: Path, tmp_path: Path) -> Iterator[Guest]:
    with ExitStack() as undo:
        yield Guest(hostprep, docker, tmp_path, undo)


brings_out: Table[Guest] = Table()


# -- labels --------------------------------------------------------------------------------------------------------


@brings_out("label", "hostprep apply mongo")
def label_of_a_home(here: Guest) -> None:
    set_label(here.volume(), HOME)


@brings_out("label", "hostprep apply mongo -o label=container_file_t")
def label_that_was_asked_for(here: Guest) -> None:
    here.volume(label="user_home_t")


@brings_out(
    "label", "hostprep apply mongo -o label=container_file_t -o recurse=mismatch", uses="cat /data/from_outside"
)
def adopted(here: Guest) -> None:
    tree = SRV / "mongodb"
    tree.mkdir()
    (tree / "from_outside").write_text("from outside\n")
    here.volume(path=str(tree))


@brings_out("label of a subpath", BELOW)
def label_below(here: Guest) -> str:
    mine = here.below()
    set_label(mine, HOME)
    return str(mine)


@brings_out("categories", "hostprep apply mongo -o label=container_file_t")
def categories(here: Guest) -> None:
    here.run.create("mongo", label="container_file_t:s0:c1,c2")
    flags = ("-d", "--name", "db", "-u", IDS, "-v", "mongo:/data", "--stop-signal=KILL")
    here.run("run", *flags, "--security-opt=label=level:s0:c3,c4", "busybox", "sleep", "600")


@brings_out("categories of a subpath", BELOW)
def categories_below(here: Guest) -> str:
    mine = here.below()
    set_label(mine, f"{CONTAINER_FILE}:c1,c2")
    return str(mine)


@brings_out("labels", RELABEL, uses="cat /data/file")
def labels(here: Guest) -> None:
    moved_into(here.volume())


@brings_out("labels of a subpath", f"{BELOW} -o recurse=always", uses="cat /data/file")
def labels_below(here: Guest) -> str:
    mine = here.below()
    moved_into(mine)
    return str(mine)


def moved_into(directory: Path) -> None:
    (directory / "file").write_text("moved\n")
    os.chown(directory / "file", 184, 998)
    set_label(directory / "file", HOME)


@brings_out("denied", RELABEL, uses="cat /data/a/b/file")
def deep(here: Guest) -> None:
    denied_deep(here, here.volume())


@brings_out("denied of a subpath", f"{BELOW} -o recurse=always", uses="cat /data/a/b/file")
def deep_below(here: Guest) -> str:
    mine = here.below()
    denied_deep(here, mine)
    return str(mine)


def denied_deep(here: Guest, directory: Path) -> None:
    here.run.exec("db", "mkdir -p /data/a/b; echo deep > /data/a/b/file")
    set_label(directory / "a/b/file", HOME)
    here.run.exec("db", "cat /data/a/b/file")


# -- file systems --------------------------------------------------------------------------------------------------


@brings_out("mount options", "docker stop db && umount /srv/disk && mount -t vfat -o 'uid=184,gid=998,context=…")
def no_labels(here: Guest) -> None:
    point = here.disk("mkfs.vfat")
    (point / "mongo").mkdir()
    here.run("volume", "create", "-d", "hostprep", "-o", f"path={point}/mongo", "mongo")
    here.run.daemon("db", "mongo:/data")


@brings_out("quota", "setquota -u 184 0 2048 0 0 /srv/disk", uses=MORE)
def quota(here: Guest) -> None:
    point = here.disk("mkfs.ext4", "-q", "-O", "quota", mount="rw,usrquota")
    here.run.create("mongo", path=f"{point}/mongo", label="container_file_t")
    checked("setquota", "-u", "184", "0", "1024", "0", "0", str(point))
    here.run.daemon("db", "mongo:/data")
    here.run.exec("db", "cat /dev/zero > /data/big || :")


@brings_out("on the server", "ssh 127.0.0.1 chown 184:998 /srv/export/mongo", uses="touch /data/file")
def on_the_server(here: Guest) -> None:
    there, mounted = here.nfs()
    os.chown(there, 184, 998)
    here.volume(path=str(mounted))
    os.chown(there, 0, 0)


@brings_out(
    "on the server",
    "hostprep apply mongo -o uid=184 -o gid=998 --no-wait && ssh 127.0.0.1 chown 184:998 /srv/export/mongo",
    uses="touch /data/file",
)
def declared_otherwise_than_on_the_server(here: Guest) -> None:
    """Without the declaration, the next start would find the directory of another than the declared user, and fail."""
    there, mounted = here.nfs()
    os.chown(there, 5, 6)
    here.volume(path=str(mounted), uid="5", gid="6")


@brings_out("on the server", "ssh 127.0.0.1 chown -R 184:998 /srv/export/mongo", uses="cat /data/file")
def contents_on_the_server(here: Guest) -> None:
    there, mounted = here.nfs()
    os.chown(there, 184, 998)
    (there / "file").touch(mode=0o600)
    here.volume(path=str(mounted))


FIXED = {label_that_was_asked_for, label_below}


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        pytest.param(
            row,
            fix,
            id=f"{row}-{'fix' if fix else 'printed'}",
            marks=[pytest.mark.thorough] if row.code == "quota" else [],  # failed once on a busy machine; not known why
        )
        for row in brings_out.rows
        for fix in ((False, True) if row.arrange in FIXED else (False,))
    ],
)
def test_remedy(guest: Guest, row: Row[Guest], fix: bool) -> None:  # noqa: FBT001
    """What doctor prints, or --fix does, makes doctor content and the container work; a restart changes nothing."""
    hold(guest, row, fix=fix)


# -- the installation ----------------------------------------------------------------------------------------------


def test_disabled(guest: Guest) -> None:
    """For units that do not start with the host the command enables them."""
    checked("systemctl", "disable", "hostprep.socket", "hostprep.service")
    pasted(guest, remedy(guest, "disabled")["fix"])


def test_socket(guest: Guest) -> None:
    """For a server that does not answer the command starts it again."""
    checked("systemctl", "stop", "hostprep.socket", "hostprep.service")
    pasted(guest, remedy(guest, "socket")["fix"])


def test_root(guest: Guest) -> None:
    """For a root that was never made the command makes it; another fault of it has no such command."""
    known = Path("/etc/hostprep/roots")
    away = [(path, path.with_name(f"{path.name}.away")) for path in (ROOT, known) if path.exists()]
    checked("systemctl", "stop", "hostprep.socket", "hostprep.service")
    for path, aside in away:
        path.rename(aside)
    try:
        checked("systemctl", "start", "hostprep.socket")
        pasted(guest, remedy(guest, "root")["fix"])
    finally:
        guest.run.remove_everything()
        checked("systemctl", "stop", "hostprep.socket", "hostprep.service")
        for path, aside in away:
            checked("rm", "-rf", str(path))
            aside.rename(path)
        checked("systemctl", "start", "hostprep.socket", "hostprep.service")


def test_engine(guest: Guest) -> None:
    """For an engine that is stopped the command starts it."""
    checked("systemctl", "stop", "docker.socket", "docker.service")
    pasted(guest, remedy(guest, "engine")["fix"])


def pasted(guest: Guest, line: str) -> None:
    """Run a printed command: doctor is content then, and containers work, after a restart too."""
    done = guest.shell(line)
    assert done.returncode == 0, done.stderr
    content(guest)
    guest.volume()
    for _ in range(2):
        assert guest.run.exec("db", "touch /data/file") == ""
        guest.run("restart", "-t", "0", "db")
