"""The mount table (proc(5), mountinfo): what is mounted where."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from .fds import mount_id

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo (proc(5))."""

    id: int
    parent: int
    """The id of the mount that it is on."""
    point: str
    shared: bool
    slave: bool
    device: str
    root: str
    """What of the file system is mounted there, as a path from the file system's own root."""
    kind: str
    """The kind of file system: ext4, nfs4 and so on."""
    source: str
    options: tuple[str, ...]
    """Those of the file system, not of this mount of it."""
    flags: tuple[str, ...] = ()
    """Those of this mount of it."""


def mount_of(fd: int) -> Mount | None:
    """The mount that *fd* was opened on; None where this process's root directory hides it."""
    under = mount_id(fd)
    return next((mount for mount in mount_table() if mount.id == under), None)


def place_in_file_system(mount: Mount, path: str) -> str:
    """The path of *path*, which is on *mount*, from the file system's own root."""
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.point)))


def mount_table(process: str = "self") -> list[Mount]:
    """The mounts of a process's namespace below its root directory, in the order in which they cover each other."""
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        return parsed(table.read())


def parsed(table: bytes) -> list[Mount]:
    """The text of a mountinfo."""
    return [_mount(os.fsdecode(line)) for line in table.split(b"\n") if line]


def _mount(line: str) -> Mount:
    # id, parent, device, root, mount point, options, then any number of optional fields up to a hyphen.
    number, parent, device, root, point, flags, *rest = line.split(" ")
    optional, (kind, source, options) = rest[: rest.index("-")], rest[rest.index("-") + 1 :]
    shared = any(field.startswith("shared:") for field in optional)
    slave = any(field.startswith("master:") for field in optional)
    point, root, source = map(unescaped, (point, root, source))
    if kind in ("nfs", "nfs4") and ":/" in source:  # root is "/" whatever is mounted (nfs_show_path, fs/nfs/super.c)
        root = os.path.normpath("/" + source.partition(":/")[2])
    own, of_all = (tuple(each.split(",")) for each in (flags, options))
    return Mount(int(number), int(parent), point, shared, slave, device, root, kind, source, of_all, own)


def unescaped(text: str) -> str:
    """*text* of mountinfo or fstab(5), where space, tab, line end, backslash and # are three octal digits."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
