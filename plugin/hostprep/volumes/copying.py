"""Copy-ups that may be under way: the Mounts that found a directory empty, and whose Unmount has not come yet.

Docker copies an image's files into an empty volume between a Mount and its Unmount, the root's owner first and the
entries after it (moby, volume/mounts and container/container_unix.go, CopyImagePathContent). A volume that has any
entry is never copied into. So of a volume that was empty at a Mount, a right root says nothing about the contents until
that Mount is over.

With volume-subpath, Docker does the same to a directory below the root, and tells nobody which. So a Mount notes the
empty directories that it finds, and `_was_copied_into` knows later which of them Docker copied into: only those are
made right, the directory itself last, as the root is.

<volume>/copying.json    {"boot": id, "mounts": {ID of the Mount: Mount}, "empty": {path: Empty}}

Unmounts get lost, and a container that runs has a Mount, too. A Mount counts for an hour at most, and not after a
reboot. For a directory below the root it counts only while its engine has that mounted for itself (`_is_held`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import Unreadable
from ..host import fds
from ..host.labels import Labels
from ..host.mountinfo import mount_of, mount_table, place_in_file_system
from ..options import Recurse
from ..tree.plan import Found, Plan, Want
from .record import LIMIT, settled
from .volume import Identity, LockedVolume, Volume

log = logging.getLogger("hostprep")

FILE: Final = "copying.json"
_COUNTS: Final = 3600  # seconds
_MOST: Final = 256  # Mounts that are noted
_LONGEST: Final = 128  # characters of an ID
# A look at what is below a directory ends after so many entries and openings of directories.
_ENTRIES: Final = 250
_DIRECTORIES: Final = 32
_LEVELS: Final = 3  # below the root, at which empty directories are noted
_KEPT: Final = 200  # volumes whose last look is kept, at 25 kB each at most
_KEPT_CHARACTERS: Final = 4_000  # of the paths in a look that is kept
_REALTIME_COARSE: Final = 5  # clock_gettime(2): the clock of a file's times


class Mount(NamedTuple):
    """When a Mount came, in seconds of the boot clock, and the process of its engine; 0 where that is not known."""

    at: float
    engine: int = 0


class Empty(NamedTuple):
    """A directory as it was at the last Mount that found it empty. Of the root, only `seen` counts."""

    seen: float
    """When that was, in seconds of the boot clock."""
    at: int = 0
    """The same in nanoseconds, by the clock of a file's times."""
    inode: int = 0
    changed: int = 0
    modified: int = 0
    """Its own times (st_ctime_ns, st_mtime_ns)."""
    uid: int = 0
    gid: int = 0
    label: str | None = None
    copied: bool = False
    """Whether it was copied into since, and its contents are not right for good."""


@dataclass(slots=True)
class Notes:
    """What is noted of a volume."""

    mounts: dict[str, Mount]
    empty: dict[str, Empty]
    """By the path from the volume's root, which is ""."""

    @classmethod
    def read(cls, volume: Volume) -> Notes:
        """What is on disk, without the Mounts that count no more. What cannot be read is nothing."""
        malformed = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
        with contextlib.suppress(FileNotFoundError, Unreadable, *malformed):
            found = json.loads(fds.read_file(volume.fd, FILE, limit=LIMIT))
            now, current = _now(), found["boot"] == _boot()
            # A Mount was a number, and each had found the root empty, before directories below it counted.
            mounts = {str(key): _parse_mount(each) for key, each in found["mounts"].items()}
            mounts = {key: each for key, each in mounts.items() if 0 <= now - each.at < _COUNTS}
            empty = {str(path): _parse(each) for path, each in found.get("empty", {"": [now]}).items()}
            if current:
                return cls(mounts, empty)
            return cls({}, {path: each._replace(seen=-1.0) for path, each in empty.items()})
        return cls({}, {})

    def outstanding(self, path: str) -> list[Mount]:
        """The Mounts that found the directory *path* empty, and are not over."""
        seen = self.empty[path].seen if path in self.empty else -1.0
        return [each for each in self.mounts.values() if each.at <= seen]

    def write(self, volume: LockedVolume, *, durable: bool = False) -> bool:
        """Write what still counts, and return whether that was possible."""
        self.empty = {path: each for path, each in self.empty.items() if each.copied or self.outstanding(path)}
        last = max((each.seen for each in self.empty.values()), default=-1.0)
        mounts = {mount: each for mount, each in self.mounts.items() if each.at <= last}
        data = json.dumps({"boot": _boot(), "mounts": mounts, "empty": self.empty}).encode() + b"\n"
        try:
            if len(data) > LIMIT:
                raise OSError(errno.ENOSPC, "there is too much to note")
            if self.empty:
                # An engine's copy-up does not outlive the kernel; that a directory has to be made right does.
                volume.root.write(volume.fd, FILE, data, durable=durable)
            else:
                os.unlink(FILE, dir_fd=volume.fd)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
            if exc.errno != errno.ENOENT:
                log.info("a copy-up into %s cannot be noted: %s", volume.name, exc.strerror)
                return False
        return True


