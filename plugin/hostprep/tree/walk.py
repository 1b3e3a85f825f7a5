"""One process's walk through a tree: every entry gets its owner and label, while the tree's owner may be changing it.

A walk reaches nothing outside of the tree. Each name is one component, looked up in a directory that it reached in
this way from the root. It follows no symlink, and never uses `..`. Where somebody swaps an entry after the walk has
looked at it, the walk changes what is there then, inside the tree.

Where it can, a pass works on a detached clone of the mount (open_tree(2); private, without symlinks and devices by
mount_setattr(2), Linux 5.12). Nothing is mounted in it and nothing can be. An entry is looked at by name, in the
directory that it is in. If it differs from what it is to be, it is changed in one of three ways:

- By name, in a clone of a tree of hostprep's own, where no file can be somebody else's.
- By a descriptor that it is opened with: in a clone of an adopted tree, a regular file. A file may be a hard link to
  somebody else's there, so the same descriptor is looked at and changed. Where the entry before differed, too, the look
  by name is left out. Only on file systems where an open fetches nothing from elsewhere; see fds.HELD.
- By a descriptor that pins it (O_PATH), which opens nothing: all else. That takes twice as long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import printable
from ..host import fds, linux

_ATTRIBUTE: Final = linux.XATTR_NAME_SELINUX
_MAX_LEVELS: Final = 2048  # no path is longer than so many components (PATH_MAX); each takes a descriptor or two
_MAX_PENDING: Final = 4096  # directories that are put off while one is read: this bounds the memory
_TICK_ENTRIES: Final = 256  # entries between two calls of tick
_EXAMPLES: Final = 5  # so many of the entries left alone are named, the others are counted
_SHOWN_CHARACTERS: Final = 500  # of a path in a report, which a record has to hold
_BATCH_BYTES: Final = 32_768  # of names in a batch
_PATH_BYTES: Final = 8192  # of a batch's path; deeper than that nothing is mounted (PATH_MAX), and it is for messages


@dataclass(frozen=True, slots=True)
class Order:
    """What every entry of a tree is to be; None is left alone."""

    uid: int | None
    gid: int | None
    label: str | None
    type_only: bool = False
    guarded: bool = False
    """Leave device nodes and files with several hard links alone: in an adopted tree they may be somebody else's."""
    dry_run: bool = False
    synced: bool = False
    """Sync the file system at the end: nothing that is written after the pass is in the same journal."""


@dataclass(slots=True)
class Outcome:
    """What a walk did: entries looked at, changed and left alone."""

    done: int = 0
    changed: int = 0
    left: int = 0
    examples: list[str] = field(default_factory=list)
    planned: list[str] = field(default_factory=list)
    """The first entries that a dry run would change, and what they are now."""

    def leave(self, path: str, reason: str) -> None:
        self.left += 1
        _tell(self.examples, path, reason)

    def plan(self, path: str, now: str) -> None:
        _tell(self.planned, path, now)

    def add(self, other: Outcome) -> None:
        """Add what another process did."""
        self.done += other.done
        self.changed += other.changed
        self.left += other.left
        self.examples = [*self.examples, *other.examples][:_EXAMPLES]
        self.planned = [*self.planned, *other.planned][:_EXAMPLES]

    def sentences(self) -> tuple[str, ...]:
        more = self.left - len(self.examples)
        return (*self.examples, *([f"and {more} more entries were left alone"] if more > 0 else []))


def _tell(told: list[str], path: str, what: str) -> None:
    if len(told) < _EXAMPLES:
        shown = path if len(path) <= _SHOWN_CHARACTERS else f"…{path[-_SHOWN_CHARACTERS:]}"
        told.append(f"{shown}: {what}")


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory that the walk is in."""

    name: bytes
    fd: int
    entries: Any
    """What os.scandir gives, which has no public type; None when it is read to its end."""
    pending: list[bytes]
    """Directories in it that are still to be entered."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Directories for another process to walk: those of the *names* in the directory *fd*, which is borrowed."""

    fd: int
    path: bytes
    level: int
    names: list[bytes]


