"""Removed volumes: for HOSTPREP_TRASH_KEEP they can be restored, then they are purged.

Why there is a trash: `podman volume prune` removes every volume that List names, `docker compose down -v` a project's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..errors import Busy, Conflict, Invalid, NoSuchVolume, Unreadable, printable
from ..host import fds
from ..host.uses import uses
from ..options import Name
from ..tree import removal
from ..tree.walk import Outcome, reason_of
from .record import LIMIT, TRASH_ID, Record, settled
from .root import Root
from .store import Store
from .volume import DATA, NOTED, RECORD, RETAINED

log = logging.getLogger("hostprep")

PURGED: Final = ".purge-"
"""What a purge deletes gets this before its name first; nothing restores it then."""
_FORMERLY: Final = ".volumes"  # no id
LEFT: Final = "left.json"
"""In an entry: what its purge could not delete."""
_RESTORING: Final = "/restoring"  # a lock; with a slash, so no volume's name
_ANONYMOUS: Final = re.compile("[0-9a-f]{64}", re.ASCII)
_READ_AT_ONCE: Final = 300  # records, in some 50 ms
_STAMP: Final = 16  # characters of an id that are its time
RECENT: Final = 60  # seconds in which a repeated Remove succeeds
_YOUNG: Final = 3600  # seconds before which lack of space purges nothing
_FULL: Final = 0.1  # of the file system free
_FOR_SPACE: Final = "before its time, for space: less than a tenth of the file system was free"


@dataclass(frozen=True, slots=True)
class Removed:
    """An entry of the trash. *record* is None where it cannot be read."""

    id: str
    record: Record | None
    left: str | None = None
    """What its purge could not delete, and why; empty where that is not known. None: no purge of it has begun."""

    @property
    def removed_at(self) -> str:
        """RFC 3339, in UTC."""
        return removed_at(self.id)


def removed_at(i: str) -> str:
    """When the entry with the id *i* came, RFC 3339, in UTC."""
    return f"{i[:4]}-{i[4:6]}-{i[6:8]}T{i[9:11]}:{i[11:13]}:{i[13:15]}Z"


def earlier_data(root: Root, name: Name, entry: str) -> Iterator[str]:
    """A sentence about the data of an earlier volume *name*, while it is in the trash under the id *entry*."""
    with root.part("trash") as trash:
        if fds.exists(trash, entry):  # neither restored nor purged
            back = f"hostprep rm {name} && hostprep restore {name} --id {entry}"
            yield (
                f"it was made empty: the data of the {name} that was removed at {removed_at(entry)} is in the trash; "
                f"to have that back, stop the containers, then: {back}"
            )


def discard(store: Store, name: Name, directory: int) -> str:
    """Move the volume *name*, or retained data, to the trash, durably, and return the entry's id. Its lock is held."""
    with store.part("volumes") as volumes, store.part("trash") as trash:
        if fds.exists(directory, RECORD):
            _forget_retained(directory)
        entry = _rename(volumes, name, trash)
        os.fsync(trash)
        os.fsync(volumes)
    return entry


def _rename(volumes: int, name: str, trash: int) -> str:
    for _ in range(1000):
        entry = _next_id(trash)
        try:
            os.rename(name, entry, src_dir_fd=volumes, dst_dir_fd=trash)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another removal took the id at this moment
                raise
        else:
            return entry
    raise Busy("too many volumes are being removed", hint="try again")


def _next_id(trash: int) -> str:
    """An id that sorts after all others, even if the clock went back: restore takes the newest.

    Its eight digits are the nanoseconds, so that ids sort by time within a second, too.
    """
    now = time.time_ns()
    entry, last = f"{_stamp(now // 10**9)}-{now % 10**9:08x}", max(_ids(trash), default="")
    if entry > last or last.endswith("f" * 8):
        return entry
    return f"{last[:_STAMP]}-{int(last[_STAMP + 1 :], 16) + 1:08x}"


def entries(store: Store) -> list[Removed]:
    """What can be restored, the newest first."""
    found = []
    with store.part("trash") as trash:
        for entry in reversed(_ids(trash)):
            with contextlib.suppress(FileNotFoundError):
                found.append(Removed(entry, _record(trash, entry)))
    return found