def under_way(volume: Volume, path: str = "", top: int = -1) -> bool:
    """Whether an engine may be copying into the volume; or into its directory *path*, which is open as *top*."""
    mounts = Notes.read(volume).outstanding(path)
    return bool(mounts) and (not path or any(_is_held(top, f"{volume.place}/{path}", each.engine) for each in mounts))


def begin(volume: LockedVolume, mount: str, found: dict[str, Empty], *, engine: int) -> None:
    """Note the Mount with the ID *mount*, which has *found* directories empty, if it has any."""
    if not mount or len(mount) > _LONGEST:
        return
    notes = Notes.read(volume)
    if found and len(notes.mounts) < _MOST:
        notes.mounts[mount] = Mount(next(iter(found.values())).seen, engine)
        for path, each in found.items():
            if path in notes.empty or len(notes.empty) < _DIRECTORIES:
                copied = path in notes.empty and notes.empty[path].copied
                notes.empty[path] = each._replace(copied=copied)
        notes.write(volume)


def look(volume: LockedVolume, data: int, want: Want, labels: Labels, *, over: str = "") -> list[str]:
    """The directories below the root that have to be made right, since an image's files were copied into them.

    Args:
        over: the ID of the Mount that is over now.
    """
    notes = Notes.read(volume)
    before = replace(notes, mounts=dict(notes.mounts), empty=dict(notes.empty))
    judged = _judge(notes, data, want, labels)
    copied = [path for path, was in judged.items() if was]
    root = {path: each for path, each in notes.empty.items() if not path}
    notes.empty = root | {path: notes.empty[path]._replace(copied=was) for path, was in judged.items()}
    notes.mounts.pop(over, None)
    if notes != before or any(not (each.copied or notes.outstanding(path)) for path, each in notes.empty.items()):
        notes.write(volume, durable=bool(copied))
    return copied


def copied_into(volume: Volume, data: int, want: Want, labels: Labels) -> list[str]:
    """The directories that `look` would return: they are not right, or may not stay so."""
    return [path for path, was in _judge(Notes.read(volume), data, want, labels).items() if was]


def done(volume: LockedVolume, path: str) -> bool:
    """Note that the directory *path* is right, and return whether that was possible."""
    notes = Notes.read(volume)
    notes.empty.pop(path, None)
    return notes.write(volume)


def below(want: Want) -> Want:
    """What a directory that was copied into is to be, where the root is to be *want*.

    The whole label counts, as it does where a whole volume was empty: copy-up may have brought a `:Z`'s categories.
    """
    return replace(want, mode=None, narrowed=None, type_only=False)


@contextlib.contextmanager
def opened(data: int, path: str) -> Iterator[int]:
    """Lend a descriptor of the directory *path* below *data*, or of *data* itself; see fds.open_below.

    Raises:
        FileNotFoundError: it is not there any more.
        OSError: what else open(2) raises.
    """
    fd = os.dup(data)
    try:
        for name in filter(None, path.split("/")):
            try:
                inside = fds.open_below(fd, name, directory=True)
            except OSError as exc:
                if exc.errno in (*fds.CHANGED, errno.EXDEV):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
                raise
            os.close(fd)
            fd = inside
        yield fd
    finally:
        os.close(fd)


