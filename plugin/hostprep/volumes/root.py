"""The root directory: who owns it, whether it is still there, its parts and its locks.

<root>/hostprep.json  format version and id: the directory is hostprep's, and its disk is mounted
       volumes/       a directory for each volume (store.py)
       trash/         removed volumes (trash.py)
       locks/         the lock file, and files that are being written
       mounts/        bind mounts of `path` directories (pins.py)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from typing import Final, Self

from ..errors import BadSetting, NotAllowed, Unreadable, in_words
from ..host import acl, fds
from ..host.locks import is_locked, locked, open_lock_file
from ..settings import Settings
from . import known

FORMAT: Final = 1
MARKER: Final = "hostprep.json"
PARTS: Final = ("locks", "mounts", "trash", "volumes")
STEPS: Final = "/steps"  # a lock: held shared while something temporary is there; with a slash, so no volume's name
_LIMIT: Final = 4096  # bytes of the marker


class Root:
    """The root directory, made by `open_root`. One object serves every thread."""

    def __init__(self, settings: Settings, identity: str) -> None:
        self.settings = settings
        self.root = settings.root
        self.identity = identity
        self._known: dict[str, tuple[int, int]] = {}

    @classmethod
    def open_root(cls, settings: Settings, *, create: bool) -> Self:
        """Open the root. With *create*, make it where it is missing or empty, and this host has served none there.

        Raises:
            BadSetting: it is missing, not hostprep's, of another format, or not root's alone; or this host has served
                another one there.
        """
        root = settings.root
        if os.geteuid() != 0:
            why = "it gives directories to other users; use sudo, or for a rootless engine see docs/rootless.md"
            raise BadSetting("hostprep needs to be root", hint=why)
        served = known.find(settings)
        make = create and not settings.require_marker and served is None
        try:
            if make:
                fds.make_way(root, mode=0o700)
            fd = fds.walk(root, trusted=True)
        except FileNotFoundError:
            if served is not None:
                raise _lost(settings, "does not exist") from None
            marker = "is its disk mounted? HOSTPREP_REQUIRE_MARKER=1"
            hint = marker if settings.require_marker else "hostprep create or serve makes it"
            raise BadSetting(f"{root} does not exist", hint=hint) from None
        except NotAllowed as exc:
            raise BadSetting(f"HOSTPREP_ROOT: {exc.message}", hint=exc.hint) from None
        except OSError as exc:
            raise BadSetting(f"HOSTPREP_ROOT: {in_words(exc)}") from None
        with fds.closing(fd):
            if served is not None and not fds.exists(fd, MARKER) and _is_empty(fd):
                raise _lost(settings, "is empty")
            st = os.fstat(fd)
            if st.st_uid != 0:
                why = f"{root} belongs to user {st.st_uid}"
                raise BadSetting(why, hint="it must be root's: chown 0:0 and mode 0700")
            if make and _is_empty(fd):
                os.fchmod(fd, 0o700)
                _make_root(fd)
            elif stat.S_IMODE(st.st_mode) != 0o700:
                why = f"{root} has mode 0{stat.S_IMODE(st.st_mode):03o}"
                raise BadSetting(why, hint=f"users of this host must not reach into volumes: chmod 0700 {root}")
            try:
                opened = cls(settings, _identity(fd))
                opened._verify(fd)
            except FileNotFoundError:
                why = "HOSTPREP_REQUIRE_MARKER=1" if settings.require_marker else "and is not empty"
                hint = "is its disk mounted? hostprep makes that file itself, in an empty directory only"
                raise BadSetting(f"{root} has no {MARKER}, {why}", hint=hint) from None
            except Unreadable as exc:
                raise BadSetting(f"{root}: {exc.message}", hint=exc.hint) from None
            now = known.Known(opened.identity, _mounted_parts(fd))
        if served is not None and served.id not in ("", now.id):
            raise _lost(settings, "is another root")
        if served is not None and (bare := served.mounts - now.mounts):
            raise _lost(settings, f"has nothing mounted at {min(bare)}")
        if (
            create and served != now
        ):  # the root first: known before it is made, it would be missed after an interruption
            known.remember(settings, now)
        return opened

    def _verify(self, fd: int) -> None:
        """Check that the directory *fd* is still this root, and remember its parts by device and inode."""
        if _identity(fd) != self.identity:
            raise Unreadable(f"{self.root} is now the root of another hostprep")
        known = {}
        for part in PARTS:
            try:
                with fds.closing(fds.open_dir(fd, part)) as below:
                    known[part] = _device_and_inode(below)
            except OSError as exc:
                hint = f"put it back; a new one is empty, and the engine would forget every volume ({in_words(exc)})"
                raise Unreadable(f"{self.root}/{part} is missing or not a directory", hint=hint) from None
            # A disk that was mounted again may have another device number, but its directories are the same.
            if part in self._known and self._known[part][1] != known[part][1]:
                raise Unreadable(f"{self.root}/{part} was replaced", hint="if that was intended, restart hostprep")
        self._known = known

    @contextlib.contextmanager
    def part(self, part: str) -> Iterator[int]:
        """Lend a descriptor of `volumes`, `trash`, `locks` or `mounts`.

        It is opened anew each time: so a disk that went away is noticed, and one that came back is used. It is opened
        by path, which only root can change: that was checked at the start.

        Raises:
            Unreadable: it cannot be opened, or another directory has its place.
        """
        try:
            fd = os.open(f"{self.root}/{part}", fds.DIRECTORY)
        except OSError as exc:
            raise _gone(exc) from exc
        with fds.closing(fd):
            here = _device_and_inode(fd)
            if here != self._known[part]:  # the disk went away, or was mounted again
                try:
                    with fds.closing(fds.walk(self.root, trusted=True)) as root:
                        self._verify(root)
                except (OSError, NotAllowed) as exc:
                    raise _gone(exc) from exc
                if here != self._known[part]:
                    raise Unreadable(f"{self.root}/{part} was replaced while it was opened")
            yield fd

    @contextlib.contextmanager
    def lock(self, what: str, deadline: float, *, shared: bool = False) -> Iterator[None]:
        """Hold a lock of this root: a volume's, or one of the few others, whose names no volume can have.

        Raises:
            Busy: another had it until *deadline*, on the clock of time.monotonic().
        """
        with self.part("locks") as locks, locked(locks, what, deadline=deadline, shared=shared):
            yield

    def is_locked(self, what: str) -> bool:
        """Whether anybody holds the lock *what*."""
        with self.part("locks") as locks, fds.closing(open_lock_file(locks)) as held:
            return is_locked(held, what)

    def write(self, directory: int, file: str, data: bytes, *, durable: bool = True) -> None:
        """Replace one of hostprep's own files in *directory* by one rename."""
        # The temporary file is not made in `volumes`, whose time of change tells whether volumes came or went.
        with self.lock(STEPS, time.monotonic() + 10, shared=True), self.part("locks") as scratch:
            fds.replace_file(directory, file, data, scratch=scratch, durable=durable)


