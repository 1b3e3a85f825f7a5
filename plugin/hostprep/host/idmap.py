"""Idmapped mounts: through one, what is a host user's on disk is a container user's, and the other way round.

The kernel has them since Linux 5.12 (mount_setattr(2), MOUNT_ATTR_IDMAP), for file systems that take part. The map has
to be one to one and of all ids: Docker's copy-up and `docker cp` fail on an id that has no counterpart.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import NotAllowed
from ..options import MAX_ID
from . import linux
from .fds import closing

_SPARE: Final = 2**32 - 3  # an id that no user has
_MOST: Final = 100  # maps whose namespaces are kept: each takes a descriptor
_DROP_IN: Final = "the drop-in user-ids.conf for hostprep.service allows it: docs/options.md, host_uid and host_gid"
_NO_NAMESPACE: Final = {
    errno.EPERM: _DROP_IN,
    errno.EACCES: _DROP_IN,
    errno.ENOSPC: "the limit of user namespaces is reached, or 0: sysctl user.max_user_namespaces",
    errno.EUSERS: "hostprep runs in too many user namespaces, one in another",
}
_NO_MOUNT: Final = {
    errno.ENOSYS: "it takes Linux 5.12 or newer",
    errno.EINVAL: "the file system cannot do it, or one that is mounted in it; ext4, XFS, btrfs and tmpfs can",
    errno.EPERM: "the directory is on an idmapped mount already, or hostprep is not the host's root",
}
# In a process of its own, because a process with threads cannot have itself a new user namespace (unshare(2)).
_CHILD: Final = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.write(1, b"%d" % (libc.unshare(0x10000000) and ctypes.get_errno()))  # CLONE_NEWUSER
os.read(0, 1)
"""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One id on disk that is seen as another, and the other way round, so that each has its counterpart."""

    on_disk: int
    seen: int

    def seen_of(self, number: int) -> int:
        """As what the id *number* on disk is seen."""
        return self._moved().get(number, number)

    def disk_of(self, number: int) -> int:
        """Which id on disk is seen as *number*."""
        return {seen: on_disk for on_disk, seen in self._moved().items()}.get(number, number)

    @property
    def moves(self) -> bool:
        return self.on_disk != self.seen

    def _moved(self) -> dict[int, int]:
        if not self.moves:
            return {}
        if self.seen:
            return {self.on_disk: self.seen, self.seen: self.on_disk}
        # Where root is to be seen, the user of the host would be root on disk, and could make a setuid root program.
        spare = _SPARE if self.on_disk != _SPARE else _SPARE - 1
        return {self.on_disk: 0, 0: spare, spare: self.on_disk}

    def lines(self) -> str:
        """The map of all ids as the kernel reads it (user_namespaces(7)): on disk, seen, how many."""
        return "".join(f"{on_disk} {seen} {count}\n" for on_disk, seen, count in self._ranges())

    def _ranges(self) -> Iterator[tuple[int, int, int]]:
        moved, at = self._moved(), 0
        for number in sorted(moved):
            if at < number:
                yield at, at, number - at
            yield number, moved[number], 1
            at = number + 1
        if at <= MAX_ID:
            yield at, at, MAX_ID + 1 - at


@dataclass(frozen=True, slots=True)
class IdMap:
    """Whose the files of a volume are on disk, and whose they are in its containers."""

    uid: Exchange
    gid: Exchange

    def seen(self, uid: int, gid: int) -> tuple[int, int]:
        """As whose a file is seen that is *uid*'s and *gid*'s on disk."""
        return self.uid.seen_of(uid), self.gid.seen_of(gid)

    def shows(self, on_disk: os.stat_result, seen: os.stat_result) -> bool:
        """Whether the owner of a file is *seen* as the map has it. The mount table says only that there is a map."""
        return self.seen(on_disk.st_uid, on_disk.st_gid) == (seen.st_uid, seen.st_gid)

    def put_on(self, tree: int) -> None:
        """Put the map on the detached mount *tree*, and on what is mounted in it.

        Raises:
            NotAllowed: the kernel, the file system or hostprep's rights do not allow it.
        """
        with _guard:
            namespace = _namespace(self)
            try:
                linux.mount_setattr(
                    tree, linux.AT_RECURSIVE, attributes=linux.MOUNT_ATTR_IDMAP, propagation=0, userns=namespace
                )
            except OSError as exc:
                raise refused(exc) from None


UNMAPPED: Final = IdMap(Exchange(0, 0), Exchange(0, 0))
"""What a mount without a map has."""
_kept: dict[IdMap, int] = {}
"""A user namespace for each map, as a descriptor: to make one takes a hundred times as long as a mount."""
_guard = threading.Lock()


def _namespace(idmap: IdMap) -> int:
    if idmap not in _kept:
        try:
            made = _make_namespace(idmap)
        except OSError as exc:
            raise refused(exc, _NO_NAMESPACE) from None
        if len(_kept) >= _MOST:
            os.close(_kept.pop(next(iter(_kept))))
        _kept[idmap] = made
    return _kept[idmap]


def _make_namespace(idmap: IdMap) -> int:
    command = [sys.executable, "-I", "-S", "-c", _CHILD]
    ready, told = os.pipe()
    with closing(ready), subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told) as child:
        os.close(told)
        said = os.read(ready, 8)
        if said != b"0":
            number = int(said or errno.EPERM)
            raise OSError(number, os.strerror(number))
        for kind, exchange in (("uid", idmap.uid), ("gid", idmap.gid)):
            with closing(os.open(f"/proc/{child.pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)) as fd:
                os.write(fd, exchange.lines().encode())  # in one write, as the kernel wants it
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def refused(exc: OSError, reasons: Mapping[int, str] = _NO_MOUNT) -> NotAllowed:
    """The error of a mount that cannot be made, in words."""
    why = f"an idmapped mount, which host_uid and host_gid take, cannot be made: {exc.strerror}"
    return NotAllowed(why, hint=reasons.get(exc.errno or 0, "leave host_uid and host_gid out"))
