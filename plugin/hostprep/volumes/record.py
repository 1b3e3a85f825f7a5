"""The record of a volume, volume.json: read back as strictly as options are read from the engine."""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from ..errors import Invalid, Unreadable
from ..options import Mode, Options, check_name

_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
LIMIT: Final = 65536  # bytes; a path and a label, the longest values, have at most 4096 and 1024


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a volume besides what its directory itself says."""

    name: str
    given: Mapping[str, str]
    """The options as they were given."""
    created_at: str
    """RFC 3339, in UTC."""
    made: bool = False
    """Whether hostprep made the `path` directory, rather than adopting one that was there."""
    taken_up: str = ""
    """When a retained volume was taken up again, RFC 3339; empty for any other."""
    left_alone: tuple[str, ...] = ()
    """What the last pass over the tree could not or would not change, a sentence each."""
    narrowed: Mode | None = None
    """The mode that is to come back: a repair has closed the directory, and is not over."""
    pinned: bool = False
    """Whether a mount of the `path` directory is answered instead of its name, which others could redirect."""
    imported: bool = False
    """Whether the data was another driver's, and came here by `hostprep import`."""
    resolved: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """What was found in the image that the options name, as further options; those given come first."""
    options: Options = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given, options = _parsed(tuple(self.given.items()), tuple(self.resolved.items()))
        if self.resolved.keys() != (set() if options.image is None else {"uid", "gid"}):
            raise Invalid("of an image, and of no other, uid and gid are resolved")
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "options", options)

    @property
    def adopted(self) -> bool:
        """Whether the directory was there before the volume, and keeps what is not declared."""
        return self.options.path is not None and not self.made

    @property
    def guarded(self) -> bool:
        """Whether somebody on the host could have put device nodes and hard links to files of others in the tree."""
        return self.options.path is not None or self.imported

    def with_options(self, given: Mapping[str, str], resolved: Mapping[str, str]) -> Record:
        return replace(self, given=dict(given), resolved=dict(resolved))

    def to_json(self) -> bytes:
        shown: dict[str, object] = {
            "name": self.name,
            "options": dict(self.given),
            "created_at": self.created_at,
        }
        if self.made:
            shown["made"] = True
        if self.taken_up:
            shown["taken_up"] = self.taken_up
        if self.left_alone:
            shown["left_alone"] = list(self.left_alone)
        if self.narrowed is not None:
            shown["narrowed"] = str(self.narrowed)
        if self.pinned:
            shown["pinned"] = True
        if self.imported:
            shown["imported"] = True
        if self.resolved:
            shown["resolved"] = dict(self.resolved)
        return json.dumps(shown, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, name: str | None) -> Record:
        """Read a record of the volume *name* (None: of whatever name it says, as in the trash).

        Raises:
            Unreadable: it is no record that hostprep could have written.
        """
        try:
            found = json.loads(data, parse_constant=_refuse, object_pairs_hook=_no_repeats)
            if not isinstance(found, dict):
                raise ValueError("not an object")
            record = cls(
                name=check_name(_text(found, "name")),
                given=_texts(found, "options"),
                created_at=sys.intern(_time(found, "created_at")),
                made=_flag(found, "made"),
                taken_up=_time(found, "taken_up") if "taken_up" in found else "",
                left_alone=_lines(found),
                narrowed=Mode.parse(_text(found, "narrowed")) if "narrowed" in found else None,
                pinned=_flag(found, "pinned"),
                imported=_flag(found, "imported"),
                resolved=_texts(found, "resolved") if "resolved" in found else {},
            )
            if record.pinned and record.options.path is None:
                raise ValueError("pinned stands without a path")
            if record.imported and record.options.path is not None:
                raise ValueError("imported stands with a path")
            if found:
                raise ValueError(f"unknown key {min(found)!r}")
            if name is not None and record.name != name:
                raise ValueError(f"it names another volume, {record.name!r}")
        except (ValueError, Invalid, RecursionError) as exc:
            raise Unreadable(f"its record is damaged: {exc}") from None
        return record


@functools.lru_cache(maxsize=1024)
def _parsed(
    given: tuple[tuple[str, str], ...], resolved: tuple[tuple[str, str], ...]
) -> tuple[Mapping[str, str], Options]:
    """Many volumes have the same options: they share them, and the work of parsing them."""
    Options.parse(dict(given))  # what is given is right by itself
    return MappingProxyType(dict(given)), Options.parse(dict(resolved) | dict(given))


def rfc3339(at: float | None = None) -> str:
    """A time in seconds since the epoch, or now, as moby's CreatedAt wants it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _text(found: dict[str, object], key: str) -> str:
    value = found.pop(key, None)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string")
    return value


def _texts(found: dict[str, object], key: str) -> dict[str, str]:
    value = found.pop(key, None)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} must be an object of strings")
    return value


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


def _lines(found: dict[str, object]) -> tuple[str, ...]:
    value = found.pop("left_alone", [])
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError("left_alone must be an array of strings")
    return tuple(value)
