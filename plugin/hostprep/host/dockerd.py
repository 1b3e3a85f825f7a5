"""Whose ids the containers of an engine have: what its process was told. No engine is asked.

An engine waits for the driver's answer, and one that starts answers nobody until it has had all of them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import Invalid, in_words, printable
from .fds import closing
from .mountinfo import mount_table
from .process import open_inside
from .userns import HOST, SUBUID, Remap, named, read_etc

_CONFIGURATION: Final = "/etc/docker/daemon.json"
_DATA: Final = "/var/lib/docker"
_DATA_FLAGS: Final = ("--data-root", "--graph", "-g")
_OPEN: Final = re.compile(r"(?:/([0-9]+\.[0-9]+))?/volumes/metadata\.db$", re.ASCII)
_LIMIT: Final = 1 << 20  # bytes of a file
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")  # seconds
_PLUGIN: Final = re.compile(r"(?:/([0-9]+)\.([0-9]+))?/plugins/[0-9a-f]{64}/propagated-mount$", re.ASCII)
_SAY: Final = "say whose numbers uid and gid are: userns=host, or userns= and a name in /etc/subuid"


def of_peer(pid: int, since: float) -> Remap | None:
    """The ids of the containers of who asks; None for who is neither Docker nor Podman, such as a proxy before one.

    Podman's are the host's: where a container of its has others (`--userns=auto`), nothing says so here.

    Args:
        pid: who asks; 0 for one in another pid namespace.
        since: when the connection was accepted, by CLOCK_BOOTTIME. A process that began later only has its number.

    Raises:
        Invalid: it cannot be told.
    """
    with _in_words():
        name, started = _process(pid)
        if started > since + _TICK:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return _of_process(pid, started, name)


def of_running() -> Remap | None:
    """The ids of the containers of the Docker engines that run here; None where none does.

    Raises:
        Invalid: they cannot be told, or several engines have different ones.
    """
    with _in_words():
        found = {_of_process(*each, "dockerd") for each in running("dockerd")}
    if len(found) > 1:
        raise _unknown("the engines of this host have different ones")
    return found.pop() if found else None


def of_host() -> Remap:
    """The same, or of the engine that would run: where no engine asks."""
    if not read_etc(SUBUID).strip():
        return HOST  # no engine can have a map
    if running := of_running():
        return running
    with _in_words():
        return _told(os.getpid(), [])


def of_plugin(told: Remap | None) -> Remap:
    """The same for the managed plugin, which sees its engine's first ids only, in the path of its own directory.

    Args:
        told: the map that HOSTPREP_USERNS names.

    Raises:
        Invalid: the engine has userns-remap, and the map is missing, or another one.
    """
    seen = {found.groups("") for mount in mount_table() if (found := _PLUGIN.search(mount.root))}
    uid, gid = max(seen, default=("", ""))
    if not uid:
        return HOST
    if told is None or told.root != (int(uid), int(gid)):
        what = f"the engine has userns-remap, and its containers' root is {uid}:{gid} on this host"
        hint = f"docker plugin set hostprep HOSTPREP_USERNS=0:{uid}:COUNT, by /etc/subuid; or give userns=host"
        raise Invalid(what, hint=hint)
    return told


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _unknown(in_words(exc)) from None


def _unknown(why: str) -> Invalid:
    return Invalid(f"which ids the engine's containers have on this host cannot be told: {why}", hint=_SAY)


def _process(pid: int | str) -> tuple[str, float]:
    """The name of a process, and when it began, by CLOCK_BOOTTIME."""
    name, _, fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").partition("(")[2].rpartition(")")
    return name, int(fields.split()[19]) * _TICK


def running(*names: str) -> Iterator[tuple[int, float]]:
    """The processes of these names that are root's, in hostprep's own mount namespace, and when each began.

    No others: a container, or a user's process, could name itself an engine.
    """
    ours = os.readlink("/proc/self/ns/mnt")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or may not be looked at
            name, started = _process(pid)
            if name in names and _is_roots(pid) and os.readlink(f"/proc/{pid}/ns/mnt") == ours:
                yield int(pid), started


def _is_roots(pid: str) -> bool:
    """Whether root has started the process: of a setuid program that a user runs, only some ids are root's."""
    return "\nUid:\t0\t0\t0\t0\n" in Path(f"/proc/{pid}/status").read_text("utf-8", "replace")


def command_line(pid: int) -> list[tuple[str, str]]:
    """Each word of a process's command line with the next one; `--flag=value` is two."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"=", b"\0").split(b"\0")
    return list(itertools.pairwise(map(os.fsdecode, words)))


@functools.lru_cache(maxsize=64)  # an engine reads what it is told when it starts
def _of_process(pid: int, started: float, name: str) -> Remap | None:
    if Remap.read(pid) != Remap.read("self"):
        raise _unknown("who asks is in a user namespace of its own, as a rootless engine is")
    if name != "dockerd":
        return HOST if name == "podman" else None
    return _told(pid, command_line(pid))


def _told(pid: int, flags: list[tuple[str, str]]) -> Remap:
    """The map that a command line asks for, or the configuration file that it names, which the process *pid* sees."""
    said, read = dict(flags), functools.partial(_read, pid)
    path = said.get("--config-file") or _CONFIGURATION
    try:
        file: dict[str, Any] = dict(json.loads(read(path) or b"{}"))
    except (ValueError, TypeError, RecursionError):
        raise _unknown(f"{printable(path)} is not what an engine reads") from None
    user = said.get("--userns-remap") or file.get("userns-remap")
    remap = named(str(user), read) if user else HOST
    data = next(filter(None, (*map(said.get, _DATA_FLAGS), file.get("data-root"), file.get("graph"))), _DATA)
    begins = None if remap == HOST else f"{remap.root[0]}.{remap.root[1]}"
    if (used := _used(pid)) != {begins} and (used or not (begins is None or _is_directory(pid, f"{data}/{begins}"))):
        why = f"by its configuration its data would be in {printable(f'{data}/{begins or str()}')}"
        raise _unknown(f"{why} (was that changed since it started?)")
    return remap


def _used(pid: int) -> set[str | None]:
    """What an engine that runs has made of its first ids, in the path of what it keeps open; empty if that is not seen.

    A directory of that name may be an earlier one's.
    """
    found: set[str | None] = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if match := _OPEN.search(os.readlink(f"/proc/{pid}/fd/{fd}")):
                    found.add(match[1])
    return found


def _open(pid: int, path: str, flags: int) -> int:
    """Open what the process finds at *path*. Where that cannot be looked at, what is there for this one counts."""
    try:
        return open_inside(pid, path, flags | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno not in (errno.ENOSYS, errno.EACCES, errno.EPERM):
            raise
    return os.open(path, flags | os.O_CLOEXEC)


def _read(pid: int, path: str) -> bytes:
    try:
        with closing(_open(pid, path, os.O_RDONLY | os.O_NONBLOCK)) as fd:
            return os.read(fd, _LIMIT)
    except FileNotFoundError:
        return b""


def _is_directory(pid: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.close(_open(pid, path, os.O_PATH | os.O_DIRECTORY))
        return True
    return False


def now() -> float:
    """The clock of `of_peer`'s *since*."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
