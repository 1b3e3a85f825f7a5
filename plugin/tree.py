"""Walking a tree that its owner may be changing at that moment: the pass over owners and labels, and removal.

Everything is by descriptor, one component at a time. No symlink is followed, no mount point crossed. What somebody
swaps between look and open is met as what it is then: nothing outside the tree is ever reached, since a name is only
ever looked up in a directory that was itself reached from the root.

Run as a process of its own (`python -m plugin.tree`), so that a long pass takes no time from the server's threads.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from . import fds, linux
from .errors import printable

_ATTRIBUTE: Final = "security.selinux"
# The entry is gone, or is something else by now: its new state is its owner's business, or the next pass's.
_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_EXAMPLES: Final = 5  # of what was left alone are named, the rest is counted
_SHOWN: Final = 500  # characters of a path in a report, which a record has to hold
_TICK: Final = 0.25  # seconds between two reports of progress


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

    def sentences(self) -> tuple[str, ...]:
        more = self.left - len(self.examples)
        return (*self.examples, *([f"and {more} more entries were left alone"] if more > 0 else []))


@dataclass(slots=True)
class _Frame:
    fd: int
    name: str
    entries: Any  # what os.scandir gives, which has no public type


class Descent:
    """Every entry below the directory *root*, a directory after what is in it.

    Yields the descriptor of the directory above, the name in it, and a descriptor of the entry itself where it is a
    directory, else None. They are good until the next step. An entry that vanishes meanwhile is passed over; a mount
    point, and what cannot be opened, is left alone.
    """

    def __init__(self, root: int, outcome: Outcome) -> None:
        self._frames = [_Frame(root, "", os.scandir(root))]
        self._outcome = outcome

    def path(self, name: str) -> str:
        """Where the entry just yielded is, for a message."""
        return printable("/".join([*(frame.name for frame in self._frames[1:]), name]))

    def __iter__(self) -> Iterator[tuple[int, str, int | None]]:
        frames = self._frames
        try:
            while True:
                frame = frames[-1]
                entry = next(frame.entries, None)
                if entry is None:
                    if len(frames) == 1:
                        return
                    frames.pop()
                    with fds.held(frame.fd):
                        yield frames[-1].fd, frame.name, frame.fd
                elif entry.is_dir(follow_symlinks=False):
                    try:
                        fd = fds.open_below(frame.fd, entry.name, directory=True)
                    except OSError as exc:
                        if exc.errno not in _CHANGED:
                            self._outcome.leave(self.path(entry.name), _why(exc))
                        continue
                    frames.append(_Frame(fd, entry.name, os.scandir(fd)))
                else:
                    yield frame.fd, entry.name, None
        finally:
            for frame in frames:
                frame.entries.close()
            for frame in frames[1:]:
                os.close(frame.fd)


def _why(exc: OSError) -> str:
    return "is a mount point" if exc.errno == errno.EXDEV else (exc.strerror or str(exc))


def run(root: int, order: Order, report: Callable[[int], None] = lambda done: None) -> Outcome:
    """Give every entry below *root*, but not *root* itself, the owner and label that *order* names.

    Only what differs is written. chown(2) strips setuid, setgid and file capabilities from what is no directory.

    Args:
        report: called with the number of entries looked at, some times a second.
    """
    outcome = Outcome()
    descent = Descent(root, outcome)
    next_report = time.monotonic() + _TICK
    for above, name, fd in descent:
        outcome.done += 1
        if outcome.done % 64 == 0 and time.monotonic() > next_report:
            report(outcome.done)
            next_report = time.monotonic() + _TICK
        try:
            if not _right(above, name, fd, order) and (why := _mend(above, name, fd, order, outcome)):
                outcome.leave(descent.path(name), why)
        except OSError as exc:
            if exc.errno not in _CHANGED:
                outcome.leave(descent.path(name), _why(exc))
    return outcome


def _right(above: int, name: str, fd: int | None, order: Order) -> bool:
    """A look by name: what it says may be out of date at once, so `_mend` looks again at what it has pinned."""
    if fd is not None:
        return _is(os.fstat(fd), lambda: os.getxattr(fd, _ATTRIBUTE), order)
    path = f"/proc/self/fd/{above}/{name}"
    return _is(
        os.stat(name, dir_fd=above, follow_symlinks=False),
        lambda: os.getxattr(path, _ATTRIBUTE, follow_symlinks=False),
        order,
    )


def _is(st: os.stat_result, read: Callable[[], bytes], order: Order) -> bool:
    return not _owner_differs(st, order) and not _label_differs(read, order)


def _owner_differs(st: os.stat_result, order: Order) -> bool:
    return order.uid not in (None, st.st_uid) or order.gid not in (None, st.st_gid)


def _label_differs(read: Callable[[], bytes], order: Order) -> bool:
    if order.label is None:
        return False
    try:
        found = read().rstrip(b"\0").decode("ascii", "replace")
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return False
        if exc.errno != errno.ENODATA:
            raise
        return True
    if order.type_only:
        return found.split(":")[2:3] != order.label.split(":")[2:3]
    return found != order.label


def _mend(above: int, name: str, directory: int | None, order: Order, outcome: Outcome) -> str:
    """Change what differs, on a descriptor, and say why not where it is to be left alone."""
    with contextlib.ExitStack() as stack:
        fd = directory
        if fd is None:
            fd = stack.enter_context(fds.held(fds.open_below(above, name, directory=False)))
        st = os.fstat(fd)
        if directory is None and stat.S_ISDIR(st.st_mode):
            return ""  # became one meanwhile
        if order.guarded and not stat.S_ISDIR(st.st_mode):
            if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode):
                return "is a device node"
            if st.st_nlink > 1:
                return f"has {st.st_nlink} hard links"
        if order.dry_run:
            outcome.changed += 1
            return ""
        if _owner_differs(st, order):
            linux.fchown(fd, -1 if order.uid is None else order.uid, -1 if order.gid is None else order.gid)
        # An O_PATH descriptor has no fgetxattr(2); this name leads to the very inode, a symlink's own too.
        pinned = f"/proc/self/fd/{fd}"
        if order.label is not None and _label_differs(lambda: os.getxattr(pinned, _ATTRIBUTE), order):
            os.setxattr(pinned, _ATTRIBUTE, order.label.encode("ascii") + b"\0")
    outcome.changed += 1
    return ""


def remove(root: int) -> Outcome:
    """Remove everything below *root*. A mount point inside, and what the kernel refuses, is left and reported."""
    outcome = Outcome()
    descent = Descent(root, outcome)
    for above, name, fd in descent:
        try:
            if fd is None:
                os.unlink(name, dir_fd=above)
            else:
                os.rmdir(name, dir_fd=above)
            outcome.done += 1
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                outcome.leave(descent.path(name), _why(exc))
    return outcome


def main(arguments: list[str]) -> None:
    """Run a pass over the directory open as descriptor *arguments[0]*; a line of JSON for each report on stdout."""
    root, order = int(arguments[0]), Order(**json.loads(arguments[1]))
    raise_open_files()

    def report(done: int) -> None:
        print(json.dumps({"done": done}), flush=True)

    print(json.dumps(asdict(run(root, order, report))), flush=True)


def raise_open_files() -> None:
    """Take the hard limit of open files: a deep tree costs two a level."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
