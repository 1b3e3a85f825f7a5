"""Copy-ups that may be under way: the Mounts of an empty volume whose Unmount has not come yet.

Docker copies an image's files into an empty volume between a Mount and its Unmount, the root's owner first and the
entries after it (moby, volume/mounts and container/container_unix.go, CopyImagePathContent). A volume that has any
entry is never copied into. So of a volume that was empty at a Mount, a right root says nothing about the contents until
that Mount is over.

<volume>/copying.json    {"boot": id, "mounts": {ID of the Mount: seconds of the boot clock}}

Unmounts get lost. A Mount counts for an hour at most, and not after a reboot.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Final

from ..errors import Unreadable
from ..host import fds
from .record import LIMIT
from .volume import LockedVolume, Volume

log = logging.getLogger("hostprep")

FILE: Final = "copying.json"
_COUNTS: Final = 3600.0  # seconds
_MOST: Final = 256  # Mounts that are noted
_LONGEST: Final = 128  # characters of an ID


def under_way(volume: Volume) -> dict[str, float]:
    """The Mounts whose copy-up may be under way, and when they came."""
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError, RecursionError, Unreadable):
        found = json.loads(fds.read_file(volume.fd, FILE, limit=LIMIT))
        if found["boot"] == _boot():
            now = _now()
            return {str(key): float(at) for key, at in found["mounts"].items() if 0 <= now - float(at) < _COUNTS}
    return {}


def begin(volume: LockedVolume, mount: str, data: int) -> None:
    """Note the Mount with the ID *mount*, if the volume is empty: *data* is its directory."""
    with os.scandir(data) as entries:
        if any(entries) or not mount or len(mount) > _LONGEST:
            return
    known = under_way(volume)
    if len(known) < _MOST:
        _write(volume, {**known, mount: _now()})


def end(volume: LockedVolume, mount: str) -> None:
    """Note that the Mount with the ID *mount* is over."""
    if mount in (known := under_way(volume)):
        del known[mount]
        _write(volume, known)


def _write(volume: LockedVolume, mounts: dict[str, float]) -> None:
    data = json.dumps({"boot": _boot(), "mounts": mounts}).encode() + b"\n"
    try:
        if mounts:
            volume.root.write(volume.fd, FILE, data, durable=False)  # an engine's copy-up does not outlive the kernel
        else:
            os.unlink(FILE, dir_fd=volume.fd)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        log.info("a copy-up into %s cannot be noted: %s", volume.name, exc.strerror)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
