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
from .host.system import engine_inside, is_system, system_directory

_MANAGED_PATIENCE: Final = 25  # seconds: an engine waits 30 for a managed plugin
_DURATION = re.compile(r"([0-9]{1,15})([smhd])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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
                raise BadSetting(f'{variable}="{printable(text)}" is not {exc}') from None
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


def _path(text: str) -> str:
    # Where `..` leads depends on links, so it is not taken away as text.
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError("an absolute path without ..")
    return os.path.normpath("/" + text.lstrip("/"))


def _root(text: str) -> str:
    # It is resolved once: from here on no component may be a symlink, and the engine is answered this path.
    try:
        root = fds.resolve(_path(text))
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
    return f"unix://{_path(path)}"


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
    "socket": _path,
    "allow": lambda text: tuple(_path(prefix) for prefix in text.split(":") if prefix),
    "scope": _member(Scope),
    "selinux": _member(SELinux),
    "patience": duration,
    "trash_keep": duration,
    "purge_for_space": lambda text: _word("0", "1")(text) == "1",
    "require_marker": lambda text: _word("0", "1")(text) == "1",
    "known_roots": _path,
    "log_level": _word("debug", "info", "warning", "error"),
    "docker_host": lambda text: engine_socket(text) if text else "",
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
    if settings.selinux is SELinux.FORCE:
        what = "HOSTPREP_SELINUX=force is not for the managed plugin, which has no CAP_SYS_ADMIN"
        raise BadSetting(what, hint="use auto, or make install")


def _checked_prefixes(settings: Settings) -> tuple[str, ...]:
    """The prefixes without symlinks; one that leads over a link of somebody else's stays as it is written.

    No path below that one can be opened then, and that user must not be able to keep hostprep from starting.
    """
    resolved = []
    for prefix in settings.allow:
        real = prefix
        try:
            with contextlib.suppress(NotAllowed):
                real = fds.resolve(prefix)
        except OSError as exc:
            raise BadSetting(f"HOSTPREP_ALLOW: {printable(prefix)}: {exc.strerror}") from None
        touched = system_directory(prefix, settings.root, prefix=True)
        touched = touched or system_directory(real, settings.root, prefix=True) or engine_inside(real, trusted=True)
        if touched:
            hint = "name a directory that holds nothing but container data, such as /srv/containers"
            what = f"{printable(prefix)} is, contains, lies in or leads to {printable(touched)}"
            raise BadSetting(f"HOSTPREP_ALLOW: {what}", hint=hint)
        resolved.append(real)
    return tuple(resolved)
