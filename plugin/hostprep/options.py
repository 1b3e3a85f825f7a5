"""The driver options: what each accepts and means, and why a value is refused. Nothing here touches a file."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NewType, TypeGuard, TypeVar

from .errors import Invalid, printable

MAX_ID: Final = 2**32 - 2  # 4294967295 is (uid_t) -1, which chown(2) reads as "leave alone"
_ID = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_MODE = re.compile(r"0[0-7]{1,4}", re.ASCII)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@$\\-]{0,254}", re.ASCII)
_CATEGORIES = r"c[0-9]+(?:\.c[0-9]+)?(?:,c[0-9]+(?:\.c[0-9]+)?)*"
_LEVEL = re.compile(rf"s[0-9]+(?::{_CATEGORIES})?(?:-s[0-9]+(?::{_CATEGORIES})?)?", re.ASCII)
# As github.com/distribution/reference has it.
_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,252}[a-zA-Z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
    r"(?::[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,128})?",
    re.ASCII,
)
_MAX_IMAGE = 512
_MAX_LABEL = 1024
_MAX_PATH = 4095  # bytes, PATH_MAX without its NUL
_E = TypeVar("_E", bound=enum.Enum)

Name = NewType("Name", str)
"""A name that a volume can have, which `check_name` or `is_name` has let pass. It is one component of a path."""


class Mode(int):
    """Permission bits, with setuid, setgid and sticky. They are read and printed in octal."""

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read `0750` or `02770`.

        Raises:
            Invalid: there is no leading zero. YAML 1.1 reads an unquoted `mode: 0750` as the number 488, and 0777 as
                511, which looks like a mode.
        """
        if _MODE.fullmatch(text):
            return cls(int(text, 8))
        hint = 'write it as octal digits with a leading zero; in YAML with quotes: mode: "0750"'
        meant = []
        if re.fullmatch("[0-7]{3,4}", text):
            meant.append((cls(int(text, 8)), "with the leading zero and, in YAML, with the quotes"))
        if _ID.fullmatch(text) and len(text) < 5 and 0 < int(text) <= 0o7777:
            meant.append((cls(int(text)), f"if YAML made {text} of an unquoted {cls(int(text))}"))
        if meant:
            meant.sort(key=lambda each: not each[0]._is_usual)
            hint = "; or ".join(f'write mode: "{mode}", {when}' for mode, when in meant)
        raise _bad("mode", text, "an octal mode from 00 to 07777 with a leading zero", hint)

    @property
    def _is_usual(self) -> bool:
        """Whether the owner may do what the group may, and the group what all may."""
        owner, group, others = self >> 6 & 7, self >> 3 & 7, self & 7
        return owner & group == group and group & others == others

    def __str__(self) -> str:
        return f"0{self:03o}"


class Recurse(enum.Enum):
    """Which of a volume's contents follow its root."""

    NEVER = "never"  # the root only
    MISMATCH = "mismatch"  # the whole tree, when the owner or label of the root differs or a pass is unfinished
    ALWAYS = "always"  # every entry, at each Mount


class OnRemove(enum.Enum):
    """What the removal of a volume does with its data."""

    DELETE = "delete"  # to the trash, and deleted after HOSTPREP_TRASH_KEEP
    RETAIN = "retain"  # stays where it is, for the next volume of that name


