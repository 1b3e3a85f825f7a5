"""The removal of a tree whose owner may be changing it."""

from __future__ import annotations

import os
from typing import Final

from ..errors import printable
from ..host import fds
from .walk import Outcome, reason_of

_LEVELS: Final = 128  # that a removal goes down; it moves what is deeper up


def remove(root: int) -> Outcome:
    """Remove everything below *root*. A mount point inside, and what the kernel refuses, is left and reported.

    A removal goes by descriptor, as a pass does, and can be interrupted and begun again at any point. It moves what is
    too deep up into *root* first, so that few descriptors are open at any depth.
    """
    outcome = Outcome()
    while _remove(root, outcome):
        outcome = Outcome(done=outcome.done)
    return outcome


def _remove(root: int, outcome: Outcome) -> bool:
    """One round of a removal; True where something was moved up, which the next round removes."""
    moved = False
    stack = [(root, "", os.scandir(root))]

    def leave(name: str, exc: OSError) -> None:
        if exc.errno not in fds.CHANGED:
            path = "/".join([*(each[1] for each in stack[1:]), name])
            outcome.leave(printable(path), reason_of(exc))

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
                elif len(stack) > _LEVELS:
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
