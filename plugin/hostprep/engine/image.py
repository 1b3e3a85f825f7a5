"""What an image says of the user it runs as and of its directories, and which numbers follow for a volume. Pure.

Where the image lies, in an engine (engine.py) or in an archive (archive.py), is not known here: both show it as a Tree.
"""

from __future__ import annotations

import posixpath
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from ..errors import NoImage, printable
from ..options import Mode

USERS: Final = "/etc/passwd"
GROUPS: Final = "/etc/group"
FILE_LIMIT: Final = 1 << 20  # bytes of either
MAX_VOLUMES: Final = 32
_MAX_RUNNABLE: Final = 2**31 - 1  # what moby/sys/user takes for a uid or gid, so that 32-bit systems do, too
_HOPS: Final = 40  # symlinks on one path, as many as the kernel follows
_STEPS: Final = 400  # components looked at for one path
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # JSON can hold half a character, no path can
_ATOI: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Config:
    """What an image is configured to do."""

    id: str
    user: str
    volumes: tuple[str, ...]
    runs: bool
    """Whether it names a program; without one, `docker run` needs it as an argument."""

    @classmethod
    def parse(cls, found: Any, *, image_id: str) -> Config:
        """Read an image's JSON, whose `config` (of an archive) or `Config` (of an engine) counts.

        Raises:
            NoImage: it is of another shape, or of another system.
        """
        found = _object(found, "the image's description")
        if (system := found.get("os", found.get("Os")) or "linux") != "linux":
            raise NoImage(f"the image is for {printable(str(system)[:50])}: it has no Linux users")
        config = _object(found.get("config", found.get("Config")) or {}, "its Config")
        user, volumes = config.get("User") or "", _object(config.get("Volumes") or {}, "its Volumes")
        if not isinstance(user, str) or len(user) > 1000:
            raise NoImage("the image's USER is no user")
        if len(volumes) > MAX_VOLUMES:
            raise NoImage(f"the image has {len(volumes)} VOLUMEs, of which no more than {MAX_VOLUMES} are looked at")
        paths = sorted({posixpath.normpath("/" + path.lstrip("/")) for path in volumes})
        if any(len(path) > 4096 or "\0" in path or _SURROGATE.search(path) for path in paths):
            raise NoImage("a VOLUME of the image is no path")
        runs = bool(config.get("Entrypoint") or config.get("Cmd"))
        return cls(image_id, user, tuple(path for path in paths if path != "/"), runs)


