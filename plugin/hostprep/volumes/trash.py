"""Removed volumes: kept for HOSTPREP_TRASH_KEEP, restorable, then purged.

Why at all: `podman volume prune` removes every volume that List names, `docker compose down -v` the project's.
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
from ..tree import removal
from .record import LIMIT, Record
from .store import PATHS, RECORD, RETAINED, Store

log = logging.getLogger("hostprep")

PURGED: Final = ".purge-"
"""What a purge has begun to delete is renamed so first; nothing restores it."""
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
_STAMP: Final = 16  # characters of an id that are its time
_RECENT: Final = 60  # seconds in which a repeated Remove succeeds
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


def discard(store: Store, name: str) -> str:
    """Move the volume *name*, whose lock is held, to the trash, durably, and return the entry's id."""
    with store.part("volumes") as volumes, store.part("trash") as trash:
        with fds.held(fds.open_dir(volumes, name)) as volume:
            if fds.exists(volume, RECORD):
                _forget_retained(volume)
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
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another was removed at this moment
                raise
        else:
            return entry
    raise Busy("too many volumes are being removed", hint="try again")


def _next_id(trash: int) -> str:
    """An id after all those there are, even if the clock went back: restore takes the newest.

    The eight digits are the nanoseconds: ids sort by time within a second, too.
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


def removed_lately(store: Store, name: str) -> bool:
    """Whether hostprep removed *name* within the last minute: the engine retries what it got no answer to."""
    since = time.time() - _RECENT
    with store.part("trash") as trash:
        for entry in os.listdir(trash):
            if entry.removeprefix(PURGED) >= _stamp(since):
                with contextlib.suppress(OSError):
                    if (record := _record(trash, entry)) and record.name == name:
                        return True
    with contextlib.suppress(NoSuchVolume, FileNotFoundError), store.volume(name) as volume:
        return os.stat(RETAINED, dir_fd=volume, follow_symlinks=False).st_ctime >= since
    return False


def restore(store: Store, name: str, *, entry: str | None, new_name: str, deadline: float) -> Record:
    """Bring the newest removed volume *name*, or that of the given id, back under *new_name*.

    Raises:
        NoSuchVolume: there is none.
        Conflict: a volume of the new name exists, live or retained, or its path is taken by now.
        Unreadable: its record is damaged.
    """
    with store.lock(new_name, deadline), store.lock(PATHS, deadline):
        if new_name in store.names():
            raise Conflict(f"volume {new_name} exists", hint="restore it under another name with --as")
        found = [r for r in entries(store) if (entry is None or r.id == entry) and r.record and r.record.name == name]
        if not found:
            which = f"removed volume {name}" if entry is None else f"trash entry {printable(entry)} of volume {name}"
            raise NoSuchVolume(f"no {which}", hint="hostprep ls --trash shows what there is")
        chosen, record = found[0].id, found[0].record
        assert record is not None  # noqa: S101  # chosen for its name, above
        if record.options.path is not None:
            store.check_claim(record.options.path, name=new_name)
        with store.part("trash") as trash, store.part("volumes") as volumes:
            record = replace(record, name=new_name)
            with fds.held(fds.open_dir(trash, chosen)) as volume:
                if new_name != name or fds.exists(volume, RETAINED):  # it was retained before it came here
                    # Until it has left the trash the entry goes by its old record: an interruption changes nothing.
                    if not fds.exists(volume, RETAINED):
                        os.rename(RECORD, RETAINED, src_dir_fd=volume, dst_dir_fd=volume)
                    store.write(volume, RECORD, record.to_json())
                os.rename(chosen, new_name, src_dir_fd=trash, dst_dir_fd=volumes)
                os.fsync(volumes)
                os.fsync(trash)
                _forget_retained(volume)
    return record


def purge(store: Store, chosen: list[str], *, insist: bool = True) -> int:
    """Delete the entries with the ids *chosen*, and return how many are gone; what is in the way is in the log.

    What a container that runs has mounted stays: an engine removes no volume in use, but other clients do (`podman
    volume prune` after a reload removes Docker's).

    Args:
        insist: each has to be there; otherwise another process may have restored or purged it since it was chosen.

    Raises:
        Invalid: something that is no id. Nothing has been deleted.
        NoSuchVolume: an id that the trash does not have. Nothing has been deleted.
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
    """Go on with what interrupted purges began, and return how many entries are gone."""
    with store.part("trash") as trash:
        return sum(_delete(trash, entry) for entry in os.listdir(trash) if entry.startswith(PURGED))


def due(store: Store, keep: int) -> list[str]:
    """The ids of what is older than *keep* seconds; where the file system is nearly full and nothing else is due, of
    the oldest, unless it is younger than an hour. Nothing that is in use; empty, too, where only an interrupted purge
    is to be ended."""
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
    """Whether a purge was begun and not finished."""
    with store.part("trash") as trash:
        return any(entry.startswith(PURGED) for entry in os.listdir(trash))


def _stamp(at: float) -> str:
    """A time as ids begin with: they sort by it, as text."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(at, 0)))


def _ids(trash: int) -> list[str]:
    """The ids of what can be restored, the oldest first."""
    return sorted(entry for entry in os.listdir(trash) if _ID.fullmatch(entry))


def _record(trash: int, entry: str) -> Record | None:
    with contextlib.suppress(NotADirectoryError), fds.held(fds.open_dir(trash, entry)) as volume:
        for file in (RETAINED, RECORD):  # both: a restore under another name was interrupted
            with contextlib.suppress(Unreadable, FileNotFoundError):
                return Record.from_json(fds.read_file(volume, file, limit=LIMIT), name=None)
    return None


def _in_use(trash: int) -> dict[str, str]:
    """The entries that somebody has mounted, and who, as far as mountinfo.holders can tell."""
    with contextlib.suppress(NotAllowed):
        found = mountinfo.holders(trash, os.readlink(f"/proc/self/fd/{trash}"))
        return {place.partition("/")[0]: who for who, place in found if place}
    return {}


def _forget_retained(volume: int) -> None:
    """Remove what an interrupted step left beside the record: in the trash, unlike among volumes, it would count."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(RETAINED, dir_fd=volume)


def _delete(trash: int, entry: str) -> bool:
    try:
        record = _record(trash, entry)
        with fds.held(fds.open_dir(trash, entry)) as root:
            outcome = removal.remove(root)
        os.rmdir(entry, dir_fd=trash)
    except FileNotFoundError:  # another process's purge was faster
        return False
    except OSError as exc:
        log.error("purge of %s is not finished: %s", entry, exc.strerror)
        return False
    name = record.name if record else "a volume without a readable record"
    log.info("purged %s, removed as %s: %d entries", name, entry.removeprefix(PURGED), outcome.done)
    return True
