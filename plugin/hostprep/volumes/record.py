"""The record of a volume, volume.json: read back as strictly as options are read from the engine."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ..errors import Conflict, Invalid, Unreadable
from ..host.idmap import UNMAPPED, IdMap
from ..host.userns import HOST, Remap
from ..options import Mode, Name, Options, check_name
from .declaration import Declaration

_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
WITHIN: Final = "within"
"""In the place of a fingerprint: the data is an ordinary directory within the volume's own, on no mount of its own."""
_FINGERPRINT: Final = re.compile(r"[a-z0-9]{1,16}:[0-9a-f]{0,32}:[0-9]{0,20}", re.ASCII)
TRASH_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
LIMIT: Final = 65536  # bytes; a path has at most 4095, which JSON may write as six each
# Two changes within one tick of the file system's clock (at most 10 ms) leave one time stamp: what was read so soon
# after a change is not kept.
_TICK: Final = 50_000_000  # ns

Signature = tuple[int, int]
"""Inode and time of change (ctime) of a record: a replaced one has another inode, any other change another time."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a volume besides what its directory itself says."""

    name: Name
    declared: Declaration
    created_at: str
    """RFC 3339, in UTC."""
    made_path: bool = False
    """Whether hostprep made the `path` directory. Otherwise it was there, and was adopted."""
    reused_at: str = ""
    """When the data that a Remove had retained became this volume again, RFC 3339; empty where that never happened."""
    entries_left_alone: tuple[str, ...] = ()
    """What the last pass over the tree could not or would not change, a sentence each."""
    narrowed: Mode | None = None
    """The mode to give back: a repair has closed the directory, and has not ended yet."""
    pinned: bool = False
    """Whether a mount of the `path` directory is answered. Others could redirect its name."""
    imported: bool = False
    """Whether the data was another driver's, and came here by `hostprep import`."""
    data: str = ""
    """What tells its directory from others, see `volume.Volume.open_data`; empty while it is not known yet."""
    replaces: str = ""
    """The id of the trash entry with the data of an earlier volume of that name; empty where there was none."""

    def __post_init__(self) -> None:
        if self.declared.resolved.keys() != (set() if self.options.image is None else {"uid", "gid"}):
            raise Invalid("uid and gid have to be resolved where image is given, and nowhere else")
        found = self.options
        for kind, on_disk, seen in (("uid", found.host_uid, found.uid), ("gid", found.host_gid, found.gid)):
            if on_disk is not None and seen is None:
                why = f"option host_{kind} says whose on the host the files of the container's {kind} are"
                raise Invalid(why, hint=f"give {kind}, too")

    @property
    def options(self) -> Options:
        return self.declared.options

    @property
    def given(self) -> Mapping[str, str]:
        """The options as they were given."""
        return self.declared.given

    @property
    def adopted(self) -> bool:
        """Whether the directory was there before the volume. What is not declared then stays as it is."""
        return self.options.path is not None and not self.made_path

    @property
    def idmap(self) -> IdMap | None:
        """What containers see the files through; None where they see the host's numbers."""
        return self.declared.idmap

    def seen(self, uid: int, gid: int) -> tuple[int, int]:
        """What containers see of a file that is *uid*'s and *gid*'s on disk."""
        return self.declared.userns.seen(*(self.idmap or UNMAPPED).seen(uid, gid))

    @property
    def mounted(self) -> bool:
        """Whether a mount of the directory is what is answered to an engine."""
        return self.pinned or self.idmap is not None

    def shares_with(self, other: Record) -> bool:
        """Whether both volumes can have one directory: both want it to be the same, and one has its own ids for it."""
        return self.wants_as(other) and not (self.idmap is None and other.idmap is None)

    def wants_as(self, other: Record) -> bool:
        """Whether both want the same directory, and want it to be the same on disk."""
        mine, others = (
            (each.path, each.uid, each.gid, each.mode, each.label)
            for each in (self.declared.on_disk, other.declared.on_disk)
        )
        return mine == others

    @property
    def guarded(self) -> bool:
        """Whether somebody on the host could have put device nodes and hard links to files of others in the tree."""
        return self.options.path is not None or self.imported

    def changed(self, asked: Declaration, unset: tuple[str, ...] = ()) -> Record:
        """The record with what is *asked* over its options, and without the options *unset*.

        Raises:
            Invalid: the options contradict each other then.
            Conflict: the path would be another.
        """
        changed = replace(self, declared=self.declared.changed(asked, unset))
        if changed.options.path != self.options.path:
            why = f"the path of volume {self.name} cannot be changed"
            raise Conflict(why, hint="remove the volume (its path directory stays) and create it with the new path")
        return changed

    def to_json(self) -> bytes:
        """The record as `from_json` reads it. A very long path of an entry left alone is shortened in it.

        Raises:
            Invalid: the options are too long for it.
            Unreadable: it could not be read back.
        """
        most = [4096, 512, 64]  # characters of each sentence
        while len(data := self._encoded(most[0])) > LIMIT:
            if len(most := most[1:]) == 0:
                longest = max(self.given, key=lambda key: len(json.dumps(self.given[key])), default="name")
                why = f"the options of volume {self.name} do not fit into {LIMIT} bytes"
                raise Invalid(why, hint=f"choose a shorter {longest}, or one with fewer control characters")
        self.from_json(data, name=self.name)
        return data

    def _encoded(self, most: int) -> bytes:
        lines = [f"{line[:most]}…" if len(line) > most else line for line in self.entries_left_alone]
        shown: dict[str, object] = {"name": self.name, "options": dict(self.given), "created_at": self.created_at}
        optional: dict[str, object] = {
            "made": self.made_path,
            "taken_up": self.reused_at,
            "left_alone": lines,
            "narrowed": "" if self.narrowed is None else str(self.narrowed),
            "pinned": self.pinned,
            "imported": self.imported,
            "data": self.data,
            "replaces": self.replaces,
            "resolved": dict(self.declared.resolved),
            "userns": {} if self.declared.userns == HOST else self.declared.userns.shown,
        }
        shown |= {key: value for key, value in optional.items() if value}
        return json.dumps(shown, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, name: Name | None) -> Record:
        """Read a record of the volume *name*; None for any name, as in the trash.

        Raises:
            Unreadable: hostprep cannot have written it.
        """
        try:
            found = json.loads(data, parse_constant=_refuse, object_pairs_hook=no_repeats)
            if not isinstance(found, dict):
                raise ValueError("not an object")
            record = cls(
                name=check_name(_text(found, "name")),
                declared=Declaration(_texts(found, "options"), _texts(found, "resolved", {}), _userns(found)),
                created_at=sys.intern(_time(found, "created_at")),
                made_path=_flag(found, "made"),
                reused_at=_time(found, "taken_up") if "taken_up" in found else "",
                entries_left_alone=_lines(found),
                narrowed=Mode.parse(_text(found, "narrowed")) if "narrowed" in found else None,
                pinned=_flag(found, "pinned"),
                imported=_flag(found, "imported"),
                data=_data(found),
                replaces=_replaces(found),
            )
            if record.pinned and record.options.path is None:
                raise ValueError("pinned stands without a path")
            if record.imported and record.options.path is not None:
                raise ValueError("imported stands with a path")
            if record.data == WITHIN and record.options.path is not None:
                raise ValueError("data cannot be within the volume where there is a path")
            if found:
                raise ValueError(f"unknown key {min(found)!r}")
            if name is not None and record.name != name:
                raise ValueError(f"it names another volume, {record.name!r}")
        except (ValueError, Invalid, RecursionError) as exc:
            raise Unreadable(f"its record is damaged: {exc}") from None
        return record


