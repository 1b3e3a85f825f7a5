"""Making a volume right: its root at once; where the contents have to follow, a pass over them first.

The order is what an interruption can rely on: the mark on disk, the contents, the root, the mark removed. So if the
root is right and there is no mark, the contents are right. While a copy-up may be under way (copying.py), a pass comes
too early for what is copied after it: then the mark stays. Of a directory below the root that was copied into, the
order is the same, and what is noted of it in copying.json is the mark.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ..errors import Busy, Conflict, NotReady, printable
from ..host.labels import Labels
from ..options import Name, Recurse
from ..tree.plan import Change, Plan, Want
from ..tree.process import Progress, begin, follow
from ..tree.walk import Order, Outcome
from . import copying
from .passes import Pass, Passes
from .store import Store
from .volume import Identity, LockedVolume, Volume

log = logging.getLogger("hostprep")

# Requests that may wait for passes at once; others are told to come back. Each keeps one of the server's 1,000
# connections and a thread: most must stay for the volumes that are ready.
_WAITING: Final = 200
_TOLD: Final = 20  # of the sentences about entries left alone, where several passes below a root add to them
_UNSEEN: Final = 600.0  # seconds for which a pass that its Mount did not wait for counts for the next Mount
_SHOWN_EVERY: Final = 0.25  # seconds between two looks at how far a repair is


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair` did, or would do."""

    changes: list[Change]
    """Of the volume's root."""
    tree: Outcome


