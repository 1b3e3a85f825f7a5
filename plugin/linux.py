"""The system calls that Python has no name for. Kernel names, plain OSError, no decisions."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

SYS_OPEN_TREE = 428  # the same on every architecture, as all that are newer than it
SYS_OPENAT2 = 437  # Linux 5.6
SYS_MOUNT_SETATTR = 442
AT_EMPTY_PATH = 0x1000
OPEN_TREE_CLONE = 0x1
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1
RESOLVE_NO_XDEV = 0x01  # refuses mount points, bind mounts of the same file system included
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


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


def open_tree(fd: int) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: the mount that *fd* is on, rooted there, detached and without what is mounted
    in it, as an O_PATH descriptor; the mount goes with the descriptor. Linux 5.2; needs CAP_SYS_ADMIN.
    """
    flags = ctypes.c_uint(AT_EMPTY_PATH | OPEN_TREE_CLONE | os.O_CLOEXEC)
    clone = _syscall(ctypes.c_long(SYS_OPEN_TREE), ctypes.c_int(fd), b"", flags)
    if clone < 0:
        _raise()
    return int(clone)


def mount_setattr(fd: int, attributes: int, propagation: int) -> None:
    """mount_setattr(2): add *attributes* to the mount that is open as *fd*, and set its propagation. Linux 5.12."""
    attr = _MountAttr(attributes, 0, propagation, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    flags = ctypes.c_uint(AT_EMPTY_PATH)
    if _syscall(ctypes.c_long(SYS_MOUNT_SETATTR), ctypes.c_int(fd), b"", flags, ctypes.byref(attr), size) < 0:
        _raise()


def die_with_parent() -> None:
    """prctl(2), PR_SET_PDEATHSIG: SIGKILL for this process when the one that forked it ends; not if it has already."""
    if _libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL)):
        _raise()


def fchown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: fchown(2) that also takes an O_PATH descriptor, of a symlink too.

    -1 leaves an id alone.
    """
    if _libc.fchownat(fd, b"", ctypes.c_uint32(uid & 0xFFFFFFFF), ctypes.c_uint32(gid & 0xFFFFFFFF), AT_EMPTY_PATH):
        _raise()
