"""Who may do what with a file: by owner, mode and access control list, as acl(5) has it. Pure."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final, Protocol

READ: Final = 4
WRITE: Final = 2
ENTER: Final = 1
"""Search of a directory, execution of a file."""
ALL: Final = READ | WRITE | ENTER

ATTRIBUTE: Final = "system.posix_acl_access"
_VERSION: Final = 2
_WORDS: Final = ((READ, "read"), (WRITE, "write"), (ENTER, "enter"))
# Tags of linux/posix_acl.h.
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True, slots=True)
class Who:
    """A user by the host's numbers, as the kernel compares them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """The supplementary ones."""
    overrides: bool = False
    """Whether owner and mode do not hold him (CAP_DAC_OVERRIDE)."""

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


class Owned(Protocol):
    """What os.stat_result has of a file."""

    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_mode(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Granted:
    """What somebody may do, and by which entry."""

    rights: int
    by: str
    """"the owner", "one of the others" and the like: "he may write, as the owner"."""
    listed: bool = False
    """Whether an access control list says so, other than for the owner."""
    group: bool = False
    """Whether it is as one of the directory's group, by its mode."""

    def missing(self, wanted: int) -> str:
        """Which of the rights *wanted* are not there, in words; empty where all are."""
        return words(wanted & ~self.rights)


def words(rights: int) -> str:
    """`read, write and enter`."""
    *first, last = [word for right, word in _WORDS if rights & right] or [""]
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True, slots=True)
class Entry:
    """One of an access control list; *id* has a meaning for named users and groups only."""

    tag: int
    rights: int
    id: int


def parse_acl(value: bytes) -> tuple[Entry, ...]:
    """Read the attribute system.posix_acl_access (linux/posix_acl_xattr.h): a version, then tag, rights, id of each.

    Raises:
        ValueError: it is of another version or length.
    """
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _VERSION:
        raise ValueError("no access control list that this version knows")
    return tuple(Entry(*fields) for fields in struct.iter_unpack("<HHI", value[4:]))


def granted(who: Who, file: Owned, acl: tuple[Entry, ...] = ()) -> Granted:
    """What *who* may do with *file*. The first of these counts, whatever the later would allow: the owner, a named
    user, the groups together, others."""
    if who.overrides:
        return Granted(ALL, "root's power over files (CAP_DAC_OVERRIDE)")
    mode = stat.S_IMODE(file.st_mode)
    if who.uid == file.st_uid:
        return Granted(mode >> 6 & ALL, "the owner")  # of a list too: chmod(2) keeps the two the same
    mine = {who.gid, *who.groups}
    # With no bit of the group's, which then are the list's mask, the kernel does not look at the list (namei.c).
    if not acl or not mode & 0o070:
        if file.st_gid in mine:
            return Granted(mode >> 3 & ALL, f"one of the group {file.st_gid}", group=True)
        return Granted(mode & ALL, "one of the others")
    mask = next((entry.rights for entry in acl if entry.tag == _MASK), ALL)
    for entry in acl:
        if entry.tag == _USER and entry.id == who.uid:
            return Granted(entry.rights & mask, _masked(f"user {who.uid}", entry.rights, mask), listed=True)
    groups = [
        (entry.rights, entry.id if entry.tag == _GROUP else file.st_gid)
        for entry in acl
        if (entry.tag == _GROUP and entry.id in mine) or (entry.tag == _GROUP_OBJ and file.st_gid in mine)
    ]
    if groups:  # one of them has to have all that is asked for: rights of several do not add up
        rights, gid = max(groups, key=lambda group: ((group[0] & mask).bit_count(), group[0]))
        return Granted(rights & mask, _masked(f"group {gid}", rights, mask), listed=True)
    other = next((entry.rights for entry in acl if entry.tag == _OTHER), 0)
    return Granted(other, "one of the others in its access control list", listed=True)


def _masked(entry: str, rights: int, mask: int) -> str:
    text = f"{entry} in its access control list"
    return f"{text}, cut by its mask" if rights & ~mask else text
