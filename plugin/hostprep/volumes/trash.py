"""Removed volumes: for HOSTPREP_TRASH_KEEP they can be restored, then they are purged.

Why there is a trash: `podman volume prune` removes every volume that List names, `docker compose down -v` a project's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from typing import Final

from ..errors import Busy, Conflict, Invalid, NoSuchVolume, NotAllowed, Unreadable, printable
from ..host import fds, mountinfo
from ..options import Name
from ..tree import removal
from .record import LIMIT, Record
from .store import Store
from .volume import RECORD, RETAINED

log = logging.getLogger("hostprep")

PURGED: Final = ".purge-"
"""What a purge deletes gets this before its name first; nothing restores it then."""
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
_STAMP: Final = 16  # characters of an id that are its time
RECENT: Final = 60  # seconds in which a repeated Remove succeeds
_YOUNG: Final = 3600  # seconds before which lack of space purges nothing
_FULL: Final = 0.1  # of the file system free


@dataclass(frozen=True, slots=True)
class Removed:
    """An entry of the trash. *record* is None where it cannot be read."""

    id: str
    record: Record | None

    @property
    def removed_at(self) -> str:
        """RFC 3339, in UTC."""
        i = self.id
        return f"{i[:4]}-{i[4:6]}-{i[6:8]}T{i[9:11]}:{i[11:13]}:{i[13:15]}Z"


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


def removed_lately(store: Store, name: Name, known: dict[str, Name | None]) -> bool:
    """Whether hostprep removed *name* within the last minute: the engine repeats what it got no answer to.

    Args:
        known: of which name each entry of the last minute is, so that it is read once. What is older is taken out.
    """
    since = time.time() - RECENT
    with store.part("trash") as trash:
        lately = {entry: id_ for entry in os.listdir(trash) if (id_ := entry.removeprefix(PURGED)) >= _stamp(since)}
        for id_ in known.keys() - set(lately.values()):
            known.pop(id_, None)
        for entry, id_ in lately.items():
            if id_ not in known:
                with contextlib.suppress(OSError):  # a purge has just renamed it, or it was restored
                    record = _record(trash, entry)
                    known[id_] = record.name if record else None
        if name in known.values():
            return True
    with contextlib.suppress(NoSuchVolume, FileNotFoundError), store.directory(name) as directory:
        return os.stat(RETAINED, dir_fd=directory, follow_symlinks=False).st_ctime >= since
    return False


def restore(store: Store, name: Name, *, entry: str | None, new_name: Name, deadline: float) -> Record:
    """Bring the removed volume *name* back under *new_name*: the newest, or the one with the id *entry*.

    Raises:
        NoSuchVolume: there is none.
        Conflict: a volume or retained data has the new name, or another volume its path.
        Unreadable: its record is damaged.
    """
    with store.name_lock(new_name, deadline), contextlib.ExitStack() as claim:
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
            claim.enter_context(store.claim(record.options.path, new_name, deadline))
        record = replace(record, name=new_name)
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
                    store.write(directory, RECORD, record.to_json())
                os.rename(chosen, new_name, src_dir_fd=trash, dst_dir_fd=volumes)
                os.fsync(volumes)
                os.fsync(trash)
                _forget_retained(directory)
        except FileNotFoundError:
            why = f"removed volume {name} was purged a moment ago"
            raise NoSuchVolume(why, hint="hostprep ls --trash shows what is left") from None
    return record


def purge(store: Store, chosen: list[str], *, insist: bool = True) -> int:
    """Delete the entries with the ids *chosen*, and return how many are gone. What stays is logged, with the reason.

    What a running container has mounted stays. An engine removes no volume that it uses, but other clients do: `podman
    volume prune` removes Docker's.

    Args:
        insist: an entry that is missing is an error. Another process may have restored or purged it since.

    Raises:
        Invalid: something is no id. Nothing has been deleted.
        NoSuchVolume: the trash has no such id. Nothing has been deleted.
    """
    with store.part("trash") as trash:
        for entry in chosen:
            if not _ID.fullmatch(entry):
                raise Invalid(f'"{printable(entry)}" is no trash id', hint="hostprep ls --trash shows them")
            if insist and not fds.exists(trash, entry):
                raise NoSuchVolume(f"no trash entry {entry}", hint="hostprep ls --trash shows them")
        begun, used = [], _in_use(trash)
        for entry in dict.fromkeys(chosen):
            if entry in used:
                log.warning("%s is not purged: %s", entry, printable(used[entry]))
                continue
            with contextlib.suppress(FileNotFoundError):  # restored or purged by another process meanwhile
                os.rename(entry, PURGED + entry, src_dir_fd=trash, dst_dir_fd=trash)
                begun.append(PURGED + entry)
        os.fsync(trash)
        return sum(_delete(trash, entry) for entry in begun)


def end_purges(store: Store) -> int:
    """Finish the purges that were interrupted, and return how many entries are gone."""
    with store.part("trash") as trash:
        return sum(_delete(trash, entry) for entry in os.listdir(trash) if entry.startswith(PURGED))


def due(store: Store, keep: int) -> list[str]:
    """The ids of what is to be purged now: whatever is older than *keep* seconds.

    Where the file system is nearly full and nothing is that old, it is the oldest entry, if it is older than an hour.
    What is in use is never due.
    """
    with store.part("trash") as trash:
        ids, disk = _ids(trash), os.fstatvfs(trash)
        full = disk.f_bavail < disk.f_blocks * _FULL
        old = [entry for entry in ids if entry[:_STAMP] <= _stamp(time.time() - (min(keep, _YOUNG) if full else keep))]
        if old:
            used = _in_use(trash)
            old = [entry for entry in old if entry not in used]
    expired = [entry for entry in old if entry[:_STAMP] <= _stamp(time.time() - keep)]
    return expired or old[:1]


def interrupted(store: Store) -> bool:
    """Whether a purge has begun and not ended."""
    with store.part("trash") as trash:
        return any(entry.startswith(PURGED) for entry in os.listdir(trash))


def _stamp(at: float) -> str:
    """A time in seconds since the epoch as ids begin with it: sorted as text, they are sorted by time."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(at, 0)))


