"""Which directories of the host hostprep never gives to a container: the system's, packages', engines' and its own.

The rule, for a prefix of HOSTPREP_ALLOW and for a directory of `prepare` or `import`. No directory may be, or lie in,

1. what the Filesystem Hierarchy Standard (FHS 3.0) gives to the system: every directory that it names in / but home,
   media, mnt, opt, srv, tmp and var, and in /var but lib, local, opt and tmp;
2. what a package owns in /opt or /var, as dpkg or rpm say;
3. an engine's data, or hostprep's root.

Nor may it contain any of 2 or 3; nor be /, /home, /var or /var/lib. The FHS's places for the directories of many
(`_PLACES`) can be prefixes, but are not given themselves. All else holds data, unknown directories in / included.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import NotAllowed, printable
from . import dockerd, fds, rootless
from .mountinfo import mount_table
from .paths import is_below, overlap
from .places import Places, share

_SYSTEM: Final = re.compile(
    r"/(bin|boot|dev|etc|lib[^/]*|proc|root|run|sbin|sys|usr"
    r"|var/(account|cache|crash|games|lock|log|mail|run|spool|yp))(?=/|$)"
)
_WHOLE: Final = ("/", "/home", "/var", "/var/lib")
_PLACES: Final = ("/media", "/mnt", "/opt", "/srv", "/tmp", "/var/local", "/var/opt", "/var/tmp")  # noqa: S108  # nothing is made there

_DPKG: Final = "/var/lib/dpkg/info"  # a file NAME.list for each package: dpkg-query(1), --control-path
_RPM_SECONDS: Final = 20.0
_ENTRIES: Final = 100  # that rpm is asked about

_ENGINES: Final = ("/var/lib/docker", "/var/lib/containers", "/var/lib/containerd")
_CONFIGURED: Final = (
    ("/etc/docker/daemon.json", ("data-root",)),
    ("/etc/docker/daemon.json", ("graph",)),  # its name before Docker 17.05
    ("/etc/containerd/config.toml", ("root",)),
    ("/etc/containers/storage.conf", ("storage", "graphroot")),
    ("/usr/share/containers/storage.conf", ("storage", "graphroot")),
    ("/etc/containers/containers.conf", ("engine", "volume_path")),
)
_CONFIGURATION: Final = 1 << 20  # bytes of one of them
_FLAGS: Final = frozenset({"--data-root", "--graph", "-g", "--root"})
# What each engine makes in its data at its first start.
_INSIDE: Final = (
    "volumes/metadata.db",  # Docker
    "overlay2/l",
    *(f"{driver}-containers/containers.lock" for driver in ("overlay", "vfs", "btrfs", "zfs")),  # Podman, CRI-O
    "io.containerd.metadata.v1.bolt/meta.db",
)


def system_directory(path: str, root: str, *, prefix: bool = False) -> str | None:
    """What the normalized *path* is, contains or lies in by the rule above, for a message; None for nothing.

    It goes by names: see `engine_data` for bind mounts, and for engines that nothing else names.

    Args:
        root: hostprep's.
        prefix: *path* itself is given to nobody, only what is below it.
    """
    if path in _WHOLE or (not prefix and path in _PLACES):
        return path
    if found := _SYSTEM.match(path):
        return found[0]
    for forbidden in (*engines(), *_running(), root):
        if overlap(path, forbidden):
            return forbidden
    return _package(path)


def is_system(path: str) -> bool:
    """Whether *path* is a directory that the FHS gives to the system, or lies in one, or is one that holds some."""
    return path in _WHOLE or _SYSTEM.match(path) is not None


# -- packages ------------------------------------------------------------------------------------------------------


def _package(path: str) -> str | None:
    """Whose package owns *path*, something in it, or a directory that it lies in.

    Packages put nothing into the places for the data of users and of the site, so it is asked in /opt and /var alone.
    Where neither dpkg nor rpm answers, no package owns anything.
    """
    if not any(path == place or is_below(path, place) for place in ("/opt", "/var")):
        return None
    above = [path]
    while (parent := os.path.dirname(above[-1])) not in (*_WHOLE, *_PLACES):
        above.append(parent)
    if path in _PLACES:
        above = []
    name = _in_dpkg(path, above) or _in_rpm(path, above)
    return name and f"what the package {name} owns"


def _in_dpkg(path: str, above: list[str]) -> str | None:
    """See `_package`. The lists are read as they are: dpkg-query takes longer, and its arguments are patterns."""
    owned, inside = {os.fsencode(each) for each in above}, os.fsencode(f"{path}/")
    top = os.fsencode(above[-1] if above else path)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_DPKG):
            with contextlib.suppress(FileNotFoundError):  # a package is being removed
                if name.endswith(".list"):
                    text = Path(_DPKG, name).read_bytes()
                    if top in text and any(line in owned or line.startswith(inside) for line in text.splitlines()):
                        return name.removesuffix(".list").partition(":")[0]
    return None


def _in_rpm(path: str, above: list[str]) -> str | None:
    """See `_package`. Of what is in *path*, its direct entries are asked about."""
    if (rpm := shutil.which("rpm")) is None:
        return None
    asked = list(above)
    with contextlib.suppress(OSError):
        asked += [f"{path}/{name}" for name in sorted(os.listdir(path))[:_ENTRIES]]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = [rpm, "-qf", "--queryformat", "owned by %{NAME}\n", "--", *asked]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_RPM_SECONDS, check=False)
        if found := re.search(rb"^owned by (\S+)$", done.stdout, re.MULTILINE):
            return os.fsdecode(found[1])
    return None


# -- engines -------------------------------------------------------------------------------------------------------


def engines() -> tuple[str, ...]:
    """Where engines keep their data: by default, and as their configuration files say; and where these lead to."""
    named = dict.fromkeys((*_ENGINES, *rootless.engines(), *_configured()))
    return tuple(dict.fromkeys((*named, *map(os.path.realpath, named))))


def _configured() -> Iterator[str]:
    for file, keys in _CONFIGURED:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            with open(file, "rb") as stream:
                found = _parsed(file, stream.read(_CONFIGURATION).decode())
            for key in keys:
                found = found[key]
            # Not `/` and the like, or a slip in an engine's configuration would stop hostprep.
            if isinstance(found, str) and found.startswith("/") and not is_system(os.path.normpath(found)):
                yield os.path.normpath(found)


def _running() -> Iterator[str]:
    """Where engines that run here were told to keep their data, in their command line."""
    for pid, _ in dockerd.running("dockerd", "containerd"):
        with contextlib.suppress(OSError):  # it has ended
            for flag, value in dockerd.command_line(pid):
                if flag in _FLAGS and value.startswith("/") and not is_system(os.path.normpath(value)):
                    yield os.path.normpath(value)


def _parsed(file: str, text: str) -> Any:
    if file.endswith(".json"):
        return json.loads(text)
    import tomllib  # hardly ever needed

    return tomllib.loads(text)


def engine_data(path: str, root: str) -> str | None:
    """hostprep's *root* or the engine's data that *path* is, contains or lies in, whatever it is called; or None.

    A bind mount gives a directory a second name. An engine that no configuration file names is known by what is in
    *path*, or in a directory above it.
    """
    places = Places(mount_table())
    here = places.of(path)
    for forbidden in (root, *engines()):
        if share(here, places.of(forbidden)):
            return forbidden
    return engine_inside(path)


def check_no_engine(path: str, root: str) -> None:
    """Raise NotAllowed for what `engine_data` names."""
    if touched := engine_data(path, root):
        why = f"{printable(path)} is, contains or lies in {printable(touched)}"
        raise NotAllowed(why, hint="choose a directory for the data of this volume alone")


def engine_inside(path: str, *, trusted: bool = False) -> str | None:
    """The directory, *path* or one above it, that holds what an engine makes in its data; a phrase, None for none.

    Args:
        trusted: believe only what root alone could have put there.
    """
    with contextlib.suppress(OSError, NotAllowed):  # its last component may be missing; whoever opens it says the rest
        for fd, shown in fds.steps(path):
            if _is_engines(fd):
                if trusted and not fds.only_root_writes(shown):
                    return None
                return f"{shown}, where an engine keeps its data"
    return None


def _is_engines(directory: int) -> bool:
    for name in _INSIDE:
        with contextlib.suppress(OSError):
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            return True
    return False


def is_engine_volume(path: str) -> bool:
    """Whether Docker or Podman keeps the data of a local volume at *path*."""
    volume, last = os.path.split(path)
    volumes, name = os.path.split(volume)
    engine = os.path.dirname(volumes)
    if (last, os.path.basename(volumes)) != ("_data", "volumes") or not name:
        return False
    known = (*engines(), "/var/lib/containers/storage", os.path.realpath("/var/lib/containers/storage"))
    if engine in known:
        return True
    with contextlib.suppress(OSError, NotAllowed), fds.closing(fds.walk(engine, trusted=True)) as fd:
        return _is_engines(fd)
    return False
