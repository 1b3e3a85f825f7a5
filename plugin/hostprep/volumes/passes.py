"""Passes over whole trees: each in a process of its own, one a volume, joined by whoever waits for it.

`pass.json` in the volume's directory is there from before the first change until the root, last of all, is right:
while it is there the tree is not, whatever the root looks like, and the next Mount begins the pass again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from ..errors import Busy, HostprepError, NoSuchVolume, Unreadable, in_words, printable
from ..host import fds
from ..host.locks import is_locked, open_lock_file, try_lock
from ..tree.process import Progress, begin, follow
from ..tree.walk import Order, Outcome
from .record import LIMIT
from .store import Store

log = logging.getLogger("hostprep")

MARK: Final = "pass.json"
_WRITTEN_EVERY: Final = 1.0  # seconds between two progress reports on disk
_ABSURD: Final = 2**53


class Pass:
    """One pass. Whoever waits for it waits on `over`, and then looks at the volume again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.progress = Progress()
        self.over = threading.Event()
        self.failure = ""
        """Why it did not come to its end; empty while it runs and when it did."""
        self._child: subprocess.Popen[str] | None = None
        self.cancelled = threading.Event()
        self._guard = threading.Lock()

    def cancel(self) -> None:
        """End it where it is; the mark stays."""
        with self._guard:
            self.cancelled.set()
            if self._child is not None:
                self._child.kill()

    def work(self, data: int, order: Order, keep_open: int, report: Callable[[Progress], bool]) -> Outcome | None:
        """Run the process to its end. Returns None where it was cancelled, also by *report* answering False.

        Raises:
            HostprepError: it failed.
        """
        with self._guard:
            if self.cancelled.is_set():
                return None
            self._child = begin(data, order, keep_open=(keep_open,))

        def told(progress: Progress) -> None:
            self.progress = progress
            if not report(progress):
                self.cancel()

        try:
            return follow(self._child, told)
        except Unreadable as exc:
            if self.cancelled.is_set():
                return None
            raise Unreadable(f"the pass over volume {self.name} failed: {exc.message}") from None


class Passes:
    """The passes of this process, by volume. Another process's are followed by waiting for its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._running: dict[str, Pass] = {}
        self._guard = threading.Lock()
        self._stopped = False

    def running(self, name: str) -> Pass | None:
        with self._guard:
            return self._running.get(name)

    def start(self, volume: int, name: str, data: int, order: Order, finish: Callable[[Outcome], None]) -> Pass:
        """Begin a pass, or join the one that runs. The volume's lock is held, and its mark is on disk.

        Args:
            volume, data: descriptors of the volume's directory and of the tree; copied.
            finish: called at the end, with no lock held; what it raises is the pass's failure.

        Raises:
            Busy: the server is stopping, or no thread can be started.
            OSError: EMFILE and the like.
        """
        with self._guard:
            if found := self._running.get(name):
                return found
            if self._stopped:
                raise Busy("hostprep is stopping", hint="the pass goes on when it is back; start again then")
            begun = self._running[name] = Pass(name)
        try:
            with contextlib.ExitStack() as undo:
                volume = os.dup(volume)
                undo.callback(os.close, volume)
                data = os.dup(data)
                undo.callback(os.close, data)
                arguments = (begun, volume, data, order, finish)
                threading.Thread(target=self._run, args=arguments, name=f"pass {name}", daemon=True).start()
                undo.pop_all()
        except (OSError, RuntimeError) as exc:
            with self._guard:
                del self._running[name]
            begun.failure = in_words(exc)
            begun.over.set()
            if isinstance(exc, RuntimeError):
                raise Busy(f"preparing {name} cannot begin: {exc}", hint="its limit of processes is reached") from None
            raise
        return begun

    def runs_elsewhere(self, name: str) -> bool:
        """Whether another process has a pass over the volume."""
        with self._store.part("locks") as locks, fds.held(open_lock_file(locks)) as held:
            return is_locked(held, f"pass/{name}")

    def cancel(self, name: str) -> None:
        if found := self.running(name):
            found.cancel()

    def stop(self) -> None:
        """End every pass where it is, and begin no other: the server is going down. Whoever waits is woken."""
        with self._guard:
            self._stopped = True
            found = list(self._running.values())
        for each in found:
            each.cancel()

    def _run(self, begun: Pass, volume: int, data: int, order: Order, finish: Callable[[Outcome], None]) -> None:
        written = time.monotonic()

        def report(progress: Progress) -> bool:
            nonlocal written
            if time.monotonic() - written < _WRITTEN_EVERY:
                return True
            written = time.monotonic()
            return self._still(volume, begun.name) and write_mark(self._store, volume, progress)

        try:
            with (
                fds.held(volume),
                fds.held(data),
                self._store.part("locks") as locks,
                fds.held(open_lock_file(locks)) as held,
            ):
                if not try_lock(held, f"pass/{begun.name}"):
                    self._follow(begun, volume, held)
                # The process has the lock's descriptor too: an orphan's tree is not begun a second time.
                elif (outcome := begun.work(data, order, held, report)) is not None:
                    finish(outcome)
        except NoSuchVolume:
            log.info("pass over %s: it was removed meanwhile", begun.name)  # who waits sees so for himself
        except (HostprepError, OSError, ValueError) as exc:
            begun.failure = in_words(exc)
            log.error("pass over %s: %s", begun.name, printable(begun.failure))
        finally:
            with self._guard:
                del self._running[begun.name]
            begun.over.set()

    def _follow(self, begun: Pass, volume: int, held: int) -> None:
        """Another process has the pass: wait for it to end, showing what it writes of its progress."""
        while not (try_lock(held, f"pass/{begun.name}") or self._stopped or begun.cancelled.is_set()):
            begun.progress = read_mark(volume) or begun.progress
            time.sleep(0.1)

    def _still(self, volume: int, name: str) -> bool:
        """Whether the volume is where it was: another process may have removed it."""
        with contextlib.suppress(HostprepError, OSError), self._store.volume(name) as now:
            return os.path.sameopenfile(volume, now)
        return False


def write_mark(store: Store, volume: int, progress: Progress, *, durable: bool = False) -> bool:
    """Put the progress into the mark of a pending pass, or make the mark; always True."""
    store.write(volume, MARK, json.dumps(asdict(progress)).encode() + b"\n", durable=durable)
    return True


def read_mark(volume: int) -> Progress | None:
    """The progress of a pending pass, None where none is pending; progress that cannot be read counts as none made."""
    try:
        found = json.loads(fds.read_file(volume, MARK, limit=LIMIT))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, Unreadable):
        return Progress()
    if not isinstance(found, dict) or found.keys() != Progress.__dataclass_fields__.keys():
        return Progress()
    numbers = [value for value in found.values() if value is not None]
    if found["done"] is None or not all(type(n) in (int, float) and 0 <= n < _ABSURD for n in numbers):
        return Progress()
    left, estimate = found["seconds_left"], found["estimate"]
    return Progress(int(found["done"]), None if estimate is None else int(estimate), float(found["rate"] or 0), left)
