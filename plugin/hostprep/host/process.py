"""Processes as /proc shows them: who they are on this host, and what is at a path as they see it."""

from __future__ import annotations

import os
import resource
import stat
from dataclasses import dataclass

from .fds import closing
from .linux import CAP_DAC_OVERRIDE, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2


@dataclass(frozen=True, slots=True)
class Remap:
    """A user namespace: ranges of ids (inside, outside, count) and the host's ids that stand for them."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]

    @classmethod
    def read(cls, pid: int) -> Remap:
        """The user namespace that a process is in."""
        uids, gids = (_read_map(f"/proc/{pid}/{which}_map") for which in ("uid", "gid"))
        return cls(uids, gids)

    @property
    def identical(self) -> bool:
        return all(inside == outside for inside, outside, _ in (*self.uids, *self.gids))

    def uid(self, inside: int) -> int | None:
        """The host's id for the user *inside*, None where there is none."""
        return _outside(self.uids, inside)

    def gid(self, inside: int) -> int | None:
        """The host's id for the group *inside*, None where there is none."""
        return _outside(self.gids, inside)

    def inside(self, uid: int, gid: int) -> tuple[int, int] | None:
        """The ids inside for the host's *uid* and *gid*; None where one of them has none."""
        user, group = (
            next((i + number - o for i, o, count in ranges if o <= number < o + count), None)
            for ranges, number in ((self.uids, uid), (self.gids, gid))
        )
        return None if user is None or group is None else (user, group)

    def covers(self, uid: int, gid: int) -> bool:
        """Whether a file of the host's *uid* and *gid* has an owner inside: root inside has power over those only."""
        return self.inside(uid, gid) is not None


def _read_map(path: str) -> tuple[tuple[int, int, int], ...]:
    with open(path, encoding="ascii") as lines:
        return tuple((int(inside), int(outside), int(count)) for inside, outside, count in map(str.split, lines))


def _outside(ranges: tuple[tuple[int, int, int], ...], number: int) -> int | None:
    return next((o + number - i for i, o, count in ranges if i <= number < i + count), None)


@dataclass(frozen=True, slots=True)
class Process:
    """Who a process is now, by the host's ids."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    overrides: bool
    label: str
    remap: Remap | None
    """The user namespace that it is in; None where the ids are the host's."""

    @classmethod
    def read(cls, pid: int) -> Process:
        """Look at a process.

        Raises:
            OSError: it has ended.
        """
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            fields = dict(line.rstrip("\n").split(":", 1) for line in lines if ":" in line)
        # The last of the four is the one for files (credentials(7)).
        uid, gid = (int(fields[which].split()[3]) for which in ("Uid", "Gid"))
        try:
            with open(f"/proc/{pid}/attr/current", encoding="ascii", errors="replace") as label:
                context = label.read().rstrip("\0\n")
        except OSError:  # no security module has labels for processes
            context = ""
        groups = tuple(map(int, fields["Groups"].split()))
        overrides = bool(int(fields["CapEff"], 16) >> CAP_DAC_OVERRIDE & 1)
        remap = Remap.read(pid)
        return cls(uid, gid, groups, overrides, context, None if remap.identical else remap)


def open_inside(pid: int, path: str, flags: int = os.O_PATH) -> int:
    """Open what a process finds at *path*: links and `..` lead no higher than its own root directory.

    Raises:
        OSError: ENOSYS before Linux 5.6, and whatever open(2) raises.
    """
    with closing(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)) as root:
        return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def read_inside(pid: int, path: str, *, limit: int) -> bytes | None:
    """The first *limit* bytes of the file that a process finds at *path*; None where it cannot be read."""
    try:
        # It is only pinned first: what is no regular file is never really opened.
        with closing(open_inside(pid, path)) as pinned:
            if not stat.S_ISREG(os.fstat(pinned).st_mode):
                return None
            with open(f"/proc/self/fd/{pinned}", "rb") as file:
                return file.read(limit)
    except OSError:
        return None


def raise_open_files() -> None:
    """Raise the limit of open files of this process to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