def _object(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise NoImage(f"{what} is no JSON object")
    return found


# -- its user ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """Whom a container of the image runs as."""

    spec: str
    """As USER or --user has it; empty for none."""
    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary ones."""
    why: str


def exec_user(spec: str, passwd: bytes | None, group: bytes | None, *, said_by: str = "USER") -> User:
    """Whom an engine runs *spec* as, by the image's own files; None for one that it does not have.

    As `GetExecUser` of github.com/moby/sys/user (until 2024 runc's libcontainer/user) has it: a number is never a
    name; the first entry that matches counts; without a passwd entry a number's group is 0; supplementary groups are
    those that name the user, and only where no group is given.

    Raises:
        NoImage: a name that is not in the files, or a number that no engine takes: a container would not start.
    """
    name, _, group_name = spec.partition(":")
    number = _atoi(name) if name else 0
    entry = next(
        (e for e in _entries(passwd) if (e.id == number if number is not None else e.name == name)),
        None,
    )
    if entry is None and number is None:
        where = "has no /etc/passwd" if passwd is None else "does not have it in its /etc/passwd"
        raise NoImage(f'the image runs as user "{printable(name[:200])}" and {where}', hint="no container of it starts")
    uid = entry.id if entry is not None else number or 0
    gid = entry.second if entry else 0
    groups: tuple[int, ...] = ()
    shown = printable(spec[:200])
    if not spec:
        why = "the image names no USER: it runs as root"
    elif entry is None:
        why = f"{said_by} {shown} is a number that is not in the image's /etc/passwd, so its group is 0"
    elif number is None:
        why = f"{said_by} {shown} is {uid} in the image's /etc/passwd, with group {gid}"
    else:
        why = f"{said_by} {shown} is {printable(entry.name[:100])} in the image's /etc/passwd, with group {gid}"
    if group_name:
        gid_number = _atoi(group_name)
        found = next(
            (g for g in _entries(group) if (g.id == gid_number if gid_number is not None else g.name == group_name)),
            None,
        )
        if found is None and gid_number is None:
            where = "has no /etc/group" if group is None else "does not have it in its /etc/group"
            raise NoImage(f'the image runs as group "{printable(group_name[:200])}" and {where}', hint="none starts")
        gid = found.id if found is not None else gid_number or 0
        why = f"{said_by} {shown} is {uid}:{gid}, by the image's /etc/passwd and /etc/group"
        if number is not None and gid_number is not None:
            why = f"{said_by} {shown} says both numbers"
    elif entry is not None and entry.name:
        groups = tuple(g.id for g in _entries(group) if entry.name in g.members)
    for found_id in (uid, gid, *groups):
        if not 0 <= found_id <= _MAX_RUNNABLE:
            raise NoImage(f"{said_by} {shown} is {found_id}, and engines run 0 to {_MAX_RUNNABLE}")
    return User(spec, uid, gid, groups, why)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of /etc/passwd (id is the uid, second the gid) or /etc/group."""

    name: str
    id: int
    second: int
    members: tuple[str, ...]


def _entries(data: bytes | None) -> list[_Entry]:
    found = []
    for line in (data or b"").split(b"\n"):
        fields = line.strip().decode(errors="surrogateescape").split(":")
        if fields != [""]:
            fields += [""] * 4
            members = tuple(filter(None, fields[3].split(",")))
            found.append(_Entry(fields[0], _atoi(fields[2]) or 0, _atoi(fields[3]) or 0, members))
    return found


def _atoi(text: str) -> int | None:
    """As Go's strconv.Atoi: a sign and ASCII digits, or nothing."""
    return int(text) if _ATOI.fullmatch(text) else None


# -- its files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """What an image has at a path, of which no component is a symlink."""

    kind: str
    mode: Mode
    uid: int
    gid: int
    filled: bool = False
    """Whether a directory has anything in it."""


class Tree(Protocol):
    """The files of an image. No component of the paths that are asked for is a symlink, but for the last one."""

    def link(self, path: str) -> str | None:
        """Where the symlink *path* points, as it is written; None for anything else, or nothing."""

    def entry(self, path: str) -> Entry | None:
        """What is at *path*, or None."""

    def read(self, path: str) -> bytes | None:
        """What is in the file *path*, which may have FILE_LIMIT bytes; None for anything else, or nothing."""


def chase(tree: Tree, path: str) -> tuple[str, tuple[str, ...]]:
    """Where *path* leads within the image, and the symlinks that were followed. What it leads to need not be there.

    As an engine does when it mounts: `/` and `..` lead no higher than the image's own top.

    Raises:
        NoImage: it leads through too many of them.
    """
    at, left = "/", deque(path.split("/"))
    hops: list[str] = []
    for _ in range(_STEPS):
        while left and left[0] in ("", "."):
            left.popleft()
        if not left:
            return at, tuple(hops)
        if (part := left.popleft()) == "..":
            at = posixpath.dirname(at)
            continue
        here = posixpath.join(at, part)
        target = tree.link(here)
        if target is None:
            at = here
            continue
        hops.append(f"{here} -> {target}")
        if len(hops) > _HOPS:
            break
        if target.startswith("/"):
            at = "/"
        left.extendleft(reversed(target.split("/")))
    raise NoImage(f"{printable(path[:200])} leads through too many symlinks in the image")


# -- what follows for a volume -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Directory:
    """A path that a volume may be mounted at, and the owner that it should have."""

    path: str
    real: str
    links: tuple[str, ...]
    entry: Entry | None
    uid: int
    gid: int
    drops: bool
    """Whether the image starts as root, and then, by the owner of this directory, as another user."""
    why: tuple[str, ...]

    @property
    def ids(self) -> dict[str, str]:
        """As options of a volume."""
        return {"uid": str(self.uid), "gid": str(self.gid)}


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found of an image."""

    image: str
    config: Config
    user: User
    directories: tuple[Directory, ...]


def look(image: str, config: Config, tree: Tree, paths: Sequence[str], user: str | None = None) -> Findings:
    """Find out whom *image* runs as, and who should own volumes at *paths*.

    Args:
        user: in the place of the image's USER, as `docker run --user` has it.

    Raises:
        NoImage: it does not say.
    """
    passwd, group = user_files(tree)
    said_by = "USER" if user is None else "--user"
    runs_as = exec_user(config.user if user is None else user, passwd, group, said_by=said_by)
    names: dict[int, str] = {}
    for each in _entries(passwd):
        names.setdefault(each.id, each.name)
    found = tuple(_directory(path, tree, runs_as, names) for path in dict.fromkeys(paths))
    return Findings(image, config, runs_as, found)


def container_user(spec: str, added: Sequence[str], files: tuple[bytes | None, bytes | None], *, said_by: str) -> User:
    """Whom an engine runs *spec* as, by the passwd and group among *files*, in a container with the groups *added*.

    Raises:
        NoImage: it does not say.
    """
    passwd, group = files
    user = exec_user(spec, passwd, group, said_by=said_by)
    named = {entry.name: entry.id for entry in _entries(group)}
    more = (named.get(each) if (number := _atoi(each)) is None else number for each in added)
    return replace(user, groups=tuple(dict.fromkeys([*user.groups, *(gid for gid in more if gid is not None)])))


def user_files(tree: Tree) -> tuple[bytes | None, bytes | None]:
    """The passwd and group of *tree*; None for one that it does not have."""
    return tree.read(chase(tree, USERS)[0]), tree.read(chase(tree, GROUPS)[0])


def _directory(path: str, tree: Tree, user: User, names: Mapping[int, str]) -> Directory:
    real, links = chase(tree, path)
    entry = tree.entry(real)
    uid, gid, drops, why = user.uid, user.gid, False, [user.why]
    shown = printable(real)
    if entry is None:
        why.append(f"the image has no {shown}")
    elif entry.kind != "directory":
        raise NoImage(f"{printable(path)} is a {entry.kind} in the image", hint="a volume is mounted over a directory")
    else:
        name = names.get(entry.uid, "")
        owner = f"{entry.uid}:{entry.gid}" + (f" ({printable(name[:100])})" if name else "")
        if user.uid == 0 and entry.uid != 0:
            uid, gid, drops = entry.uid, entry.gid, True
            why.append(f"{shown} belongs to {owner}: the image starts as root, and that is whom it is to become")
        elif user.uid == entry.uid:
            gid = entry.gid
            why.append(f"{shown} belongs to {owner}")
        else:
            why.append(f"{shown} belongs to {owner}, but whom the image runs as cannot become another")
        if uid != 0 and entry.mode & 0o300 != 0o300:
            why.append(f"its mode {entry.mode} comes with it and keeps even its owner from writing: give mode=0755")
    return Directory(path, real, links, entry, uid, gid, drops, tuple(why))


def chosen(findings: Findings) -> Mapping[str, str]:
    """The options `uid` and `gid` for a volume at the only place that it can be meant for.

    Raises:
        NoImage: there are several places, of different owners.
    """
    found = findings.directories
    if not found:
        return {"uid": str(findings.user.uid), "gid": str(findings.user.gid)}
    if any(each.ids != found[0].ids for each in found):
        several = ", ".join(f"{printable(each.path)} ({each.uid}:{each.gid})" for each in found)
        raise NoImage(
            f"image {findings.image} has VOLUMEs of different owners: {several}",
            hint="say which one with at=, such as at=" + printable(found[0].path),
        )
    return found[0].ids
