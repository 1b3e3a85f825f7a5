"""User namespaces: which ids of this host stand for those of a container."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ..errors import Invalid, printable
from ..options import MAX_ID, parse_userns

Range = tuple[int, int, int]
"""The first id inside, the host's id that stands for it, and how many follow one another, as in uid_map."""
Read = Callable[[str], bytes]
"""Reads a file of /etc; nothing where there is none."""

SUBUID: Final = "/etc/subuid"
SUBGID: Final = "/etc/subgid"
_NOBODY: Final = 65534  # kernel.overflowuid and overflowgid (user_namespaces(7))
_LINES: Final = 340  # that the kernel accepts (user_namespaces(7))
_NUMBERS: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})", re.ASCII)
_SUBID: Final = re.compile(r"^([^:#\n]+):([0-9]{1,10}):([0-9]{1,10})$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Remap:
    """The ids of a user namespace."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    @classmethod
    def read(cls, pid: int | str) -> Remap:
        """The user namespace that a process is in."""
        uids, gids = (_read_map(f"/proc/{pid}/{which}_map") for which in ("uid", "gid"))
        return cls(uids, gids)

    @classmethod
    def parse(cls, uids: str, gids: str) -> Remap:
        """Read two maps as `str` writes them.

        Raises:
            ValueError: one is none, or no map of an engine's: those begin with 0 and have no gap.
        """
        return cls(_parsed(uids), _parsed(gids))

    @property
    def identical(self) -> bool:
        return all(inside == outside for inside, outside, _ in (*self.uids, *self.gids))

    def uid(self, inside: int) -> int | None:
        """The host's id for the user *inside*, None where there is none."""
        return _outside(self.uids, inside)

    def gid(self, inside: int) -> int | None:
        """The host's id for the group *inside*, None where there is none."""
        return _outside(self.gids, inside)

    @property
    def root(self) -> tuple[int, int]:
        """The host's ids for root inside."""
        return self.uid(0) or 0, self.gid(0) or 0

    def inside(self, uid: int, gid: int) -> tuple[int, int] | None:
        """The ids inside for the host's *uid* and *gid*; None where one of them has none."""
        user, group = _inside(self.uids, uid), _inside(self.gids, gid)
        return None if user is None or group is None else (user, group)

    def seen(self, uid: int, gid: int) -> tuple[int, int]:
        """What is seen inside of a file of the host's *uid* and *gid*: nobody for an owner that is not there."""
        user, group = _inside(self.uids, uid), _inside(self.gids, gid)
        return _NOBODY if user is None else user, _NOBODY if group is None else group

    def covers(self, uid: int, gid: int) -> bool:
        """Whether a file of the host's *uid* and *gid* has an owner inside: root inside has power over those only."""
        return self.inside(uid, gid) is not None

    @property
    def shown(self) -> dict[str, str]:
        """Both maps, each as `parse` reads it: `0:100000:65536`, with a comma between two ranges."""
        return {
            which: ",".join(":".join(map(str, each)) for each in ranges)
            for which, ranges in (("uid", self.uids), ("gid", self.gids))
        }

    def __str__(self) -> str:
        if self == HOST:
            return "this host's own"
        uid, gid = self.shown.values()
        return uid if uid == gid else f"{uid} (groups {gid})"


HOST: Final = Remap(((0, 0, MAX_ID + 1),), ((0, 0, MAX_ID + 1),))
"""No map: the ids are the host's."""


def _read_map(path: str) -> tuple[Range, ...]:
    with open(path, encoding="ascii") as lines:
        return tuple((int(inside), int(outside), int(count)) for inside, outside, count in map(str.split, lines))


def _outside(ranges: tuple[Range, ...], number: int) -> int | None:
    return next((o + number - i for i, o, count in ranges if i <= number < i + count), None)


def _inside(ranges: tuple[Range, ...], number: int) -> int | None:
    return next((i + number - o for i, o, count in ranges if o <= number < o + count), None)


def _parsed(text: str) -> tuple[Range, ...]:
    found = [_NUMBERS.fullmatch(each) for each in text.split(",")]
    ranges = _joined((int(each[2]), int(each[3])) for each in found if each)
    if not all(found) or [int(each[1]) for each in found if each] != [inside for inside, _, _ in ranges]:
        raise ValueError(f"{printable(text[:200])!r} is no map such as 0:100000:65536")
    return ranges


def _joined(found: Iterable[tuple[int, int]]) -> tuple[Range, ...]:
    """The map of the host's ranges (first id, count), of which the first begins with 0 inside, and so on.

    Raises:
        ValueError: the kernel does not accept it.
    """
    ranges: list[Range] = []
    for first, count in found:
        ranges.append((sum(each[2] for each in ranges), first, count))
    by_id = sorted((first, first + count) for _, first, count in ranges)
    overlap = any(one[1] > other[0] for one, other in itertools.pairwise(by_id))
    if overlap or not 0 < len(ranges) <= _LINES or min(each[2] for each in ranges) < 1 or by_id[-1][1] > MAX_ID + 1:
        raise ValueError("the kernel accepts no such ranges")
    return tuple(ranges)


# -- /etc/subuid, /etc/subgid --------------------------------------------------------------------------------------


def read_etc(path: str) -> bytes:
    """Read a file of this host's /etc."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def named(user: str, read: Read = read_etc) -> Remap:
    """The map of an engine whose userns-remap is *user*: the user's ranges in /etc/subuid and /etc/subgid.

    As dockerd has it: `default` means dockremap, a group behind a colon does not count, ranges count in the order of
    the file, and stand there by the name or the number of the user (pkg/idtools of github.com/moby/moby; releases
    differ where they do so by both). root has no map.

    Raises:
        Invalid: it has none.
    """
    user = user.partition(":")[0]
    name = "dockremap" if user == "default" else user
    accounts = [line.split(":") for line in read("/etc/passwd").decode(errors="replace").splitlines()]
    account = next((each for each in accounts if len(each) > 2 and name in (each[0], each[2])), [name, "", ""])
    if account[0] == "root":
        return HOST
    found = []
    for file in (SUBUID, SUBGID):
        lines = _SUBID.findall(read(file).decode(errors="replace"))
        listed = [[(int(n), int(count)) for who, n, count in lines if who == each] for each in {account[0], account[2]}]
        ranges = [each for each in listed if each]
        if len(ranges) != 1:
            what = f"has ranges for user {printable(name)} and for its number" if ranges else "has no ranges"
            raise Invalid(f"{file} {what}: userns {printable(user)} cannot be told", hint="see subuid(5)")
        try:
            found.append(_joined(ranges[0]))
        except ValueError as exc:
            raise Invalid(f"{file}, user {printable(name)}: {exc}", hint="see subuid(5)") from None
    return Remap(found[0], found[1])


def beginning_with(uid: int, gid: int) -> Remap | None:
    """The map of the user whose ranges begin with *uid* and *gid*; None for no user, or several with other ranges."""
    found = set()
    for name in {who for who, _, _ in _SUBID.findall(read_etc(SUBUID).decode(errors="replace"))}:
        try:
            found.add(named(name))
        except Invalid:
            continue
    fitting = [each for each in found if each.root == (uid, gid)]
    return fitting[0] if len(fitting) == 1 else None


def setting(text: str) -> str:
    """Read HOSTPREP_USERNS: what the option `userns` accepts, or a map.

    Raises:
        ValueError: it is neither.
    """
    try:
        if ":" in text:
            Remap.parse(text, text)
        else:
            parse_userns(text)
    except (Invalid, ValueError):
        raise ValueError(f"auto, host, a name in {SUBUID}, or a map such as 0:100000:65536") from None
    return text
