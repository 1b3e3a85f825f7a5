"""Which user an image runs as, who owns its directories, and which owner a volume there needs. Pure.

The files of an image come from an engine (connection.py) or from an archive (archive.py): both show them as a Tree.
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
_MAX_RUNNABLE: Final = 2**31 - 1  # the largest uid or gid that moby/sys/user accepts, for 32-bit systems' sake
_MAX_LINKS: Final = 40  # on one path, as many as the kernel follows
_MAX_COMPONENTS: Final = 400  # looked at for one path
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # JSON can hold half a character, no path can
_FAILS: Final = "a container with it fails to start"
_ATOI: Final = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Config:
    """What an image is configured to do."""

    id: str
    user: str
    volumes: tuple[str, ...]
    has_program: bool
    """Whether it names a program; without one, `docker run` needs it as an argument."""

    @classmethod
    def parse(cls, found: Any, *, image_id: str) -> Config:
        """Read an image's JSON, whose `config` (of an archive) or `Config` (of an engine) counts.

        Raises:
            NoImage: it has another shape, or is not for Linux.
        """
        found = json_object(found, "the image's description")
        if (system := found.get("os", found.get("Os")) or "linux") != "linux":
            raise NoImage(f"the image is for {printable(str(system)[:50])}: it has no Linux users")
        config = json_object(found.get("config", found.get("Config")) or {}, "its Config")
        user, volumes = config.get("User") or "", json_object(config.get("Volumes") or {}, "its Volumes")
        if not isinstance(user, str) or len(user) > 1000:
            raise NoImage("the image's USER is not valid")
        if len(volumes) > MAX_VOLUMES:
            raise NoImage(f"the image has {len(volumes)} VOLUMEs, and hostprep looks at no more than {MAX_VOLUMES}")
        paths = sorted({posixpath.normpath("/" + path.lstrip("/")) for path in volumes})
        if any(len(path) > 4096 or "\0" in path or _SURROGATE.search(path) for path in paths):
            raise NoImage("a VOLUME of the image is not a path")
        has_program = bool(config.get("Entrypoint") or config.get("Cmd"))
        return cls(image_id, user, tuple(path for path in paths if path != "/"), has_program)


def json_object(found: Any, what: str) -> dict[str, Any]:
    """*found* itself. Raises NoImage if it is not an object."""
    if not isinstance(found, dict):
        raise NoImage(f"{what} is not a JSON object")
    return found


# -- its user ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class User:
    """The user that a container runs as, by the container's own ids."""

    spec: str
    """As USER or --user has it; empty for none."""
    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary ones."""
    why: str


def exec_user(spec: str, passwd: bytes | None, group: bytes | None, *, said_by: str = "USER") -> User:
    """The user that an engine runs *spec* as, by the image's own files; None for a file that is not there.

    The rules are those of `GetExecUser` in github.com/moby/sys/user (until 2024 runc's libcontainer/user). A number is
    never a name. The first entry that matches counts. Without a passwd entry a number's group is 0. Supplementary
    groups are those that name the user, and only where no group is given.

    Raises:
        NoImage: a name is not in the files, or engines refuse the number: a container would not start.
    """
    name, _, group_name = spec.partition(":")
    number, entry = _find(passwd, name or "0")
    if entry is None and number is None:
        why = "the image has no /etc/passwd" if passwd is None else "the image's /etc/passwd does not have it"
        raise NoImage(f'{said_by} names user "{printable(name[:200])}", but {why}', hint=_FAILS)
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
        gid_number, found = _find(group, group_name)
        if found is None and gid_number is None:
            why = "the image has no /etc/group" if group is None else "the image's /etc/group does not have it"
            raise NoImage(f'{said_by} names group "{printable(group_name[:200])}", but {why}', hint=_FAILS)
        gid = found.id if found is not None else gid_number or 0
        why = f"{said_by} {shown} is {uid}:{gid}, by the image's /etc/passwd and /etc/group"
        if number is not None and gid_number is not None:
            why = f"{said_by} {shown} gives both numbers"
    elif entry is not None and entry.name:
        groups = tuple(g.id for g in _accounts(group) if entry.name in g.members)
    for found_id in (uid, gid, *groups):
        if not 0 <= found_id <= _MAX_RUNNABLE:
            raise NoImage(f"{said_by} {shown} is {found_id}, and engines accept 0 to {_MAX_RUNNABLE} only")
    return User(spec, uid, gid, groups, why)


@dataclass(frozen=True, slots=True)
class _Account:
    """A line of /etc/passwd (id is the uid, second the gid) or /etc/group."""

    name: str
    id: int
    second: int
    members: tuple[str, ...]


def _accounts(data: bytes | None) -> list[_Account]:
    found = []
    for line in (data or b"").split(b"\n"):
        fields = line.strip().decode(errors="surrogateescape").split(":")
        if fields != [""]:
            fields += [""] * 4
            members = tuple(filter(None, fields[3].split(",")))
            found.append(_Account(fields[0], _atoi(fields[2]) or 0, _atoi(fields[3]) or 0, members))
    return found


def _find(data: bytes | None, name: str) -> tuple[int | None, _Account | None]:
    """The number that *name* is, if it is one, and the first line for that number or name."""
    number = _atoi(name)
    return number, next((e for e in _accounts(data) if (e.name == name if number is None else e.id == number)), None)


def _atoi(text: str) -> int | None:
    """As Go's strconv.Atoi: a sign and ASCII digits, or nothing."""
    return int(text) if _ATOI.fullmatch(text) else None


# -- its files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """What an image has at a path: a directory, a file, or something else."""

    kind: str
    mode: Mode
    uid: int
    gid: int
    filled: bool = False
    """Whether a directory has anything in it."""


class Tree(Protocol):
    """The files of an image. Only the last component of a *path* may be a symlink."""

    def link(self, path: str) -> str | None:
        """The target of the symlink *path*, as it is written; None where there is no symlink."""

    def entry(self, path: str) -> ImageEntry | None:
        """What is at *path*; None where there is nothing."""

    def read(self, path: str) -> bytes | None:
        """The contents of the file *path*, which may have FILE_LIMIT bytes; None where there is no file."""


def follow_links(tree: Tree, path: str) -> tuple[str, tuple[str, ...]]:
    """The path in the image that *path* leads to, which need not exist, and the symlinks on the way.

    As for an engine that mounts there, `/` and `..` lead no higher than the image's own top.

    Raises:
        NoImage: there are too many symlinks on the way.
    """
    at, left = "/", deque(path.split("/"))
    links: list[str] = []
    for _ in range(_MAX_COMPONENTS):
        while left and left[0] in ("", "."):
            left.popleft()
        if not left:
            return at, tuple(links)
        if (name := left.popleft()) == "..":
            at = posixpath.dirname(at)
            continue
        here = posixpath.join(at, name)
        target = tree.link(here)
        if target is None:
            at = here
            continue
        links.append(f"{here} -> {target}")
        if len(links) > _MAX_LINKS:
            break
        if target.startswith("/"):
            at = "/"
        left.extendleft(reversed(target.split("/")))
    raise NoImage(f"{printable(path[:200])} leads through too many symlinks in the image")


# -- what follows for a volume -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Directory:
    """A path where a volume may be mounted, and the owner that the volume needs."""

    path: str
    real: str
    links: tuple[str, ...]
    entry: ImageEntry | None
    uid: int
    gid: int
    switches_user: bool
    """Whether the image starts as root, and the owner of this directory shows that it then switches to that user."""
    why: tuple[str, ...]

    @property
    def owner_options(self) -> dict[str, str]:
        """The owner as options of a volume."""
        return {"uid": str(self.uid), "gid": str(self.gid)}


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """All that was found out about an image."""

    image: str
    config: Config
    user: User
    directories: tuple[Directory, ...]


def probe_image(image: str, config: Config, tree: Tree, paths: Sequence[str], user: str | None = None) -> ProbeResult:
    """Find out which user *image* runs as, if not as *user* (`docker run --user`), and which owner *paths* need.

    Raises:
        NoImage: it does not say.
    """
    passwd, group = user_files(tree)
    said_by = "USER" if user is None else "--user"
    runs_as = exec_user(config.user if user is None else user, passwd, group, said_by=said_by)
    names: dict[int, str] = {}
    for each in _accounts(passwd):
        names.setdefault(each.id, each.name)
    found = tuple(_directory(path, tree, runs_as, names) for path in dict.fromkeys(paths))
    return ProbeResult(image, config, runs_as, found)


def container_user(spec: str, added: Sequence[str], files: tuple[bytes | None, bytes | None], *, said_by: str) -> User:
    """The user that an engine runs *spec* as, in a container with the groups *added*; *files* are passwd and group.

    Raises:
        NoImage: as for `exec_user`.
    """
    passwd, group = files
    user = exec_user(spec, passwd, group, said_by=said_by)
    named = {entry.name: entry.id for entry in _accounts(group)}
    more = (named.get(each) if (number := _atoi(each)) is None else number for each in added)
    return replace(user, groups=tuple(dict.fromkeys([*user.groups, *(gid for gid in more if gid is not None)])))


def user_files(tree: Tree) -> tuple[bytes | None, bytes | None]:
    """The passwd and group of *tree*; None for one that it does not have."""
    return tree.read(follow_links(tree, USERS)[0]), tree.read(follow_links(tree, GROUPS)[0])


def _directory(path: str, tree: Tree, user: User, names: Mapping[int, str]) -> Directory:
    real, links = follow_links(tree, path)
    entry = tree.entry(real)
    uid, gid, switches, why = user.uid, user.gid, False, [user.why]
    shown = printable(real)
    if entry is None:
        why.append(f"the image has no {shown}")
    elif entry.kind != "directory":
        raise NoImage(f"{printable(path)} is a {entry.kind} in the image", hint="a volume needs a directory")
    else:
        name = names.get(entry.uid, "")
        owner = f"{entry.uid}:{entry.gid}" + (f" ({printable(name[:100])})" if name else "")
        if user.uid == 0 and entry.uid != 0:
            uid, gid, switches = entry.uid, entry.gid, True
            assumed = "the image starts as root, and hostprep assumes that it switches to this user"
            why.append(f"{shown} belongs to {owner}: {assumed}")
        elif user.uid == entry.uid:
            gid = entry.gid
            why.append(f"{shown} belongs to {owner}")
        else:
            why.append(f"{shown} belongs to {owner}, but the user that the image runs as cannot switch to another")
        if uid != 0 and entry.mode & 0o300 != 0o300:
            so = "and then not even its owner can write: give mode=0755"
            why.append(f"Docker copies its mode {entry.mode} too, {so}")
    return Directory(path, real, links, entry, uid, gid, switches, tuple(why))


def owner_options(result: ProbeResult) -> Mapping[str, str]:
    """The options `uid` and `gid` that suit a volume at any of the directories of *result*.

    Raises:
        NoImage: they need different owners.
    """
    found = result.directories
    if not found:
        return {"uid": str(result.user.uid), "gid": str(result.user.gid)}
    if any(each.owner_options != found[0].owner_options for each in found):
        several = ", ".join(f"{printable(each.path)} ({each.uid}:{each.gid})" for each in found)
        hint = f"choose one with at=, such as at={printable(found[0].path)}"
        raise NoImage(f"image {result.image} has VOLUMEs of different owners: {several}", hint=hint)
    return found[0].owner_options