def _ids(trash: int) -> list[str]:
    """The ids of what can be restored, the oldest first."""
    return sorted(entry for entry in os.listdir(trash) if _ID.fullmatch(entry))


def _record(trash: int, entry: str) -> Record | None:
    with contextlib.suppress(NotADirectoryError), fds.closing(fds.open_dir(trash, entry)) as volume:
        for file in (RETAINED, RECORD):  # both are there where a restore under another name was interrupted
            with contextlib.suppress(Unreadable, FileNotFoundError):
                return Record.from_json(fds.read_file(volume, file, limit=LIMIT), name=None)
    return None


def _in_use(trash: int) -> dict[str, str]:
    """Which entries are mounted, and by whom, as far as mountinfo.holders can tell."""
    with contextlib.suppress(NotAllowed):
        found = mountinfo.holders(trash, os.readlink(f"/proc/self/fd/{trash}"))
        return {place.partition("/")[0]: who for who, place in found if place}
    return {}


def _forget_retained(volume: int) -> None:
    """Remove a RETAINED that an interrupted step left beside the record: in the trash it would count."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(RETAINED, dir_fd=volume)


def _delete(trash: int, entry: str) -> bool:
    try:
        record = _record(trash, entry)
        with fds.closing(fds.open_dir(trash, entry)) as root:
            outcome = removal.remove(root)
        os.rmdir(entry, dir_fd=trash)
    except FileNotFoundError:  # another process has purged it
        return False
    except OSError as exc:
        log.error("purge of %s is not finished: %s", entry, exc.strerror)
        return False
    name = record.name if record else "a volume without a readable record"
    log.info("purged %s, removed as %s: %d entries", name, entry.removeprefix(PURGED), outcome.done)
    return True
