"""A file system of the tests' own, in a file: a real one, which can lose its power, fill up and fail."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hostprep.host import linux

# What makes it, how large it has to be (MiB; the file is sparse), and how to mount it so that nothing is written to
# the disk but what somebody syncs: the kernel's own timers are far longer than a test.
_KINDS: Final = {
    "ext4": (["mkfs.ext4", "-q", "-m0", "-Jsize=4", "-Elazy_itable_init=0,nodiscard"], 16, "commit=300"),
    "ext4 small": (
        ["mkfs.ext4", "-q", "-m0", "-Jsize=1", "-N160", "-b1024", "-Elazy_itable_init=0,nodiscard"],
        8,
        "errors=remount-ro",
    ),
    "ext4 encrypt": (["mkfs.ext4", "-q", "-m0", "-Oencrypt", "-Elazy_itable_init=0,nodiscard"], 16, "commit=300"),
    "xfs": (["mkfs.xfs", "-q"], 320, "nodiscard"),
    "btrfs": (["mkfs.btrfs", "-q"], 128, "commit=300"),
}
_PATH: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"
KINDS: Final = ("ext4", "xfs", "btrfs")
_SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NOTHING_MORE: Final = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH


class Disk:
    """A disk image. *images* is a directory for it and for copies of it."""

    def __init__(self, images: Path, kind: str = "ext4") -> None:
        self._images = images
        self._image = images / f"{kind}.img"
        make, size, self._options = _KINDS[kind]
        driver = kind.split()[0]
        if shutil.which(make[0], path=_PATH) is None:
            pytest.skip(f"{make[0]} is missing (testbed/packages mkfs.xfs=xfsprogs mkfs.btrfs=btrfs-progs)")
        if driver not in Path("/proc/filesystems").read_text().split():
            subprocess.run(["modprobe", "-q", driver], check=False)
            if driver not in Path("/proc/filesystems").read_text().split():
                pytest.skip(f"this kernel knows no {driver}")
        with self._image.open("wb") as image:
            image.truncate(size << 20)
        subprocess.run([*make, self._image], check=True, env={**os.environ, "PATH": _PATH})
        subprocess.run(["fallocate", "--dig-holes", self._image], check=True)  # an empty journal is zeros, to be copied

    @contextlib.contextmanager
    def mounted(self, place: Path, image: Path | None = None) -> Iterator[None]:
        """Mount it, or a copy of it, at *place*, as after a power cut; a copy is gone then."""
        self._mount(image or self._image, place)
        try:
            yield
        finally:
            if place.is_mount():
                _unmount(place)
            if image is not None:
                image.unlink()

    def _mount(self, image: Path, place: Path) -> None:
        subprocess.run(["mount", "-o", f"loop,{self._options}", image, place], check=True)

    def mount_again(self, place: Path) -> None:
        """Take it away and mount it anew, as after a repair."""
        if place.is_mount():
            _unmount(place)
        end = time.monotonic() + 60
        while str(self._image) in _loops():  # taken away while it was in use, it goes with its last user
            assert time.monotonic() < end, "somebody still uses the disk"
            time.sleep(0.005)
        self._mount(self._image, place)

    def take_away(self, place: Path) -> None:
        """From now on there is but the directory that it was mounted on; what is open on it stays so."""
        subprocess.run(["umount", "-l", place], check=True)

    def copy(self) -> Path:
        """What is on the disk at this moment, as after a power cut. The same file for the same content."""
        digest, size = hashlib.sha256(), os.stat(self._image).st_size
        parts = []
        with self._image.open("rb", buffering=0) as image:
            end = 0
            while end < size:
                try:
                    start = os.lseek(image.fileno(), end, os.SEEK_DATA)
                except OSError:  # ENXIO: nothing more
                    break
                end = os.lseek(image.fileno(), start, os.SEEK_HOLE)
                data = os.pread(image.fileno(), end - start, start)
                digest.update(struct.pack("q", start) + data)
                parts.append((start, data))
        copy = self._images / digest.hexdigest()
        if not copy.exists():
            with copy.open("wb") as target:
                target.truncate(size)
                for start, data in parts:
                    os.pwrite(target.fileno(), data, start)
        return copy

    def put_back(self, copy: Path) -> None:
        """Make it, while it is not mounted, what it was when *copy* was made."""
        subprocess.run(["cp", "--sparse=always", copy, self._image], check=True)

    def clear_inode(self, inode: int) -> None:
        """Damage a file or directory of ext4, while it is not mounted: whoever opens it gets EUCLEAN."""
        command = ["debugfs", "-w", "-R", f"clri <{inode}>", str(self._image)]
        subprocess.run(command, check=True, env={**os.environ, "PATH": _PATH}, capture_output=True)

    def shut_down(self, place: Path) -> None:
        """From now on the file system there answers EIO and writes nothing more, until it is mounted anew."""
        with open_directory(place) as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOTHING_MORE))

    def find_damaged(self, place: Path) -> None:
        """Have the kernel find an error in the ext4 there, upon which it makes it read-only (errors=remount-ro)."""
        device = os.stat(place).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")


def _loops() -> list[str]:
    """The files that loop devices are of."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(file.read_text().strip())
    return found


def sync(place: Path) -> None:
    """Have everything of the file system at *place* on its disk, as it is some time later."""
    with open_directory(place) as fd:
        linux.syncfs(fd)


def _unmount(place: Path) -> None:
    """With the mounts of its own directories that are mounted in it."""
    subprocess.run(["umount", "-R", place], check=True)


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def unanswered(place: Path) -> Iterator[None]:
    """Mount at *place* a file system that answers nothing: FUSE, whose server never reads a question."""
    with open("/dev/fuse", "r+b", buffering=0) as server:  # whoever waits is let go when this is closed
        options = f"fd={server.fileno()},rootmode=40000,user_id=0,group_id=0"
        if ctypes.CDLL(None, use_errno=True).mount(b"hangs", bytes(place), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", place], check=True)
