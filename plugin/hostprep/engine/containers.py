"""A container, a volume, and the engine itself, as the engine describes them."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import NoContainer, NoEngine
from ..host.rootless import inside
from ..host.userns import Remap, beginning_with

_ROOT_SUFFIX: Final = re.compile(r"/([0-9]{1,10})\.([0-9]{1,10})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself."""

    version: str
    podman: bool
    rootless: bool
    """Whether it is a user's, and hostprep is not: then its containers have other ids than hostprep."""
    userns: bool
    """Whether its containers have ids of their own (userns-remap)."""
    remap: Remap | None
    """The host's ids for these; None where there are none, or the engine and /etc/subuid do not tell them."""
    confines: bool
    """Whether it gives containers an SELinux context of their own."""

    @classmethod
    def parse(cls, found: Any) -> EngineInfo:
        """Read the engine's answer to an info.

        Raises:
            NoEngine: it has another shape.
        """
        if not isinstance(found, dict):
            raise NoEngine("the engine does not describe itself")
        options = [str(option) for option in found.get("SecurityOptions") or []]
        rootless, userns, confines = (
            any(option.startswith(f"name={name}") for option in options) for name in ("rootless", "userns", "selinux")
        )
        rootless = rootless and not inside()
        # The first ids show in the name of the data directory.
        ids = _ROOT_SUFFIX.search(str(found.get("DockerRootDir"))) if userns else None
        remap = beginning_with(int(ids[1]), int(ids[2])) if ids else None
        version = str(found.get("ServerVersion") or "unknown")
        return cls(version, "BuildahVersion" in found, rootless, userns, remap, confines)


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """A mount of a container, as it was asked for."""

    volume: str
    """Empty for a bind mount."""
    driver: str
    at: str
    writable: bool
    subpath: str = ""
    """The sub-directory of the volume that is mounted, relative to it; empty for the whole volume."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container. *pid* is its first process, as the engine sees it; 0 while it does not run."""

    id: str
    name: str
    image: str
    pid: int
    active: bool
    """Whether it runs, or is started again and again."""
    failed: bool
    """Whether its last process ended with an error."""
    user: str
    groups: tuple[str, ...]
    overrides: bool
    """Whether root in it keeps CAP_DAC_OVERRIDE."""
    host_users: bool
    """Whether it has the host's ids in spite of userns-remap (`--userns host`)."""
    label: str
    """The context of its processes; empty where the engine does not confine it."""
    mounts: tuple[ContainerMount, ...]
    program: str = "docker"
    """The engine's command line."""

    @classmethod
    def parse(cls, found: Any, *, program: str = "docker") -> Container:
        """Read the engine's answer to an inspect. Docker tells a subpath in HostConfig, Podman with the mount.

        Raises:
            NoContainer: it has another shape.
        """
        try:
            config, host, state = found["Config"], found["HostConfig"], found["State"]
            added, dropped = (_names(host.get(f"Cap{what}")) for what in ("Add", "Drop"))
            subpaths = {
                str(each.get("Target")): str((each.get("VolumeOptions") or {}).get("Subpath") or "")
                for each in host.get("Mounts") or ()
            }
            return cls(
                id=str(found["Id"]),
                name=str(found["Name"]).lstrip("/"),
                image=str(found["Image"]),
                pid=int(state.get("Pid") or 0) if state.get("Running") else 0,
                active=bool(state.get("Running") or state.get("Restarting")),
                failed=bool(state.get("ExitCode")),
                user=str(config.get("User") or ""),
                groups=tuple(str(group) for group in host.get("GroupAdd") or ()),
                overrides=bool(host.get("Privileged"))
                or bool({"DAC_OVERRIDE", "ALL"} & added)
                or not {"DAC_OVERRIDE", "ALL"} & dropped,
                host_users=host.get("UsernsMode") == "host",
                label=str(found.get("ProcessLabel") or ""),
                mounts=tuple(
                    ContainerMount(
                        str(each.get("Name") or "") if each.get("Type") == "volume" else "",
                        str(each.get("Driver") or ""),
                        str(each["Destination"]),
                        bool(each.get("RW")),
                        _relative(str(each.get("SubPath") or subpaths.get(str(each["Destination"]), ""))),
                    )
                    for each in found.get("Mounts") or ()
                ),
                program=program,
            )
        except (KeyError, TypeError, AttributeError, ValueError):
            raise NoContainer("the engine does not describe the container") from None

    def mounts_of(self, volume: str) -> list[ContainerMount]:
        """Its mounts of *volume*, whatever the driver; those that it may write to first."""
        return sorted((each for each in self.mounts if each.volume == volume), key=lambda each: not each.writable)

    def command(self, verb: str) -> str:
        """The command line that restarts it, or what *verb* says."""
        return shlex.join([self.program, verb, self.name])

    def seen_from_here(self) -> bool:
        """Whether *pid* is this container's process here, too: the engine may be in another pid namespace."""
        if not self.pid:
            return False
        try:
            with open(f"/proc/{self.pid}/mountinfo", encoding="utf-8", errors="replace") as table:
                mounts = table.read()
            with open(f"/proc/{self.pid}/cgroup", encoding="utf-8", errors="replace") as groups:
                return self.id in mounts or self.id in groups.read()
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class EngineVolume:
    """A volume as the engine has it in its own record. Where it has none, there are no options and no labels."""

    driver: str
    mountpoint: str
    """Empty where the engine does not say it."""
    options: Mapping[str, str]
    labels: Mapping[str, str]

    @classmethod
    def parse(cls, found: Any) -> EngineVolume:
        """Read the engine's answer to a list or a create.

        Raises:
            NoEngine: it has another shape.
        """
        try:
            options, labels = (
                {str(key): str(value) for key, value in (found.get(what) or {}).items()}
                for what in ("Options", "Labels")
            )
            return cls(str(found["Driver"]), str(found.get("Mountpoint") or ""), options, labels)
        except (KeyError, TypeError, AttributeError):
            raise NoEngine("the engine does not describe the volume") from None

    def is_of(self, socket: str) -> bool:
        """Whether its driver is hostprep: named as its *socket*, or a plugin with a registry and a tag."""
        name = self.driver.rpartition("/")[2].partition(":")[0]
        return name in ("hostprep", os.path.basename(socket).removesuffix(".sock"))


def _relative(subpath: str) -> str:
    """*subpath* from the volume, as engines clean it: Podman allows a slash before it."""
    return "" if subpath == "" else posixpath.normpath(f"/{subpath}").lstrip("/")


def _names(capabilities: Any) -> set[str]:
    return {str(name).upper().removeprefix("CAP_") for name in capabilities or ()}
