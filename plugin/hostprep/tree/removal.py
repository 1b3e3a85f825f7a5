"""The removal of a tree whose owner may be changing it."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import printable
from ..host import fds, linux, mountinfo
from ..host.paths import is_below
from .walk import Outcome, reason_of

_LEVELS: Final = 128  # that a removal goes down; it moves what is deeper up
_MAX_MOVED: Final = 4096  # names of moved directories in memory; more are found by another round


def remove(root: int) -> Outcome:
    """Remove everything below *root*. A mount point inside, and what the kernel refuses, is left and reported.

    A removal goes by descriptor, as a pass does, and can be interrupted and begun again at any point. It moves what is
    too deep up, so that few descriptors are open at any depth. It destroys btrfs sub-volumes whole, where it may
    (CAP_SYS_ADMIN) and nothing is mounted in *root*; elsewhere it empties them.

    The outcome names what stays, and why; not the directories that stay because of it.

    Raises:
        OSError: *root* cannot be read.
    """
    outcome = Outcome()
    while _Round(root, outcome).more():
        outcome = Outcome(done=outcome.done)
    return outcome


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory that a removal is in."""

    name: str
    fd: int
    entries: Any
    """What os.scandir gives, which has no public type."""
    top: int = 0
    """The level of the sub-volume's root that it is in or is, 0 without one: what is too deep moves there."""
    whole: bool = False
    """The kernel destroys that sub-volume whole, as soon as no other is in it: only those are removed from it."""
    kept: bool = False
    """Something in it stays."""
    moved: set[str] = field(default_factory=set)
    """What moved up to here, and is still to be removed."""


class _Round:
    """Removes what is below *root*, but for directories that moved up and were too many to remember."""

    def __init__(self, root: int, outcome: Outcome) -> None:
        self._outcome = outcome
        self._more = False
        self._btrfs = linux.file_system(root) == linux.BTRFS_SUPER_MAGIC
        self._destroys = self._btrfs and not _mounts_in(root)
        os.lseek(root, 0, os.SEEK_SET)  # btrfs shows what was there when a directory was opened or rewound
        self._stack = [_Directory("", root, os.scandir(root))]

    def more(self) -> bool:
        """Go once through the tree, and tell whether another round is needed."""
        try:
            while self._step():
                pass
        finally:
            for each in self._stack:
                each.entries.close()
            for each in self._stack[1:]:
                os.close(each.fd)
        return self._more

    def _step(self) -> bool:
        here, name = self._stack[-1], ""
        try:
            if entry := next(here.entries, None):
                name = entry.name
                here.moved.discard(name)
                if entry.is_dir(follow_symlinks=False):
                    self._enter(here, name)
                elif not here.whole:
                    os.unlink(name, dir_fd=here.fd)
                    self._outcome.done += 1
            elif here.moved:
                name = here.moved.pop()
                self._enter(here, name)
            elif len(self._stack) == 1:
                return False
            else:
                name = here.name
                self._stack.pop()
                os.close(here.fd)
                self._remove_read(here, self._stack[-1])
        except OSError as exc:
            self._leave(name, exc)
        return True

    def _enter(self, here: _Directory, name: str) -> None:
        level = len(self._stack)
        top, whole = here.top, here.whole
        with contextlib.ExitStack() as undo:
            fd = fds.open_below(here.fd, name, directory=True)
            undo.callback(os.close, fd)
            subvolume = self._btrfs and os.fstat(fd).st_ino == linux.BTRFS_FIRST_FREE_OBJECTID
            if subvolume:
                whole = False
                if self._destroys:
                    try:
                        linux.destroy_subvolume(here.fd, name)
                    except OSError as exc:  # what else it says comes again, where it counts
                        whole = exc.errno == errno.ENOTEMPTY
                    else:
                        self._outcome.done += 1
                        return
                linux.make_subvolume_writable(fd)
                top = 0
            # Where the move fails (no space, another project, a directory whose key is missing) there is only down.
            if level - top > _LEVELS and self._moved_up(here, name, self._stack[top]):
                return
            entries = os.scandir(fd)
            self._stack.append(_Directory(name, fd, entries, level if subvolume else top, whole))
            undo.pop_all()

    def _moved_up(self, here: _Directory, name: str, top: _Directory) -> bool:
        temporary = fds.temporary_name()
        try:
            os.rename(name, temporary, src_dir_fd=here.fd, dst_dir_fd=top.fd)
        except OSError:
            return False
        if len(top.moved) < _MAX_MOVED:
            top.moved.add(temporary)
        else:
            self._more = True
        return True

    def _remove_read(self, read: _Directory, above: _Directory) -> None:
        """Remove a directory that has been read to its end."""
        if read.kept:
            above.kept = True
        elif not read.whole:
            os.rmdir(read.name, dir_fd=above.fd)  # of an empty sub-volume, too
            self._outcome.done += 1
        elif read.top == len(self._stack):
            linux.destroy_subvolume(above.fd, read.name)
            self._outcome.done += 1

    def _leave(self, name: str, exc: OSError) -> None:
        if exc.errno not in fds.CHANGED:
            self._stack[-1].kept = True
            path = "/".join(filter(None, [*(each.name for each in self._stack), name]))
            self._outcome.leave(printable(path or "."), reason_of(exc))


def _mounts_in(root: int) -> bool:
    """Whether anything is mounted in the directory, or it cannot be told: the kernel would destroy it along."""
    path = os.readlink(f"/proc/self/fd/{root}")
    return not path.startswith("/") or any(is_below(each.point, path) for each in mountinfo.mount_table())