class Walk:
    """A walk, depth first. The process's working directory is wherever the walk is.

    A directory is changed when it is entered, the other entries in it when it is read. Nothing is remembered of what is
    done, but for the names of directories that are still to be entered: memory does not grow with the tree.
    """

    def __init__(
        self, order: Order, *, cloned: bool, local: bool, mount_points: frozenset[bytes], tick: Callable[[], None]
    ) -> None:
        """Args:
        cloned: the tree is a detached clone of its mount.
        local: it is on a file system where regular files may be opened.
        mount_points: the paths at which something is mounted, which a clone does not show: they are left alone.
        tick: called now and then.
        """
        self.outcome = Outcome()
        self.extra_links = 0.0
        """How many of the entries looked at are only a further hard link to a file that is counted already."""
        self._order = order
        self._cloned = cloned
        self._by_name = cloned and not order.guarded and not order.dry_run
        self._opens = cloned and order.guarded and local and not order.dry_run
        self._mount_points = mount_points
        self._tick = tick
        self._uid = -1 if order.uid is None else order.uid
        self._gid = -1 if order.gid is None else order.gid
        self._label = None if order.label is None else order.label.encode("ascii") + b"\0"
        self._unseen = False
        """Whether a file whose owner is written is labelled without a look: the label before was wrong.

        The look would cost a quarter of the pass, and where the label is right already the write changes nothing.
        """
        self._base, self._base_level = b"", 0
        """The path and level, from the root of the tree, of the first directory of the stack."""
        self._stack: list[_Directory] = []

    def begin(self, fd: int) -> None:
        """Walk everything below the directory *fd*, which is the walk's from now on."""
        self._base, self._base_level = b"", 0
        self._push(b"", fd)

    def go_on(self, batch: Batch) -> None:
        """Walk what another process gave away; *batch.fd* is the walk's from now on."""
        self._base, self._base_level = batch.path, batch.level
        self._stack.append(_Directory(b"", batch.fd, None, batch.names))

    def step(self) -> bool:
        """Enter one directory, or read one; False when nothing is left."""
        if not self._stack:
            return False
        here = self._stack[-1]
        if here.pending:
            self._enter(here, here.pending.pop())
        elif here.entries is not None:
            self._read(here)
        else:
            self._stack.pop()
            os.close(here.fd)
        return True

    def close(self) -> None:
        """Close everything, wherever the walk is."""
        for each in self._stack:
            if each.entries is not None:
                each.entries.close()
            os.close(each.fd)
        self._stack.clear()

    def give(self) -> Batch | None:
        """A batch for another process: of the highest directory that has any to be entered, half of them."""
        for depth, each in enumerate(self._stack):
            # The walk keeps the last one of where it is: two processes would only hand a chain to each other for ever.
            if len(each.pending) > (depth == len(self._stack) - 1):
                count, size = 0, 0
                while count < (len(each.pending) + 1) // 2 and size < _BATCH_BYTES:
                    size += len(each.pending[count]) + 1
                    count += 1
                names, each.pending[:count] = each.pending[:count], []
                path = self._path(self._stack[: depth + 1])
                if len(path) > _PATH_BYTES:
                    path = b"..." + path[-_SHOWN_CHARACTERS:]
                return Batch(each.fd, path, self._base_level + depth, names)
        return None

    # -- directories -----------------------------------------------------------------------------------------------

    def _enter(self, above: _Directory, name: bytes) -> None:
        try:
            fd = self._take(above.fd, name, directory=True)
        except OSError as exc:
            self._failed(name, exc)
            return
        self.outcome.done += 1
        self._unseen = False
        try:
            self.outcome.changed += self._change(name, os.fstat(fd), fd, fd)
        except OSError as exc:
            self._failed(name, exc)
        if self._base_level + len(self._stack) > _MAX_LEVELS:
            self._leave(name, f"is more than {_MAX_LEVELS} levels deep, what is in it was not looked at")
            os.close(fd)
        else:
            self._push(name, fd)

    def _push(self, name: bytes, fd: int) -> None:
        try:
            os.fchdir(fd)
            entries = os.scandir(b".")
        except OSError as exc:
            entries = None
            self._leave(name, reason_of(exc))
        self._stack.append(_Directory(name, fd, entries, []))

    def _take(self, above: int, name: bytes, *, directory: bool) -> int:
        """Open a directory, or pin what is none; never across a mount."""
        if self._cloned:
            return os.open(name, fds.DIRECTORY if directory else fds.PINNED, dir_fd=above)
        return fds.open_below(above, os.fsdecode(name), directory=directory)

    def _path(self, stack: list[_Directory]) -> bytes:
        """The path, from the root of the tree, of the last directory of *stack*, the stack or its beginning."""
        return b"/".join(filter(None, [self._base, *(each.name for each in stack)]))

    def _mount_points_here(self) -> frozenset[bytes]:
        """The names in the directory that the walk is in at which something is mounted."""
        if not self._mount_points:
            return self._mount_points
        here = self._path(self._stack)
        return frozenset(os.path.basename(each) for each in self._mount_points if os.path.dirname(each) == here)

    def _leave(self, name: bytes, reason: str) -> None:
        """Report the entry *name* of the directory that the walk is in, or that directory itself, as left alone."""
        self.outcome.leave(self._shown(name), reason)

    def _shown(self, name: bytes) -> str:
        return printable(os.fsdecode(b"/".join(filter(None, [self._path(self._stack), name])) or b"."))

    def _failed(self, name: bytes, exc: OSError) -> None:
        if exc.errno not in fds.CHANGED:
            self._leave(name, reason_of(exc))

    # -- entries ---------------------------------------------------------------------------------------------------

    def _read(self, here: _Directory) -> None:
        """Go through the entries of a directory: put directories off, and change the others.

        A pass spends its time in this loop: plain names in the working directory, and as few calls as can be.
        """
        os.fchdir(here.fd)
        lstat, getxattr, pending = os.lstat, os.getxattr, here.pending
        order, outcome, mount_points = self._order, self.outcome, self._mount_points_here()
        any_uid, uid, any_gid, gid = order.uid is None, order.uid, order.gid is None, order.gid
        lchown, setxattr, new_uid, new_gid = os.lchown, os.setxattr, self._uid, self._gid
        type_only, by_name, opens = order.type_only, self._by_name, self._opens
        seen = 0
        differed = self._unseen = False  # what the entry before was
        try:
            for entry in here.entries:
                name = entry.name
                if mount_points and name in mount_points:
                    self._leave(name, reason_of(OSError(errno.EXDEV, "")))
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                    if len(pending) == _MAX_PENDING:
                        return
                    continue
                seen += 1
                if seen == _TICK_ENTRIES:
                    outcome.done += seen
                    seen = 0
                    self._tick()
                try:
                    # As the entry before: changed at once, if it can be opened and differs.
                    if opens and differed and entry.is_file(follow_symlinks=False) and self._change_opened(name):
                        continue

                    # Looked at by name.
                    st = lstat(name)
                    if st.st_nlink > 1:
                        self.extra_links += 1 - 1 / st.st_nlink
                    owned = (any_uid or st.st_uid == uid) and (any_gid or st.st_gid == gid)
                    label, labelled = self._label, True
                    if label is not None and self._unseen and not owned:
                        labelled = False
                    elif label is not None:
                        try:
                            found = getxattr(name, _ATTRIBUTE, follow_symlinks=False)
                        except OSError as exc:
                            found = self._unlabelled(exc)
                        # Two whole labels that differ, and end as they should, are different.
                        labelled = found == label or ((type_only or found[-1:] != b"\0") and self._is(found))
                        self._unseen = not type_only and not labelled
                    differed = not (owned and labelled)
                    if not differed:
                        continue

                    # Changed by name, opened or pinned.
                    if by_name:
                        if not owned:
                            lchown(name, new_uid, new_gid)
                        if label is not None and not labelled:
                            setxattr(name, _ATTRIBUTE, label, follow_symlinks=False)
                        outcome.changed += 1
                    elif not (opens and stat.S_ISREG(st.st_mode) and self._change_opened(name)):
                        self._change_pinned(here.fd, name)
                except OSError as exc:
                    self._failed(name, exc)
        except OSError as exc:  # the directory itself cannot be read on
            self._failed(b"", exc)
        finally:
            outcome.done += seen
        here.entries.close()
        here.entries = None

    def _change_opened(self, name: bytes) -> bool:
        """Change a regular file with one link; False where it is something else, right, or kept busy by a lease."""
        try:
            fd = os.open(name, fds.HELD)
        except OSError:
            return False
        try:
            st = os.fstat(fd)
            changed = st.st_nlink == 1 and self._change(name, st, fd, fd)
        finally:
            os.close(fd)
        self.outcome.changed += changed
        return changed

    def _change_pinned(self, above: int, name: bytes) -> None:
        """Change an entry of any kind but a directory, or leave it alone."""
        with fds.closing(self._take(above, name, directory=False)) as fd:
            st = os.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                return  # became one meanwhile
            if self._order.guarded and (reason := not_ours(st)):
                self._leave(name, reason)
            else:
                # An O_PATH descriptor has no fgetxattr(2); this name leads to the very inode, a symlink's own too.
                self.outcome.changed += self._change(name, st, fd, f"/proc/self/fd/{fd}")

    def _change(self, name: bytes, st: os.stat_result, fd: int, labelled: int | str) -> bool:
        """Write what differs, by descriptor, and tell whether anything did; *labelled* names the same for xattr(7)."""
        order, label, found = self._order, self._label, b""
        owned = order.uid in (None, st.st_uid) and order.gid in (None, st.st_gid)
        if label is not None and (owned or order.dry_run or not self._unseen):
            try:
                found = os.getxattr(labelled, _ATTRIBUTE)
            except OSError as exc:
                found = self._unlabelled(exc)
            if self._is(found):
                label = None
            self._unseen = label is not None and not order.type_only
        if order.dry_run and (not owned or label is not None):
            now = [] if owned else [f"owner {st.st_uid}:{st.st_gid}"]
            now += [] if label is None else [f"label {printable(os.fsdecode(found.rstrip(bytes(1)))) or 'none'}"]
            self.outcome.plan(self._shown(name), ", ".join(now))
            return True
        if not owned:
            (os.fchown if labelled == fd else linux.fchown)(fd, self._uid, self._gid)  # the first takes no pinned one
        if label is not None:
            os.setxattr(labelled, _ATTRIBUTE, label)
        return not owned or label is not None

    def _unlabelled(self, exc: OSError) -> bytes:
        """What stands for the label of a file that has none. Where the file system keeps none, none is wanted."""
        if exc.errno == errno.ENODATA:
            return b""
        if exc.errno != errno.ENOTSUP:
            raise exc
        self._label = None
        return b""

    def _is(self, found: bytes) -> bool:
        """Whether a label is the one that is wanted."""
        if self._label is None:
            return True
        found, wanted = found.rstrip(b"\0"), self._label.rstrip(b"\0")
        return found.split(b":")[2:3] == wanted.split(b":")[2:3] if self._order.type_only else found == wanted


class Count(Walk):
    """A walk that only counts, ten times as fast."""

    def _change(self, *_: object) -> bool:
        return False

    def _read(self, here: _Directory) -> None:
        os.fchdir(here.fd)  # where the file system does not tell what is a directory, is_dir looks by name
        with contextlib.suppress(OSError):
            for entry in here.entries:
                if entry.is_dir(follow_symlinks=False):
                    here.pending.append(entry.name)
                    if len(here.pending) == _MAX_PENDING:
                        return
                else:
                    self.outcome.done += 1
        here.entries.close()
        here.entries = None


def not_ours(st: os.stat_result) -> str:
    """Why an entry of an adopted tree, which is no directory, is left alone; empty where it is not."""
    if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode):
        return "is a device node"
    return f"has {st.st_nlink} hard links" if st.st_nlink > 1 else ""


def reason_of(exc: OSError) -> str:
    """Why an entry was left alone."""
    return "is a mount point" if exc.errno == errno.EXDEV else (exc.strerror or str(exc))