def being_deleted(store: Store) -> list[Removed]:
    """What a purge has begun to delete, and not ended."""
    found = []
    with store.part("trash") as trash:
        for entry in unfinished(store):
            left = ""
            try:
                with (
                    fds.closing(fds.open_dir(trash, PURGED + entry)) as directory,
                    contextlib.suppress(OSError, ValueError, LookupError, TypeError, Unreadable),
                ):
                    left = printable(str(json.loads(fds.read_file(directory, LEFT, limit=LIMIT))["left"]))
                found.append(Removed(entry, _record(trash, PURGED + entry), left))
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as exc:
                found.append(Removed(entry, None, reason_of(exc)))
    return found


class Names:
    """Of which volume each entry of the trash is. An entry is read once. One object serves every thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[Name, bool] | None] = {}  # by id; with whether its data is in the trash, too
        self._stamp: tuple[int, int] | None = None  # of the trash when all were known; None where that cannot be kept
        self._guard = threading.Lock()

    def removed_lately(self, name: Name) -> bool:
        """Whether hostprep removed *name* within the last minute: the engine repeats what it got no answer to."""
        since = time.time() - RECENT
        with self._store.part("trash") as trash, self._guard:
            self._look(trash)
            if any(entry >= _stamp(since) for entry in self._of(name)):
                return True
        with contextlib.suppress(NoSuchVolume, FileNotFoundError), self._store.directory(name) as directory:
            return os.stat(RETAINED, dir_fd=directory, follow_symlinks=False).st_ctime >= since
        return False

    def newest(self, name: Name) -> str:
        """The id of the entry with the data of the volume *name* that was removed last; empty where there is none."""
        if _ANONYMOUS.fullmatch(name):  # the engine makes up another each time
            return ""
        with self._store.part("trash") as trash, self._guard:
            self._look(trash)
            found = [entry for entry, data in self._of(name).items() if data]
            return max((entry for entry in found if fds.exists(trash, entry)), default="")

    def _of(self, name: Name) -> dict[str, bool]:
        return {entry: each[1] for entry, each in self._known.items() if each and each[0] == name}

    def _look(self, trash: int) -> None:
        """Read the entries that are not known, the newest first, as many as take no time that anybody notices."""
        st = os.fstat(trash)
        stamp = st.st_ino, max(st.st_mtime_ns, st.st_ctime_ns)
        if stamp == self._stamp:
            return
        there = {entry.removeprefix(PURGED) for entry in os.listdir(trash)}
        for entry in self._known.keys() - there:
            del self._known[entry]
        new = sorted(filter(TRASH_ID.fullmatch, there - self._known.keys()), reverse=True)
        for entry in new[:_READ_AT_ONCE]:
            for name in (entry, PURGED + entry):
                with contextlib.suppress(OSError):  # it has the other name; or it was restored a moment ago
                    record = _record(trash, name)
                    self._known[entry] = (record.name, record.options.path is None) if record else None
                    break
        self._stamp = stamp if self._known.keys() >= set(new) and settled(stamp[1]) else None


def restore(store: Store, name: Name, *, entry: str | None, new_name: Name, deadline: float) -> Record:
    """Bring the removed volume *name* back under *new_name*: the newest, or the one with the id *entry*.

    Raises:
        NoSuchVolume: there is none.
        Conflict: a volume or retained data has the new name, or another volume its path.
        Unreadable: its record is damaged.
    """
    # Two that give one entry different names would each write the other's record.
    with store.name_lock(new_name, deadline), store.lock(_RESTORING, deadline), contextlib.ExitStack() as claim:
        if new_name in store.names():
            raise Conflict(f"volume {new_name} exists", hint="restore it under another name with --as")
        found = [
            each for each in entries(store) if entry in (None, each.id) and each.record and each.record.name == name
        ]
        if not found or found[0].record is None:
            which = f"removed volume {name}" if entry is None else f"trash entry {printable(entry)} of volume {name}"
            raise NoSuchVolume(f"no {which}", hint="hostprep ls --trash shows what there is")
        chosen, record = found[0].id, found[0].record
        if record.options.path is not None:
            claim.enter_context(store.claim(record.options.path, new_name, deadline, sharing=record))
        if new_name != name:
            record = replace(record, name=new_name, replaces="")
        data = record.to_json()
        try:
            with (
                store.part("trash") as trash,
                store.part("volumes") as volumes,
                fds.closing(fds.open_dir(trash, chosen)) as directory,
            ):
                if new_name != name or fds.exists(directory, RETAINED):  # it was retained before it was removed
                    # While it is in the trash RETAINED counts. So an interruption here changes nothing.
                    if not fds.exists(directory, RETAINED):
                        os.rename(RECORD, RETAINED, src_dir_fd=directory, dst_dir_fd=directory)
                    store.write(directory, RECORD, data)
                os.rename(chosen, new_name, src_dir_fd=trash, dst_dir_fd=volumes)
                os.fsync(volumes)
                os.fsync(trash)
                _forget_retained(directory)
                if new_name != name:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(NOTED, dir_fd=directory)
        except FileNotFoundError:
            why = f"removed volume {name} was purged a moment ago"
            raise NoSuchVolume(why, hint="hostprep ls --trash shows what is left") from None
    return record


@dataclass(frozen=True, slots=True)
class Purge:
    """What became of the entries that were to be deleted."""

    gone: int
    kept: Mapping[str, str]
    """Why each other is still there, by its id."""

    def __add__(self, other: Purge) -> Purge:
        return Purge(self.gone + other.gone, {**self.kept, **other.kept})


def purge(store: Store, chosen: Iterable[str], *, insist: bool = True, why: str = "as asked for") -> Purge:
    """Delete the entries with the ids *chosen*, but for those that are in use; see `in_use`. What stays is logged.

    Args:
        insist: an entry that is missing is an error. Another process may have restored or purged it since.
        why: for the log.

    Raises:
        Invalid: something is no id. Nothing has been deleted.
        NoSuchVolume: the trash has no such id. Nothing has been deleted.
    """
    chosen = list(dict.fromkeys(chosen))
    with store.part("trash") as trash:
        for entry in chosen:
            if not TRASH_ID.fullmatch(entry):
                raise Invalid(f'"{printable(entry)}" is no trash id', hint="hostprep ls --trash shows them")
            if insist and not fds.exists(trash, entry) and not fds.exists(trash, PURGED + entry):
                raise NoSuchVolume(f"no trash entry {entry}", hint="hostprep ls --trash shows them")
        kept = in_use(store, chosen)
        for entry in chosen:
            if entry in kept:
                log.warning("%s is not purged: %s", entry, printable(kept[entry]))
                continue
            try:
                os.rename(entry, PURGED + entry, src_dir_fd=trash, dst_dir_fd=trash)
            except FileNotFoundError:  # begun already; or another process restored or purged it
                pass
            except OSError as exc:  # its directory is damaged, or the file system takes no writes
                kept[entry] = reason_of(exc)
                log.error("%s is not purged: %s", entry, kept[entry])
        os.fsync(trash)
        return Purge(0, kept) + _delete_all(store, trash, [entry for entry in chosen if entry not in kept], why)


def purge_due(store: Store) -> Purge:
    """Delete what is due; of what is due for space only, the first that goes: btrfs frees the space a while later."""
    ids, why = due(store)
    if why is not _FOR_SPACE:
        return purge(store, ids, insist=False, why=why)
    done = Purge(0, {})
    for entry in ids:
        done += purge(store, [entry], insist=False, why=why)
        if done.gone:
            break
    return done


def end_purges(store: Store) -> Purge:
    """Finish what purges have begun and not ended."""
    with store.part("trash") as trash:
        return _delete_all(store, trash, unfinished(store), "its purge had begun")


def due(store: Store) -> tuple[list[str], str]:
    """The ids of what is to be deleted now, in use or not, and why: its time is over.

    With HOSTPREP_PURGE_FOR_SPACE, while the file system is nearly full, and nothing's time is over, that is what was
    removed more than an hour ago, the oldest first.
    """
    settings, now = store.settings, time.time()
    with store.part("trash") as trash:
        ids, disk = _ids(trash), os.fstatvfs(trash)
    expired = [entry for entry in ids if entry[:_STAMP] <= _stamp(now - settings.trash_keep)]
    if not expired and settings.purge_for_space and disk.f_bavail < disk.f_blocks * _FULL:
        return [entry for entry in ids if entry[:_STAMP] <= _stamp(now - _YOUNG)], _FOR_SPACE
    return expired, "HOSTPREP_TRASH_KEEP is over"


def in_use(store: Store, chosen: Iterable[str]) -> dict[str, str]:
    """Which of the entries with the ids *chosen* somebody uses, or may use, and who.

    An engine removes no volume that it uses. But other clients do: `podman volume prune` removes Docker's.
    """
    with store.part("trash") as trash:
        found = {}
        for entry in chosen:
            with contextlib.suppress(FileNotFoundError):  # restored or purged by another process meanwhile
                found[entry] = _record(trash, entry)
        if not found:
            return {}
        uses_of_all = uses(trash, f"{store.root}/trash", [(f"{store.root}/volumes", _FORMERLY)])
    used: dict[str, str] = {}
    for use in uses_of_all.found:
        entry, *below = use.within.split("/")
        used |= dict.fromkeys(_formerly(store, below[0], found) if entry == _FORMERLY and below else [entry], use.who)
    # The managed plugin sees no process of the host. But only the engine that installed it can ask for a Remove.
    if uses_of_all.doubt and not store.settings.managed:
        return {entry: used.get(entry, f"who uses it cannot be told: {uses_of_all.doubt}") for entry in found}
    return {entry: used[entry] for entry in found if entry in used}


def _formerly(store: Store, name: str, chosen: Mapping[str, Record | None]) -> list[str]:
    """Which of the entries *chosen* may have been the volume *name*: any may, where none is known that still has it."""
    known = {*store.names(), *(each.record.name for each in entries(store) if each.record)}
    return [entry for entry, record in chosen.items() if name not in known or record is None or record.name == name]


def unfinished(store: Store) -> list[str]:
    """The ids of what a purge has begun and not ended to delete."""
    with store.part("trash") as trash:
        return sorted(entry.removeprefix(PURGED) for entry in os.listdir(trash) if entry.startswith(PURGED))


def _stamp(at: float) -> str:
    """A time in seconds since the epoch as ids begin with it: sorted as text, they are sorted by time."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(at, 0)))


