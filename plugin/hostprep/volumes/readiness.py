"""Making a volume right: its root at once, its contents by a pass first where they must follow.

The order is what an interruption can rely on: the mark on disk, the contents, the root, the mark gone. So a root that
is right, without a mark, means contents that are.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from dataclasses import replace
from typing import Final

from ..errors import Busy, NotReady
from ..host import fds
from ..host.labels import Labels
from ..options import Recurse
from ..tree.plan import Change, Found, Want, apply, closes, plan, usable
from ..tree.process import Progress
from ..tree.walk import Order, Outcome
from .passes import MARK, Pass, Passes, write_mark
from .record import Record
from .store import RECORD, Store

log = logging.getLogger("hostprep")

_WAITING: Final = 24  # requests that may wait for passes at once; the others are told to come back
_OWED: Final = 600.0  # seconds for which a pass that its Mount did not wait for counts for the next one


class Readiness:
    """What Mount, Unmount and Create do to the directory of a volume that exists."""

    def __init__(self, store: Store, labels: Labels) -> None:
        self.store = store
        self.labels = labels
        self.passes = Passes(store)
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._owed: dict[str, float] = {}
        self._empty: set[str] = set()
        """Volumes last seen empty: copy-up may put the first container's categories on them, so the level counts."""
        self._as_is: set[str] = set()
        """Volumes whose root could not be changed when last tried, but is usable."""

    def make(self, name: str, deadline: float, *, swept: bool = False, engine: int | None = None) -> str:
        """See `Driver.mount`. *swept*: the contents are not to be gone over only because of `recurse=always`."""
        owed = not swept
        swept = swept or time.monotonic() - self._owed.pop(name, -_OWED) < _OWED
        as_is = False
        while True:
            with self.store.lock(name, deadline), self.store.volume(name) as volume:
                data, record = self.store.open_pinned(volume, self.store.record(volume, name))
                with fds.held(data):
                    running = None if as_is else self._mend(volume, record, data, swept=swept)
                    if running is None:
                        if engine is not None:
                            self.store.pin(record, data, engine=engine)
                        return self.store.mountpoint(record)
            try:
                self._wait(running, deadline)
            except Busy:
                if owed:
                    self._owed[name] = time.monotonic()
                raise
            as_is = name in self._as_is  # as the pass saw at its end: another look would only begin another pass
            swept = True

    def _mend(self, volume: int, record: Record, data: int, *, swept: bool) -> Pass | None:
        """Repair the root *data*, or begin the pass after which it will be; the volume's lock is held.

        Args:
            swept: the caller has seen a pass through, so `recurse=always` asks for no other.
        """
        want = self._want(record)
        found = Found.at(data, self.labels)
        changes = plan(found, want, self.labels)
        pending = fds.exists(volume, MARK)
        if want.recurse is Recurse.NEVER and pending:
            os.unlink(MARK, dir_fd=volume)
            pending = False
        if pending or contents_follow(want, changes) or (want.recurse is Recurse.ALWAYS and not swept):
            if not pending:
                write_mark(self.store, volume, Progress(), durable=True)
            order = Order(want.uid, want.gid, want.label, want.type_only, guarded=record.guarded)
            if order.label is not None:
                order = replace(order, label=self.labels.canonical(order.label))
            tree_of = os.fstat(data)
            self._as_is.discard(record.name)
            return self.passes.start(
                volume, record.name, data, order, lambda outcome: self._finish(record, tree_of, outcome)
            )
        self._repair(volume, record, data, changes, found, want)
        if want.label is not None and record.options.label is None:
            with os.scandir(data) as entries:
                (self._empty.discard if any(entries) else self._empty.add)(record.name)
        return None

    def _want(self, record: Record) -> Want:
        want = Want.of(record.options, self.labels, adopted=record.adopted, narrowed=record.narrowed)
        return replace(want, type_only=False) if want.type_only and record.name in self._empty else want

    def _repair(
        self, volume: int, record: Record, data: int, changes: list[Change], found: Found, want: Want
    ) -> Record:
        """Mend the root *data*, and return the record as it is on disk then.

        What cannot be changed (a read-only file system, an NFS server that does not heed root) stays as it is, where
        the declared owner can use it so.
        """
        if want.mode is None and closes(changes):
            record = replace(record, narrowed=found.mode)
            self.store.write(volume, RECORD, record.to_json())
            want = replace(want, mode=found.mode)
        self._as_is.discard(record.name)
        try:
            for change in apply(data, changes, found, want, self.labels):
                log.info("repaired %s: %s", record.name, change)
        except OSError as exc:
            read_only = exc.errno == errno.EROFS
            if not (read_only or exc.errno == errno.EPERM) or not usable(
                Found.at(data, self.labels), want, self.labels, read_only=read_only
            ):
                raise
            self._as_is.add(record.name)
            log.warning("%s stays as it is: %s", record.name, exc.strerror)
        if record.narrowed is not None:
            os.fsync(data)
            record = replace(record, narrowed=None)
            self.store.write(volume, RECORD, record.to_json())
        return record

    def _finish(self, record: Record, tree_of: os.stat_result, outcome: Outcome) -> None:
        """The tree *tree_of* is right: now the root, last of all, and then the mark.

        Unless the options were changed meanwhile, or another volume has the name: then the mark stays, and the next
        look begins anew.
        """
        name = record.name
        with self.store.lock(name, time.monotonic() + 60), self.store.volume(name) as volume:
            now_recorded = self.store.record(volume, name)
            if now_recorded.options != record.options:
                return
            with fds.held(self.store.open_data(volume, now_recorded)) as data:
                if not os.path.samestat(os.fstat(data), tree_of):
                    return
                want = self._want(now_recorded)
                found = Found.at(data, self.labels)
                changes = plan(found, want, self.labels)
                now_recorded = self._repair(volume, now_recorded, data, changes, found, want)
                os.fsync(data)
            if outcome.sentences() != now_recorded.left_alone:
                now_recorded = replace(now_recorded, left_alone=outcome.sentences())
                self.store.write(volume, RECORD, now_recorded.to_json())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(MARK, dir_fd=volume)
            os.fsync(volume)
        log.info(
            "pass over %s: %d entries, %d changed, %d left alone",
            name,
            outcome.done,
            outcome.changed,
            outcome.left,
        )

    def _wait(self, running: Pass, deadline: float) -> None:
        """Wait for a pass, holding nothing.

        Raises:
            Busy: it is not over at *deadline*, or too many requests wait already.
            NotReady: it failed.
        """
        # Waiting takes up a thread of the server: some must stay for the volumes that are ready.
        if self._waiting.acquire(blocking=False):
            try:
                running.over.wait(max(0.0, deadline - time.monotonic()))
            finally:
                self._waiting.release()
        if not running.over.is_set():
            again = f"in about {running.progress.left}" if running.progress.left else "later"
            raise Busy(
                f"preparing {running.name}: {running.progress} done",
                hint=f"it goes on; start the container again {again}",
            )
        if running.failure:
            raise NotReady(f"volume {running.name} could not be prepared: {running.failure}")


def contents_follow(want: Want, changes: list[Change]) -> bool:
    """Whether what is in a directory has to follow *changes* of it."""
    return want.recurse is not Recurse.NEVER and any(change.what != "mode" for change in changes)
