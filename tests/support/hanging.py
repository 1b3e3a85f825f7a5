"""A real file system that can hang: whoever touches it then waits in the kernel until it goes on, whatever is sent.

It is FUSE's kernel protocol (linux/fuse.h) over /dev/fuse, without a library: an empty directory with some
sub-directories, whose owners and modes can be changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_IN: Final = struct.Struct("<IIQQIIII")
"""Length, operation, a number for the answer, inode, user, group, process, padding."""
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _RMDIR, _STATFS = 1, 2, 3, 4, 9, 11, 17
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _FSYNCDIR, _INTERRUPT, _FORGET_MANY = 26, 27, 28, 29, 30, 36, 42
_NO_ANSWER: Final = (_FORGET, _INTERRUPT, _FORGET_MANY)
_MODE, _UID, _GID = 1, 2, 4
"""Which attributes a SETATTR sets."""
_ROOT: Final = 1


class Hanging:
    """The file system at *place*. Nothing is cached, so that each look at it comes here."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._hang_at = -1
        self.asked = False
        """Whether somebody waits now that it hangs."""
        self._attributes = {_ROOT: [stat.S_IFDIR | 0o755, 0, 0]}
        self._names: dict[bytes, int] = {}
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40755,user_id=0,group_id=0,allow_other"
        if _LIBC.mount(b"hanging", os.fsencode(place), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, os.strerror(number))
        self._thread = threading.Thread(target=self._serve, name=f"hanging {place}")
        self._thread.start()

    def hang(self) -> None:
        """From now on nothing is answered."""
        self._goes_on.clear()

    def hang_at_mkdir(self) -> None:
        """Answer until a directory is to be made."""
        self._hang_at = _MKDIR

    def go_on(self) -> None:
        """Answer what was asked meanwhile, and whatever comes."""
        self._hang_at, self.asked = -1, False
        self._goes_on.set()

    def unmount(self) -> None:
        self.go_on()
        _LIBC.umount2(os.fsencode(self.place), 2)  # MNT_DETACH
        self._thread.join()
        os.close(self._fd)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError as exc:
                if exc.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, operation, unique, inode, *_ = _IN.unpack_from(request)
            if operation in _NO_ANSWER:
                continue
            if operation == self._hang_at:
                self._goes_on.clear()
            if operation != _INIT and not self._goes_on.is_set():
                self.asked = True
                self._goes_on.wait()
            answer, error = b"", 0
            try:
                answer = self._answer(operation, inode, request[_IN.size :])
            except OSError as exc:
                error = exc.errno or errno.EIO
            except Exception:  # whoever asked must not wait for ever, be it this process itself
                traceback.print_exc()
                error = errno.EIO
            with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(self._fd, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)

    def _answer(self, operation: int, inode: int, body: bytes) -> bytes:
        if operation == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, 0)
        if inode not in self._attributes:
            raise OSError(errno.ENOENT, "")
        if operation == _GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes_of(inode)
        if operation == _SETATTR:
            valid, mode, uid, gid = struct.unpack_from("<I64xI4xII", body)
            known = self._attributes[inode]
            new = [stat.S_IFDIR | stat.S_IMODE(mode), uid, gid]
            self._attributes[inode] = [
                value if valid & bit else old for value, old, bit in zip(new, known, (_MODE, _UID, _GID), strict=True)
            ]
            return struct.pack("<QII", 0, 0, 0) + self._attributes_of(inode)
        if operation == _LOOKUP:
            return self._entry(self._names[body.rstrip(b"\0")]) if body.rstrip(b"\0") in self._names else _missing()
        if operation == _MKDIR:
            name, new_inode = body[8:].rstrip(b"\0"), max(self._attributes) + 1
            self._names[name] = new_inode
            self._attributes[new_inode] = [stat.S_IFDIR | struct.unpack_from("<I", body)[0] & 0o7777, 0, 0]
            return self._entry(new_inode)
        if operation == _RMDIR:
            del self._attributes[self._names.pop(body.rstrip(b"\0"))]
            return b""
        if operation == _STATFS:
            return struct.pack("<QQQQQIII28x", 1000, 1000, 1000, 1000, 1000, 4096, 255, 4096)
        if operation == _OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if operation in (_READDIR, _RELEASEDIR, _FSYNCDIR):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _attributes_of(self, inode: int) -> bytes:
        mode, uid, gid = self._attributes[inode]
        return struct.pack("<QQQQQQIIIIIIIIII", inode, 0, 0, 0, 0, 0, 0, 0, 0, mode, 2, uid, gid, 0, 4096, 0)

    def _entry(self, inode: int) -> bytes:
        return struct.pack("<QQQQII", inode, 1, 0, 0, 0, 0) + self._attributes_of(inode)


def _missing() -> bytes:
    raise OSError(errno.ENOENT, "")


@contextlib.contextmanager
def hanging(place: Path) -> Iterator[Hanging]:
    """A file system at *place*, a new directory, that hangs when it is told to."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        disk = Hanging(place)
    except OSError as exc:
        pytest.skip(f"no FUSE here: {exc.strerror}")
    try:
        yield disk
    finally:
        disk.unmount()
