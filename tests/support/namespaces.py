"""Mount namespaces for tests: what one mounts or changes there, nobody else meets."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR: Final = 442  # x86-64 and arm64; Linux 5.12
_AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = -100, 0x8000, 1
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def own_mounts() -> None:
    """From now on this process has a mount namespace of its own: no mount of the machine's appears in it any more."""
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")


@contextlib.contextmanager
def read_only_machine(*writable: Path) -> Iterator[None]:
    """Within it nothing of the machine can be changed but what is below *writable*, whatever this thread tries.

    So a guard that is broken does no harm when a test has it refuse a directory of the real system.
    """
    here, before = os.getcwd(), os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        own_mounts()
        try:
            for place in writable:
                _checked(_libc.mount(bytes(place), bytes(place), None, _MS_BIND | _MS_REC, None), f"bind {place}")
            _set_attributes(Path("/"), read_only=True)
            for place in writable:
                _set_attributes(place, read_only=False)
            os.chdir(here)  # on the mount that is read-only now
            yield
        finally:
            _checked(_libc.unshare(_CLONE_FS), "unshare")  # from threads that were started meanwhile
            _checked(_libc.setns(before, _CLONE_NEWNS), "setns")
            os.chdir(here)
    finally:
        os.close(before)


def _set_attributes(place: Path, *, read_only: bool) -> None:
    attributes = struct.pack("=4Q", _READ_ONLY if read_only else 0, 0 if read_only else _READ_ONLY, 0, 0)
    done = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, bytes(place), _AT_RECURSIVE, attributes, len(attributes))
    if done and ctypes.get_errno() == errno.ENOSYS:
        raise NotImplementedError("this kernel is older than 5.12, and cannot make all mounts read-only")
    _checked(done, f"mount_setattr {place}")
