"""One attacker, in a process of its own: changes a tree as fast as it can while somebody else's pass runs.

    attacker.py KIND MEMORY UID DIRECTORY [ARGUMENT…]

It works in DIRECTORY as UID, and counts its rounds in MEMORY (a descriptor) until told there to stop, or for two
minutes. Names only, and no path longer than two components: the directories above may be closed to UID.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

SECONDS: Final = 120.0
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_MS_BIND, _MNT_DETACH = 4096, 2
_SUBVOL_CREATE: Final = 0x5000940E  # BTRFS_IOC_SUBVOL_CREATE
_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000
_libc = ctypes.CDLL(None, use_errno=True)

Round = Callable[[], object]


def exchange(*pairs: str) -> Round:
    """Swap the entries of each pair `a/b`, round after round."""
    both = [tuple(os.fsencode(name) for name in pair.split("/")) for pair in pairs]
    swap = _libc.renameat2

    def once() -> None:
        for one, other in both:
            swap(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)

    return once


def replace(*pairs: str) -> Round:
    """As exchange; and what a removal took, directory and link to `outside`, is made again."""
    swap = exchange(*pairs)

    def once() -> None:
        swap()
        for pair in pairs:
            directory, link = pair.split("/")
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # DIRECTORY itself may be gone
                os.mkdir(directory)
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.symlink("../outside", link)

    return once


def subvolumes(*pairs: str) -> Round:
    """As exchange; and what a removal took, sub-volume with another one in it and link to `outside`, is made again."""
    swap = exchange(*pairs)

    def make(above: str, name: str) -> None:
        here = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.ioctl(here, _SUBVOL_CREATE, bytearray(struct.pack("=q4088s", 0, name.encode())))
        finally:
            os.close(here)

    def once() -> None:
        swap()
        for pair in pairs:
            directory, link = pair.split("/")
            with contextlib.suppress(OSError):
                make(".", directory)
                make(directory, "below")
            with contextlib.suppress(FileExistsError):
                os.symlink("../outside", link)

    return once


def carry(elsewhere: str, *names: str) -> Round:
    """Move the directories to ELSEWHERE and back."""
    out = os.open(elsewhere, os.O_RDONLY | os.O_DIRECTORY)

    def once() -> None:
        for name in names:
            for source, target in ((None, out), (out, None)):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    return once


def create(kind: str, kept: str) -> Round:
    """Make files or directories without end, of which the newest KEPT stay."""
    numbers = _count()
    make: Callable[[str], object] = os.mkdir if kind == "directories" else os.mknod
    unmake: Callable[[str], object] = os.rmdir if kind == "directories" else os.unlink

    def once() -> None:
        number = next(numbers)
        make(f"n{number}")
        if number >= int(kept):
            with contextlib.suppress(FileNotFoundError):
                unmake(f"n{number - int(kept)}")

    return once


def deepen(limit: str) -> Round:
    """Go on making a directory in the newest one, LIMIT times; then only wait."""
    numbers = _count()

    def once() -> None:
        if next(numbers) < int(limit):
            os.mkdir("d")
            os.chdir("d")
        else:
            time.sleep(0.01)

    return once


def ladder() -> Round:
    """Whenever the directory `a` or `b` is opened, put the other one into it: two directories, deep without end.

    Under the name that is read last, so that who opens one finds the other there when he has read the rest.
    """
    last = os.listdir("a")[-1]
    watch = _libc.inotify_init1(_IN_NONBLOCK)
    opened = {_libc.inotify_add_watch(watch, name.encode(), _IN_OPEN): name for name in ("a", "b")}
    for name in opened.values():
        os.unlink(f"{name}/{last}")
    os.rename("b", f"a/{last}")

    def once() -> None:
        try:
            events = os.read(watch, 65536)
        except BlockingIOError:
            return
        while events:
            which, _, _, length = struct.unpack_from("iIII", events)
            events = events[16 + length :]
            here = opened[which]
            other = "b" if here == "a" else "a"
            for source, target in ((f"{other}/{last}", here), (other, f"{here}/{last}")):
                try:
                    os.rename(source, target)
                except OSError as exc:
                    if exc.errno not in (errno.ENOENT, errno.EINVAL):
                        raise

    return once


def mount(elsewhere: str, *names: str) -> Round:
    """Bind ELSEWHERE (or what has the name there) on each name, and take it away again."""

    def once() -> None:
        for name in names:
            source = elsewhere if os.path.isdir(name) else f"{elsewhere}/{name}"
            _libc.mount(source.encode(), name.encode(), None, _MS_BIND, None)
        time.sleep(0.0002)
        for name in names:
            _libc.umount2(name.encode(), _MNT_DETACH)

    return once


def unsettle() -> Round:
    """Give DIRECTORY itself away, again and again."""
    return lambda: os.chown(".", 55, 66)


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


KINDS: Final[dict[str, Callable[..., Round]]] = {
    "exchange": exchange,
    "replace": replace,
    "subvolumes": subvolumes,
    "carry": carry,
    "create": create,
    "deepen": deepen,
    "ladder": ladder,
    "mount": mount,
    "unsettle": unsettle,
}


def main(kind: str, memory: str, uid: str, directory: str, *arguments: str) -> None:
    os.chdir(directory)
    once = KINDS[kind](*arguments)
    with contextlib.suppress(PermissionError):
        os.nice(-3)  # on a busy machine it has to get its turn within a pass
    if int(uid):
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    shared = mmap.mmap(int(memory), mmap.PAGESIZE)
    end = time.monotonic() + SECONDS
    rounds = 0
    while not shared[8] and (rounds % 64 or time.monotonic() < end):
        once()
        rounds += 1
        struct.pack_into("=Q", shared, 0, rounds)


if __name__ == "__main__":
    main(*sys.argv[1:])
