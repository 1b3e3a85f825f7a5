"""Paths as text: which lies below which, and which directories of the host hostprep never gives to a container."""

from __future__ import annotations

import os
import re
from typing import Final

# No container is given one of these by path, or anything below or above it.
_SYSTEM: Final = ("/bin", "/boot", "/dev", "/etc", "/proc", "/root", "/run", "/sbin", "/sys", "/usr")
_ENGINES: Final = ("/var/lib/docker", "/var/lib/containers", "/var/lib/containerd")
_LIBRARIES: Final = re.compile(r"/lib[^/]*(/|$)")
THEMSELVES: Final = ("/", "/var", "/var/lib")


def is_below(path: str, above: str) -> bool:
    """Whether the normalized *path* lies strictly below *above*, compared by components."""
    return path.startswith(above.rstrip("/") + "/")


def overlap(one: str, other: str) -> bool:
    """Whether one of two normalized paths is the other, or lies in it."""
    return one == other or is_below(one, other) or is_below(other, one)


def is_system(path: str) -> bool:
    """Whether *path* is a system directory, or lies in one."""
    return any(path == s or is_below(path, s) for s in _SYSTEM) or bool(_LIBRARIES.match(path))


def system_directory(path: str, root: str) -> str | None:
    """The system directory, engine's data or hostprep root that *path* is, lies in or contains, or None.

    It compares *path* as it is written, and as it resolves now.
    """
    resolved_engines = {os.path.realpath(engine) for engine in _ENGINES}
    for spelling in (path, os.path.realpath(path)):
        if spelling in THEMSELVES or is_system(spelling):
            return spelling
        for forbidden in (*_ENGINES, *resolved_engines, root):
            if overlap(spelling, forbidden):
                return forbidden
    return None


def is_engine_volume(path: str) -> bool:
    """Whether Docker or Podman, as it is installed by default, keeps the data of a local volume at *path*."""
    volume, last = os.path.split(path)
    engines = ("/var/lib/docker", "/var/lib/containers/storage")
    above = {f"{spelling}/volumes" for engine in engines for spelling in (engine, os.path.realpath(engine))}
    return last == "_data" and os.path.dirname(volume) in above
