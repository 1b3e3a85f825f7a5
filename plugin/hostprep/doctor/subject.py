"""The users who are to use a volume, by the ids that they have on this host."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..engine.containers import Container, ContainerMount
from ..engine.image import FILE_LIMIT, GROUPS, USERS, container_user
from ..errors import Invalid, NoContainer, Unreadable, printable
from ..host.acl import AccessList
from ..host.idmap import UNMAPPED, IdMap
from ..host.process import Process, read_inside
from ..host.userns import Remap
from ..options import MAX_ID, check_name
from ..volumes.driver import Driver
from .permissions import Granted, Who, granted

if TYPE_CHECKING:
    from ..engine.connection import Connection

_NUMBERS: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Subject:
    """A user, mostly of a container, who is to use a volume."""

    who: Who
    """By the ids that files of this user's have on disk."""
    inside: tuple[int, int]
    """The uid and gid in the container."""
    container: Container | None = None
    remap: Remap | None = None
    """The container's user namespace; None where its ids are the host's."""
    label: str | None = None
    """The context of the container's processes; empty where they are not confined, None for the engine's own."""
    seen: bool = False
    """Whether the container's processes can be seen from here."""
    asked: bool = True
    """Whether the administrator named the container; otherwise it was found to have the volume."""
    mounted: ContainerMount | None = None
    """The container's mount of the volume; of several, this one is looked at."""
    reads: bool = False
    """Whether reading is enough: nobody asked about a container that has it with :ro, or it may write elsewhere."""

    idmap: IdMap | None = None
    """What the user sees the volume through; None where it sees the host's ids."""

    def __str__(self) -> str:
        where = f" in container {self.container.name}" if self.container else ""
        return f"{self.inside[0]}:{self.inside[1]}{where}"

    def may(self, file: os.stat_result, access: AccessList | None) -> Granted:
        """What this user may do with a file."""
        seen = (self.idmap or UNMAPPED).seen(file.st_uid, file.st_gid)
        power = self.who.overrides and (self.remap is None or self.remap.covers(*seen))
        return granted(replace(self.who, overrides=power), file, access)

    def through(self, idmap: IdMap) -> Subject:
        """The same user, who sees the volume through *idmap*."""
        uid, gid, groups = idmap.uid.disk_of(self.who.uid), idmap.gid.disk_of, self.who.groups
        who = replace(self.who, uid=uid, gid=gid(self.who.gid), groups=tuple(map(gid, groups)))
        return replace(self, who=who, idmap=idmap)


def subjects(
    driver: Driver, name: str, engine: Connection | None, container: str | None, user: str | None
) -> list[Subject]:
    """The users for whom to look at the volume *name*: the first of these that is given or found.

    - *user* (as `docker run --user` has it), in *container* or by the host's ids;
    - the user that *container* runs as;
    - the users of the running containers that have the volume;
    - the declared owner.

    Raises:
        NoEngine, NoContainer, NoImage: the container or its user cannot be told.
        Invalid: *name* or *user* is malformed.
    """
    name = check_name(name)
    if container is not None:
        if engine is None:
            raise NoContainer("without an engine nothing is known about containers")
        return _in_container(engine, engine.inspect(container), user, name, asked=True)
    if user is not None:
        numbers = _NUMBERS.fullmatch(user)
        if numbers is None or any(int(each or 0) > MAX_ID for each in numbers.groups()):
            hint = "give numbers, 184:998, or with --container a name that its image has"
            raise Invalid(f'--user "{printable(user[:200])}" is not a user', hint=hint)
        inside = int(numbers[1]), int(numbers[2] or 0)
        remap = engine.info.remap if engine else None
        # Root in a container keeps CAP_DAC_OVERRIDE unless it is dropped.
        return [Subject(_on_host(remap, inside, (), overrides=inside[0] == 0), inside, remap=remap)]
    if engine is not None and (found := engine.using(name)):
        return [subject for each in found for subject in _in_container(engine, each, None, name, asked=False)]
    with contextlib.suppress(Unreadable):
        record = driver.store.find(name)
        if record is not None and record.options.uid is not None:
            owner, userns = (record.options.uid, record.options.gid or 0), record.declared.userns
            remap = None if userns.identical else userns
            return [Subject(_on_host(remap, owner, (), overrides=owner[0] == 0), owner, remap=remap)]
    return []


def _in_container(
    engine: Connection, container: Container, user: str | None, volume: str, *, asked: bool
) -> list[Subject]:
    """The *user* in a container, by default the one that it runs as; once for each of its mounts of *volume*."""
    subject = replace(_user_in(engine, container, user), asked=asked)
    mounts = container.mounts_of(volume)
    writes = any(each.writable for each in mounts)
    return [replace(subject, mounted=each, reads=not each.writable and (writes or not asked)) for each in mounts] or [
        subject
    ]


def _user_in(engine: Connection, container: Container, user: str | None) -> Subject:
    process = None
    with contextlib.suppress(OSError):  # it ended meanwhile
        process = Process.read(container.pid) if container.seen_from_here() else None
    if process is None and engine.info.rootless:
        hint = "start the container"
        raise NoContainer("the engine is rootless: only a running container shows its ids on the host", hint=hint)
    remap = None if container.host_users else engine.info.remap
    label = container.label if engine.info.confines else ""
    if process is not None:
        remap = process.remap
        label = process.label
        if user is None:
            who = Who(process.uid, process.gid, process.groups, process.overrides)
            inside = (remap.inside(who.uid, who.gid) if remap else None) or (who.uid, who.gid)
            return Subject(who, inside, container, remap, label, seen=True)
    wanted, said_by = (container.user, "USER") if user is None else (user, "--user")
    found = container_user(wanted, container.groups, _user_files(engine, container, wanted, process), said_by=said_by)
    power = found.uid == 0 and container.overrides
    who = _on_host(remap, (found.uid, found.gid), found.groups, overrides=power)
    seen = process is not None
    return Subject(who, (found.uid, found.gid), container, remap, label, seen=seen)


def _user_files(
    engine: Connection, container: Container, user: str, process: Process | None
) -> tuple[bytes | None, bytes | None]:
    """The passwd and group that say what *user* is: the container's own while it runs, else its image's."""
    if ":" in user and _NUMBERS.fullmatch(user) and all(group.isdecimal() for group in container.groups):
        return None, None  # numbers need no files
    if process is not None:
        try:
            passwd, group = (read_inside(container.pid, path, limit=FILE_LIMIT) for path in (USERS, GROUPS))
        except OSError as exc:
            hint = "give --user as numbers, such as 184:998"
            raise NoContainer(f"{exc.filename} of container {container.name}: {exc.strerror}", hint=hint) from None
        return passwd, group
    return engine.user_files(container)


def _on_host(remap: Remap | None, inside: tuple[int, int], groups: tuple[int, ...], *, overrides: bool) -> Who:
    """Who a user of a container is on the host."""
    if remap is None:
        return Who(*inside, groups, overrides)
    uid, gid = remap.uid(inside[0]), remap.gid(inside[1])
    if uid is None or gid is None:
        hint = "choose another --user"
        raise NoContainer(f"the container's user namespace has no {inside[0]}:{inside[1]}", hint=hint)
    return Who(uid, gid, tuple(each for group in groups if (each := remap.gid(group)) is not None), overrides)
