"""Volumes on disk: a directory each, which is made, changed and taken away by one rename each.

    volumes/<name>/volume.json    the record
    volumes/<name>/retained.json  the record after a Remove with on_remove=retain; beside volume.json it means nothing
    volumes/<name>/_data/         what the container sees
    volumes/<name>/pass.json      a pass over the tree has not ended (passes.py)
    volumes/<name>/copying.json   copy-ups that may be under way (copying.py)
    volumes/<name>/engine.json    what an engine has recorded of it; for a restore
    volumes/.new-*                what an interrupted step left; removed at the next start, as in locks/

The server and the command line work on one root at the same time, so nothing is remembered that a cheap look at the
disk does not confirm. What is answered as done has been synced. On ext4, XFS and btrfs a synced file or directory
brings its own names along, and a synced directory the renames in it; on ext4 and XFS, whose journal keeps the order of
all changes, whatever was changed before, too. docs/reliability.md says how that is tried.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Final

from ..errors import Busy, Conflict, HostprepError, NoSuchVolume, Unreadable, in_words, printable
from ..host import fds
from ..host.locks import is_locked, open_lock_file
from ..host.mountinfo import mount_table
from ..host.places import Places, share
from ..options import Name, is_name
from ..settings import Settings
from . import pins
from .claims import UNKNOWN, Claims
from .record import LIMIT, Record, Signature, settled, signature
from .root import STEPS, Root
from .volume import RECORD, RETAINED, LockedVolume, NewVolume, RetainedVolume, Volume, clear, read_temporary

log = logging.getLogger("hostprep")

_PATHS: Final = "/paths"  # the lock of those who take a path; with a slash, so no volume's name
_UNMADE_WITHIN: Final = 10.0  # seconds for which a start waits for disks on which interrupted Creates made something
_CACHED: Final = 20_000  # records, at about 0.5 kB each


class Store(Root):
    """The volumes of a root. Made by `Store.open_root`; one object serves every thread."""

    def __init__(self, settings: Settings, identity: str) -> None:
        super().__init__(settings, identity)
        self._records: dict[Name, tuple[Signature, Record]] = {}
        self._claims = Claims()

    # -- to read ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(self, name: Name) -> Iterator[Volume]:
        """Lend the volume *name*, to be read.

        Raises:
            NoSuchVolume: there is definitely none. Retained data is no volume.
            Unreadable: in any doubt.
        """
        with self.directory(name) as fd:
            yield Volume(self, fd, self._read(fd, name))

    def find(self, name: Name) -> Record | None:
        """The record of the volume *name*; None where there is definitely none. Raises Unreadable as `open` does."""
        with contextlib.suppress(NoSuchVolume), self.open(name) as volume:
            return volume.record
        return None

    @contextlib.contextmanager
    def retained(self, name: Name) -> Iterator[Volume]:
        """Lend the retained data of the volume *name*, to be read; raises what `open` raises."""
        with self.directory(name) as fd:
            try:
                if fds.exists(fd, RECORD):
                    raise FileNotFoundError
                record = Record.from_json(fds.read_file(fd, RETAINED, limit=LIMIT), name=name)
            except FileNotFoundError:
                raise no_retained(name) from None
            except Unreadable as exc:
                raise Unreadable(f"retained volume {name}: {exc.message}", hint=exc.hint) from None
            yield Volume(self, fd, record)

    @contextlib.contextmanager
    def directory(self, name: Name) -> Iterator[int]:
        """Lend a descriptor of `volumes/<name>`, a volume's or of retained data; raises what `open` raises."""
        with self.part("volumes") as volumes:
            try:
                fd = fds.open_dir(volumes, name)
            except FileNotFoundError:
                raise _no_such(name) from None
            except OSError as exc:
                raise Unreadable(f"volume {name} cannot be read: {exc.strerror}") from exc
            with fds.closing(fd):
                yield fd

    def _read(self, fd: int, name: Name) -> Record:
        try:
            found, kept = signature(fd, RECORD), self._records.get(name)
            if kept and kept[0] == found:
                return kept[1]
            record = Record.from_json(fds.read_file(fd, RECORD, limit=LIMIT), name=name)
        except FileNotFoundError:
            if fds.exists(fd, RETAINED):
                hint = f"its data was retained when it was removed: hostprep create {name} takes it up again"
                raise NoSuchVolume(f"no volume {name}", hint=hint) from None
            if os.fstat(fd).st_nlink == 0:  # it may have been removed since it was opened
                raise _no_such(name) from None
            raise Unreadable(f"volume {name} has no {RECORD}") from None
        except Unreadable as exc:
            raise Unreadable(f"volume {name}: {exc.message}", hint=exc.hint) from None
        except OSError as exc:
            raise Unreadable(f"volume {name} cannot be read: {exc.strerror}") from exc
        if found and settled(found[1]):
            if len(self._records) >= _CACHED:
                self._records.clear()
            self._records[name] = found, record
        return record

    def names(self) -> list[Name]:
        """Every directory that is a volume's or holds retained data, damaged ones too, sorted."""
        with self.part("volumes") as volumes:
            return names_in(volumes)

    # -- to write --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, name: Name, deadline: float) -> Iterator[LockedVolume]:
        """Hold the lock of the volume *name* and lend it, to be written.

        Raises:
            NoSuchVolume, Unreadable: as for `open`.
            Busy: another change of it had not ended at *deadline*.
        """
        with self.lock(name, deadline), self.directory(name) as fd:
            yield LockedVolume(self, fd, self._read(fd, name))

    @contextlib.contextmanager
    def name_lock(self, name: Name, deadline: float) -> Iterator[LockedName]:
        """Hold the lock of *name*, which may be no volume's yet; raises Busy as `locked` does."""
        with self.lock(name, deadline):
            yield LockedName(self, name)

    @contextlib.contextmanager
    def claim(self, path: str, name: Name, deadline: float, *, sharing: Record | None = None) -> Iterator[None]:
        """Check that *path* is free for the volume *name*, and let nobody else take a path until the end.

        All wait for this lock who take a path, so only the root's disk may be touched meanwhile. A record that was
        written in a directory of `LockedName.new` keeps the path while the lock of its name is held.

        Raises:
            Conflict: as for `check_claim`.
            Busy: another was still taking a path at *deadline*.
        """
        with self.lock(_PATHS, deadline):
            self.check_claim(path, name, sharing=sharing)
            yield

    def check_claim(self, path: str, name: Name, *, sharing: Record | None = None) -> None:
        """Check that no other volume than *name* has *path*, lies in it or contains it, by whatever names.

        Args:
            sharing: the record that *name* is to have. Those with which it shares one directory may have it, too.

        Raises:
            Conflict: another does, or is just being made so; or whether it does cannot be told.
        """
        places = Places(mount_table())
        here = places.of(path)

        def overlaps(claimed: str) -> bool:
            return share(here, places.of(claimed))

        for other, claimed in self._being_made():  # first: what is made meanwhile is in the other list
            if other != name and overlaps(claimed):
                why = f"path {printable(path)} is, contains or lies in {printable(claimed)}"
                raise Conflict(f"{why}, with which volume {other} is just being made", hint="try again")
        for other, claimed in self._paths():
            if other == name or (claimed is not UNKNOWN and not overlaps(claimed)):
                continue
            try:  # what is remembered alone refuses nobody: that volume may be gone
                record = self.find(other)
            except Unreadable as exc:
                why = f"cannot tell whether path {printable(path)} is free: {exc.message}"
                hint = f"mend {self.root}/volumes/{other}/{RECORD}, or move {self.root}/volumes/{other} away"
                raise Conflict(why, hint=hint) from None
            found = record.options.path if record else None
            if record is None or found is None or not overlaps(found) or (sharing and sharing.shares_with(record)):
                continue
            hint = "two volumes would repair each other's owner and label"
            if found == path:
                hint += "; by host_uid and host_gid, and the same mode and label, they can have one directory"
            why = f"path {printable(path)} is, contains or lies in {printable(found)}, which is volume {other}'s"
            raise Conflict(why, hint=hint)

    def _paths(self) -> list[tuple[Name, str]]:
        """Every volume that has a path, and the path; UNKNOWN where its record is damaged. Some may be gone."""
        with self.part("volumes") as volumes, self.part("trash") as trash:
            return self._claims.paths(volumes, trash, self.find)

    def _being_made(self) -> Iterator[tuple[Name, str]]:
        """What is being made with a path, or taken back, by whoever has the lock of the name. Not what a crash left."""
        with self.part("volumes") as volumes, self.part("locks") as locks, fds.closing(open_lock_file(locks)) as held:
            for temporary in os.listdir(volumes):
                if temporary.startswith(fds.TEMPORARY):
                    record = read_temporary(volumes, temporary)
                    if record and record.options.path and is_locked(held, record.name):
                        yield record.name, record.options.path

    def sync(self, name: Name) -> None:
        """Sync what there is of *name*. Whoever made or removed it may have been killed before it was synced."""
        for part in ("trash", "volumes"):
            with self.part(part) as directory:
                os.fsync(directory)
        with contextlib.suppress(NoSuchVolume), self.directory(name) as fd:
            os.fsync(fd)

    def remove_leftovers(self) -> None:
        """Remove what interrupted steps left, and the mounts of volumes that are gone.

        While another process is at a step, nothing temporary is removed. A `_data` that holds anything never is.
        """
        unmade = []
        with contextlib.suppress(Busy), self.lock(STEPS, time.monotonic()):
            for part in ("volumes", "locks"):
                with self.part(part) as directory:
                    for left in os.listdir(directory):
                        if left.startswith(fds.TEMPORARY):
                            log.info("removing %s, which an interrupted step left", left)
                            record = read_temporary(directory, left)
                            if record and record.made_path:
                                unmade.append((left, record))
                            else:
                                clear(directory, left)
        with self.part("mounts") as mounts:
            for name in names_in(mounts):
                with contextlib.suppress(Busy, Unreadable), self.lock(name, time.monotonic()):
                    if self.find(name) is None:
                        log.info("removing the mount of %s, which is gone", name)
                        try:
                            pins.release(mounts, name)
                        except OSError as exc:
                            log.warning("the mount of %s stays: %s", name, exc.strerror)
        # With no lock held but that of each volume: the disk of its path may hang.
        threads = [threading.Thread(target=self._unmake, args=each, daemon=True) for each in unmade]
        for thread in threads:
            thread.start()
        end = time.monotonic() + _UNMADE_WITHIN
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _unmake(self, left: str, record: Record) -> None:
        """Remove a volume that never was one, and the directory that was made for it, unless another has it by now."""
        try:
            # Several may have been begun with one name.
            with self.part("volumes") as volumes, self.lock(record.name, time.monotonic() + _UNMADE_WITHIN):
                try:
                    with self.claim(record.options.path or "", record.name, time.monotonic() + 10):
                        pass  # from now on whoever wants the path sees that this has it
                except Conflict:
                    clear(volumes, left, unmake_path=False)
                else:
                    clear(volumes, left)
        except (HostprepError, OSError) as exc:
            log.warning("%s stays until the next start: %s", left, printable(in_words(exc)))