@dataclass(frozen=True, slots=True)
class Label:
    """An SELinux context. All fields empty is the word `none`: no label is set or checked."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read `user:role:type:level`, a type, `type:level` or `none`. The policy is not asked.

        Raises:
            Invalid: it is none of the four.
        """
        accepted = "user:role:type:level, a type, type:level, or none"
        if text == "none":
            return cls()
        fields = text.split(":")
        if len(fields) > 1 and re.match("s[0-9]", fields[1]):
            fields = ["system_u", "object_r", fields[0], ":".join(fields[1:])]
        elif len(fields) == 1:
            fields = ["system_u", "object_r", text, "s0"]
        else:
            fields = [*fields[:3], ":".join(fields[3:])]
        if len(fields) == 4 and len(text) <= _MAX_LABEL:
            *names, level = fields
            if all(_IDENTIFIER.fullmatch(name) for name in names) and _LEVEL.fullmatch(level):
                return cls(names[0], names[1], names[2], level)
        hint = "for example container_file_t, container_file_t:s0:c1,c2 or system_u:object_r:container_file_t:s0"
        if len(fields) == 4 and not fields[3]:
            hint = f"the level is missing: {text}:s0"
        raise _bad("label", text, accepted, hint)

    def __str__(self) -> str:
        return f"{self.user}:{self.role}:{self.type}:{self.level}" if self.type else "none"


def parse_id(key: str, text: str) -> int:
    """Read a user or group id, 0 to 4294967294, in plain ASCII digits."""
    if _ID.fullmatch(text) and len(text) <= len(str(MAX_ID)) and int(text) <= MAX_ID:
        return int(text)
    hint = "plain digits without sign, space or leading zero"
    if _IDENTIFIER.fullmatch(text):
        hint = "names are refused, since a name means different numbers on the host and in the image: give the number"
    raise _bad(key, text, f"a number from 0 to {MAX_ID}", hint)


def _parse_host_id(key: str, text: str) -> int:
    if (found := parse_id(key, text)) == 0:
        why = f"option {key}: with 0, a container's user could make programs that run as the host's root"
        raise Invalid(why, hint="give the number of a user, or a group, that is not root")
    return found


def parse_userns(text: str) -> str:
    """Read whose numbers uid and gid are: `auto`, `host`, or a name in /etc/subuid, which may be a number."""
    if _USER.fullmatch(text):
        return text
    raise _bad("userns", text, "auto, host, or a name in /etc/subuid", "for example dockremap")


def parse_path(text: str, *, key: str = "path") -> str:
    """Read an absolute path in its one spelling: without `.`, `..`, `//`, trailing slash or NUL."""
    if text.startswith("/") and "\0" not in text and os.path.normpath(text) == text and not text.startswith("//"):
        if text == "/":
            below = "the image's root" if key == "at" else "an allowed prefix"
            raise _bad(key, text, f"a directory below {below}", "it cannot be the root of the file system")
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise _bad(key, text, "a path in UTF-8", "rename the directory") from None
        if len(raw) > _MAX_PATH or max(map(len, raw.split(b"/"))) > 255:
            raise _bad(key, text, "a path that can be opened", f"at most {_MAX_PATH} bytes, 255 between two slashes")
        return text
    hint = "write it in full, without . or .. or a trailing slash"
    if text.startswith("/") and "\0" not in text and ".." not in text.split("/"):  # where that leads depends on links
        hint = f"write it as {printable(os.path.normpath('/' + text.lstrip('/')))}"
    raise _bad(key, text, f"an absolute, normalized {'path in the image' if key == 'at' else 'host path'}", hint)


def parse_image(text: str) -> str:
    """Read the name of an image as engines take it: `mongo`, `mongo:7`, `host:5000/team/mongo@sha256:…`, or an id."""
    if len(text) <= _MAX_IMAGE and _IMAGE.fullmatch(text):
        return text
    lower = text.lower()
    hint = f"names are in lower case: {lower}" if _IMAGE.fullmatch(lower[:_MAX_IMAGE]) else "for example mongo:7"
    raise _bad("image", text, "the name or id of an image", hint)


def is_name(name: str) -> TypeGuard[Name]:
    """Whether `check_name` would let *name* pass."""
    return _NAME.fullmatch(name) is not None and len(name) <= 255


