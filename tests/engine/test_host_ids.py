"""host_uid and host_gid: the container is mongodb, and the files stay the host user's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import OPTIONS, WRITE, Docker, mode, owner
from .doctor import Doctor

pytestmark = pytest.mark.engine
MINE = (*OPTIONS, "-o", "host_uid=1000", "-o", "host_gid=1001")
USER = ("setpriv", "--reuid=1000", "--regid=1001", "--clear-groups", "--bounding-set=-all")


@pytest.fixture(autouse=True)
def allowed_by_the_unit(hostprep: Hostprep) -> None:
    """hostprep has the capabilities of the drop-in."""
    hostprep.stop()
    hostprep.start(drop_ins=["user-ids.conf"])


@pytest.fixture
def mine(allowed: Path) -> Iterator[Path]:
    """A directory of uid 1000's, with a file in it."""
    directory = allowed / "mongodb"
    directory.mkdir(mode=0o750)
    (directory / "mine").write_text("mine\n")
    for path in (directory, directory / "mine"):
        os.chown(path, 1000, 1001)
    yield directory
    subprocess.run(["rm", "-r", directory], check=True)


def as_user(*command: str | Path) -> str:
    """What *command* prints, run by the host's user."""
    return subprocess.run([*USER, *map(str, command)], check=True, capture_output=True, text=True).stdout


def test_both_sides(docker: Docker, mine: Path) -> None:
    """The container's 184 reads and writes what is uid 1000's on the host, who reads and writes what it made."""
    docker.create("mongo", *MINE, "-o", f"path={mine}")
    said = docker.run("mongo:/data", f"cat /data/mine; {WRITE}; stat -c %u:%g /data /data/mine /data/file")
    assert said.splitlines() == ["mine", "written", *["184:998"] * 3]
    assert {owner(path) for path in (mine, mine / "mine", mine / "file")} == {(1000, 1001)}
    assert as_user("cat", mine / "file") == "written\n"
    as_user("rm", mine / "file")
    status = docker.inspect("mongo")["Status"]
    assert (status["ready"], status["idmapped"], status["warnings"]) == (True, True, [])
    docker("volume", "rm", "mongo")
    assert (owner(mine), mode(mine), os.listdir(mine)) == ((1000, 1001), "0750", ["mine"])


def test_copy_up(docker: Docker, hostprep: Hostprep) -> None:
    """What the image brings is the container's user's at once, and the host user's on disk."""
    docker.create("mongo", *MINE)
    first = "echo written > /data/file; find /data -exec stat -c %u:%g {} +"
    assert set(docker.run("mongo:/data", first, image="copyup").split()) == {"184:998"}
    on_disk = hostprep.root / "volumes" / "mongo" / "_data"
    there = [on_disk, *on_disk.rglob("*")]
    assert {owner(path) for path in there} == {(1000, 1001)}
    assert len(there) > 4


def test_doctor(docker: Docker, hostprep: Hostprep) -> None:
    """doctor judges by the map: the declared user may use the volume, and for another it names the option."""
    docker.create("mongo", *MINE, "-o", "mode=0700")
    docker.daemon("web", "mongo:/data", script=f"umask 077; {WRITE}; sleep 600")
    doctor = Doctor(docker, hostprep)
    shown = {each["check"]: each["what"] for each in doctor.well("mongo")["findings"]}
    assert "1000:1001 on this host, 184:998 in the container, 0700" in shown["directory"]
    assert shown["owner"] == "184:998 in container web, on this host 1000:1001 may read, write and enter, as the owner"
    assert shown["mount"] == "mounted at /data in container web"
    docker("rm", "-f", "web")
    assert [each for each in doctor.well("mongo")["findings"] if each["verdict"] != "ok"] == []
    docker("create", "--name", "web", "-u", "5:6", "-v", "mongo:/data", "busybox", "true")
    fix = doctor.finding("owner", "mongo", "--container", "web")["fix"]
    assert fix == "hostprep apply mongo -o uid=5 -o gid=6"
    assert "5:6" in doctor.finding("owner", "mongo", "--user", "5:6")["what"]


def test_docker_cp(docker: Docker, hostprep: Hostprep, tmp_path: Path) -> None:
    """docker cp into and out of a container that has the volume works as ever."""
    docker.create("mongo", *MINE)
    docker.daemon("web", "mongo:/data", "-u", "0")
    (tmp_path / "in").write_text("brought\n")
    docker("cp", str(tmp_path / "in"), "web:/data/in")
    assert docker.exec("web", "stat -c %u:%g /data/in; chown 184:998 /data/in") == "0:0"
    assert owner(hostprep.root / "volumes/mongo/_data/in") == (1000, 1001)
    docker("cp", "-a", "web:/data/in", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "brought\n"


def test_two_volumes_of_one_directory(docker: Docker, mine: Path) -> None:
    """Two containers with different users share the files of a third, the host's."""
    docker.create("mongo", *MINE, "-o", f"path={mine}")
    docker.create("backup", "-o", "uid=200", "-o", "gid=200", *MINE[-4:], "-o", f"path={mine}")
    docker.run("mongo:/data", WRITE)
    assert docker.run("backup:/data", "cat /data/file; echo more >> /data/file", user="200:200") == "written"
    assert docker.run("mongo:/data", "cat /data/file") == "written\nmore"
    assert owner(mine / "file") == (1000, 1001)


def test_after_a_restart(docker: Docker, hostprep: Hostprep) -> None:
    """hostprep finds the mount after a restart; where it is gone, as after a reboot, the next start makes it."""
    place = docker.create("mongo", *MINE)
    docker.daemon("web", "mongo:/data", script=f"{WRITE}; sleep 600")
    hostprep.kill()
    hostprep.start(drop_ins=["user-ids.conf"])
    assert docker.inspect("mongo")["Status"]["idmapped"] is True
    docker("stop", "web")
    subprocess.run(docker.engine.inside("umount", place), check=True)
    docker("start", "web")
    assert docker.exec("web", "stat -c %u:%g /data/file") == "184:998"


def test_purge_of_what_is_in_use(docker: Docker, hostprep: Hostprep) -> None:
    """A removed volume that a container still has mounted, with its own ids, is not purged."""
    docker.create("mongo", *MINE)
    docker.daemon("web", "mongo:/data", script=f"{WRITE}; sleep 600")
    said = hostprep.command("rm", "mongo")
    assert said.returncode == 1
    assert "has it mounted at /data" in said.stderr
    assert hostprep.command("rm", "--force", "mongo").returncode == 0
    assert hostprep.command("purge", "--all").returncode != 0
    assert docker.exec("web", "cat /data/file") == "written"
    docker("rm", "-f", "web")
    assert hostprep.command("purge", "--all").returncode == 0


def test_the_plain_unit(docker: Docker, hostprep: Hostprep) -> None:
    """Without the drop-in Create is refused, names it, and leaves nothing."""
    hostprep.stop()
    hostprep.start()
    said = docker.fails("volume", "create", "-d", "hostprep", *MINE, "mongo")
    assert "the drop-in user-ids.conf for hostprep.service allows it" in said
    assert docker.volumes() == []
    docker.create("mongo")
