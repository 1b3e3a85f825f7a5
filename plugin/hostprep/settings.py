"""Settings: environment variables, the same for every front end, checked once at the start."""

from __future__ import annotations

import contextlib
import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import BadSetting, NotAllowed, printable
from .host import fds
from .host.labels import SELinux
from .host.looking import look
from .host.system import engine_inside, is_system, system_directory
from .host.userns import setting as userns_setting

_MANAGED_PATIENCE: Final = 25  # seconds: an engine waits 30 for a managed plugin
_DURATION = re.compile(r"([0-9]{1,15})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_SOCKET: Final = 107  # bytes of a socket's path (unix(7))
_MAX_ROOT: Final = 3800  # bytes, with which any volume's data still has a path that can be opened


class Scope(enum.Enum):
    """HOSTPREP_SCOPE, as Capabilities answers it."""

    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings, with their defaults. Durations are seconds."""

    root: str = "/var/lib/hostprep"
    socket: str = "/run/docker/plugins/hostprep.sock"
    allow: tuple[str, ...] = ()
    scope: Scope = Scope.LOCAL
    selinux: SELinux = SELinux.AUTO
    patience: int = 100
    trash_keep: int = 86400
    purge_for_space: bool = False
    """Whether removed volumes may be deleted before *trash_keep* is over, when the file system is nearly full."""
    require_marker: bool = False
    known_roots: str = "/etc/hostprep/roots"
    log_level: str = "info"
    docker_host: str = ""
    """The socket of the engine that may be asked about images; empty: none is asked."""
    userns: str = "auto"
    """The option `userns` of volumes that are made without it; or a map, as the managed plugin needs it."""
    managed: bool = False
    """Whether this is Docker's managed plugin, whose own command (managed/hostprep) sets it; no user does."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Read HOSTPREP_* from *environ*.

        Raises:
            BadSetting: a wrong value; the message names the variable.
        """
        found: dict[str, object] = {}
        for variable, text in environ.items():
            key = variable.removeprefix("HOSTPREP_").lower()
            if variable != f"HOSTPREP_{key.upper()}" or key not in _READERS:
                continue
            try:
                found[key] = _READERS[key](text)
            except ValueError as exc:
                raise BadSetting(f'{variable}="{printable(text[:200])}" is not {exc}') from None
        if found.get("managed"):
            found.setdefault("patience", _MANAGED_PATIENCE)
        settings = cls(**found)  # type: ignore[arg-type]  # each reader gives its own field's type
        if settings.managed:
            _check_managed(settings)
        return cls(**{**found, "allow": _checked_prefixes(settings)})  # type: ignore[arg-type]


def duration(text: str) -> int:
    """Read `0`, or a number with s, m, h or d, as seconds."""
    if text == "0":
        return 0
    if match := _DURATION.fullmatch(text):
        return int(match[1]) * _SECONDS[match[2]]
    raise ValueError("0 or a number with s, m, h or d, such as 90s or 24h")


def _at_most(longest: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if (seconds := duration(text)) > duration(longest):
            raise ValueError(f"a time of at most {longest}")
        return seconds

    return read


def _path(text: str, most: int = 4095) -> str:
    # Where `..` leads depends on links, so it is not taken away as text.
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError("an absolute path without ..")
    path = os.path.normpath("/" + text.lstrip("/"))
    raw = os.fsencode(path)
    if len(raw) > most or max(map(len, raw.split(b"/"))) > 255:
        raise ValueError(f"a path of at most {most} bytes, and 255 between two slashes")
    if path != raw.decode(errors="replace"):
        raise ValueError("a path in UTF-8")
    return path


def _root(text: str) -> str:
    # It is resolved once: from here on no component may be a symlink, and the engine is answered this path.
    try:
        root = _path(fds.resolve(_path(text)), _MAX_ROOT)
    except NotAllowed as exc:
        raise ValueError(f"a directory of hostprep's own: {exc.message}") from None
    except OSError as exc:
        raise ValueError(f"a directory of hostprep's own: {exc.strerror}") from None
    if is_system(root):
        raise ValueError("a directory of hostprep's own: that is a system directory")
    return root


def engine_socket(text: str) -> str:
    """Read the socket of an engine of this host, in one spelling.

    Raises:
        ValueError: it is none. Over TCP anybody who answers could say to which ids root gives directories.
    """
    path = text.removeprefix("unix://")
    if path == text or not path.startswith("/"):
        why = "hostprep asks no engine over a network"
        raise ValueError(f"unix:///run/docker.sock or another socket of this host: {why}")
    return f"unix://{_path(path, _MAX_SOCKET)}"


def _word(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


def _member(kind: type[enum.Enum]) -> Callable[[str], enum.Enum]:
    check = _word(*(member.value for member in kind))
    return lambda text: kind(check(text))


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    "root": _root,
    "socket": lambda text: _path(text, _MAX_SOCKET),
    "allow": lambda text: tuple(_path(prefix) for prefix in text.split(":") if prefix),
    "scope": _member(Scope),
    "selinux": _member(SELinux),
    "patience": _at_most("24h"),
    "trash_keep": _at_most("36500d"),
    "purge_for_space": lambda text: _word("0", "1")(text) == "1",
    "require_marker": lambda text: _word("0", "1")(text) == "1",
    "known_roots": _path,
    "log_level": _word("debug", "info", "warning", "error"),
    "docker_host": lambda text: engine_socket(text) if text else "",
    "userns": userns_setting,
    "managed": lambda text: _word("0", "1")(text) == "1",
}


def _check_managed(settings: Settings) -> None:
    """Refuse what the managed plugin cannot do: it has one directory of the host, and no CAP_SYS_ADMIN."""
    reasons = {
        "root": "there is only /var/lib/hostprep, where the host may have mounted another directory",
        "socket": "the engine says where",
        "allow": "it reaches no directory of the host but its own: for path, make install",
        "docker_host": "it reaches no engine: give uid and gid, or make install",
        "known_roots": "it remembers its root within itself",
    }
    defaults = Settings()
    for key, hint in reasons.items():
        if getattr(settings, key) != getattr(defaults, key):
            raise BadSetting(f"HOSTPREP_{key.upper()} is not for the managed plugin", hint=hint)
    if settings.userns not in ("auto", "host") and ":" not in settings.userns:
        what = "HOSTPREP_USERNS cannot be a name for the managed plugin, which does not see the host's /etc/subuid"
        raise BadSetting(what, hint="give the ranges that stand there, such as 0:100000:65536")
    if settings.selinux is SELinux.FORCE:
        what = "HOSTPREP_SELINUX=force is not for the managed plugin, which has no CAP_SYS_ADMIN"
        raise BadSetting(what, hint="use auto, or make install")


def _checked_prefixes(settings: Settings) -> tuple[str, ...]:
    """The prefixes without symlinks; one stays as it is written whose disk hangs, or that a link of a user's is in.

    No path below the latter can be opened then, and that user must not be able to keep hostprep from starting.
    """
    resolved = []
    for prefix, answers, found in list(look(settings.allow, lambda prefix: _resolved(prefix, settings.root))):
        real, wrong = found if answers else (prefix, None)
        if wrong:
            what, hint = wrong
            raise BadSetting(f"HOSTPREP_ALLOW: {what}", hint=hint)
        resolved.append(real)
    return tuple(resolved)


def _resolved(prefix: str, root: str) -> tuple[str, tuple[str, str] | None]:
    """A prefix as `_checked_prefixes` returns it, and what is wrong with it, and what to do."""
    real = prefix
    try:
        with contextlib.suppress(NotAllowed):
            real = fds.resolve(prefix)
    except OSError as exc:
        return real, (f"{printable(prefix)}: {exc.strerror}", "")
    touched = system_directory(prefix, root, prefix=True) or system_directory(real, root, prefix=True)
    if touched := touched or engine_inside(real, trusted=True):
        hint = "name a directory that holds nothing but container data, such as /srv/containers"
        return real, (f"{printable(prefix)} is, contains, lies in or leads to {printable(touched)}", hint)
    return real, None


# -- the settings file ---------------------------------------------------------------------------------------------

_BLANK: Final = re.compile(r"[ \t\n\r]+")
_COMMENT: Final = re.compile(r"[#;](?:[^\\\n\r]|\\[^\n\r])*(\\\r?\n[ \t]*[^\s#;])?\\?")
_NAME: Final = re.compile(r"([^\n\r][^=\n\r]*)(=)?")
_QUOTED: Final = re.compile(r"""[ \t]+|'([^']*)'?|"((?:[^"\\]|\\.)*)\\?"?""", re.DOTALL)
_PLAIN: Final = re.compile(r"\\(.?)|[^\\\n\r]+", re.DOTALL)
_NOT_TAKEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


