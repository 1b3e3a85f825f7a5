"""Who may do what with a file: by owner, mode and access control list, as acl(5) says."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass

from ..errors import NotReady
from ..host import acl
from ..host.acl import ALL, AccessList, Tag, words


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


def read_acl(file: str) -> AccessList | None:
    """The access control list of a path in /proc/self/fd; None where there is none that can be read."""
    with contextlib.suppress(FileNotFoundError, NotReady):
        return acl.read(file)
    return None


def granted(who: Who, file: os.stat_result, access: AccessList | None = None) -> Granted:
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
    if access is None or not mode & 0o070:
        if file.st_gid in mine:
            return Granted(mode >> 3 & ALL, f"one of the group {file.st_gid}", group=True)
        return Granted(mode & ALL, "one of the others")
    mask = access.mask
    for entry in access.named:
        if entry.tag is Tag.USER and entry.id == who.uid:
            return Granted(entry.rights & mask, _masked(f"user {who.uid}", entry.rights, mask), listed=True)
    groups = [
        (entry.rights, entry.id if entry.tag is Tag.GROUP else file.st_gid)
        for entry in access.entries
        if (entry.tag is Tag.GROUP and entry.id in mine) or (entry.tag is Tag.GROUP_OBJ and file.st_gid in mine)
    ]
    if groups:  # one group must have all the rights that are needed: the rights of several do not add up
        rights, gid = max(groups, key=lambda group: ((group[0] & mask).bit_count(), group[0]))
        return Granted(rights & mask, _masked(f"group {gid}", rights, mask), listed=True)
    return Granted(access.bits & ALL, "one of the others in its access control list", listed=True)


def _masked(entry: str, rights: int, mask: int) -> str:
    text = f"{entry} in its access control list"
    return f"{text}, cut by its mask" if rights & ~mask else text