class Readiness:
    """What Mount, Unmount and Create do to the directory of a volume that exists."""

    def __init__(self, store: Store, labels: Labels) -> None:
        self.store = store
        self.labels = labels
        self.passes = Passes(store)
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._looks = copying.Looks()
        # What is remembered goes by the volume's directory: another volume of the same name begins with nothing.
        self._given_up: dict[Identity, float] = {}
        """When a Mount last gave up waiting for a pass, on the clock of time.monotonic()."""
        self._empty: set[Identity] = set()
        """Volumes that were empty when last looked at. Copy-up may then give what it brings the first container's
        categories (`:Z`), so the level of the default label counts."""

    def ensure(
        self, name: Name, deadline: float, *, mount: str = "", unmount: bool = False, engine: int | None = None
    ) -> str:
        """Make the volume right, and return its mountpoint; see `Driver.mount`.

        Args:
            mount: the ID of the Mount that begins, or with *unmount* of the one that is over; empty for none.
            unmount: begin no pass only because of `recurse=always`.
        """
        waited: Pass | None = None
        seen_through, through, stays = False, set[str](), set[str]()
        while True:
            with self.store.locked(name, deadline) as volume, volume.open_data(as_mount=True) as data:
                if waited is None or waited.identity != volume.identity:
                    seen_through, through, stays = unmount or self._was_given_up(volume), set(), set()
                elif waited.complete:
                    through |= {waited.below}
                    stays |= {waited.below} if waited.stays else set()
                want = self._want(volume)
                copied = copying.look(volume, data, want, self.labels, over=mount if unmount else "")
                # Where it stays as it is, to try again would only begin another pass.
                running = None
                if "" not in stays:
                    running = self._repair(volume, data, seen_through=seen_through, through=through)
                if running is None:
                    running = self._repair_below(volume, data, [p for p in copied if p not in stays], through=through)
                if running is None:
                    if not unmount:
                        found = self._looks.find(volume, data, want, self.labels) if mount else {}
                        copying.begin(volume, mount, found, engine=engine or 0)
                    if engine is not None:
                        volume.pin(data, engine=engine)
                    return volume.mountpoint
            try:
                self._wait(running, deadline)
            except Busy:
                if not unmount and not running.below:
                    self._given_up[running.identity] = time.monotonic()
                raise
            waited = running

    def repair(self, name: Name, *, dry_run: bool, report: Callable[[Progress], None]) -> Repaired:
        """Give all contents their owner and label in a pass that begins now, whatever `recurse` says; then the root.

        A pass that runs already may be past what this one is for: it is waited for, and then this one begins.

        Args:
            dry_run: change nothing.
            report: called some times a second.

        Raises:
            Conflict: nothing is declared that contents follow.
            NotReady: the pass failed; its mark stays.
        """
        if dry_run:
            with self.store.open(name) as found, found.open_data(as_mount=True) as data:
                plan = Plan.of(data, self._want(found), self.labels)
                return Repaired(list(plan.changes), follow(begin(data, self._order(found, dry_run=True)), report))
        done: list[Repaired] = []
        through: set[str] = set()
        while True:
            with (
                self.store.locked(name, time.monotonic() + self.store.settings.patience) as volume,
                volume.open_data(as_mount=True) as data,
            ):
                if not done:
                    running = self._begin(volume, data, self._order(volume), done=done.append)
                else:  # what an interrupted pass below the root has left noted
                    copied = copying.look(volume, data, self._want(volume), self.labels)
                    below = self._repair_below(volume, data, [p for p in copied if p not in through], through=set())
                    if below is None:
                        return done[0]
                    running = below
            while not running.over.wait(_SHOWN_EVERY):
                report(running.progress)
            _check(running)
            through.add(running.below)

    def _order(self, volume: Volume, *, dry_run: bool = False) -> Order:
        """What a repair gives the contents; raises Conflict where that is nothing."""
        order = self._want(volume).order(self.labels, guarded=volume.record.guarded, dry_run=dry_run)
        if (order.uid, order.gid, order.label) == (None, None, None):
            why = f"volume {volume.name} declares no owner and no label that its contents could get"
            raise Conflict(why, hint=f"hostprep apply {volume.name} -o uid=… -o gid=…, and then repair it")
        return order

    def forget(self, volume: Volume) -> None:
        """Forget a volume that is being removed."""
        self._given_up.pop(volume.identity, None)
        self._empty.discard(volume.identity)

    def _was_given_up(self, volume: Volume) -> bool:
        """Whether a Mount gave up waiting for a pass lately; told once."""
        return bool(self._given_up) and time.monotonic() - self._given_up.pop(volume.identity, -_UNSEEN) < _UNSEEN

    def _repair(self, volume: LockedVolume, data: int, *, seen_through: bool, through: set[str]) -> Pass | None:
        """Repair the root *data*; where the contents have to follow, begin the pass which then does that at its end.

        Args:
            seen_through: `recurse=always` asks for no pass.
            through: what passes that were waited for have done; see `Pass.below`. `recurse=always` asks for no other,
                and a mark that one has left is for a copy-up that is still under way.
        """
        want = self._want(volume)
        plan = Plan.of(data, want, self.labels)
        # With recurse=never the mark is that of a repair: it stays for the next one.
        marked = want.recurse is not Recurse.NEVER and volume.pending() is not None
        early = "" in through and copying.under_way(volume)
        always = want.recurse is Recurse.ALWAYS and not seen_through and "" not in through
        if (marked and not early) or plan.contents_follow or always:
            return self._begin(volume, data, want.order(self.labels, guarded=volume.record.guarded))
        self._repair_root(volume, plan)
        if want.label is not None and volume.record.options.label is None:
            with os.scandir(data) as entries:
                (self._empty.discard if any(entries) else self._empty.add)(volume.identity)
        return None

    def _repair_below(self, volume: LockedVolume, data: int, copied: list[str], *, through: set[str]) -> Pass | None:
        """Begin the pass over the first of the directories *copied* that needs one; see `_repair`."""
        order = copying.below(self._want(volume)).order(self.labels, guarded=volume.record.guarded)
        for path in copied:
            with contextlib.suppress(FileNotFoundError), copying.opened(data, path) as top:
                if path not in through or not copying.under_way(volume, path, top):
                    return self._begin(volume, top, order, below=path)
        return None

    def _begin(
        self,
        volume: LockedVolume,
        top: int,
        order: Order,
        *,
        below: str = "",
        done: Callable[[Repaired], None] = lambda repaired: None,
    ) -> Pass:
        """Begin a pass over what is in the directory *top*, which is then made right itself; or join the one that runs.

        Args:
            below: where *top* is, if it is not the root.
            done: called when this pass, and no other, has made everything right.
        """
        if not below and volume.pending() is None:
            volume.write_mark()
        record, identity, tree = volume.record, volume.identity, os.fstat(top)
        order = replace(order, synced=tree.st_dev != identity[0])
        early = copying.under_way(volume, below, top)  # what is copied behind it, it does not see

        def finish(outcome: Outcome) -> bool | None:
            changes: list[Change] | None = None
            with (
                self.store.locked(record.name, time.monotonic() + 60) as now,
                contextlib.suppress(FileNotFoundError),
            ):
                # Where another volume has the name by now, or the options or the directory are others, the mark
                # stays, and the next look at the volume begins anew.
                if now.identity != identity or now.record.declared != record.declared:
                    return None
                with now.open_data(as_mount=True) as data, copying.opened(data, below) as found:
                    if not os.path.samestat(os.fstat(found), tree):
                        return None
                    changes = self._finish(now, found, outcome, below, early=early)
                    done(Repaired(changes or [], outcome))
                    return changes is None
            return None

        return self.passes.start(volume, top, order, finish, below=below)

    def _want(self, volume: Volume) -> Want:
        want = volume.want(self.labels)
        return replace(want, type_only=False) if want.type_only and volume.identity in self._empty else want

    def _repair_root(self, volume: LockedVolume, plan: Plan) -> list[Change] | None:
        """Carry out *plan*, and return what was changed; None where the root stays as it is all the same.

        Where it cannot be changed (a read-only file system, an NFS server that does not heed root), it stays if the
        declared owner can use it so.
        """
        # Where another volume with the directory has just closed it, there is no mode to give back.
        opened = plan.found.mode & 0o777
        if opened and plan.closes and plan.narrowed is None and (plan.mode is None or plan.access is not None):
            volume.write(replace(volume.record, narrowed=plan.found.mode))
            plan = replace(plan, want=replace(plan.want, narrowed=plan.found.mode))
        changes, failure = _apply(plan, volume.name)
        if failure:
            if not Plan.of(plan.fd, plan.want, self.labels).usable(read_only=failure.errno == errno.EROFS):
                raise failure
            log.warning("%s stays as it is: %s", volume.name, failure.strerror)
        if volume.record.narrowed is not None:
            os.fsync(plan.fd)
            volume.write(replace(volume.record, narrowed=None))
        return None if failure else changes

    def _finish(
        self, volume: LockedVolume, top: int, outcome: Outcome, below: str, *, early: bool
    ) -> list[Change] | None:
        """The contents are right: now the directory *top*, last of all, and then the mark.

        Returns what was changed of *top*; None where that was not possible, so that another pass would end like this.

        Args:
            early: a copy-up was under way when the pass began, so the mark stays.
        """
        want, left, name = self._want(volume), outcome.sentences(), volume.name
        changes: list[Change] | None
        if below:
            name = Name(f"{name}/{printable(below)}")
            changes, failure = _apply(Plan.of(top, copying.below(want), self.labels), name)
            if failure:
                log.warning("%s stays as it is: %s", name, failure.strerror)
                return None
            found = [f"{printable(below)}/{each}" for each in left]
            left = tuple(dict.fromkeys((*volume.record.entries_left_alone, *found)))[-_TOLD:]
        else:
            changes = self._repair_root(volume, Plan.of(top, want, self.labels))
        os.fsync(top)
        if left != volume.record.entries_left_alone:
            volume.write(replace(volume.record, entries_left_alone=left))
        # With recurse=never nobody comes back for what is copied in meanwhile.
        if want.recurse is Recurse.NEVER or not (early or copying.under_way(volume, below, top)):
            if not below:
                volume.remove_mark()
            elif not copying.done(volume, below):
                changes = None
        os.fsync(volume.fd)
        counts = outcome.done, outcome.changed, outcome.left
        log.info("pass over %s: %d entries, %d changed, %d left alone", name, *counts)
        return changes

    def _wait(self, running: Pass, deadline: float) -> None:
        """Wait for a pass, holding nothing.

        Raises:
            Busy: it is not over at *deadline*, or too many requests wait already.
            NotReady: it failed.
        """
        if self._waiting.acquire(blocking=False):
            try:
                running.over.wait(max(0.0, deadline - time.monotonic()))
            finally:
                self._waiting.release()
        if not running.over.is_set():
            again = f"in about {running.progress.left}" if running.progress.left else "later"
            if running.ahead:
                why = f"preparing {running.name} waits for other volumes: {running.ahead} are before it"
                raise Busy(why, hint="it begins by itself; start the container again later")
            how_far = f"preparing {running.name}: {running.progress} done"
            raise Busy(how_far, hint=f"it goes on; start the container again {again}")
        _check(running)


def _check(ended: Pass) -> None:
    """Raise NotReady for a pass that failed."""
    if ended.failure:
        raise NotReady(f"volume {ended.name} could not be prepared: {ended.failure}")


def _apply(plan: Plan, name: str) -> tuple[list[Change], OSError | None]:
    """Carry out *plan*, and return what was changed, or what prevented it: a read-only disk, or a server that does not
    heed root."""
    try:
        changes = plan.apply()
    except OSError as exc:
        if exc.errno not in (errno.EROFS, errno.EPERM):
            raise
        return [], exc
    for change in changes:
        log.info("repaired %s: %s", name, change)
    return changes, None
