"""Locks between threads and processes: one byte of one file for each name, released when its holder ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Iterator

from ..errors import Busy
from .fds import closing

_FLOCK = "hhqqi4x"


@contextlib.contextmanager
def locked(dirfd: int, what: str, *, deadline: float, shared: bool = False) -> Iterator[None]:
    """Hold the lock named *what* during the `with` block, against other threads and processes.

    One byte of one file stands for each name (an open file description lock, fcntl(2)): no files are left behind, and
    the kernel releases the locks of a dead holder. Two names share a byte once in 2**62.

    Args:
        dirfd: the directory of the lock file.
        deadline: on the clock of time.monotonic(); one attempt is always made.

    Raises:
        Busy: another holder did not release it before the deadline.
    """
    with closing(open_lock_file(dirfd)) as fd:
        pause = 0.0005
        while not try_lock(fd, what, shared=shared):
            if time.monotonic() + pause > deadline:
                raise Busy("another change is still running", hint="try again")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        yield


def open_lock_file(dirfd: int) -> int:
    """Open the lock file of the directory *dirfd*; each holder of a lock has a descriptor of its own."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open("held", flags | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=dirfd)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
    return os.open("held", flags | os.O_RDONLY, dir_fd=dirfd)


def try_lock(fd: int, what: str, *, shared: bool = False) -> bool:
    """Take the lock *what* on the lock file *fd* if it is free; closing *fd* releases it.

    On a read-only file system every lock is a shared one. No record can change there, and whoever mends the same
    directory at once does the same to it.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(what, fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    except OSError as exc:
        if exc.errno == errno.EBADF and not shared:  # it is open for reading only
            return try_lock(fd, what, shared=True)
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def is_locked(fd: int, what: str) -> bool:
    """Whether anybody but the holder of *fd* has the lock *what*."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(what, fcntl.F_WRLCK))
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


def _flock(what: str, kind: int) -> bytes:
    """A struct flock (fcntl(2)) for the one byte that stands for *what*."""
    start = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "big") >> 2
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, 1, 0)
