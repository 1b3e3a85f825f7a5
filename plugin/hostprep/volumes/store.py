"""Volumes on disk: one directory each, made, changed and taken away by one rename each.

    volumes/<name>/volume.json  the record; retained.json once it was removed with on_remove=retain; both: live
    volumes/<name>/_data/       what the container sees
    volumes/<name>/pass.json    a pass over the tree that is not finished
    volumes/.new-*              what an interrupted step left; swept at start, as in locks/

The server and the command line work on one root at the same time, so nothing is remembered that a cheap look at the
disk does not confirm. What is answered as done has been fsynced: a synced file or directory brings its own names along
(ext4, XFS and btrfs), and a synced directory the renames in it; on ext4 and XFS, whose journal keeps the order of all
changes, whatever was changed before, too. docs/reliability.md says how that is tried.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from ..errors import Busy, Conflict, NoSuchVolume, NotAllowed, NotReady, Redirectable, Unreadable, printable
from ..host import fds
from ..host.paths import is_below, overlap
from ..options import check_name, is_name
from ..settings import Settings
from . import pins
from .record import LIMIT, Record
from .root import Root

log = logging.getLogger("hostprep")

RECORD: Final = "volume.json"
RETAINED: Final = "retained.json"
DATA: Final = "_data"
PATHS: Final = "/paths"  # the lock of those who look for a free path; with a slash, so no volume's name
_STEPS: Final = "/steps"  # held, shared, while something temporary is there
_CACHED: Final = 20_000  # records, at about 0.5 kB each
_EXACT: Final = 16  # records a List looks at again although the directory has not changed
# Two changes within one tick of the file system's clock (at most 10 ms) leave one time stamp: what was read so soon
# after a change is not kept.
_SETTLED: Final = 50_000_000  # ns

Listing = tuple[tuple[str, str | None], ...]
"""Name and mountpoint of each volume; None where the record is damaged."""
_Signature = tuple[int, int]
"""Inode and time of change (ctime) of a record: a replaced one has another inode, any other change another time."""


class Store(Root):
    """The volumes of a root. Made by `Store.open`; one object serves every thread."""

    def __init__(self, settings: Settings, identity: str) -> None:
        super().__init__(settings, identity)
        self.allow = settings.allow
        self._managed = settings.managed
        self._records: OrderedDict[str, tuple[_Signature, Record]] = OrderedDict()
        self._listing: Listing = ()
        self._listed: tuple[int, ...] = ()
        self._signatures: dict[str, _Signature | None] = {}
        self._order: list[str] = []
        self._turn = 0
        self._guard = threading.Lock()  # of the caches only; never held over a call that waits
        self._reading = threading.Lock()  # of who reads all records, lest twenty do so at once

    # -- volumes -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def volume(self, name: str) -> Iterator[int]:
        """Lend a descriptor of `volumes/<name>`, live or retained.

        Raises:
            NoSuchVolume: there is definitely none.
            Unreadable: in any doubt.
        """
        with self.part("volumes") as volumes:
            try:
                fd = fds.open_dir(volumes, check_name(name))
            except FileNotFoundError:
                raise _no_such(name) from None
            except OSError as exc:
                raise Unreadable(f"volume {name} cannot be read: {exc.strerror}") from exc
            with fds.held(fd):
                yield fd

    def read(self, name: str) -> Record:
        """The record of the live volume *name*.

        Raises:
            NoSuchVolume: there is definitely none; a retained one is none either.
            Unreadable: in any doubt.
        """
        with self.volume(name) as fd:
            return self.record(fd, name)

    def record(self, volume: int, name: str) -> Record:
        """`read`, of a volume whose directory is open."""
        try:
            found = _sign(volume)
            with self._guard:
                kept = self._records.get(name)
                if kept and kept[0] == found:
                    return kept[1]
            record = Record.from_json(fds.read_file(volume, RECORD, limit=LIMIT), name=name)
        except FileNotFoundError:
            if fds.exists(volume, RETAINED):
                raise _no_such(name) from None
            if not _is_there(volume):  # removed while it was looked at
                raise _no_such(name) from None
            raise Unreadable(f"volume {name} has no {RECORD}") from None
        except Unreadable as exc:
            raise Unreadable(f"volume {name}: {exc.message}", hint=exc.hint) from None
        except OSError as exc:
            raise Unreadable(f"volume {name} cannot be read: {exc.strerror}") from exc
        if _settled(found):
            with self._guard:
                self._records[name] = (found, record)
                if len(self._records) > _CACHED:
                    self._records.popitem(last=False)
        return record

    def retained(self, volume: int, name: str) -> Record | None:
        """The record of a volume that was removed with on_remove=retain, or None."""
        try:
            return Record.from_json(fds.read_file(volume, RETAINED, limit=LIMIT), name=name)
        except FileNotFoundError:
            return None
        except Unreadable as exc:
            raise Unreadable(f"retained volume {name}: {exc.message}", hint=exc.hint) from None

    def names(self) -> list[str]:
        """Every directory that is a volume's, live, retained or damaged, sorted."""
        with self.part("volumes") as volumes:
            return _names(volumes)

    def mountpoint(self, record: Record) -> str:
        """What is answered to an engine: where the volume is, or where it will be mounted when one asks for it."""
        return f"{self.root}/mounts/{record.name}" if record.pinned else self.place(record)

    def place(self, record: Record) -> str:
        """Where the data is."""
        return record.options.path or f"{self.root}/volumes/{record.name}/{DATA}"

    def open_data(self, volume: int, record: Record) -> int:
        """Open the directory that the container sees; the caller owns the descriptor.

        Raises:
            NotReady: it is not there. It is never made here: an unmounted disk must not be papered over.
            NotAllowed: a `path` that is no longer below an allowed prefix, or leads over a symlink.
            Redirectable: a `path` that others could redirect, where its name is what is answered.
        """
        try:
            if record.options.path is None:
                return fds.open_dir(volume, DATA)
            parent, name = self.open_parent(record.options.path, trusted=not record.pinned)
            with fds.held(parent):
                return fds.open_step(parent, name, record.options.path)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            where = printable(self.place(record))
            raise NotReady(
                f"the data of volume {record.name} is not there: {where} does not exist or is no directory",
                hint="is its disk mounted? hostprep does not make it anew, which would hide the loss",
            ) from None

    def open_pinned(self, volume: int, record: Record) -> tuple[int, Record]:
        """`open_data`, and where others could redirect the name by now, answer a mount from now on, for good.

        The volume's lock is held.
        """
        try:
            return self.open_data(volume, record), record
        except Redirectable as exc:
            log.info("%s is answered as a mount from now on: %s", record.name, exc.message)
        record = replace(record, pinned=True)
        fd = self.open_data(volume, record)
        try:
            self.write(volume, RECORD, record.to_json())
            with self.part("volumes") as volumes:
                os.utime(volumes)  # what a List remembers is out of date
        except BaseException:
            os.close(fd)
            raise
        return fd, record

    def pin(self, record: Record, data: int, *, engine: int) -> None:
        """Mount the open directory *data* where the record's volume is answered to be, if a mount is answered; see
        pins.pin."""
        if record.pinned:
            with self.part("mounts") as places:
                pins.pin(places, record.name, data, place=self.mountpoint(record), engine=engine)

    def release(self, name: str) -> None:
        """Take away the mount of the volume *name*, whose lock is held, if there is one; see pins.release."""
        with self.part("mounts") as places:
            pins.release(places, name)

    def open_parent(self, path: str, *, trusted: bool) -> tuple[int, str]:
        """Open the directory above a `path`, and tell the last component; the caller owns the descriptor.

        Raises:
            NotAllowed: it is not strictly below a prefix of HOSTPREP_ALLOW, or a directory above it is a symlink.
            Redirectable: (trusted) a directory above it is one in which somebody other than root could put another
                directory in its place: the engine opens the answered path by name, later, following links.
            OSError: ENOENT and what else open(2) raises.
        """
        if not any(is_below(path, prefix) for prefix in self.allow):
            known = ":".join(self.allow)
            if self._managed:
                raise NotAllowed(
                    f"path {printable(path)} is out of the managed plugin's reach",
                    hint="install hostprep on the host: make install",
                )
            raise NotAllowed(
                f"path {printable(path)} is not below a directory that HOSTPREP_ALLOW names",
                hint=f"allowed is what lies in {known}"
                if known
                else "HOSTPREP_ALLOW is empty: the administrator sets it",
            )
        parent, name = os.path.split(path)
        fd = fds.walk(parent, trusted=trusted)
        st = os.fstat(fd)
        if trusted and (st.st_uid != 0 or st.st_mode & 0o022):
            os.close(fd)
            raise fds.redirectable(path)
        return fd, name

    def check_claim(self, path: str, *, name: str) -> None:
        """Check that no other volume has *path*, lies in it or contains it. Hold the lock PATHS until it is recorded.

        Raises:
            Conflict: another does.
        """
        for other in self.names():
            if other == name:
                continue
            try:
                claimed = self.read(other).options.path
            except NoSuchVolume:
                continue
            except Unreadable as exc:
                raise Conflict(f"whether path {printable(path)} is free cannot be told: {exc.message}") from None
            if claimed is not None and overlap(path, claimed):
                raise Conflict(
                    f"path {printable(path)} is, contains or lies in {printable(claimed)}, which is volume {other}'s",
                    hint="two volumes would repair each other's owner and label",
                )

    # -- steps ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def new(self, deadline: float) -> Iterator[tuple[int, str]]:
        """Lend a directory of `volumes` that is no volume yet, open and by name, for `appear` to rename.

        What is left of it at the end is removed; after a crash, by the next start.
        """
        temporary = fds.temporary_name()
        with (
            self.lock(_STEPS, deadline, shared=True),
            self.part("volumes") as volumes,
            fds.held(fds.make_dir(volumes, temporary)) as fd,
        ):
            try:
                yield fd, temporary
            finally:
                _clear(volumes, temporary)

    def appear(self, temporary: str, name: str) -> None:
        """Make a finished directory the volume *name*, durably. Its record has been synced."""
        with self.part("volumes") as volumes:
            os.rename(temporary, name, src_dir_fd=volumes, dst_dir_fd=volumes)
            os.fsync(volumes)

    def sync(self, name: str) -> None:
        """Have on disk how things are with *name*, before what somebody did who may have been killed is confirmed."""
        for part in ("trash", "volumes"):
            with self.part(part) as directory:
                os.fsync(directory)
        with contextlib.suppress(NoSuchVolume), self.volume(name) as volume:
            os.fsync(volume)

    def disappear(self, name: str) -> None:
        """Take back a volume that was made a moment ago and holds nothing of its own (`path`), leaving no trace."""
        with self.lock(_STEPS, time.monotonic() + 10, shared=True), self.part("volumes") as volumes:
            temporary = fds.temporary_name()
            os.rename(name, temporary, src_dir_fd=volumes, dst_dir_fd=volumes)
            _clear(volumes, temporary)

    def write(self, volume: int, file: str, data: bytes, *, durable: bool = True) -> None:
        """Replace one of the files of a volume."""
        # Not made in `volumes`, whose time of change tells whether volumes came or went.
        with self.lock(_STEPS, time.monotonic() + 10, shared=True), self.part("locks") as scratch:
            fds.replace_file(volume, file, data, scratch=scratch, durable=durable)

    def sweep(self) -> None:
        """Remove what interrupted steps left, unless one is under way (of another process): then the next start does.

        Never a `_data` that holds anything. Mounts go whose volume is gone.
        """
        with contextlib.suppress(Busy), self.lock(_STEPS, time.monotonic()):
            for part in ("volumes", "locks"):
                with self.part(part) as where:
                    for left in os.listdir(where):
                        if left.startswith(fds.TEMPORARY):
                            log.info("removing %s, which an interrupted step left", left)
                            _clear(where, left)
        with self.part("mounts") as places:
            for name in _names(places):
                with contextlib.suppress(Busy, Unreadable), self.lock(name, time.monotonic()):
                    self._sweep_mount(name)

    def _sweep_mount(self, name: str) -> None:
        try:
            self.read(name)
        except NoSuchVolume:
            log.info("removing the mount of %s, which is gone", name)
            try:
                self.release(name)
            except OSError as exc:
                log.warning("the mount of %s stays: %s", name, exc.strerror)

    # -- List ----------------------------------------------------------------------------------------------------

    def listing(self) -> Listing:
        """Every live volume with its mountpoint; the same object as before while nothing has changed.

        Volumes that come or go change `volumes/` itself. A record damaged by another hand does not: up to 16 volumes
        every record is looked at again each time, of more 16 at a time, in turn.

        Raises:
            Unreadable: the root cannot be read.
        """
        with self.part("volumes") as volumes:
            if (kept := self._kept(volumes)) is not None:
                return kept
            with self._reading:
                return self._list(volumes)

    def _kept(self, volumes: int) -> Listing | None:
        """The last listing, if it is still true."""
        now = _stamp(os.fstat(volumes))
        with self._guard:
            if now == self._listed and not self._changed(volumes):
                return self._listing
            self._listed = ()  # or the next look, at other volumes, would find nothing changed
            return None

    def _list(self, volumes: int) -> Listing:
        if (kept := self._kept(volumes)) is not None:  # another has read them meanwhile
            return kept
        st = os.fstat(volumes)
        settled = time.time_ns() - st.st_mtime_ns > _SETTLED
        signatures: dict[str, _Signature | None] = {}
        listing: list[tuple[str, str | None]] = []
        for name in _names(volumes):
            signatures[name] = signature = _sign_in(volumes, name)
            settled = settled and (signature is None or _settled(signature))
            with contextlib.suppress(NoSuchVolume):
                try:
                    listing.append((name, self.mountpoint(self.read(name))))
                except Unreadable as exc:
                    log.warning("%s", printable(str(exc)))
                    listing.append((name, None))
        with self._guard:
            self._listing, self._signatures, self._order = tuple(listing), signatures, list(signatures)
            self._turn = 0
            self._listed = _stamp(st) if settled else ()
            return self._listing

    def _changed(self, volumes: int) -> bool:
        looked = self._order[self._turn : self._turn + _EXACT]
        self._turn = 0 if self._turn + _EXACT >= len(self._order) else self._turn + _EXACT
        return any(_sign_in(volumes, name) != self._signatures[name] for name in looked)


