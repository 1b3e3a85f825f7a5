"""What is done to whole trees whose owner may be changing them: the pass over owners and labels, and removal.

A pass is a process of its own (`python -m plugin.tree`), so that it takes no time from the server's threads; see
crew.py for those that help it, and walk.py for how it goes about.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from . import fds, linux
from .crew import Crew, Report
from .errors import printable
from .mounts import mount_table
from .walk import Order, Outcome, Walk, why

__all__ = ["Order", "Outcome", "remove", "run"]

_NICE: Final = 5  # a pass can wait a little; the starts of other containers should not
_ONE_JOURNAL: Final = frozenset({linux.EXT4_SUPER_MAGIC, linux.XFS_SUPER_MAGIC})
_DEEP: Final = 128  # levels that a removal goes down before it moves what is there up


def run(root: int, order: Order, report: Report = lambda done, estimate: None, *, alone: bool = True) -> Outcome:
    """Give every entry below *root*, but not *root* itself, the owner and label that *order* names.

    Only what differs is written. chown(2) strips setuid, setgid and file capabilities from what is no directory. The
    working directory of this process is elsewhere meanwhile.

    Args:
        alone: without other processes, which may be forked only where there is no other thread.

    Raises:
        Endless: entries are made faster than they can be gone over.
        ChildProcessError: another process of the pass ended before its time.
    """
    with _clone(root) as (fd, cloned), _working_directory_kept():
        covered = _covered(root)

        def walk(kind: type[Walk], tick: Callable[[], None]) -> Walk:
            return kind(order, cloned=cloned, covered=covered, tick=tick)

        return Crew(fd, walk, report).lead(alone=alone)


@contextlib.contextmanager
def _clone(root: int) -> Iterator[tuple[int, bool]]:
    """A detached clone of the mount that *root* is on, rooted there, and True; where there is none, *root* and False.

    Private, or what is mounted on the original might be propagated to it.
    """
    with contextlib.ExitStack() as stack:
        try:
            clone = linux.open_tree(root, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
            stack.enter_context(fds.held(clone))
            attributes = linux.MOUNT_ATTR_NOSYMFOLLOW | linux.MOUNT_ATTR_NODEV
            linux.mount_setattr(clone, 0, attributes=attributes, propagation=linux.MS_PRIVATE)
            readable = stack.enter_context(fds.held(os.open(".", fds.DIRECTORY, dir_fd=clone)))
        except OSError:  # ENOSYS of an old kernel, EPERM without CAP_SYS_ADMIN
            yield root, False
        else:
            yield readable, True


@contextlib.contextmanager
def _working_directory_kept() -> Iterator[None]:
    with fds.held(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as before:
        try:
            yield
        finally:
            os.fchdir(before)


def _covered(root: int) -> frozenset[bytes]:
    """The paths below *root* at which something is mounted now, as far as the name that it has now tells (proc(5))."""
    above = os.readlink(f"/proc/self/fd/{root}") + "/"
    points = [mount.point for mount in mount_table()]
    return frozenset(os.fsencode(point.removeprefix(above)) for point in points if point.startswith(above))


def remove(root: int) -> Outcome:
    """Remove everything below *root*. A mount point inside, and what the kernel refuses, is left and reported.

    By descriptor as a pass is, and interrupted at any point it can be begun again. What is deeper than a removal cares
    to go down is moved up into *root* first, so that few descriptors are open whatever the depth.
    """
    outcome = Outcome()
    while _remove(root, outcome):
        outcome = Outcome(done=outcome.done)
    return outcome


def _remove(root: int, outcome: Outcome) -> bool:
    """One round of a removal; whether something was moved up, which makes another one necessary."""
    moved = False
    stack = [(root, "", os.scandir(root))]

    def leave(name: str, exc: OSError) -> None:
        if exc.errno not in fds.CHANGED:
            path = "/".join([*(each[1] for each in stack[1:]), name])
            outcome.leave(printable(path), why(exc))

    try:
        while True:
            here, name, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                if len(stack) == 1:
                    return moved
                stack.pop()
                os.close(here)
                try:
                    os.rmdir(name, dir_fd=stack[-1][0])
                    outcome.done += 1
                except OSError as exc:
                    leave(name, exc)
                continue
            try:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=here)
                    outcome.done += 1
                elif len(stack) > _DEEP:
                    os.rename(entry.name, fds.temporary_name(), src_dir_fd=here, dst_dir_fd=root)
                    moved = True
                else:
                    below = fds.open_below(here, entry.name, directory=True)
                    stack.append((below, entry.name, os.scandir(below)))
            except OSError as exc:
                leave(entry.name, exc)
    finally:
        for below, _, entries in stack:
            entries.close()
            if below != root:
                os.close(below)


def main(arguments: list[str]) -> None:
    """Run a pass over the directory open as descriptor *arguments[0]*; a line of JSON for each report on stdout."""
    root, order = int(arguments[0]), Order(**json.loads(arguments[1]))
    os.nice(_NICE)

    def report(done: int, estimate: int | None) -> None:
        print(json.dumps({"done": done, "estimate": estimate}), flush=True)

    outcome = run(root, order, report, alone=False)
    # Whoever waits has the root and the mark follow, and syncs those. One journal brings along what came before; on
    # others (btrfs) a power cut would leave a root that is right and contents that are not, and nothing to tell.
    if not order.dry_run and linux.file_system(root) not in _ONE_JOURNAL:
        linux.syncfs(root)
    print(json.dumps(asdict(outcome)), flush=True)


def raise_open_files() -> None:
    """Take the hard limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
