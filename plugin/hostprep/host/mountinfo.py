"""The mount table (proc(5), mountinfo): what is mounted where, and who has a directory mounted."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import NotAllowed, printable
from .fds import mount_id
from .paths import is_below

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo (proc(5))."""

    id: int
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


def uses(data: int, path: str) -> list[str]:
    """Who has the open directory *data* at *path*, or something in it, mounted, and what is mounted in it; phrases.

    Raises:
        NotAllowed: as for `holders`.
    """
    inside = [f"{each.point} is a mount point" for each in mount_table() if is_below(each.point, path)]
    return [*inside, *(who for who, _ in holders(data, path))]


def holders(data: int, path: str) -> list[tuple[str, str]]:
    """Who has the open directory *data* at *path*, or something in it, mounted: a phrase, and where in it.

    It looks at the mounts of all processes, so it finds each container that runs, whatever engine started it. It does
    not find containers that do not run, processes that only have files open, or users on another or a virtual machine.

    Raises:
        NotAllowed: this process's root directory hides the mount that the directory is on.
    """
    mount = mount_of(data)
    if mount is None:
        raise NotAllowed(f"who uses {printable(path)} cannot be told", hint="run this outside of the chroot")
    root = place_in_file_system(mount, path)
    found = []
    for process, table in [("self", mount_table()), *_other_tables()]:
        who = "it is" if process == "self" else f"process {process} has it"
        for each in table:
            if each.device == mount.device and (each.root == root or is_below(each.root, root)):
                found.append((f"{who} mounted at {each.point}", each.root[len(root) :].lstrip("/")))
    return found


def _other_tables() -> Iterator[tuple[str, list[Mount]]]:
    """One process of each other mount namespace, and the mounts there."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (namespace := os.readlink(f"/proc/{process}/ns/mnt")) not in seen:
                yield process, mount_table(process)
                seen.add(namespace)


def mount_of(fd: int) -> Mount | None:
    """The mount that *fd* was opened on; None where this process's root directory hides it."""
    under = mount_id(fd)
    return next((mount for mount in mount_table() if mount.id == under), None)


def device_at(path: str, table: list[Mount]) -> str:
    """The device of the file system at *path* by the mount table alone: a disk that hangs is not touched."""
    above = [mount for mount in reversed(table) if path == mount.point or is_below(path, mount.point)]
    return max(above, key=lambda mount: len(mount.point)).device if above else ""


def place_in_file_system(mount: Mount, path: str) -> str:
    """The path of *path*, which is on *mount*, from the file system's own root."""
    return os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.point)))


def mount_table(process: str = "self") -> list[Mount]:
    """The mounts of a process's namespace below its root directory, in the order in which they cover each other."""
    with open(f"/proc/{process}/mountinfo", "rb") as table:
        return [_mount(os.fsdecode(line)) for line in table.read().split(b"\n") if line]


def _mount(line: str) -> Mount:
    # id, parent, device, root, mount point, options, then any number of optional fields up to a hyphen.
    number, _, device, root, point, _, *rest = line.split(" ")
    optional, (kind, source, options) = rest[: rest.index("-")], rest[rest.index("-") + 1 :]
    shared = any(field.startswith("shared:") for field in optional)
    slave = any(field.startswith("master:") for field in optional)
    point, root, source = map(unescaped, (point, root, source))
    return Mount(int(number), point, shared, slave, device, root, kind, source, tuple(options.split(",")))


def unescaped(text: str) -> str:
    """*text* of mountinfo or fstab(5), where space, tab, line end, backslash and # are three octal digits."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