def _ids(trash: int) -> list[str]:
    """The ids of what can be restored, the oldest first."""
    return sorted(entry for entry in os.listdir(trash) if TRASH_ID.fullmatch(entry))


def _record(trash: int, entry: str) -> Record | None:
    """The record of an entry; None where it cannot be read: one damaged directory keeps nobody from the others.

    Raises:
        OSError: there is no such entry; or hostprep has no descriptor or memory to read it.
    """
    try:
        with fds.closing(fds.open_dir(trash, entry)) as volume:
            for file in (RETAINED, RECORD):  # both are there where a restore under another name was interrupted
                with contextlib.suppress(Unreadable, FileNotFoundError):
                    return Record.from_json(fds.read_file(volume, file, limit=LIMIT), name=None)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
    return None


def _forget_retained(volume: int) -> None:
    """Remove a RETAINED that an interrupted step left beside the record: in the trash it would count."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(RETAINED, dir_fd=volume)


def _delete_all(store: Store, trash: int, begun: list[str], why: str) -> Purge:
    """Delete the entries with the ids *begun*, whose purge has begun."""
    gone, kept = 0, dict[str, str]()
    for entry in begun:
        try:
            record = _record(trash, PURGED + entry)
            with fds.closing(fds.open_dir(trash, PURGED + entry)) as directory:
                outcome = _empty(store, directory)
            if outcome.left:
                kept[entry] = outcome.examples[0]
                log.error("purge of %s is not finished: %s", entry, kept[entry])
                continue
            os.rmdir(PURGED + entry, dir_fd=trash)
        except FileNotFoundError:  # another process has purged it
            continue
        except OSError as exc:
            kept[entry] = exc.strerror or type(exc).__name__
            log.error("purge of %s is not finished: %s", entry, kept[entry])
            continue
        gone += 1
        name = record.name if record else "a volume without a readable record"
        log.info("purged %s, removed as %s: %d entries; %s", name, entry, outcome.done, why)
    return Purge(gone, kept)


def _empty(store: Store, directory: int) -> Outcome:
    """Remove what is in an entry. Where some of the data stays, so does the record, with what is in the way."""
    outcome = Outcome()
    try:
        with fds.closing(fds.open_below(directory, DATA, directory=True)) as data:
            outcome = removal.remove(data)
    except OSError as exc:
        if exc.errno not in fds.CHANGED:
            outcome.leave(DATA, reason_of(exc))
    if not outcome.left:
        outcome.add(removal.remove(directory))
    if outcome.left:
        with contextlib.suppress(OSError):
            store.write(directory, LEFT, json.dumps({"left": outcome.examples[0]}).encode() + b"\n", durable=False)
    return outcome