def _lost(settings: Settings, what: str) -> BadSetting:
    """The refusal of what is not the root that this host has served: told "no such volume", engines forget them."""
    hint = f"is its disk mounted? To begin anew: {known.begin_anew(settings)}"
    return BadSetting(f"{settings.root} {what}; this host has served volumes from there before", hint=hint)


def _mounted_parts(root: int) -> frozenset[str]:
    found = set()
    for part in PARTS:
        with fds.closing(fds.open_dir(root, part)) as directory:
            if fds.mount_id(directory) != fds.mount_id(root):
                found.add(part)
    return frozenset(found)


def _device_and_inode(directory: int) -> tuple[int, int]:
    st = os.fstat(directory)
    return st.st_dev, st.st_ino


def _gone(exc: Exception) -> Exception:
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return exc
    return Unreadable(f"the root cannot be read: {in_words(exc)}", hint="is its disk mounted?")


def _identity(root: int) -> str:
    """The id in hostprep.json.

    Raises:
        FileNotFoundError: there is none.
        Unreadable: it is damaged, or of a format that this version does not know.
    """
    try:
        found = json.loads(fds.read_file(root, MARKER, limit=_LIMIT))
        known, identity = found["format"], found["id"]
    except (ValueError, KeyError, TypeError):
        raise Unreadable(f"{MARKER} is damaged", hint=f'it holds {{"format": {FORMAT}, "id": "…"}}') from None
    if known != FORMAT or not isinstance(identity, str):
        raise Unreadable(f"{MARKER} has format {known!r}, this version knows {FORMAT}", hint="use a newer hostprep")
    return identity


def _is_empty(root: int) -> bool:
    """Whether nothing is in *root* but what a new file system has, and what an interrupted `_make_root` leaves."""
    for name in os.listdir(root):
        if name in PARTS:
            with fds.closing(fds.open_dir(root, name)) as part:
                if set(os.listdir(part)) - {"held"}:
                    return False
        elif name != "lost+found" and not fds.is_temporary(name):
            return False
    return True


def _make_root(root: int) -> None:
    acl.disinherit(root)
    for part in PARTS:
        with contextlib.suppress(FileExistsError):
            os.close(fds.make_dir(root, part))
    with fds.closing(fds.open_dir(root, "locks")) as locks, locked(locks, "init", deadline=time.monotonic() + 10):
        if not fds.exists(root, MARKER):
            for left in filter(fds.is_temporary, os.listdir(root)):  # an interrupted _make_root left them
                os.unlink(left, dir_fd=root)
            os.fsync(root)  # on btrfs, syncing the marker does not sync the parts
            marker = json.dumps({"format": FORMAT, "id": os.urandom(16).hex()}).encode() + b"\n"
            fds.replace_file(root, MARKER, marker, scratch=root, durable=True)
