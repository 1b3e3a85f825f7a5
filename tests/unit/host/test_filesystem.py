"""What tells a file system from others after a reboot."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host.filesystem import fingerprint
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
def taken(device: int, image: Path) -> Iterator[None]:
    """Somebody else has the loop device that a disk had before."""
    image.write_bytes(bytes(1 << 20))
    name = f"/dev/loop{os.minor(device)}"
    command = ["losetup", name, str(image)]
    eventually(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, f"{name} is free")
    yield
    subprocess.run(["losetup", "-d", name], check=True)


class TestFingerprint:
    @pytest.mark.parametrize("kind", KINDS)
    def test_another_device(self, place: Path, tmp_path: Path, kind: str) -> None:
        """It stays when the disk is mounted again as another device; XFS makes f_fsid of that."""
        disk = Disk(tmp_path, kind)
        with disk.mounted(place):
            (place / "data").mkdir()
            before, device_before = (at(place), at(place / "data")), device(place)
        # The numbers of btrfs are of no device.
        other = contextlib.nullcontext() if kind == "btrfs" else taken(device_before, tmp_path / "other.img")
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
