"""POSIX access control lists (acl(5)): what is on disk, whom a list lets in, and what a mode makes of it.

No other module knows the format, which is that of linux/posix_acl_xattr.h. NFSv4's lists are another thing: hostprep
neither reads nor changes those.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from ..errors import NotReady

READ: Final = 4
WRITE: Final = 2
ENTER: Final = 1
"""Search of a directory, execution of a file."""
ALL: Final = READ | WRITE | ENTER

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
"""The list that everything made in a directory inherits."""

_WORDS: Final = ((READ, "read"), (WRITE, "write"), (ENTER, "enter"))
_VERSION: Final = 2
_NONE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})  # no list; a file system without lists
_SHORT: Final = 256  # bytes of a list that is worth to be remembered
_SHOWN: Final = 5  # so many of the users and groups that a list names are told


class Tag(enum.IntEnum):
    """What an entry is about: the kernel's numbers (linux/posix_acl.h), in the order of the entries."""

    USER_OBJ = 1  # the owner
    USER = 2
    GROUP_OBJ = 4  # the owning group
    GROUP = 8
    MASK = 16
    OTHER = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a list. *id* has a meaning for a named user or group only."""

    tag: Tag
    rights: int
    id: int = 0xFFFFFFFF

    def __str__(self) -> str:
        return f"{'user' if self.tag is Tag.USER else 'group'} {self.id}"


@dataclass(frozen=True, slots=True)
class AccessList:
    """A list. Where a file has one, the group bits of its mode are the list's mask."""

    entries: tuple[Entry, ...]

    @classmethod
    def parse(cls, value: bytes) -> AccessList:
        """Read the attribute: a version, then tag, rights and id of each entry.

        Raises:
            ValueError: no kernel accepts it (posix_acl_valid, fs/posix_acl.c).
        """
        if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _VERSION:
            raise ValueError("not an access control list of version 2")
        found = cls(tuple(Entry(Tag(tag), *rest) for tag, *rest in struct.iter_unpack("<HHI", value[4:])))
        tags = [each.tag for each in found.entries]
        once = all(tags.count(tag) == 1 for tag in (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER))
        masks = tags.count(Tag.MASK)
        if tags != sorted(tags) or not once or masks > 1 or (found.named and not masks):
            raise ValueError("not an access control list: an entry is missing, too many, or in the wrong place")
        if any(each.rights & ~ALL for each in found.entries):
            raise ValueError("not an access control list: an entry has rights that there are not")
        return found

    def to_bytes(self) -> bytes:
        return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", e.tag, e.rights, e.id) for e in self.entries)

    @property
    def named(self) -> tuple[Entry, ...]:
        """The entries of users and groups by their ids."""
        return tuple(each for each in self.entries if each.tag in (Tag.USER, Tag.GROUP))

    @property
    def mask(self) -> int:
        """What anybody but the owner and the others can have at most."""
        rights = {each.tag: each.rights for each in self.entries}
        return rights.get(Tag.MASK, rights[Tag.GROUP_OBJ])

    @property
    def group(self) -> int:
        """What the owning group may do."""
        return next(self.effective(each) for each in self.entries if each.tag is Tag.GROUP_OBJ)

    @property
    def bits(self) -> int:
        """The permission bits that stat(2) shows."""
        rights = {each.tag: each.rights for each in self.entries}
        return rights[Tag.USER_OBJ] << 6 | self.mask << 3 | rights[Tag.OTHER]

    def effective(self, entry: Entry) -> int:
        """What an entry gives. Where the mask is 0 the kernel heeds no list: those in it count as any other user."""
        return entry.rights if entry.tag in (Tag.USER_OBJ, Tag.OTHER) else entry.rights & self.mask

    def chmod(self, bits: int) -> AccessList:
        """What chmod(2) makes of the list: the group bits become its mask."""
        masks = any(each.tag is Tag.MASK for each in self.entries)
        group = Tag.MASK if masks else Tag.GROUP_OBJ
        rights = {Tag.USER_OBJ: bits >> 6 & ALL, group: bits >> 3 & ALL, Tag.OTHER: bits & ALL}
        return AccessList(tuple(replace(e, rights=rights.get(e.tag, e.rights)) for e in self.entries))

    def declare(self, bits: int) -> AccessList:
        """The list with which owner, owning group and others may do what *bits* say.

        No named entry gives more than before: it loses what the mask denied it, if the new mask would not. Nor does one
        give more than the group has, or where the group has nothing, than the others.
        """
        group, others, mask = bits >> 3 & ALL, bits & ALL, self.mask
        new = group
        if not group and mask and any(others & ~self.effective(each) for each in self.named):
            new = others  # a mask of 0 would make the others of those whom the list keeps out
        entries = []
        for each in self.chmod(bits & ~0o070 | new << 3).entries:
            if each.tag is Tag.GROUP_OBJ and each.rights & new != group:
                each = replace(each, rights=group)
            elif each.tag in (Tag.USER, Tag.GROUP) and each.rights & new & ~mask:
                each = replace(each, rights=each.rights & mask)
            entries.append(each)
        return AccessList(tuple(entries))

    def sentences(self) -> Iterator[str]:
        """Whom the list of a directory lets in, or keeps out, besides owner and others."""
        if not self.mask:
            yield "an access list is there, which counts for nothing while the mode gives the group nothing"
            return
        if self.group != self.mask:
            may = words(self.group)
            may = f"only {may}" if may else "do nothing"
            yield f"an access list lets the owning group {may}, whatever the mode shows"
        for each in self.named[:_SHOWN]:
            may = words(self.effective(each))
            yield f"an access list lets {each} {may}" if may else f"an access list keeps {each} out"
        if (more := len(self.named) - _SHOWN) > 0:
            yield f"an access list names {more} more users and groups"

    def inherited(self) -> str:
        """What the default list of a directory means, in a sentence."""
        shown, more = self.named[:_SHOWN], len(self.named) - _SHOWN
        names = ", ".join(map(str, shown)) + (f" and {more} more" if more > 0 else "")
        return f"what is made in it later inherits an access list{f', which names {names}' if names else ''}"


