"""Which roots this host has served, remembered where their disk is not: an empty directory is a new root only once.

<HOSTPREP_KNOWN_ROOTS>/var%2Flib%2Fhostprep    {"root": "/var/lib/hostprep", "id": as in hostprep.json, "mounts": []}
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import BadSetting, NotAllowed, Unreadable, in_words, printable
from ..host import fds
from ..host.paths import is_below
from ..settings import Settings

log = logging.getLogger("hostprep")

_LIMIT: Final = 65536  # bytes; a path has at most 4096, each six in JSON
_UNDER_WAY: Final = 3600.0  # seconds for which a temporary file may be in use
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class Known:
    """A root that this host has served."""

    id: str
    """The one in its hostprep.json; empty where that cannot be read any more."""
    mounts: frozenset[str] = frozenset()
    """Its parts on which something was mounted."""


def find(settings: Settings) -> Known | None:
    """The root that this host has served at the path of HOSTPREP_ROOT; None for none.

    Raises:
        BadSetting: it cannot be told.
    """
    if is_below(settings.known_roots, settings.root):
        raise BadSetting("HOSTPREP_KNOWN_ROOTS lies in HOSTPREP_ROOT", hint="name a directory that is not on its disk")
    try:
        with _opened(settings.known_roots) as directory:
            found = json.loads(fds.read_file(directory, _name(settings.root), limit=_LIMIT))
        return Known(str(found["id"]), frozenset(map(str, found["mounts"])))
    except (ValueError, KeyError, TypeError, RecursionError, Unreadable):  # that it is there counts
        return Known("")
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise BadSetting(f"HOSTPREP_KNOWN_ROOTS: {printable(in_words(exc))}") from None
    except NotAllowed as exc:
        raise BadSetting(f"HOSTPREP_KNOWN_ROOTS: {exc.message}", hint=exc.hint) from None


def remember(settings: Settings, root: Known) -> None:
    """Remember, durably, that this host serves *root*. What prevents it is logged, not raised."""
    text = json.dumps({"root": settings.root, "id": root.id, "mounts": sorted(root.mounts)}).encode() + b"\n"
    try:
        fds.make_way(settings.known_roots, mode=0o700)
        with _opened(settings.known_roots) as directory:
            _clear(directory)
            fds.replace_file(directory, _name(settings.root), text, scratch=directory, durable=True)
    except (OSError, NotAllowed) as exc:
        why = f"{settings.root} is not remembered: {printable(in_words(exc))}"
        log.warning("%s (while its disk is not mounted, only HOSTPREP_REQUIRE_MARKER=1 tells)", why)


def _clear(directory: int) -> None:
    """Remove what interrupted writes left. What is not yet an hour old may be another server's."""
    for name in filter(fds.is_temporary, os.listdir(directory)):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime > _UNDER_WAY:
                os.unlink(name, dir_fd=directory)


def begin_anew(settings: Settings) -> str:
    """What makes this host forget the root."""
    if settings.managed:
        return "docker plugin rm -f, and create or install it again"
    return f"rm {shlex.quote(printable(f'{settings.known_roots}/{_name(settings.root)}'))}"


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    with fds.closing(fds.walk(path, trusted=True)) as directory:
        st = os.fstat(directory)
        if st.st_uid != 0 or st.st_mode & 0o022:
            raise NotAllowed(f"others than root can write {printable(path)}", hint="chown 0:0 and chmod 0700")
        yield directory


def _name(root: str) -> str:
    return root[1:].replace("%", "%25").replace("/", "%2F")