def check_name(name: str) -> Name:
    """Return *name* if it can be a volume's.

    Raises:
        Invalid: it does not match moby's own `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, or is over 255 bytes, the longest name
            a file system keeps.
    """
    if is_name(name):
        return name
    hint = "1 to 255 of the characters a-z A-Z 0-9 _ . - beginning with a letter or digit"
    raise Invalid(f"volume name {_quoted(name)} is not valid", hint=hint)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a volume; None for one that was not given. *path* may have been written as `mountpoint`."""

    uid: int | None = None
    gid: int | None = None
    mode: Mode | None = None
    label: Label | None = None
    path: str | None = None
    recurse: Recurse | None = None
    on_remove: OnRemove | None = None
    image: str | None = None
    at: str | None = None
    host_uid: int | None = None
    host_gid: int | None = None
    userns: str | None = None

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> Options:
        """Read the options of a volume, from a request or from its record, equally strictly.

        Raises:
            Invalid: an option is unknown or malformed, or two contradict each other. The message names the option, the
                value and what is accepted.
        """
        for key, value in given.items():
            if key not in KNOWN:
                raise Invalid(f"unknown option {_quoted(key)}", hint=_instead_of(key))
            if value == "":
                raise Invalid(f"option {key} is empty", hint=f"give a value, or leave {key} out")
        if "path" in given and ALIAS in given:
            raise Invalid(f"path and {ALIAS} are one option, and both are given", hint="give path alone")
        where = path_key(given)
        options = cls(
            uid=parse_id("uid", given["uid"]) if "uid" in given else None,
            gid=parse_id("gid", given["gid"]) if "gid" in given else None,
            mode=Mode.parse(given["mode"]) if "mode" in given else None,
            label=Label.parse(given["label"]) if "label" in given else None,
            path=parse_path(given[where], key=where) if where in given else None,
            recurse=_choice("recurse", given["recurse"], Recurse) if "recurse" in given else None,
            on_remove=_choice("on_remove", given["on_remove"], OnRemove) if "on_remove" in given else None,
            image=parse_image(given["image"]) if "image" in given else None,
            at=parse_path(given["at"], key="at") if "at" in given else None,
            host_uid=_parse_host_id("host_uid", given["host_uid"]) if "host_uid" in given else None,
            host_gid=_parse_host_id("host_gid", given["host_gid"]) if "host_gid" in given else None,
            userns=parse_userns(given["userns"]) if "userns" in given else None,
        )
        if options.at is not None and options.image is None:
            raise Invalid("option at says where in an image to look, and no image is given", hint="give image, too")
        if options.path is not None and options.on_remove is OnRemove.DELETE:
            why = "hostprep never removes a directory that was given to it"
            raise Invalid(f"on_remove=delete contradicts {where}: {why}", hint="leave on_remove out")
        return options

    @property
    def recurses(self) -> Recurse:
        """`recurse`, or its default: never for a directory given by path, which somebody else may have filled."""
        return self.recurse or (Recurse.NEVER if self.path else Recurse.MISMATCH)

    @property
    def retains(self) -> bool:
        return self.on_remove is OnRemove.RETAIN


def from_podman(given: Mapping[str, str]) -> dict[str, str]:
    """The options *given*, with `uid` and `gid` where Podman says them in its own way.

    A Quadlet's `User=` and `Group=`, and `-o o=uid=184,gid=998`, arrive as `o`, `UID` and `GID` (containers/podman,
    pkg/domain/infra/abi/parse.go, VolumeOptions).

    Raises:
        Invalid: two of them disagree, or `o` says something else.
    """
    found = {key: value for key, value in given.items() if key not in ("o", "UID", "GID")}
    said = [(key.lower(), given[key], key) for key in ("UID", "GID") if key in given]
    for part in given.get("o", "").split(",") if "o" in given else ():
        key, _, value = part.partition("=")
        if key not in ("uid", "gid"):
            why = f'option o: "{printable(part)}" is neither uid=NUMBER nor gid=NUMBER'
            raise Invalid(why, hint=_MOUNTS_NOTHING)
        said.append((key, value, f"o={part}"))
    for key, value, where in said:
        if found.setdefault(key, value) != value:
            raise Invalid(f"option {key} is {printable(found[key])}, and {printable(where)} says {printable(value)}")
    return found


ALIAS: Final = "mountpoint"
"""How users of local-persist write `path`: github.com/MatchbookLab/local-persist, driver.go, Create."""
KNOWN: Final = (*Options.__dataclass_fields__, ALIAS)
_MOUNTS_NOTHING: Final = "hostprep mounts nothing: mount the disk on the host, and give its directory by path"
_INSTEAD: Final = {
    "user": "give the number: uid",
    "username": "give the number: uid",
    "owner": "give the numbers: uid and gid",
    "chown": "give the numbers: uid and gid",
    "userid": "give the number: uid",
    "group": "give the number: gid",
    "groupid": "give the number: gid",
    "groupname": "give the number: gid",
    "permission": "mode does that",
    "permissions": "mode does that",
    "perm": "mode does that",
    "perms": "mode does that",
    "chmod": "mode does that",
    "umask": "mode does that",
    "context": "label does that",
    "selinux": "label does that",
    "bind": "path does that",
    "dir": "path does that",
    "directory": "path does that",
    "hostpath": "path does that",
    "source": "path does that",
    "o": _MOUNTS_NOTHING,
    "device": _MOUNTS_NOTHING,
    "type": _MOUNTS_NOTHING,
    "size": "hostprep limits no size",
    "retain": "on_remove=retain does that",
    "keep": "on_remove=retain does that",
}
"""What users of other drivers write, and what hostprep has for it."""
_MEANT: Final = {
    "recurse": {
        "true": "always",
        "yes": "always",
        "on": "always",
        "1": "always",
        "all": "always",
        "recursive": "always",
    }
    | dict.fromkeys(("false", "no", "off", "0", "none"), "never"),
    "on_remove": dict.fromkeys(("keep", "leave", "preserve", "keep-data"), "retain")
    | dict.fromkeys(("remove", "purge", "trash", "rm"), "delete"),
}
"""Words that mean what one of the accepted ones does."""


def path_key(given: Mapping[str, str]) -> str:
    """Which of its two names `path` has in *given*, for a message; `path` where it is not given."""
    return ALIAS if ALIAS in given else "path"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """A phrase for each option in which two sets differ. Two spellings of a value, or of a name, are no difference."""
    parsed_old, parsed_new = Options.parse(old), Options.parse(new)
    found = []
    for key in Options.__dataclass_fields__:
        if getattr(parsed_old, key) != getattr(parsed_new, key):
            was, asked = (path_key(old), path_key(new)) if key == "path" else (key, key)
            is_, wanted = printable(old.get(was, "not set")), printable(new.get(asked, "none"))
            found.append(f"{asked if asked in new else was} is {is_}, asked for {wanted}")
    return found


def _choice(key: str, text: str, kind: type[_E]) -> _E:
    try:
        return kind(text)
    except ValueError:
        words = [str(member.value) for member in kind]
        near = _MEANT[key].get(text.lower()) or _nearest(text.lower(), words)
        hint = f"did you mean {near}?" if near else f"write {' or '.join(f'{key}={word}' for word in words)}"
        raise _bad(key, text, " or ".join(words), hint) from None


def _instead_of(key: str) -> str:
    """What to write instead of the option *key*, which hostprep does not know."""
    if instead := _INSTEAD.get(key.lower()):
        return instead
    near = _nearest(key.lower(), KNOWN)
    return f"did you mean {near}?" if near else f"known are {', '.join(KNOWN)}"


def _nearest(text: str, known: Sequence[str]) -> str | None:
    import difflib  # here, since each start would have to wait for it

    return next(iter(difflib.get_close_matches(text.strip(), known, n=1, cutoff=0.65)), None)


def _quoted(text: str) -> str:
    return f'"{printable(text[:200])}"'


def _bad(key: str, value: str, accepted: str, hint: str) -> Invalid:
    return Invalid(f"option {key}: {_quoted(value)} is not {accepted}", hint=hint)