def words(rights: int) -> str:
    """`read, write and enter`."""
    *first, last = [word for right, word in _WORDS if rights & right] or [""]
    return f"{', '.join(first)} and {last}" if first else last


_known: Final = functools.lru_cache(maxsize=128)(AccessList.parse)


def read(file: int | str, attribute: str = ACCESS) -> AccessList | None:
    """A list of a descriptor, or of a `/proc/self/fd` path; None where there is none.

    Raises:
        NotReady: what is there is no list, as only a FUSE file system can have it.
    """
    try:
        value = os.getxattr(file, attribute, follow_symlinks=isinstance(file, int))
        # Each Get and Mount reads it anew. A list can be as long as its owner likes, up to 64 KiB.
        return (_known if len(value) <= _SHORT else AccessList.parse)(value)
    except OSError as exc:
        if exc.errno not in _NONE:
            raise
        return None
    except ValueError as exc:
        raise NotReady(f"{attribute} cannot be read: {exc}", hint="setfacl -b removes it") from None


def write(fd: int, access: AccessList) -> None:
    """Make *access* the list of a descriptor. Its permission bits change in the same step."""
    os.setxattr(fd, ACCESS, access.to_bytes())


def warnings(fd: int, access: AccessList | None) -> list[str]:
    """What *access*, and the default list of the directory *fd*, mean to users, a sentence each."""
    default = read(fd, DEFAULT)
    return [*(access.sentences() if access else ()), *([default.inherited()] if default else [])]


def disinherit(fd: int) -> None:
    """Take away the lists that a directory has from the one above, and close it to all but its owner if it has any."""
    for attribute in (ACCESS, DEFAULT):
        try:
            os.getxattr(fd, attribute)  # on most there is none, and a needless removal is a change to be synced
            os.fchmod(fd, 0o700)  # without its list, the group gets what was the mask
            os.removexattr(fd, attribute)
        except OSError as exc:
            if exc.errno not in _NONE:
                raise