class LockedName:
    """A name whose lock is held: a volume's, that of retained data, or nobody's yet."""

    def __init__(self, store: Store, name: Name) -> None:
        self._store = store
        self.name = name

    @contextlib.contextmanager
    def open(self) -> Iterator[LockedVolume]:
        """Lend the volume, to be written; raises what `Store.open` raises."""
        with self._store.open(self.name) as volume:
            yield LockedVolume(self._store, volume.fd, volume.record)

    @contextlib.contextmanager
    def retained(self) -> Iterator[RetainedVolume]:
        """Lend the retained data, to make it a volume again; raises what `Store.retained` raises."""
        with self._store.retained(self.name) as volume:
            yield RetainedVolume(self._store, volume.fd, volume.record)

    @contextlib.contextmanager
    def new(self, record: Record, deadline: float) -> Iterator[NewVolume]:
        """Lend an empty directory in which a volume is made; `NewVolume.publish` then gives it the name.

        Otherwise it is removed at the end, or at the next start after a crash.

        Raises:
            Busy: leftovers were still being removed at *deadline*.
        """
        temporary = fds.temporary_name()
        with (
            self._store.lock(STEPS, deadline, shared=True),
            self._store.part("volumes") as volumes,
            fds.closing(fds.make_dir(volumes, temporary)) as fd,
        ):
            try:
                yield NewVolume(self._store, fd, record, temporary)
            finally:
                clear(volumes, temporary)


def names_in(directory: int) -> list[Name]:
    """The entries that can be volumes, sorted. Not lost+found and the like."""
    return sorted(name for name in os.listdir(directory) if is_name(name))


def no_retained(name: Name) -> NoSuchVolume:
    return NoSuchVolume(f"no retained volume {name}", hint="hostprep ls --retained shows them")


def _no_such(name: Name) -> NoSuchVolume:
    return NoSuchVolume(f"no volume {name}", hint="hostprep ls shows those there are, hostprep ls --trash the removed")
