"""For whom a doctor looks at a volume: users of containers, by the numbers that they have on this host."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ..engine.containers import Container, seen_from_here
from ..engine.image import FILE_LIMIT, GROUPS, USERS, container_user
from ..errors import Invalid, NoContainer, Unreadable, printable
from ..host.process import Process, Remap, read_inside
from ..options import MAX_ID, check_name
from ..volumes.driver import Driver
from . import permissions
from .permissions import Who

_NUMBERS: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)


class Containers(Protocol):
    """Who knows containers: engine.py, which asks an engine."""

    @property
    def remap(self) -> Remap | None: ...
    @property
    def rootless(self) -> bool: ...
    @property
    def confines(self) -> bool: ...
    def inspect(self, name: str) -> Container:
        """The container of that name. Raises NoContainer."""

    def using(self, volume: str) -> list[Container]:
        """Those that run and have *volume*."""

    def user_files(self, container: Container) -> tuple[bytes | None, bytes | None]:
        """The passwd and group of its image. Raises NoImage."""


@dataclass(frozen=True, slots=True)
class Patient:
    """For whom a volume is looked at."""

    who: Who
    inside: tuple[int, int]
    """The numbers that he has in the container."""
    container: Container | None = None
    remap: Remap | None = None
    label: str | None = None
    """The context of the container's processes; empty where they are not confined, None for the engines' own."""
    seen: bool = False
    """Whether the container's processes can be looked at."""
    asked: bool = True
    """Whether the container was asked for, and not only found to have the volume."""

    def __str__(self) -> str:
        where = f" in container {self.container.name}" if self.container else ""
        return f"{self.inside[0]}:{self.inside[1]}{where}"

    def may(self, file: os.stat_result, acl: tuple[permissions.Entry, ...]) -> permissions.Granted:
        """What he may do with a file."""
        power = self.who.overrides and (self.remap is None or self.remap.covers(file.st_uid, file.st_gid))
        return permissions.granted(replace(self.who, overrides=power), file, acl)


def patients(
    driver: Driver, name: str, engine: Containers | None, container: str | None, user: str | None
) -> list[Patient]:
    """For whom the volume *name* is to be looked at.

    For *user* (as `docker run --user` has it) in *container*; for the user that *container* runs as; for those of the
    containers that run and have the volume; or for the declared owner.

    Args:
        engine: None where none can be asked.

    Raises:
        NoContainer, NoImage: the container or its user cannot be told of.
        Invalid: *name* or *user* is malformed.
    """
    name = check_name(name)
    if container is not None:
        if engine is None:
            raise NoContainer("no engine can be asked about a container")
        return [_patient(engine, engine.inspect(container), user, asked=True)]
    if user is not None:
        numbers = _NUMBERS.fullmatch(user)
        if numbers is None or any(int(each or 0) > MAX_ID for each in numbers.groups()):
            hint = "give numbers, 184:998, or with --container the name that its image has"
            raise Invalid(f'--user "{printable(user[:200])}" is no user', hint=hint)
        inside = int(numbers[1]), int(numbers[2] or 0)
        remap = engine.remap if engine else None
        # Root in a container has power over files as long as nobody takes it from him.
        return [Patient(_mapped(remap, inside, (), overrides=inside[0] == 0), inside, remap=remap)]
    if engine is not None and (found := engine.using(name)):
        return [_patient(engine, each, None, asked=False) for each in found]
    with contextlib.suppress(Unreadable):
        record = driver.store.find(name)
        if record is not None and record.options.uid is not None:
            owner = record.options.uid, record.options.gid or 0
            return [Patient(Who(*owner, overrides=owner[0] == 0), owner)]
    return []


def _patient(engine: Containers, container: Container, user: str | None, *, asked: bool) -> Patient:
    process = None
    with contextlib.suppress(OSError):  # it ended meanwhile
        process = Process.read(container.pid) if seen_from_here(container) else None
    if process is None and engine.rootless:
        raise NoContainer("the engine is rootless, so the container's numbers are not the host's", hint="start it")
    remap = None if container.host_users else engine.remap
    label = container.label if engine.confines else ""
    if process is not None:
        remap = process.remap
        label = process.label
        if user is None:
            who = Who(process.uid, process.gid, process.groups, process.overrides)
            inside = (remap.inside(who.uid, who.gid) if remap else None) or (who.uid, who.gid)
            return Patient(who, inside, container, remap, label, seen=True, asked=asked)
    wanted, said_by = (container.user, "USER") if user is None else (user, "--user")
    found = container_user(wanted, container.groups, _files(engine, container, wanted, process), said_by=said_by)
    power = found.uid == 0 and container.overrides
    who = _mapped(remap, (found.uid, found.gid), found.groups, overrides=power)
    seen = process is not None
    return Patient(who, (found.uid, found.gid), container, remap, label, seen=seen, asked=asked)


def _files(
    engine: Containers, container: Container, user: str, process: Process | None
) -> tuple[bytes | None, bytes | None]:
    """The passwd and group by which *user* is to be understood."""
    if ":" in user and _NUMBERS.fullmatch(user) and all(group.isdecimal() for group in container.groups):
        return None, None  # they would change nothing
    if process is not None:
        passwd, group = (read_inside(container.pid, path, limit=FILE_LIMIT) for path in (USERS, GROUPS))
        return passwd, group
    return engine.user_files(container)


def _mapped(remap: Remap | None, inside: tuple[int, int], groups: tuple[int, ...], *, overrides: bool) -> Who:
    if remap is None:
        return Who(*inside, groups, overrides)
    uid, gid = remap.uid(inside[0]), remap.gid(inside[1])
    if uid is None or gid is None:
        raise NoContainer(f"the container's user namespace has no {inside[0]}:{inside[1]}", hint="name another --user")
    return Who(uid, gid, tuple(each for group in groups if (each := remap.gid(group)) is not None), overrides)
