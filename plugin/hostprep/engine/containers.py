"""A container as an engine describes it, and its first process as /proc does: who it is on this host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from ..errors import NoContainer
from ..host.process import Remap

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


def remap_of(info: Any) -> Remap | None:
    """What an engine with userns-remap gives its containers: it is in the name of its data directory."""
    options = info.get("SecurityOptions") or []
    if not any(str(option).startswith("name=userns") for option in options):
        return None
    if not (found := _ROOT_SUFFIX.search(str(info.get("DockerRootDir")))):
        return None
    return Remap(((0, int(found[1]), _RANGE),), ((0, int(found[2]), _RANGE),))
