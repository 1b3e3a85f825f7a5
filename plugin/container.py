"""A container as an engine describes it, and its first process as /proc does: who it is on this host."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Any, Final

from .errors import NoContainer
from .linux import CAP_DAC_OVERRIDE, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_ROOT_SUFFIX: Final = re.compile(r"/([0-9]{1,10})\.([0-9]{1,10})$", re.ASCII)
_RANGE: Final = 65536  # numbers that /etc/subuid gives by default


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount of a container, as it was asked for."""

    volume: str
    """Empty for a bind mount."""
    driver: str
    at: str
    writable: bool
    subpath: str = ""
    """What of the volume is mounted, where that is not all of it (volume-subpath)."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container. *pid* is its first process's, as the engine sees it; 0 where it does not run."""

    id: str
    name: str
    image: str
    pid: int
    user: str
    groups: tuple[str, ...]
    privileged: bool
    overrides: bool
    """Whether root in it keeps CAP_DAC_OVERRIDE."""
    host_users: bool
    label: str
    """The context of its processes; empty where the engine does not confine it."""
    mounts: tuple[Mounted, ...]

    @classmethod
    def parse(cls, found: Any) -> Container:
        """Read what an engine answers to an inspect.

        Raises:
            NoContainer: it is of another shape.
        """
        try:
            config, host, state = found["Config"], found["HostConfig"], found["State"]
            added, dropped = (_names(host.get(f"Cap{what}")) for what in ("Add", "Drop"))
            privileged = bool(host.get("Privileged"))
            subpaths = {
                str(each.get("Target")): str((each.get("VolumeOptions") or {}).get("Subpath") or "")
                for each in host.get("Mounts") or ()
            }
            return cls(
                id=str(found["Id"]),
                name=str(found["Name"]).lstrip("/"),
                image=str(found["Image"]),
                pid=int(state.get("Pid") or 0) if state.get("Running") else 0,
                user=str(config.get("User") or ""),
                groups=tuple(str(group) for group in host.get("GroupAdd") or ()),
                privileged=privileged,
                overrides=privileged or bool({"DAC_OVERRIDE", "ALL"} & added) or not {"DAC_OVERRIDE", "ALL"} & dropped,
                host_users=host.get("UsernsMode") == "host",
                label=str(found.get("ProcessLabel") or ""),
                mounts=tuple(
                    Mounted(
                        str(each.get("Name") or "") if each.get("Type") == "volume" else "",
                        str(each.get("Driver") or ""),
                        str(each["Destination"]),
                        bool(each.get("RW")),
                        subpaths.get(str(each["Destination"]), ""),
                    )
                    for each in found.get("Mounts") or ()
                ),
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            raise NoContainer("the engine does not describe the container") from None

    def has(self, volume: str) -> Mounted | None:
        """How it has *volume*, by whichever driver; where it has it twice, how it may write it."""
        return max((each for each in self.mounts if each.volume == volume), key=lambda e: e.writable, default=None)


def _names(capabilities: Any) -> set[str]:
    return {str(name).upper().removeprefix("CAP_") for name in capabilities or ()}


@dataclass(frozen=True, slots=True)
class Remap:
    """A user namespace: which numbers of the host stand for those inside, (inside, outside, count) each."""

    uids: tuple[tuple[int, int, int], ...]
    gids: tuple[tuple[int, int, int], ...]

    @classmethod
    def read(cls, pid: int) -> Remap:
        """The one that a process is in."""
        uids, gids = (_read_map(f"/proc/{pid}/{which}_map") for which in ("uid", "gid"))
        return cls(uids, gids)

    @classmethod
    def of_engine(cls, info: Any) -> Remap | None:
        """The one that an engine with userns-remap gives its containers: it is in the name of its data directory."""
        options = info.get("SecurityOptions") or []
        if not any(str(option).startswith("name=userns") for option in options):
            return None
        if not (found := _ROOT_SUFFIX.search(str(info.get("DockerRootDir")))):
            return None
        return cls(((0, int(found[1]), _RANGE),), ((0, int(found[2]), _RANGE),))

    @property
    def identical(self) -> bool:
        return all(inside == outside for inside, outside, _ in (*self.uids, *self.gids))

    def uid(self, inside: int) -> int | None:
        """The host's number for the user *inside*, None where there is none."""
        return _outside(self.uids, inside)

    def gid(self, inside: int) -> int | None:
        """The host's number for the group *inside*, None where there is none."""
        return _outside(self.gids, inside)

    def inside(self, uid: int, gid: int) -> tuple[int, int] | None:
        """The numbers inside of the host's *uid* and *gid*."""
        found = [
            next((i + number - o for i, o, count in ranges if o <= number < o + count), None)
            for ranges, number in ((self.uids, uid), (self.gids, gid))
        ]
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    def covers(self, uid: int, gid: int) -> bool:
        """Whether a file of the host's *uid* and *gid* has an owner inside: only over those root inside has power."""
        return self.inside(uid, gid) is not None


def _read_map(path: str) -> tuple[tuple[int, int, int], ...]:
    with open(path, encoding="ascii") as lines:
        return tuple((int(inside), int(outside), int(count)) for inside, outside, count in map(str.split, lines))


def _outside(ranges: tuple[tuple[int, int, int], ...], number: int) -> int | None:
    return next((o + number - i for i, o, count in ranges if i <= number < i + count), None)


@dataclass(frozen=True, slots=True)
class Process:
    """Who a process is now, by the host's numbers."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    overrides: bool
    label: str
    remap: Remap | None
    """The user namespace that it is in; None for this process's own."""

    @classmethod
    def read(cls, pid: int) -> Process:
        """Look at a process.

        Raises:
            OSError: it has ended.
        """
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            fields = dict(line.rstrip("\n").split(":", 1) for line in lines if ":" in line)
        # Of the four the last counts, which is for files (credentials(7)).
        uid, gid = (int(fields[which].split()[3]) for which in ("Uid", "Gid"))
        try:
            with open(f"/proc/{pid}/attr/current", encoding="ascii", errors="replace") as label:
                context = label.read().rstrip("\0\n")
        except OSError:  # no security module keeps any
            context = ""
        capabilities = int(fields["CapEff"], 16)
        remap = Remap.read(pid)
        return cls(
            uid,
            gid,
            tuple(map(int, fields["Groups"].split())),
            bool(capabilities >> CAP_DAC_OVERRIDE & 1),
            context,
            None if remap.identical else remap,
        )


def seen_from_here(container: Container) -> bool:
    """Whether /proc shows this container's process under its number, as in the engine's own pid namespace."""
    if not container.pid:
        return False
    try:
        with open(f"/proc/{container.pid}/mountinfo", encoding="utf-8", errors="replace") as table:
            mounts = table.read()
        with open(f"/proc/{container.pid}/cgroup", encoding="utf-8", errors="replace") as groups:
            return container.id in mounts or container.id in groups.read()
    except OSError:
        return False


def open_inside(pid: int, path: str, flags: int = os.O_PATH) -> int:
    """Open what a process finds at *path*: links and `..` lead no higher than its own root directory.

    Raises:
        OSError: ENOSYS before Linux 5.6, and whatever open(2) raises.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(root)


def read_inside(pid: int, path: str, *, limit: int) -> bytes | None:
    """What is in the file *path* of a process, of which *limit* bytes are read; None where it cannot be read."""
    try:
        # First only pinned: what is no regular file is never really opened.
        pinned = open_inside(pid, path)
        try:
            if not stat.S_ISREG(os.fstat(pinned).st_mode):
                return None
            with open(f"/proc/self/fd/{pinned}", "rb") as file:
                return file.read(limit)
        finally:
            os.close(pinned)
    except OSError:
        return None