def rfc3339(at: float | None = None) -> str:
    """A time in seconds since the epoch, or now, as moby's CreatedAt wants it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON (object_pairs_hook), in which no key stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _text(found: dict[str, object], key: str) -> str:
    value = found.pop(key, None)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string")
    return value


def _texts(found: dict[str, object], key: str, default: object = None) -> dict[str, str]:
    value = found.pop(key, default)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} must be an object of strings")
    return value


def _userns(found: dict[str, object]) -> Remap:
    """None is the host's: so it was before there was any other."""
    if "userns" not in found:
        return HOST
    maps = _texts(found, "userns")
    if maps.keys() != {"uid", "gid"}:
        raise ValueError("userns must have uid and gid")
    return Remap.parse(maps["uid"], maps["gid"])


def _time(found: dict[str, object], key: str) -> str:
    text = _text(found, key)
    if not _RFC3339.fullmatch(text) or datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{key} is not a time as RFC 3339 has it")
    return text


def _flag(found: dict[str, object], key: str) -> bool:
    value = found.pop(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} must be true or false")
    return value


def _data(found: dict[str, object]) -> str:
    if "data" not in found:
        return ""
    text = _text(found, "data")
    if text != WITHIN and not _FINGERPRINT.fullmatch(text):
        raise ValueError(f"data {text!r} is no fingerprint")
    return text


def _replaces(found: dict[str, object]) -> str:
    if "replaces" not in found:
        return ""
    text = _text(found, "replaces")
    if not TRASH_ID.fullmatch(text):
        raise ValueError(f"replaces {text!r} is no trash id")
    return text


def _lines(found: dict[str, object]) -> tuple[str, ...]:
    value = found.pop("left_alone", [])
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError("left_alone must be an array of strings")
    return tuple(value)


def signature(directory: int, file: str) -> Signature | None:
    """The signature of the record *file*. Two components are good enough here: it only says whether to read it."""
    with contextlib.suppress(OSError):
        st = os.stat(file, dir_fd=directory, follow_symlinks=False)
        return st.st_ino, st.st_ctime_ns
    return None


def settled(changed: int) -> bool:
    """Whether a change now would leave another time stamp than *changed*, in nanoseconds."""
    return time.time_ns() - changed > _TICK
