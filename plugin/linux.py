"""The system calls that Python has no name for. Kernel names, plain OSError, no decisions."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

SYS_OPENAT2 = 437  # the same on every architecture; Linux 5.6
AT_EMPTY_PATH = 0x1000
RESOLVE_NO_XDEV = 0x01  # refuses mount points, bind mounts of the same file system included
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))


def _raise(name: str | bytes | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fsdecode(name) if name is not None else None)


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2) without O_CREAT. Adds O_CLOEXEC.

    Raises:
        OSError: EXDEV for a mount point or a way out that *resolve* forbids, ELOOP for a link, ENOSYS before
            Linux 5.6, and whatever open(2) raises.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    name = os.fsencode(path)
    fd = _syscall(ctypes.c_long(SYS_OPENAT2), ctypes.c_int(dirfd), name, ctypes.byref(how), _HOW_SIZE)
    if fd < 0:
        _raise(path)
    return int(fd)


def fchown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: fchown(2) that also takes an O_PATH descriptor, of a symlink too.

    -1 leaves an id alone.
    """
    if _libc.fchownat(fd, b"", ctypes.c_uint32(uid & 0xFFFFFFFF), ctypes.c_uint32(gid & 0xFFFFFFFF), AT_EMPTY_PATH):
        _raise()
