"""Passes over whole trees: each in a process of its own, at most one for each volume, for which whoever needs it waits.

As many work at a time as help, and the others wait their turn. This bound is of one process: a server, or a command.

`pass.json`, the mark, is in the volume's directory from before the first change until the root, last of all, is right.
While it is there the tree is not right, whatever the root looks like, and the next Mount begins the pass again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import Busy, HostprepError, NoSuchVolume, Unreadable, in_words, printable
from ..host import fds
from ..host.locks import is_locked, open_lock_file, try_lock
from ..tree.process import Progress, begin, follow
from ..tree.walk import Order, Outcome
from .store import Store
from .volume import LockedVolume, Volume, write_progress

log = logging.getLogger("hostprep")

_WRITTEN_EVERY: Final = 1.0  # seconds between two progress reports on disk
# How many work at a time: each starts processes for every processor (workers.py). Two, so that one may wait for a disk.
_AT_ONCE: Final = min(max(2, len(os.sched_getaffinity(0)) // 4), 8)
_STUCK: Final = 60.0  # seconds without another entry, after which a pass keeps no other waiting: its disk may hang

Finish = Callable[[Outcome], bool | None]
"""What is done when every entry is right, with no lock held. Returns whether the root could not be made right, and
None where nothing was done, since the volume or what it declares is another by now."""


class Pass:
    """One pass. Whoever needs it waits for `over`, and then looks at the volume again."""

    def __init__(self, volume: Volume, below: str = "") -> None:
        self.name = volume.name
        self.below = below
        """The directory that it is over, by its path from the volume's root; empty for the whole volume."""
        self.identity = volume.identity
        self.progress = Progress()
        self.over = threading.Event()
        self.failure = ""
        """Why it failed; empty while it runs, and when it ended or was cancelled."""
        self.complete = False
        """Whether all of it was done. That of another process never is: how it ended is not known."""
        self.stays = False
        """Whether its end found a root that cannot be made right, but is usable, or another directory that cannot."""
        self.cancelled = threading.Event()
        self.ahead = 0
        """How many passes it waits for, before it begins to work."""
        self.moved = time.monotonic()
        """When its turn came, or it was one entry further; on time.monotonic()'s clock."""
        self._child: subprocess.Popen[str] | None = None
        self._guard = threading.Lock()

    def go_on(self, progress: Progress) -> None:
        """Note how far it is."""
        if progress.done != self.progress.done:
            self.moved = time.monotonic()
        self.progress = progress

    def cancel(self) -> None:
        """End it now; the mark stays."""
        with self._guard:
            self.cancelled.set()
            if self._child is not None:
                self._child.kill()

    def work(self, data: int, order: Order, keep_open: int, report: Callable[[Progress], None]) -> Outcome | None:
        """Run the process to its end. Returns None where the pass was cancelled.

        Raises:
            HostprepError: it failed.
        """
        with self._guard:
            if self.cancelled.is_set():
                return None
            self._child = begin(data, order, keep_open=(keep_open,))
        try:
            return follow(self._child, report)
        except Unreadable as exc:
            if self.cancelled.is_set():
                return None
            raise Unreadable(f"the pass over volume {self.name} failed: {exc.message}") from None


class Turns:
    """Lets the first few passes work, in the order in which they came."""

    def __init__(self) -> None:
        self._queue: list[Pass] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def stand_in_line(self, begun: Pass) -> Iterator[None]:
        """Keep a place for *begun* until the end of the `with` block, while it waits and while it works."""
        with self._changed:
            self._queue.append(begun)
        try:
            yield
        finally:
            with self._changed:
                self._queue.remove(begun)
                self._changed.notify_all()

    def comes(self, begun: Pass, seconds: float) -> bool:
        """Wait so long at most, and return whether it is the turn of *begun*. A cancelled one waits no longer."""
        with self._changed:
            if self._count_ahead(begun) >= _AT_ONCE and not begun.cancelled.is_set():
                self._changed.wait(seconds)
            if (ahead := self._count_ahead(begun)) < _AT_ONCE:
                begun.ahead, begun.moved = 0, time.monotonic()
                return True
            begun.ahead = ahead
            return False

    def wake(self) -> None:
        """Have those look that were cancelled."""
        with self._changed:
            self._changed.notify_all()

    def _count_ahead(self, begun: Pass) -> int:
        now = time.monotonic()
        ahead = itertools.takewhile(lambda each: each is not begun, self._queue)
        return sum(each.ahead > 0 or now - each.moved < _STUCK for each in ahead)


