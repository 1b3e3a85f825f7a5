"""Copy-up: into an empty volume the engine copies what the image has there, and the owner and mode of that
directory, between the first Mount and its Unmount. hostprep puts them right before the container starts.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from testbed.engine import Hostprep, wait_for
from testbed.images import Entry, busybox
from tests.support.users import listed, may

from .client import IDS, OPTIONS, Docker, mode, owner

pytestmark = pytest.mark.engine
# The very first instruction writes.
FIRST = "echo written > /data/file; cat /data/file; cat /data/seed"
CONTENTS = ("seed", "conf", "conf/main")


def test_run(docker: Docker) -> None:
    """On docker run the container can write from its first instruction, and owns what the image brought."""
    mountpoint = docker.create("mongo")

    assert docker.run("mongo:/data", FIRST, image="copyup") == "written\nfrom the image"

    assert owner(mountpoint) == (184, 998)
    assert mode(mountpoint) == "0755"
    assert {owner(f"{mountpoint}/{name}") for name in CONTENTS} == {(184, 998)}


def test_create_and_start(docker: Docker) -> None:
    """The engine copies at docker create: what it copied has the right owner then, and at docker start."""
    mountpoint = docker.create("mongo")
    docker("create", "--name", "first", "-u", IDS, "-v", "mongo:/data", "copyup", "sh", "-euc", FIRST)
    assert {owner(path) for path in (mountpoint, f"{mountpoint}/seed")} == {(184, 998)}

    assert docker("start", "--attach", "first") == "written\nfrom the image"

    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


@pytest.fixture
def large(docker: Docker) -> str:
    """An image with 2,000 files of 33:33 in /data."""
    files = (Entry(f"data/{n % 40}/{n}", 0o600, 33, 33, b"x" * 4096) for n in range(2000))
    directories = (Entry(f"data/{n}", 0o700, 33, 33) for n in range(40))
    docker("import", "-", "large", stdin=busybox(Entry("data", 0o700, 33, 33), *directories, *files))
    return "large"


@pytest.mark.parametrize("apart", [0.0, 0.15])
def test_several_at_once(docker: Docker, hostprep: Hostprep, large: str, apart: float) -> None:
    """Several containers made at once on a fresh volume leave no file with the image's owner."""
    mountpoint = docker.create("mongo")
    creating = []
    for number in range(5):
        creating.append(docker.begin("create", "--name", f"c{number}", "-u", IDS, "-v", "mongo:/data", large, "true"))
        time.sleep(apart)
    for process in creating:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said

    status = docker.inspect("mongo")["Status"]
    there = [(path, *(f"{path}/{name}" for name in names)) for path, _, names in os.walk(mountpoint)]
    foreign = [path for some in there for path in some if owner(path) != (184, 998)]
    assert (status["ready"], status["warnings"], foreign[:3], len(foreign)) == (True, [], [], 0)
    assert not (hostprep.root / "volumes/mongo/copying.json").exists()
    assert docker.run("mongo:/data", "cat /data/*/* | wc -c") == str(2000 * 4096)


def test_nocopy(docker: Docker) -> None:
    """With :nocopy the volume starts empty, and is as writable."""
    mountpoint = docker.create("mongo")

    printed = docker.run("mongo:/data:nocopy", "ls -A /data; echo written > /data/file", image="copyup")

    assert printed == ""
    assert os.listdir(mountpoint) == ["file"]
    assert owner(mountpoint) == (184, 998)


def test_new_volume(docker: Docker) -> None:
    """A volume that docker run makes itself is right in that same run."""
    options = "volume-opt=uid=184,volume-opt=gid=998"
    mount = f"type=volume,source=mongo,target=/data,volume-driver=hostprep,{options}"

    flags = ("--rm", "-u", IDS, "--mount", mount)
    assert docker("run", *flags, "copyup", "sh", "-euc", FIRST) == "written\nfrom the image"


def test_mode(docker: Docker) -> None:
    """A declared mode, setgid too, survives the image's."""
    mountpoint = docker.create("mongo", *OPTIONS, "-o", "mode=02770")

    printed = docker.run("mongo:/data", "stat -c '%u:%g %a' /data", image="copyup")

    assert printed == "184:998 2770"
    assert mode(mountpoint) == "2770"