def _stamp(st: os.stat_result) -> tuple[int, ...]:
    return (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns)


def _sign(volume: int) -> _Signature:
    st = os.stat(RECORD, dir_fd=volume, follow_symlinks=False)
    return (st.st_ino, st.st_ctime_ns)


def _sign_in(volumes: int, name: str) -> _Signature | None:
    # Two components at once: what is seen here only says whether to look properly, and `volumes` is root's alone.
    try:
        st = os.stat(f"{name}/{RECORD}", dir_fd=volumes, follow_symlinks=False)
    except OSError:
        return None
    return (st.st_ino, st.st_ctime_ns)


def _settled(signature: _Signature) -> bool:
    return time.time_ns() - signature[1] > _SETTLED


def _names(volumes: int) -> list[str]:
    """Of what is there, lost+found and the like left out, what can be a volume."""
    return sorted(name for name in os.listdir(volumes) if is_name(name))


def _is_there(volume: int) -> bool:
    return os.fstat(volume).st_nlink > 0


def _no_such(name: str) -> NoSuchVolume:
    return NoSuchVolume(f"no volume {name}", hint="hostprep ls shows those there are, hostprep ls --trash the removed")


def _clear(volumes: int, temporary: str) -> None:
    """Remove a directory that never became a volume, or a temporary file; a `_data` that holds anything stays."""
    with contextlib.suppress(FileNotFoundError):
        try:
            fd = fds.open_dir(volumes, temporary)
        except NotADirectoryError:
            os.unlink(temporary, dir_fd=volumes)
            return
        with fds.held(fd):
            _unmake(fd)
            for name in os.listdir(fd):
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=fd) if name == DATA else os.unlink(name, dir_fd=fd)
        try:
            os.rmdir(temporary, dir_fd=volumes)
        except OSError as exc:
            log.warning("%s is left as it is: %s", temporary, exc.strerror)


def _unmake(temporary: int) -> None:
    """Take away the `path` directory that an interrupted Create had made; rmdir(2) takes only an empty one."""
    try:
        record = Record.from_json(fds.read_file(temporary, RECORD, limit=LIMIT), name=None)
        if record.made and record.options.path:
            parent, name = os.path.split(record.options.path)
            with fds.held(fds.walk(parent, trusted=not record.pinned)) as above:
                os.rmdir(name, dir_fd=above)
    except (OSError, Unreadable, NotAllowed):
        return
