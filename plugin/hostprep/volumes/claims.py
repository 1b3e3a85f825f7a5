"""Which volume has which `path`, from memory: of 10,000 volumes, reading every record takes 170 ms and more.

The path of a volume never changes. So what was read of a directory counts while it is the same directory, by its inode,
which the listing brings along. An inode is free for another volume only when the first has left `volumes`, and whatever
leaves `volumes` changes `trash`: then the records are looked at, too.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

from ..errors import Unreadable
from ..host import fds
from ..options import Name, is_name
from .record import Record, Signature, settled, signature
from .volume import DATA, RECORD

UNKNOWN: Final = ""
"""The path of a volume whose record was damaged when it was first read. It could be any."""


class Claims:
    """The paths of a root's volumes. One object serves every thread."""

    def __init__(self) -> None:
        self._known: dict[Name, tuple[int, Signature | None, str | None]] = {}
        """The inode of each directory, the signature of its record, and the path, None where there is none."""
        self._trash: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def paths(self, volumes: int, trash: int, find: Callable[[Name], Record | None]) -> list[tuple[Name, str]]:
        """Every volume that has a path, and the path. Some may be no volumes any more.

        Args:
            find: reads a record, as `Store.find` does.
        """
        with self._lock:
            st = os.fstat(trash)
            stamp = st.st_mtime_ns, st.st_ctime_ns
            nothing_left, self._trash = stamp == self._trash, stamp if settled(max(stamp)) else None
            known = {}
            with os.scandir(volumes) as entries:
                found = [(each.name, each.inode()) for each in entries]
            for name, inode in found:
                if not is_name(name):
                    continue
                before = self._known.get(name)
                if before and before[0] == inode and nothing_left:
                    known[name] = before
                    continue
                now = signature(volumes, f"{name}/{RECORD}")
                if before is None or before[:2] != (inode, now):
                    try:
                        record = find(name)
                    except Unreadable:  # where it was read before, it has the path that it had
                        path = before[2] if before and before[0] == inode else _path_of_damaged(volumes, name)
                    else:
                        if record is None:  # retained, and a volume again at any time, without leaving `volumes`
                            continue
                        path = record.options.path
                    before = inode, now, path
                known[name] = before
            self._known = known
            return [(name, path) for name, (_, _, path) in known.items() if path is not None]


def _path_of_damaged(volumes: int, name: Name) -> str | None:
    """None where a volume has data of its own, and so no path. What is mounted there is not touched."""
    with contextlib.suppress(OSError), fds.closing(fds.open_dir(volumes, name)) as directory:
        return None if DATA in os.listdir(directory) else UNKNOWN
    return UNKNOWN