def test_an_access_list(docker: Docker) -> None:
    """What an image's access list gives, a declared mode bounds; whom it lets in, Status says."""
    entries = [(1, 7, -1), (2, 7, 1005), (4, 5, -1), (16, 7, -1), (32, 0, -1)]
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)
    docker("import", "-", "listed", stdin=busybox(Entry("data", 0o770, access=access), Entry("data/seed", 0o640)))
    try:
        mountpoint = docker.create("mongo", *OPTIONS, "-o", "mode=0750")
        docker.run("mongo:/data", "echo written > /data/file", image="listed")
    finally:
        docker("rmi", "listed")
    assert listed(Path(mountpoint)) == ["user::rwx", "user:1005:rwx", "group::r-x", "mask::r-x", "other::---"]
    assert may(Path(mountpoint), 1005, 1005) == "r-x"
    status = docker.inspect("mongo")["Status"]
    assert (status["mode"], status["ready"]) == ("0750", True)
    assert status["warnings"] == [
        "an access list lets user 1005 read and enter",
        "what is made in it later inherits an access list, which names user 1005",
    ]


def test_recurse_never(docker: Docker) -> None:
    """With recurse=never only the volume's root is put right; its contents keep the image's owners."""
    mountpoint = docker.create("mongo", *OPTIONS, "-o", "recurse=never")

    docker.run("mongo:/data", "echo written > /data/file", image="copyup")

    assert owner(mountpoint) == (184, 998)
    assert {owner(f"{mountpoint}/{name}") for name in CONTENTS} == {(55, 66)}


def test_nothing_declared(docker: Docker) -> None:
    """What is not declared is the image's to set: its owner and mode stay."""
    mountpoint = docker.create("plain", "-o", "recurse=mismatch")

    docker.run("plain:/owned", "echo written > /owned/file", user="55:66", image="copyup")

    assert owner(mountpoint) == (55, 66)
    assert mode(mountpoint) == "0700"
    assert docker.inspect("plain")["Status"]["drift"] == []


def test_second_container(docker: Docker) -> None:
    """A volume with contents gets no copy; the second container finds what the first one left."""
    docker.create("mongo")
    docker.run("mongo:/data", "echo changed > /data/seed", image="copyup")

    assert docker.run("mongo:/data", "cat /data/seed", image="copyup") == "changed"


def test_label(docker: Docker, hostprep: Hostprep) -> None:
    """A declared label is on the root and on what the image brought."""
    hostprep.stop()
    hostprep.start(selinux="force")
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    mountpoint = Path(docker.create("mongo", *OPTIONS, "-o", f"label={label}"))

    docker.run("mongo:/data", FIRST, image="copyup")

    for path in (mountpoint, mountpoint / "seed", mountpoint / "conf" / "main"):
        assert os.getxattr(path, "security.selinux").rstrip(b"\0") == label.encode()
    assert docker.inspect("mongo")["Status"]["label"] == label


@pytest.fixture
def prepared(docker: Docker) -> str | None:
    """The mount point of a volume with directories for several containers; None on an engine without volume-subpath."""
    if docker("version", "--format", "{{.Server.Version}}").startswith("20.10."):
        assert "volume-subpath" in docker.fails("create", "--mount", part("sub"), "busybox")
        return None
    mountpoint = docker.create("mongo")
    docker.run("mongo:/v", "mkdir -p /v/mine /v/a/b /v/app1 /v/app2")
    docker.run("mongo:/v", "mkdir /v/roots /v/www; echo page > /v/www/page; chown -R 33:33 /v/www", user="0")
    return mountpoint


def part(path: str) -> str:
    """A directory of the volume mongo, for --mount."""
    return f"type=volume,src=mongo,dst=/data,volume-subpath={path}"


def foreign(mountpoint: str, path: str) -> list[str]:
    """What in a directory of a volume, itself included, is not 184:998's."""
    found = [(each, *(f"{each}/{name}" for name in names)) for each, _, names in os.walk(f"{mountpoint}/{path}")]
    return [each for some in found for each in some if owner(each) != (184, 998)]