def _parse_mount(found: Any) -> Mount:
    at, engine = found if isinstance(found, list) else (found, 0)
    return Mount(float(at), int(engine))


def _parse(found: Any) -> Empty:
    each = Empty(*found)
    if not all(type(n) in (int, float) for n in each[:7]) or type(each.copied) is not bool:
        raise ValueError
    return each


class Looks:
    """Which directories of each volume were empty when last looked at.

    To open them all takes longer than the rest of a Mount. As long as none has changed, by its change time, there is
    nothing new. One object serves every thread.
    """

    def __init__(self) -> None:
        self._kept: dict[Identity, tuple[Want, dict[str, _Stamp], dict[str, Empty]]] = {}

    def find(self, volume: Volume, data: int, want: Want, labels: Labels) -> dict[str, Empty]:
        """The empty directories of the *volume*, its root *data* or those below; see `_find_empty`."""
        now, at = _now(), time.clock_gettime_ns(_REALTIME_COARSE)
        kept = self._kept.get(volume.identity)
        if kept and kept[0] == want and all(_is_as_then(data, *each) for each in kept[1].items()):
            return {path: each._replace(seen=now, at=at) for path, each in kept[2].items()}
        looked: dict[str, _Stamp] = {}
        found = dict(_find_empty(data, want, labels, now, at, looked))
        short = sum(map(len, looked)) < _KEPT_CHARACTERS
        if short and settled(max(stamp[2] for stamp in looked.values())):
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[volume.identity] = want, looked, found
        return found


_Stamp = tuple[int, int, int]
"""A directory's device, inode and change time."""


def _stamp(st: os.stat_result) -> _Stamp:
    return st.st_dev, st.st_ino, st.st_ctime_ns


def _is_as_then(data: int, path: str, stamp: _Stamp) -> bool:
    with contextlib.suppress(OSError):
        if not path:
            return _stamp(os.fstat(data)) == stamp
        if "/" not in path:  # a look at the name follows no symlink
            return _stamp(os.stat(path, dir_fd=data, follow_symlinks=False)) == stamp
        with opened(data, path) as fd:
            return _stamp(os.fstat(fd)) == stamp
    return False


@contextlib.contextmanager
def _may_fail(looked: dict[str, _Stamp]) -> Iterator[None]:
    """Go on after an OSError, with nothing in *looked* that could be taken for a whole look."""
    try:
        yield
    except OSError:
        looked[""] = 0, 0, 0


def _find_empty(
    data: int, want: Want, labels: Labels, now: float, at: int, looked: dict[str, _Stamp]
) -> Iterator[tuple[str, Empty]]:
    """The empty directories of a volume, its root or those below, that copy-up may give to another owner.

    One that is neither the declared owner's nor root's is somebody else's on purpose, whatever is copied into it.
    """
    for path, fd, _ in _leaves(data, levels=_LEVELS if _follows(want) else 0, files=False, looked=looked):
        if not path:
            yield path, Empty(now)
            continue
        st = os.fstat(fd)
        if (want.uid in (None, st.st_uid) or st.st_uid == 0) and (want.gid in (None, st.st_gid) or st.st_gid == 0):
            with _may_fail(looked):
                label = None if want.label is None else Found.at(fd, labels).label
                yield path, Empty(now, at, st.st_ino, st.st_ctime_ns, st.st_mtime_ns, st.st_uid, st.st_gid, label)


def _follows(want: Want) -> bool:
    return want.recurse is not Recurse.NEVER and (want.uid, want.gid, want.label) != (None, None, None)


def _judge(notes: Notes, data: int, want: Want, labels: Labels) -> dict[str, bool]:
    """Whether each directory below the root that is noted was copied into. One that is gone is not in the answer."""
    judged = {}
    for path, empty in notes.empty.items() if _follows(want) else ():
        if not path:
            continue
        with contextlib.suppress(ValueError):  # no path
            try:
                # A look at the name is enough where nothing has happened, and a symlink on the way is not followed.
                if "/" not in path and not empty.copied:
                    st = os.stat(path, dir_fd=data, follow_symlinks=False)
                    if (st.st_ino, st.st_ctime_ns) == (empty.inode, empty.changed):
                        judged[path] = False
                        continue
                with opened(data, path) as fd:
                    if os.fstat(fd).st_ino == empty.inode:
                        judged[path] = empty.copied or _was_copied_into(fd, empty, want, labels)
            except FileNotFoundError:
                continue
            except OSError:  # a disk that fails there keeps nobody from the rest
                judged[path] = empty.copied
    return judged


