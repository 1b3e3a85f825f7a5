"""Looks at disks in a process of its own: one that hangs would keep this one from its end, too."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

WITHIN: Final = 10.0
"""Seconds that a disk may take: one that slept has woken up by then."""


def look(names: Sequence[str], one: Callable[[str], Any]) -> Iterator[tuple[str, bool, Any]]:
    """Each name, whether its disk answered within WITHIN, and what *one* returned for it."""
    left = list(names)
    if left:  # of its own importing takes longer than all the rest
        import multiprocessing
    while left:
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader:
            with writer:
                pid = os.fork()
                if pid == 0:
                    _look(left, one, writer)
            while left and reader.poll(WITHIN):
                try:
                    found = reader.recv()
                except EOFError:
                    raise ChildProcessError(f"the process that looks at {left[0]} ended too early") from None
                yield left.pop(0), True, found
            os.kill(pid, signal.SIGKILL)
            if not left:
                os.waitpid(pid, 0)
                return
            yield left.pop(0), False, None  # the process ends with the disk, and this one does not wait for that


def _look(names: Sequence[str], one: Callable[[str], Any], writer: Any) -> None:
    """Send what there is of each, in a process that keeps nothing of the first open: somebody may read its output."""
    with contextlib.suppress(BaseException):
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        for name in names:
            writer.send(one(name))
    os._exit(0)
