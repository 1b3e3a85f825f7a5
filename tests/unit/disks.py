"""A file system of the tests' own, in a file: a real one, which can lose its power, fill up and fail."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .host import mounted

# What makes it, how large it has to be (MiB; the file is sparse), and how to mount it so that nothing is written to
# the disk but what somebody syncs: the kernel's own timers are far longer than a test.
_KINDS: Final = {
    "ext4": (["mkfs.ext4", "-q", "-m0", "-Jsize=4", "-Elazy_itable_init=0,nodiscard"], 16, "commit=300"),
    "xfs": (["mkfs.xfs", "-q"], 320, "nodiscard"),
    "btrfs": (["mkfs.btrfs", "-q"], 128, "commit=300"),
}
KINDS: Final = tuple(_KINDS)
_SHUTDOWN: Final = 0x8004587D  # XFS_IOC_GOINGDOWN, which is EXT4_IOC_SHUTDOWN and BTRFS's, too
_NOTHING_MORE: Final = 2  # XFS_FSOP_GOING_FLAGS_NOLOGFLUSH


class Disk:
    """A disk image. *images* is a directory for it and for copies of it."""

    def __init__(self, images: Path, kind: str = "ext4") -> None:
        self._images = images
        self._image = images / f"{kind}.img"
        make, size, self._options = _KINDS[kind]
        with self._image.open("wb") as image:
            image.truncate(size << 20)
        environ = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        subprocess.run([*make, self._image], check=True, env=environ)

    @contextlib.contextmanager
    def mounted(self, place: Path, image: Path | None = None) -> Iterator[None]:
        """Mount it, or a copy of it, at *place*; the journal is replayed as after a power cut."""
        with mounted("-o", f"loop,{self._options}", str(image or self._image), str(place)):
            yield

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

    def shut_down(self, place: Path) -> None:
        """From now on the file system there answers EIO and writes nothing more, until it is mounted anew."""
        with open_directory(place) as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOTHING_MORE))


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
