"""Who may do what with a file: by owner, mode and access control list, as acl(5) says."""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import Final

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
    """A user by the ids that the kernel compares, the host's."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """The supplementary groups."""
    overrides: bool = False
    """Whether owner and mode do not bind the user (CAP_DAC_OVERRIDE)."""

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class Granted:
    """The rights that a user has on a file, and why."""

    rights: int
    by: str
    """Completes "may write, as …": "the owner", "one of the others" and so on."""
    listed: bool = False
    """Whether an access control list decides, and not the mode."""
    group: bool = False
    """Whether the group bits of the mode decide."""

    def missing(self, wanted: int) -> str:
        """The rights of *wanted* that the user does not have, in words; empty where none is missing."""
        return words(wanted & ~self.rights)


def words(rights: int) -> str:
    """`read, write and enter`."""
    *first, last = [word for right, word in _WORDS if rights & right] or [""]
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True, slots=True)
class AclEntry:
    """An entry of an access control list; *id* has a meaning for named users and groups only."""

    tag: int
    rights: int
    id: int


def parse_acl(value: bytes) -> tuple[AclEntry, ...]:
    """Read the attribute system.posix_acl_access: a version, then tag, rights and id of each entry.

    The format is that of linux/posix_acl_xattr.h.

    Raises:
        ValueError: it has another version or length.
    """
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _VERSION:
        raise ValueError("not an access control list of version 2")
    return tuple(AclEntry(*fields) for fields in struct.iter_unpack("<HHI", value[4:]))


def read_acl(file: str) -> tuple[AclEntry, ...]:
    """The access control list of a path in /proc/self/fd; empty where there is none."""
    try:
        return parse_acl(os.getxattr(file, ATTRIBUTE, follow_symlinks=False))
    except ValueError:
        return ()
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT):
            raise
        return ()


def granted(who: Who, file: os.stat_result, acl: tuple[AclEntry, ...] = ()) -> Granted:
    """What *who* may do with *file*.

    The first of these that matches decides, whatever the later ones allow: the owner, a named user, the groups
    together, the others.
    """
    if who.overrides:
        return Granted(ALL, "root's power over files (CAP_DAC_OVERRIDE)")
    mode = stat.S_IMODE(file.st_mode)
    if who.uid == file.st_uid:
        return Granted(mode >> 6 & ALL, "the owner")  # with a list, too: chmod(2) keeps both the same
    mine = {who.gid, *who.groups}
    # The group bits are then the list's mask. Where all are off, the kernel ignores the list (fs/namei.c).
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
    if groups:  # one group must have all the rights that are needed: the rights of several do not add up
        rights, gid = max(groups, key=lambda group: ((group[0] & mask).bit_count(), group[0]))
        return Granted(rights & mask, _masked(f"group {gid}", rights, mask), listed=True)
    other = next((entry.rights for entry in acl if entry.tag == _OTHER), 0)
    return Granted(other, "one of the others in its access control list", listed=True)


def _masked(entry: str, rights: int, mask: int) -> str:
    text = f"{entry} in its access control list"
    return f"{text}, cut by its mask" if rights & ~mask else text
