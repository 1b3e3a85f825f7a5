"""Volumes on a file system that takes no writes: Get says so, Mount answers what needs no repair."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.doctor.diagnose import diagnose
from hostprep.volumes.driver import Driver
from tests.support.disks import Disk
from tests.support.fixtures import OpenDriver
from tests.support.host import Docker, Host, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998", "mode": "0750"}


@pytest.fixture
def disk(nothing_left: None, tmp_path: Path) -> Iterator[Disk]:
    images = tmp_path / "images"
    images.mkdir()
    with mounted("-t", "tmpfs", "none", str(images)):
        yield Disk(images, "ext4 small")


def remounted(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


def superblock(disk: Disk, place: Path) -> None:
    remounted(place, "ro")


def this_mount(disk: Disk, place: Path) -> None:
    remounted(place, "bind,ro")


def an_error(disk: Disk, place: Path) -> None:
    disk.find_damaged(place)


HOW = pytest.mark.parametrize("how", [superblock, this_mount, an_error])


def told(status: dict[str, Any], place: Path) -> None:
    """Status is not ready, although nothing differs, and says why."""
    assert (status["ready"], status["drift"], status["uid"]) == (False, [], 184)
    (warning,) = status["warnings"]
    assert warning.startswith(f"{place} takes no writes: it is mounted read-only, or ")


@HOW
def test_a_path(docker: Docker, driver: Driver, host: Host, disk: Disk, how: Callable[[Disk, Path], None]) -> None:
    """Status is not ready and says why; Mount answers what is right, and fails where the owner cannot even read."""
    place = host.srv / "disk"
    place.mkdir()
    with disk.mounted(place):
        docker.created("mongo", path=f"{place}/db", **MONGO)
        docker.created("unused", path=f"{place}/unused", **MONGO)
        docker.mounted("mongo")
        assert docker.status("mongo")["ready"] is True
        os.chown(place / "unused", 5, 5)
        how(disk, place)
        told(docker.status("mongo"), place / "db")
        assert docker.mounted("mongo") == place / "db"
        assert docker.unmount("mongo").status == 200
        assert "Read-only file system" in docker.mount("unused").error
        found = {finding.check: finding.what for finding in diagnose(driver, "mongo", []).findings}
        assert "read-only" in found
        assert found["drift"] == "as declared"
        disk.mount_again(place)
        assert docker.mounted("mongo") == place / "db"
        assert docker.status("mongo")["ready"] is True


@HOW
def test_the_root(host: Host, disk: Disk, how: Callable[[Disk, Path], None]) -> None:
    """On a read-only root a server starts, Get and List answer, and Mount answers what is right, by path too."""
    host.root.mkdir()
    make_tree(host.srv, "dir db", "dir home 1000:1000")
    with disk.mounted(host.root):
        host.root.chmod(0o700)
        (host.root / "lost+found").rmdir()
        assert host.run("create", "mongo", *(f"-o{key}={value}" for key, value in MONGO.items())).code == 0
        assert host.run("create", "adopted", "-o", f"path={host.srv}/db").code == 0
        assert host.run("create", "new", "-o", f"path={host.srv}/new").code == 0
        make_tree(host.root, "file locks/.new-0123456789abcdef 0:0 600")
        how(disk, host.root)

        server = host.serve()

        assert sorted(volume["Name"] for volume in server("List").body["Volumes"]) == ["adopted", "mongo", "new"]
        told(server("Get", Name="mongo").body["Volume"]["Status"], host.data("mongo"))
        assert server("Get", Name="nobody").status == 404
        places = {"mongo": host.data("mongo"), "adopted": host.srv / "db", "new": host.srv / "new"}
        for name, place in places.items():
            assert server("Mount", Name=name, ID="1").body == {"Mountpoint": str(place), "Err": ""}
            assert server("Unmount", Name=name, ID="1").status == 200
        for name in ("adopted", "new"):
            assert server("Get", Name=name).body["Volume"]["Status"]["ready"] is True
        refused = server("Create", Name="other")
        assert (refused.status, "Read-only file system" in refused.error) == (500, True)
        assert server("Remove", Name="mongo").status == 500
        disk.mount_again(host.root)
        assert server("Get", Name="mongo").body["Volume"]["Status"]["ready"] is True
        assert server("Create", Name="other").status == 200
        assert server.terminate() == 0


def test_own_by_a_bind_mount(open_driver: OpenDriver, host: Host) -> None:
    """A read-only bind mount of the root on itself is one as well."""
    driver = open_driver()
    driver.create("mongo", MONGO, soon())
    with mounted("--bind", str(host.root), str(host.root)):
        remounted(host.root, "bind,ro")
        told(driver.get("mongo")["Status"], host.data("mongo"))
        assert driver.mount("mongo", soon()) == str(host.data("mongo"))
    assert driver.get("mongo")["Status"]["ready"] is True


def test_the_mount_of_a_path(docker: Docker, host: Host) -> None:
    """A mount that was made while the path was read-only is made anew once it is not, and the other way round."""
    make_tree(host.srv, "dir home 1000:1000", "dir home/db 184:998 750")
    home, place = host.srv / "home", host.root / "mounts/mongo"

    def read_only() -> bool:
        return bool(os.statvfs(docker.mounted("mongo")).f_flag & os.ST_RDONLY)

    with mounted("--bind", str(home), str(home)):
        docker.created("mongo", path=f"{home}/db", **MONGO)
        for how, expected in (("bind,ro", True), ("bind,rw", False), ("bind,ro", True)):
            remounted(home, how)
            assert docker.status("mongo")["ready"] is not expected
            assert read_only() is expected
            assert (
                len([line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(place) in line]) == 1
            )
        remounted(home, "bind,rw")
        assert docker.remove("mongo").status == 200
    assert owner(home / "db") == (184, 998)
