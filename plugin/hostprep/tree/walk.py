"""One process's part of a pass: every entry of a tree gets its owner and label, while its owner may be changing it.

How nothing outside is reached: a name is one component, looked up in a directory that was itself reached so from the
root; no symlink is followed, and `..` is never used. What somebody swaps between look and change is met as what it is
then, inside the tree. Mounts are kept out in one of two ways:

- The pass works on a detached clone of the mount (open_tree(2); private and without symlinks by mount_setattr(2), Linux
  5.12). Nothing is mounted in it and nothing can be, so entries are changed by name, in the directory they are in.
- Where there is none, and in adopted trees, where a hard link may be to somebody else's file, an entry is pinned first
  (O_PATH), looked at again and changed by descriptor. That takes half as long again.
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

_ATTRIBUTE: Final = "security.selinux"
_EXAMPLES: Final = 5  # of what was left alone are named, the rest is counted
_SHOWN: Final = 500  # characters of a path in a report, which a record has to hold
_PENDING: Final = 4096  # directories read from one before they are entered: what bounds memory
_OPEN: Final = 256  # directories that stay open; those above them are found again when it is their turn
_DEEPEST: Final = 32_768  # levels; an attacker can make directories as fast as they are entered
_LOOK_UP: Final = 256  # entries between two looks at the clock
_BATCH: Final = 32_768  # bytes of names given away at once
_LONG: Final = 8192  # bytes; deeper than that nothing is mounted (PATH_MAX), and a path is for messages only


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


@dataclass(slots=True)
class Outcome:
    """What a pass did."""

    done: int = 0
    changed: int = 0
    left: int = 0
    examples: list[str] = field(default_factory=list)

    def leave(self, path: str, why: str) -> None:
        self.left += 1
        if len(self.examples) < _EXAMPLES:
            shown = path if len(path) <= _SHOWN else f"…{path[-_SHOWN:]}"
            self.examples.append(f"{shown}: {why}")

    def add(self, other: Outcome) -> None:
        """Count another process's part in."""
        self.done += other.done
        self.changed += other.changed
        self.left += other.left
        self.examples = [*self.examples, *other.examples][:_EXAMPLES]

    def sentences(self) -> tuple[str, ...]:
        more = self.left - len(self.examples)
        return (*self.examples, *([f"and {more} more entries were left alone"] if more > 0 else []))


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory that the walk is in. *fd* is -1 while it is closed; then *identity* tells whether it is the same."""

    above: _Directory | None
    name: bytes
    depth: int
    fd: int
    identity: tuple[int, int]
    entries: Any
    """What os.scandir gives, which has no public type; None when it is read to its end."""
    pending: list[bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """Directories for another process to walk: those of the *names* in the directory *fd*, which is borrowed."""

    fd: int
    path: bytes
    depth: int
    names: list[bytes]


class Walk:
    """A walk, depth first. The process's working directory is wherever the walk is.

    A directory is mended when it is entered, what else is in it when it is read. Nothing is remembered of what is done,
    so that memory does not grow with the tree, but for the names of directories that are still to be entered.
    """

    def __init__(self, order: Order, *, cloned: bool, covered: frozenset[bytes], tick: Callable[[], None]) -> None:
        """Args:
        cloned: the tree is a detached clone of its mount.
        covered: the paths at which something is mounted, which a clone does not show: they are left alone.
        tick: called now and then.
        """
        self.outcome = Outcome()
        self.again = 0.0
        """How many of the entries done are but another name of a file counted already."""
        self._order = order
        self._cloned = cloned
        self._covered = covered
        self._tick = tick
        self._uid = -1 if order.uid is None else order.uid
        self._gid = -1 if order.gid is None else order.gid
        self._label = None if order.label is None else order.label.encode("ascii") + b"\0"
        self._base = b""
        self._stack: list[_Directory] = []
        self._closed = 0  # of the stack above its first, which stays open

    def begin(self, fd: int) -> None:
        """Walk everything below the directory *fd*, which is the walk's from now on."""
        self._base = b""
        self._push(None, b"", fd, os.fstat(fd))

    def go_on(self, part: Part) -> None:
        """Walk what another process gave away; *part.fd* is the walk's from now on."""
        self._base = part.path
        self._stack.append(_Directory(None, b"", part.depth, part.fd, _identity(part.fd), None, part.names))

    def step(self) -> bool:
        """Read one directory, or enter one; False when nothing is left."""
        if not self._stack:
            return False
        here = self._stack[-1]
        if here.fd < 0 and not self._reopen(here):
            return True
        if here.pending:
            name = here.pending.pop()
            if not here.pending and here.entries is None and len(self._stack) > 1:
                self._stack.pop()  # nothing more to do in it: a chain of directories keeps none open but its last
                self._enter(here, name)
                os.close(here.fd)
                here.fd = -1
            else:
                self._enter(here, name)
        elif here.entries is not None:
            self._read(here)
        else:
            self._stack.pop()
            os.close(here.fd)
        return True

    def close(self) -> None:
        """Let go of everything, wherever the walk is."""
        for each in self._stack:
            if each.entries is not None:
                each.entries.close()
            if each.fd >= 0:
                os.close(each.fd)
        self._stack.clear()
        self._closed = 0

    def give(self) -> Part | None:
        """Half of the directories that are to be entered from the highest that has any, for another process."""
        for depth, each in enumerate(self._stack):
            # The last one of where the walk is stays: two processes would do nothing but hand a chain back and forth.
            if each.fd >= 0 and len(each.pending) > (depth == len(self._stack) - 1):
                count, size = 0, 0
                while count < (len(each.pending) + 1) // 2 and size < _BATCH:
                    size += len(each.pending[count]) + 1
                    count += 1
                names, each.pending[:count] = each.pending[:count], []
                path = self._path(each)
                if len(path) > _LONG:
                    path = b"..." + path[-_SHOWN:]
                return Part(each.fd, path, each.depth, names)
        return None

    # -- directories -----------------------------------------------------------------------------------------------

    def _enter(self, above: _Directory, name: bytes) -> None:
        try:
            fd = self._open(above.fd, name)
        except OSError as exc:
            self._failed(above, name, exc)
            return
        self.outcome.done += 1
        st = os.fstat(fd)
        try:
            self.outcome.changed += self._mend(st, fd, fd)
        except OSError as exc:
            self._failed(above, name, exc)
        if above.depth + 1 > _DEEPEST:
            self.outcome.leave(self._shown(above, name), f"is {_DEEPEST} levels deep, what is in it was not looked at")
            os.close(fd)
            return
        self._push(above, name, fd, st)

    def _push(self, above: _Directory | None, name: bytes, fd: int, st: os.stat_result) -> None:
        if len(self._stack) - self._closed > _OPEN:
            shallowest = self._stack[1 + self._closed]
            if shallowest.entries is not None:
                self._read(shallowest, everything=True)
            os.close(shallowest.fd)
            shallowest.fd = -1
            self._closed += 1
        try:
            os.fchdir(fd)
            entries = os.scandir(b".")
        except OSError as exc:
            entries = None
            self.outcome.leave(self._shown(above, name) if above else ".", why(exc))
        depth = above.depth + 1 if above else 0
        self._stack.append(_Directory(above, name, depth, fd, (st.st_dev, st.st_ino), entries, []))

    def _open(self, above: int, name: bytes) -> int:
        if self._cloned:
            return os.open(name, fds.DIRECTORY, dir_fd=above)
        return fds.open_below(above, os.fsdecode(name), directory=True)

    def _reopen(self, here: _Directory) -> bool:
        """Open the last of the stack again, from the nearest one above that is open; False where it is not there.

        On the way down those that will be wanted next stay open.
        """
        way: list[_Directory] = []
        above: _Directory = here
        while above.fd < 0:
            way.append(above)
            assert above.above is not None  # noqa: S101  # the first of the stack is never closed
            above = above.above
        wanted = {id(each) for each in self._stack[max(1, len(self._stack) - _OPEN // 2) :]}
        opened: list[_Directory] = []
        fd, borrowed = above.fd, True
        try:
            for each in reversed(way):
                below = self._open(fd, each.name)
                if not borrowed:
                    os.close(fd)
                fd, borrowed = below, False
                if _identity(fd) != each.identity:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if id(each) in wanted:
                    each.fd, borrowed = fd, True
                    opened.append(each)
        except OSError:
            if not borrowed:
                os.close(fd)
            for each in opened:
                os.close(each.fd)
                each.fd = -1
            self._stack.pop()
            self._closed -= 1
            self.outcome.leave(self._shown(here, b""), "was moved while the pass was in it")
            return False
        self._closed -= len(opened)
        return True

    def _path(self, directory: _Directory, name: bytes = b"") -> bytes:
        names = [name] if name else []
        above: _Directory | None = directory
        while above is not None:
            names.append(above.name)
            above = above.above
        names[-1] = self._base
        return b"/".join(filter(None, reversed(names)))

    def _shown(self, directory: _Directory, name: bytes) -> str:
        return printable(os.fsdecode(self._path(directory, name)))

    def _failed(self, above: _Directory, name: bytes, exc: OSError) -> None:
        if exc.errno not in fds.CHANGED:
            self.outcome.leave(self._shown(above, name), why(exc))

    # -- entries ---------------------------------------------------------------------------------------------------

    def _read(self, here: _Directory, *, everything: bool = False) -> None:
        """Go over the entries of a directory: put directories off, and mend the rest.

        This loop is where a pass spends its time: plain names in the working directory, and as few calls as can be.
        """
        os.fchdir(here.fd)
        lstat, getxattr, pending = os.lstat, os.getxattr, here.pending
        order, outcome, covered = self._order, self.outcome, self._covered_in(here)
        any_uid, uid, any_gid, gid = order.uid is None, order.uid, order.gid is None, order.gid
        lchown, setxattr, new_uid, new_gid = os.lchown, os.setxattr, self._uid, self._gid
        type_only, by_name = order.type_only, self._cloned and not order.guarded and not order.dry_run
        most, seen = None if everything else _PENDING, 0
        # An entry that is written anyway is not asked for its label where the one before had to be labelled: the
        # look would cost a quarter of the pass, and a label that is right already makes the second write none.
        unseen = False
        try:
            for entry in here.entries:
                name = entry.name
                if covered and name in covered:
                    outcome.leave(self._shown(here, name), why(OSError(errno.EXDEV, "")))
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name)
                    if len(pending) == most:
                        return
                    continue
                seen += 1
                if seen == _LOOK_UP:
                    outcome.done += seen
                    seen = 0
                    self._tick()
                try:
                    st = lstat(name)
                    if st.st_nlink > 1:
                        self.again += 1 - 1 / st.st_nlink
                    owned = (any_uid or st.st_uid == uid) and (any_gid or st.st_gid == gid)
                    label, labelled = self._label, True
                    if label is not None and unseen and not owned:
                        labelled = False
                    elif label is not None:
                        try:
                            found = getxattr(name, _ATTRIBUTE, follow_symlinks=False)
                        except OSError as exc:
                            found = self._unlabelled(exc)
                        # Two whole labels that differ, and end as they should, are different.
                        labelled = found == label or ((type_only or found[-1:] != b"\0") and self._is(found))
                        unseen = by_name and not type_only and not labelled
                    if owned and labelled:
                        continue
                    if not by_name:
                        if reason := self._pin(here.fd, name):
                            outcome.leave(self._shown(here, name), reason)
                        continue
                    if not owned:
                        lchown(name, new_uid, new_gid)
                    if label is not None and not labelled:
                        setxattr(name, _ATTRIBUTE, label, follow_symlinks=False)
                    outcome.changed += 1
                except OSError as exc:
                    self._failed(here, name, exc)
        except OSError as exc:  # the directory itself cannot be read on
            self._failed(here, b"", exc)
        finally:
            outcome.done += seen
        here.entries.close()
        here.entries = None

    def _covered_in(self, here: _Directory) -> frozenset[bytes]:
        if not self._covered:
            return self._covered
        path = self._path(here)
        return frozenset(os.path.basename(each) for each in self._covered if os.path.dirname(each) == path)

    def _pin(self, above: int, name: bytes) -> str:
        """Mend an entry by its descriptor, and say why not where it is to be left alone."""
        with fds.held(fds.open_below(above, os.fsdecode(name), directory=False)) as fd:
            st = os.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                return ""  # became one meanwhile
            if self._order.guarded:
                if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode):
                    return "is a device node"
                if st.st_nlink > 1:
                    return f"has {st.st_nlink} hard links"
            # An O_PATH descriptor has no fgetxattr(2); this name leads to the very inode, a symlink's own too.
            self.outcome.changed += self._mend(st, fd, f"/proc/self/fd/{fd}")
        return ""

    def _mend(self, st: os.stat_result, fd: int, labelled: int | str) -> bool:
        """Write what differs, by descriptor, and tell whether anything did; *labelled* names the same for xattr(7)."""
        order, label = self._order, self._label
        owned = order.uid in (None, st.st_uid) and order.gid in (None, st.st_gid)
        if label is not None:
            try:
                found = os.getxattr(labelled, _ATTRIBUTE)
            except OSError as exc:
                found = self._unlabelled(exc)
            if self._is(found):
                label = None
        if order.dry_run:
            return not owned or label is not None
        if not owned:
            linux.fchown(fd, self._uid, self._gid)
        if label is not None:
            os.setxattr(labelled, _ATTRIBUTE, label)
        return not owned or label is not None

    def _unlabelled(self, exc: OSError) -> bytes:
        """What stands for the label of a file that has none; where the file system keeps none, none is wanted more."""
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

    def _mend(self, *_: object) -> bool:
        return False

    def _read(self, here: _Directory, *, everything: bool = False) -> None:
        os.fchdir(here.fd)  # where the file system does not tell what is a directory, a look is by name
        with contextlib.suppress(OSError):
            for entry in here.entries:
                if entry.is_dir(follow_symlinks=False):
                    here.pending.append(entry.name)
                    if len(here.pending) == _PENDING and not everything:
                        return
                else:
                    self.outcome.done += 1
        here.entries.close()
        here.entries = None


def _identity(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino


def why(exc: OSError) -> str:
    """Why an entry was left alone."""
    return "is a mount point" if exc.errno == errno.EXDEV else (exc.strerror or str(exc))
