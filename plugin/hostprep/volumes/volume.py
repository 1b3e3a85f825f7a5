"""A volume: its name, its open directory and its record. What may only be read and what may be written are two types.

`Store.open` gives a `Volume`, which can only be read, and takes no lock. `Store.locked` holds the volume's lock and
gives a `LockedVolume`, which can be written, too. So mypy forbids what the lock forbids.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from ..errors import NotAllowed, NotReady, OtherData, Unreadable, printable
from ..host import fds, filesystem
from ..host.labels import Labels
from ..host.paths import is_below
from ..options import Name
from ..settings import Settings
from ..tree.plan import Want
from ..tree.process import Progress
from . import pins
from .record import LIMIT, WITHIN, Record
from .root import STEPS, Root

log = logging.getLogger("hostprep")

RECORD: Final = "volume.json"
RETAINED: Final = "retained.json"
DATA: Final = "_data"
MARK: Final = "pass.json"
_ABSURD: Final = 2**53  # no tree has so many entries

NOTED: Final = "engine.json"
Identity = tuple[int, int, str]
"""Device and inode of a volume's directory, and when it was created: an inode may be used again after a purge."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What an engine has in its own record of a volume. A Remove does not say it, and with it the record is gone."""

    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class Volume:
    """A volume whose directory is open. It can only be read: another process may be changing it."""

    def __init__(self, root: Root, fd: int, record: Record) -> None:
        self.root = root
        self.fd = fd
        self.record = record

    @property
    def name(self) -> Name:
        return self.record.name

    @property
    def identity(self) -> Identity:
        """What tells this volume from any other that has or had its name."""
        st = os.fstat(self.fd)
        return st.st_dev, st.st_ino, self.record.created_at

    @property
    def place(self) -> str:
        """Where the data is."""
        return self.record.options.path or f"{self.root.root}/volumes/{self.name}/{DATA}"

    @property
    def mountpoint(self) -> str:
        """What is answered to an engine: where the data is, or where the next Mount mounts it."""
        return f"{self.root.root}/mounts/{self.name}" if self.record.mounted else self.place

    def want(self, labels: Labels) -> Want:
        """What the data directory is to be."""
        record = self.record
        return Want.of(record.declared.on_disk, labels, adopted=record.adopted, narrowed=record.narrowed)

    def is_pinned(self, data: int) -> bool:
        """Whether the open directory *data* is what is mounted where an engine is told; see pins.leads_to."""
        with self.root.part("mounts") as mounts:
            return pins.leads_to(mounts, self.name, data, self.record.idmap)

    def pending(self) -> Progress | None:
        """How far the pass is that has not ended; None where there is none. A damaged mark counts as no progress."""
        try:
            found = Progress(**json.loads(fds.read_file(self.fd, MARK, limit=LIMIT)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError, Unreadable):
            return Progress()
        numbers = [found.rate, *(n for n in (found.estimate, found.seconds_left) if n is not None)]
        sound = type(found.done) is int and all(type(n) in (int, float) for n in numbers)
        return found if sound and all(0 <= n < _ABSURD for n in (found.done, *numbers)) else Progress()

    def noted(self) -> Noted:
        """What the engine had recorded of it when it was asked; nothing where it never was, or the note is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError, Unreadable):
            found = Noted(**json.loads(fds.read_file(self.fd, NOTED, limit=LIMIT)))
            if all(isinstance(text, str) for pair in [*found.options.items(), *found.labels.items()] for text in pair):
                return found
        return Noted()

    def note(self, noted: Noted) -> None:
        """Note it, where it is news. Not durably: without it labels are missing after a restore, and no data."""
        data = json.dumps(asdict(noted)).encode() + b"\n"
        if noted != self.noted() and len(data) <= LIMIT:
            self.root.write(self.fd, NOTED, data, durable=False)

    @contextlib.contextmanager
    def open_data(self, *, as_mount: bool = False) -> Iterator[int]:
        """Lend a descriptor of the directory that the container sees.

        It is the directory that the record knows (`Record.data`), or none:

        - Of a directory of hostprep's own, only what is mounted there counts: `WITHIN` where nothing is. Else only root
          can change it, who restores a backup of the whole root, or rolls a sub-volume back: no data is missing then.
        - Of a mount on `_data`, and of a `path`, the fingerprint counts. A reboot, another device name, a move of the
          disk and `import` keep it; a new directory or file system in its place does not: `apply --accept-data`.
        - A record that does not know yet (an older version's, or of a `path` that Create made) learns it at the first
          Mount. Of an older version's own directory it learns mounts only: the disk may be missing just then.

        Args:
            as_mount: open it even where others could redirect its path, as the next Mount does, which then answers a
                bind mount; and so does `record.mounted`.

        Raises:
            NotReady: it is not there. It is never made here: that would hide an unmounted disk.
            OtherData: another is in its place.
            NotAllowed: its `path` is no longer below an allowed prefix, or leads over a symlink; or somebody other than
                root could redirect it, and its name is what is answered.
        """
        fd, replaceable, mounted = self._find()
        with fds.closing(fd):
            found = self._fingerprint(fd, mounted=mounted)
            if self.record.data not in ("", found):
                raise self._other_data(found)
            if replaceable and not self.record.mounted:
                if not as_mount:
                    raise fds.redirectable(replaceable)
                self._answer_mount(replaceable)
            if not self.record.data and found != WITHIN:
                self._learn_data(found)
            yield fd

    def look_at_data(self) -> str:
        """What `Record.data` is, were the directory that is there now accepted; raises what `open_data` raises."""
        fd, _, mounted = self._find()
        with fds.closing(fd):
            return self._fingerprint(fd, mounted=mounted)

    def _fingerprint(self, data: int, *, mounted: bool) -> str:
        return WITHIN if self.record.options.path is None and not mounted else filesystem.fingerprint(data)

    def _answer_mount(self, replaceable: str) -> None:
        self.record = replace(self.record, pinned=True)

    def _learn_data(self, found: str) -> None:
        pass

    def _other_data(self, found: str) -> OtherData:
        where, known = printable(self.place), self.record.data
        if found == WITHIN:
            what = f"nothing is mounted at {where} any more"
        elif known == WITHIN:
            what = f"another file system is mounted at {where} now"
        elif found.rpartition(":")[0] != known.rpartition(":")[0]:
            what = f"{where} is on another file system than before"
        else:
            what = f"{where} is another directory than before"
        hint = f"is its disk mounted? If this is its data from now on: {self._accept_data}"
        return OtherData(f"the data of volume {self.name} is not there: {what}", hint=hint)

    @property
    def _accept_data(self) -> str:
        """What makes the directory that is there now the volume's."""
        return f"hostprep apply {self.name} --accept-data"

    def _find(self) -> tuple[int, str, bool]:
        """Open the data, and name the directory on the way to it that others could replace; see `open_parent`.

        The third says whether the data of a volume without `path` has a mount of its own.
        """
        path = self.record.options.path
        try:
            if path is None:
                try:
                    return fds.open_below(self.fd, DATA, directory=True), "", False
                except OSError as exc:
                    if exc.errno != errno.EXDEV:
                        raise
                return fds.open_dir(self.fd, DATA), "", True
            with open_parent(self.root.settings, path) as (parent, last, replaceable):
                return fds.open_step(parent, last, path), replaceable, False
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            where = printable(self.place)
            why = f"the data of volume {self.name} is not there: {where} does not exist or is no directory"
            hint = "is its disk mounted? hostprep does not make it again: that would hide the loss"
            raise NotReady(why, hint=hint) from None


class LockedVolume(Volume):
    """A volume whose lock is held: it can be written, too."""

    def write(self, record: Record) -> None:
        """Make *record* its record, durably."""
        self.root.write(self.fd, RECORD, record.to_json())
        self.record = record

    def write_mark(self) -> None:
        """Note, durably, that a pass begins. Until it has ended, the tree is not right."""
        write_progress(self, Progress(), durable=True)

    def remove_mark(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MARK, dir_fd=self.fd)

    def _answer_mount(self, replaceable: str) -> None:
        why = fds.redirectable(replaceable).message
        log.info("%s is answered as a mount from now on: %s", self.name, why)
        self.write(replace(self.record, pinned=True))
        changed(self.root)

    def _learn_data(self, found: str) -> None:
        try:
            self.write(replace(self.record, data=found))
        except OSError as exc:  # a full or read-only disk: what is ready can be mounted there, too
            if exc.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
            log.info("what the data of %s is cannot be recorded: %s", self.name, exc.strerror)

    def pin(self, data: int, *, engine: int) -> None:
        """Where a mount is what is answered, mount the open directory *data* there; see pins.pin."""
        if self.record.mounted:
            with self.root.part("mounts") as mounts:
                pins.pin(mounts, self.name, data, place=self.mountpoint, engine=engine, idmap=self.record.idmap)

    def release(self) -> None:
        """Take the mount of the volume away, if there is one; see pins.release."""
        with self.root.part("mounts") as mounts:
            pins.release(mounts, self.name)

    def retain(self) -> None:
        """Make it retained data, of which a Create of the same name makes a volume again."""
        os.rename(RECORD, RETAINED, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)
        changed(self.root)

    def withdraw(self) -> None:
        """Undo the making of a volume that holds no data of its own, as by `path`. Nothing of it stays."""
        with self.root.lock(STEPS, time.monotonic() + 10, shared=True), self.root.part("volumes") as volumes:
            temporary = fds.temporary_name()
            os.rename(self.name, temporary, src_dir_fd=volumes, dst_dir_fd=volumes)
            with self.root.part("trash") as trash:
                os.utime(trash)  # as whatever leaves `volumes` changes it; see claims.py
            clear(volumes, temporary)


class RetainedVolume(Volume):
    """The data of a volume that was removed with on_remove=retain; the lock of its name is held."""

    @property
    def _accept_data(self) -> str:
        return f"hostprep rm --retained {self.name}, then create it anew"

    def reuse(self, record: Record) -> None:
        """Make it the volume of *record*."""
        self.root.write(self.fd, RECORD, record.to_json())
        os.unlink(RETAINED, dir_fd=self.fd)
        os.fsync(self.fd)
        changed(self.root)


class NewVolume(Volume):
    """A volume that is being made in a directory with a temporary name; the lock of its own name is held."""

    def __init__(self, root: Root, fd: int, record: Record, temporary: str) -> None:
        super().__init__(root, fd, record)
        self._temporary = temporary

    def write_record(self) -> None:
        """Write the record for the first time, and sync it."""
        fds.write_file(self.fd, RECORD, self.record.to_json(), durable=True)

    def publish(self) -> None:
        """Give the finished directory its name, durably: now the volume is there. Its record has been synced."""
        with self.root.part("volumes") as volumes:
            os.rename(self._temporary, self.name, src_dir_fd=volumes, dst_dir_fd=volumes)
            os.fsync(volumes)


def write_progress(volume: Volume, progress: Progress, *, durable: bool = False) -> None:
    """Put *progress* into the mark of a pass. The caller has the pass, or the volume's lock."""
    volume.root.write(volume.fd, MARK, json.dumps(asdict(progress)).encode() + b"\n", durable=durable)


def changed(root: Root) -> None:
    """Have every process list the volumes anew, although `volumes` itself has not changed; see listing.py."""
    with root.part("volumes") as volumes:
        os.utime(volumes)


@contextlib.contextmanager
def open_parent(settings: Settings, path: str) -> Iterator[tuple[int, str, str]]:
    """Lend the directory above a `path`, with the last component and the first directory that others could replace.

    "" where only root could replace any: the engine opens the answered path by name, later, following links.

    Raises:
        NotAllowed: it is not strictly below a prefix of HOSTPREP_ALLOW, or a directory above it is a symlink.
        OSError: ENOENT and what else open(2) raises.
    """
    if not any(is_below(path, prefix) for prefix in settings.allow):
        what, hint = f"path {printable(path)}", "HOSTPREP_ALLOW is empty: the administrator sets it"
        if settings.managed:
            why = f"{what} is out of the managed plugin's reach"
            raise NotAllowed(why, hint="install hostprep on the host: make install")
        if settings.allow:
            hint = f"allowed is what lies in {':'.join(settings.allow)}"
        raise NotAllowed(f"{what} is not below a directory that HOSTPREP_ALLOW names", hint=hint)
    parent, last = os.path.split(path)
    fd, replaceable = fds.walk_and_tell(parent)
    with fds.closing(fd):
        # The last component may be missing still, so a sticky bit is no help.
        if not replaceable and not fds.only_root_writes_in(fd):
            replaceable = path
        yield fd, last, replaceable


def clear(directory: int, temporary: str, *, unmake_path: bool = True) -> None:
    """Remove a temporary file, or a directory that never became a volume; a `_data` that holds anything stays.

    Args:
        unmake_path: remove the `path` directory that was made for it, too.
    """
    with contextlib.suppress(FileNotFoundError):
        try:
            fd = fds.open_dir(directory, temporary)
        except NotADirectoryError:
            try:
                os.unlink(temporary, dir_fd=directory)
            except OSError as exc:
                if exc.errno != errno.EROFS:
                    raise
                log.warning("%s is left as it is: %s", temporary, exc.strerror)
            return
        with fds.closing(fd):
            if unmake_path:
                _unmake_path(read_temporary(directory, temporary))
            for name in os.listdir(fd):
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=fd) if name == DATA else os.unlink(name, dir_fd=fd)
        try:
            os.rmdir(temporary, dir_fd=directory)
        except OSError as exc:
            log.warning("%s is left as it is: %s", temporary, exc.strerror)


def read_temporary(directory: int, temporary: str) -> Record | None:
    """The record of what is being made, or never became a volume; None where there is none."""
    with contextlib.suppress(OSError, Unreadable), fds.closing(fds.open_dir(directory, temporary)) as fd:
        return Record.from_json(fds.read_file(fd, RECORD, limit=LIMIT), name=None)
    return None


def _unmake_path(record: Record | None) -> None:
    """Remove the `path` directory that an interrupted Create made; rmdir(2) removes only an empty one."""
    if record and record.made_path and record.options.path:
        with contextlib.suppress(OSError, NotAllowed):
            parent, name = os.path.split(record.options.path)
            with fds.closing(fds.walk(parent, trusted=not record.pinned)) as above:
                os.rmdir(name, dir_fd=above)