@pytest.fixture
def small(docker: Docker) -> str:
    """An image with files of 33:33 in /data."""
    files = (Entry("data/conf", 0o700, 33, 33), Entry("data/conf/main", 0o600, 33, 33, b"from the image"))
    docker("import", "-", "small", stdin=busybox(Entry("data", 0o700, 33, 33), *files))
    return "small"


def warnings(status: dict[str, Any]) -> list[str]:
    """The warnings of Status, but for the one of directories that are others' by purpose."""
    return [each for each in status["warnings"] if "belong to others" not in each]


def test_subpath(docker: Docker, prepared: str | None, small: str) -> None:
    """A container that has a directory of a volume can write there at once, and owns what the image brought."""
    if not prepared:
        return
    for path in ("mine", "a/b", "roots"):
        script = "echo written > /data/file; cat /data/file /data/conf/main"
        flags = ("--rm", "-u", IDS, "--mount", part(path))
        assert docker("run", *flags, small, "sh", "-euc", script) == "written\nfrom the image"
        assert (foreign(prepared, path), mode(f"{prepared}/{path}")) == ([], "0700")
    assert docker("run", *flags, small, "cat", "/data/file") == "written"
    assert owner(prepared) == (184, 998)
    assert {owner(f"{prepared}/www{name}") for name in ("", "/page")} == {(33, 33)}
    status = docker.inspect("mongo")["Status"]
    assert (status["ready"], warnings(status)) == (True, [])


def test_subpath_several_at_once(docker: Docker, hostprep: Hostprep, prepared: str | None, large: str) -> None:
    """Several containers made at once on one directory of a volume leave no file with the image's owner."""
    if not prepared:
        return
    names = [f"c{number}" for number in range(5)]
    creating = [docker.begin("create", "--name", name, "--mount", part("mine"), large, "true") for name in names]
    for process in creating:
        _, said = process.communicate(timeout=180)
        assert process.returncode == 0, said

    status = docker.inspect("mongo")["Status"]
    assert (status["ready"], warnings(status), foreign(prepared, "mine")) == (True, [], [])
    assert not (hostprep.root / "volumes/mongo/copying.json").exists()


def test_subpath_one_after_the_other(docker: Docker, prepared: str | None, small: str) -> None:
    """Where containers run on a volume already, a copy-up into another directory of it is right, and Status ready."""
    if not prepared:
        return
    for name in ("app1", "app2"):
        flags = ("--name", name, "-u", IDS, "--stop-signal", "KILL", "--mount", part(name))
        docker("run", "-d", *flags, small, "sleep", "600")
        status = docker.inspect("mongo")["Status"]
        assert (status["ready"], warnings(status), foreign(prepared, name)) == (True, [], [])
    assert docker.exec("app1", "echo written > /data/file; cat /data/file") == "written"


def test_subpath_that_a_container_prepares(docker: Docker, prepared: str | None) -> None:
    """A container that gives its own directory to its user, and fills it, keeps it."""
    if not prepared:
        return
    script = "mkdir /data/x; echo written > /data/x/file; echo more > /data/file; chown -R 33:33 /data"
    docker("run", "--rm", "--mount", part("mine"), "busybox", "sh", "-euc", script)
    docker("run", "--rm", "--mount", part("a/b"), "-u", "33:33", "busybox", "true")
    assert {owner(f"{prepared}/mine/{name}") for name in (".", "x", "x/file", "file")} == {(33, 33)}


def test_subpath_without_its_unmount(docker: Docker, hostprep: Hostprep, prepared: str | None, large: str) -> None:
    """A copy-up that ends while hostprep is away is made right at the next Mount; Status is not ready before."""
    if not prepared:
        return
    copying = docker.begin("create", "--name", "first", "-u", IDS, "--mount", part("mine"), large, "cat", "/data/0/0")
    wait_for(lambda: owner(f"{prepared}/mine") == (33, 33), "the copy-up to begin")
    hostprep.kill()
    copying.communicate(timeout=180)
    hostprep.start()
    status = docker.inspect("mongo")["Status"]
    assert (status["ready"], len(warnings(status))) == (False, 1)
    assert docker("run", "--rm", "-u", IDS, "--mount", part("mine"), large, "cat", "/data/0/0") == "x" * 4096
    assert foreign(prepared, "mine") == []