class Passes:
    """The passes of this process, by volume. Another process's are followed by waiting for its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, Pass] = {}
        self._guard = threading.Lock()
        self._stopped = False
        self._turns = Turns()

    def running(self, name: str) -> Pass | None:
        with self._guard:
            return self._running.get(name)

    def start(self, volume: LockedVolume, data: int, order: Order, finish: Finish, *, below: str = "") -> Pass:
        """Begin a pass over the tree *data*, or join the one that runs, whatever that is over. The mark is on disk.

        Args:
            below: where *data* is, if it is not the root. The mark, which is the whole volume's, is not written then.

        Raises:
            Busy: the server is stopping, or no thread can be started.
            OSError: EMFILE and the like.
        """
        name = volume.name
        with self._guard:
            if found := self._running.get(name):
                return found
            if self._stopped:
                raise Busy("hostprep is stopping", hint="the pass goes on when it is back; start again then")
            begun = self._running[name] = Pass(volume, below)
        try:
            with contextlib.ExitStack() as undo:
                copy = Volume(volume.root, os.dup(volume.fd), volume.record)
                undo.callback(os.close, copy.fd)
                data = os.dup(data)
                undo.callback(os.close, data)
                arguments = (begun, copy, data, order, finish)
                threading.Thread(target=self._run, args=arguments, name=f"pass {name}", daemon=True).start()
                undo.pop_all()
        except (OSError, RuntimeError) as exc:
            with self._guard:
                del self._running[name]
            begun.failure = in_words(exc)
            begun.over.set()
            if isinstance(exc, RuntimeError):
                why = f"preparing {name} cannot begin: {exc}"
                raise Busy(why, hint="hostprep's limit of processes is reached") from None
            raise
        return begun

    def runs_elsewhere(self, name: str) -> bool:
        """Whether another process has a pass over the volume."""
        with self._store.part("locks") as locks, fds.closing(open_lock_file(locks)) as held:
            return is_locked(held, f"pass/{name}")

    def cancel(self, name: str) -> None:
        if found := self.running(name):
            found.cancel()
            self._turns.wake()

    def stop(self) -> None:
        """End every pass now, and begin no other: the server is stopping. Whoever waits is woken."""
        with self._guard:
            self._stopped = True
            running = list(self._running.values())
        for each in running:
            each.cancel()
        self._turns.wake()

    def _run(self, begun: Pass, volume: Volume, data: int, order: Order, finish: Finish) -> None:
        written = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal written
            begun.go_on(progress)
            if time.monotonic() - written >= _WRITTEN_EVERY:
                written = time.monotonic()
                if not self._is_current(volume):
                    begun.cancel()
                elif not begun.below:
                    write_progress(volume, progress)

        try:
            with (
                fds.closing(volume.fd),
                fds.closing(data),
                self._store.part("locks") as locks,
                fds.closing(open_lock_file(locks)) as held,
            ):
                if not try_lock(held, f"pass/{begun.name}"):
                    # Another process has the pass: wait for it to end, showing what it writes of its progress.
                    while not (try_lock(held, f"pass/{begun.name}") or self._stopped or begun.cancelled.is_set()):
                        begun.progress = volume.pending() or begun.progress
                        time.sleep(0.1)
                else:
                    with self._turns.stand_in_line(begun):
                        # It keeps the lock's descriptor, too: should it outlive the server, no second one is begun.
                        outcome = begun.work(data, order, held, report) if self._has_turn(begun, volume) else None
                    if outcome is not None:
                        stays = finish(outcome)
                        begun.complete, begun.stays = stays is not None, bool(stays)
        except NoSuchVolume:
            log.info("pass over %s: it was removed meanwhile", begun.name)  # whoever waits will see that it is gone
        except Exception as exc:  # else whoever waits would take it for an end, and begin the next pass
            begun.failure = in_words(exc)
            log.error("pass over %s: %s", begun.name, printable(begun.failure))
        finally:
            with self._guard:
                del self._running[begun.name]
            begun.over.set()

    def _has_turn(self, begun: Pass, volume: Volume) -> bool:
        """Wait until it is the turn of *begun*; return False where it is not wanted any more."""
        while not self._turns.comes(begun, 1.0):
            if begun.cancelled.is_set() or not self._is_current(volume):
                return False
        return True

    def _is_current(self, volume: Volume) -> bool:
        """Whether the name still leads to *volume*: another process may have removed it."""
        with contextlib.suppress(HostprepError, OSError), self._store.open(volume.name) as now:
            return os.path.sameopenfile(volume.fd, now.fd)
        return False
