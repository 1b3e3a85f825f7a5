"""What tells a file system from others after a reboot, and whether it takes writes."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host.filesystem import fingerprint, takes_writes
from tests.support.disks import KINDS, Disk, open_directory
from tests.support.host import eventually, mounted

pytestmark = pytest.mark.root


def at(place: Path) -> str:
    with open_directory(place) as fd:
        return fingerprint(fd)


def device(place: Path) -> int:
    return os.stat(place).st_dev


@pytest.fixture
def place(nothing_left: None, tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


@contextlib.contextmanager
def taken(device: int, images: Path) -> Iterator[None]:
    """Somebody else has the loop device that a disk in *images* had: this test, or another user of this machine."""
    name, other = f"loop{os.minor(device)}", images / "other.img"
    other.write_bytes(bytes(1 << 20))

    def holder() -> str:
        subprocess.run(["losetup", f"/dev/{name}", str(other)], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            return Path(f"/sys/block/{name}/loop/backing_file").read_text().strip()
        return ""

    try:
        eventually(lambda: holder() not in ("", str(images / "xfs.img"), str(images / "ext4.img")), f"{name} is taken")
        yield
    finally:
        if holder() == str(other):
            subprocess.run(["losetup", "-d", f"/dev/{name}"], check=True)


class TestFingerprint:
    @pytest.mark.parametrize("kind", KINDS)
    def test_another_device(self, place: Path, tmp_path: Path, kind: str) -> None:
        """It stays when the disk is mounted again as another device; XFS makes f_fsid of that."""
        disk = Disk(tmp_path, kind)
        with disk.mounted(place):
            (place / "data").mkdir()
            before, device_before = (at(place), at(place / "data")), device(place)
        # The numbers of btrfs are of no device.
        other = contextlib.nullcontext() if kind == "btrfs" else taken(device_before, tmp_path)
        with other, disk.mounted(place):
            assert (at(place), at(place / "data")) == before
            assert kind == "btrfs" or device(place) != device_before
        assert before[0] != before[1]
        assert len(before[0].split(":")[1]) >= 16

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_alike(self, place: Path, tmp_path: Path, kind: str) -> None:
        """Two disks of one kind differ, although the inode of their top directory is the same."""
        found = set()
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            with Disk(tmp_path / str(number), kind).mounted(place):
                found.add(at(place))
        assert len(found) == 2
        assert len({each.rpartition(":")[2] for each in found}) == 1

    def test_a_rollback(self, place: Path, tmp_path: Path) -> None:
        """A snapshot that takes the place of a btrfs sub-volume has the fingerprints of what is in it."""
        with Disk(tmp_path, "btrfs").mounted(place):
            subprocess.run(["btrfs", "-q", "subvolume", "create", place / "now"], check=True)
            (place / "now/db").mkdir()
            subprocess.run(["btrfs", "-q", "subvolume", "snapshot", place / "now", place / "then"], check=True)
            before = at(place / "now/db")
            (place / "now").rename(place / "before")
            (place / "then").rename(place / "now")
            assert at(place / "now/db") == before

    @pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
    def test_without_one(self, place: Path, tmp_path: Path, kind: str) -> None:
        """Of what has no number of its own after a reboot, the kind is left."""
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        options = ("-o", layers) if kind == "overlay" else ()
        found = set()
        for _ in range(2):
            with mounted("-t", kind, *options, "none", str(place)):
                found.add(at(place))
        assert found == {"1021994::" if kind == "tmpfs" else "794c7630::"}


class TestTakesWrites:
    def takes(self, place: Path) -> bool:
        with open_directory(place) as fd:
            return takes_writes(fd)

    def test_a_mount(self, place: Path) -> None:
        """A read-only bind mount does not, while what it was made of does."""
        (place / "it").mkdir()
        (place / "bound").mkdir()
        with mounted("--bind", str(place / "it"), str(place / "bound")):
            assert self.takes(place / "bound")
            subprocess.run(["mount", "-o", "remount,bind,ro", place / "bound"], check=True)
            assert not self.takes(place / "bound")
            assert self.takes(place / "it")

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_file_system(self, place: Path, tmp_path: Path, kind: str) -> None:
        """A file system that is mounted read-only does not."""
        with Disk(tmp_path, kind).mounted(place):
            assert self.takes(place)
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            assert not self.takes(place)

    @pytest.mark.parametrize("how", ["errors=remount-ro", "shut down"])
    def test_an_error(self, place: Path, tmp_path: Path, how: str) -> None:
        """ext4 that has stopped after an error does not, although statfs(2) no longer says so."""
        disk = Disk(tmp_path, "ext4 small")
        with disk.mounted(place):
            assert self.takes(place)
            (disk.shut_down if how == "shut down" else disk.find_damaged)(place)
            with pytest.raises(OSError, match="Read-only|Input/output"):
                (place / "file").touch()
            assert not self.takes(place)