def _was_copied_into(fd: int, empty: Empty, want: Want, labels: Labels) -> bool:
    """Whether an image's files were copied into the directory *fd*, and not a container's or root's own put there.

    Docker gives the directory the owner and time of the image's, then each file (continuity, fs/copy.go). So it has
    another owner or label than when it was empty, and has not changed since a Mount has ceased to count. All in it is
    older than the Mount; but one may just be being written, and is still root's. The time of a directory tells that
    only where it is empty: whatever is put into it changes it.
    """
    st = os.fstat(fd)
    if st.st_ctime_ns == empty.changed or st.st_ctime_ns - empty.at >= _COUNTS * 10**9:
        return False
    if (st.st_uid, st.st_gid) == (empty.uid, empty.gid) and (
        want.label is None or Found.at(fd, labels).label == empty.label
    ):
        return False
    if not Plan.of(fd, below(want), labels).changes:
        return False
    being_written = 0
    for path, directory, file in _leaves(fd):
        if not path:
            return st.st_mtime_ns < empty.at and st.st_mtime_ns != empty.modified
        with contextlib.suppress(FileNotFoundError):
            st = file.stat(follow_symlinks=False) if file else os.fstat(directory)
            if st.st_mtime_ns >= empty.at:
                being_written += 1
                if being_written > 1 or (st.st_uid, st.st_gid) != (0, 0):
                    return False
    return True


def _is_held(top: int, path: str, engine: int) -> bool:
    """Whether the process *engine* has the directory *top*, at *path*, mounted for itself, or that cannot be told.

    dockerd has while it copies into it (moby, internal/safepath, tempMountPoint). One that has not, begins to copy no
    more, as the directory is not empty now.
    """
    mount = mount_of(top)
    if not engine or mount is None:
        return True
    place = place_in_file_system(mount, path)
    try:
        table = mount_table(str(engine))
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
    except OSError:
        return True
    held = [os.path.basename(each.point) for each in table if (each.device, each.root) == (mount.device, place)]
    return any(name.startswith("safe-mount") for name in held)


def _leaves(
    top: int, *, levels: int = _ENTRIES, files: bool = True, looked: dict[str, _Stamp] | None = None
) -> Iterator[tuple[str, int, os.DirEntry[str] | None]]:
    """The empty directories and *files* in *top*, the highest first, as far as a look goes; itself, where it is empty.

    Each with its path from there, a descriptor of the directory, or of the one that the file is in, and the file's
    entry. Into *looked* goes what every directory was before it was read.
    """
    looked = {} if looked is None else looked
    left, directories, here = _ENTRIES, _DIRECTORIES, [""]
    for level in range(levels + 1):
        deeper: list[str] = []
        for path in here:
            with _may_fail(looked), opened(top, path) as fd, os.scandir(fd) as some:
                looked.setdefault(path, _stamp(os.fstat(fd)))
                entries = list(itertools.islice(some, left if levels else 1))
                left -= len(entries)
                if not level and not entries:
                    yield "", fd, None
                above = f"{path}/" if path else ""
                for entry in entries if level < levels else ():
                    if not entry.is_dir(follow_symlinks=False):
                        if files:
                            yield above + entry.name, fd, entry
                    elif not directories:
                        return
                    else:
                        directories -= 1
                        with _may_fail(looked), opened(fd, entry.name) as child:
                            looked[above + entry.name] = _stamp(os.fstat(child))
                            with os.scandir(child) as inner:
                                empty = next(inner, None) is None
                            if empty:
                                yield above + entry.name, child, None
                            elif level + 1 < levels:
                                deeper.append(above + entry.name)
            if not left:
                return
        here = deeper


@functools.cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
