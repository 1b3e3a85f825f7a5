"""Where a directory is on its file system, whatever it is called: a bind mount gives one directory two names."""

from __future__ import annotations

from collections.abc import Iterable

from .mountinfo import Mount
from .paths import is_below

Place = tuple[str, str]
"""The device of a file system, and a path from the file system's own root."""


class Places:
    """Tells places by a mount table alone: no file system is asked, so one that hangs delays nobody."""

    def __init__(self, table: Iterable[Mount]) -> None:
        table = list(table)
        known = {mount.id for mount in table}
        self._on: dict[int | None, dict[str, Mount]] = {}
        """The mounts that are on each mount, by mount point. On none: the root's, and what a chroot leaves to see."""
        for mount in table:
            under = mount.parent if mount.parent in known and mount.parent != mount.id else None
            self._on.setdefault(under, {})[mount.point] = mount

    def of(self, path: str) -> tuple[Place, ...]:
        """Where the normalized *path*, in which no symlink is, leads to; then what mounts on the way to it cover."""
        under: Mount | None = None
        covered: tuple[Place, ...] = ()
        end = 0
        while True:
            point = path[:end] or "/"
            while (mount := self._on.get(None if under is None else under.id, {}).get(point)) is not None:
                if under is not None:
                    covered = (_place(under, point), *covered)
                under = mount
            if end == len(path) or path == "/":
                return (_place(under, path), *covered)
            end = path.find("/", end + 1)
            end = len(path) if end < 0 else end


def _place(mount: Mount | None, path: str) -> Place:
    if mount is None:
        return "", path
    return mount.device, (mount.root.rstrip("/") + path[len(mount.point.rstrip("/")) :].rstrip("/")) or "/"


def share(one: tuple[Place, ...], other: tuple[Place, ...]) -> bool:
    """Whether one of two directories, told by `Places.of`, is the other, or lies in it."""
    return _lies_in(one, other[0]) or _lies_in(other, one[0])


def _lies_in(places: tuple[Place, ...], above: Place) -> bool:
    return any(device == above[0] and (path == above[1] or is_below(path, above[1])) for device, path in places)