def read_settings_file(path: str) -> dict[str, str]:
    """The settings in the file *path*, as systemd reads them for the service; none where there is no such file.

    Raises:
        BadSetting: it cannot be read, or systemd would leave out something that it says.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            found = _assignments(file.read())
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise BadSetting(f"{path} is not in UTF-8", hint="systemd ignores a file with such a value") from None
    except OSError as exc:
        raise BadSetting(f"{path}: {exc.strerror}") from None
    settings = {name: value for name, value in found.items() if name.startswith("HOSTPREP_")}
    for name, value in settings.items():
        if _NOT_TAKEN.search(name + value):
            raise BadSetting(f"{path}: {printable(name)} has a control character", hint="systemd ignores such a line")
    return settings


def _assignments(text: str) -> dict[str, str]:
    """Each NAME=value of a file as EnvironmentFile= of systemd takes it; of several the last (basic/env-file.c there).

    Raises:
        BadSetting: releases of systemd differ about it.
    """
    found, at = {}, 0
    while at < len(text):
        if space := _BLANK.match(text, at):
            at = space.end()
        elif comment := _COMMENT.match(text, at):
            if comment[1]:
                hint = "systemd before 254 takes the next line for a part of it: remove the backslash"
                raise BadSetting(f"the comment {printable(comment[0][:60])} ends with a backslash", hint=hint)
            at = comment.end()
        elif name := _NAME.match(text, at):
            value, at = _value(text, name.end()) if name[2] else ("", name.end())
            if name[2]:
                found[name[1].rstrip(" \t")] = value
    return found


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins at *at*, and where it ends."""
    value = ""
    while at < len(text) and (part := _QUOTED.match(text, at)):
        # A backslash counts before a few characters only, as in a shell; before the end of a line it takes that away.
        value += part[1] or re.sub(r'\\(?:(["\\`$])|\n)', r"\1", part[2] or "")
        at = part.end()
    certain = len(value)
    while at < len(text) and (part := _PLAIN.match(text, at)):
        if part[1] is None:
            value += part[0]
        else:
            value += part[1].strip("\n\r")
            certain = len(value)
        at = part.end()
    return value[:certain] + value[certain:].rstrip(" \t"), at
