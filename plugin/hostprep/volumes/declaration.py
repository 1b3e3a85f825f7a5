"""What a volume is declared to be: the options as they were given, and what the image says that they name."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol

from ..errors import Busy, Invalid, NotAllowed
from ..host import dockerd, rootless
from ..host.idmap import Exchange, IdMap
from ..host.userns import HOST, Remap, named
from ..options import ALIAS, Options, differences, path_key
from ..settings import Settings

log = logging.getLogger("hostprep")

# Each makes the engine send parts of an image, and keeps one of the server's connections meanwhile.
_ASKING: Final = 24  # requests that may ask an engine at once
Asks = Callable[[], Remap | None]
"""Tells which ids of this host the containers of the engine that asks have; None where no engine does.

Raises Invalid where that cannot be told."""


def no_engine() -> None:
    """What the command line has in the place of an engine that asks."""


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Declaration:
    """The options of a volume. Raises Invalid if they are malformed, or its ids are not in its user namespace."""

    given: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """The options as they were given."""
    resolved: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """`uid` and `gid` as the image says them; the same options win where they are given."""
    userns: Remap = HOST
    """Which ids of this host `uid` and `gid`, the container's, stand for. It was found out when they were declared."""
    options: Options = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given, options = _parsed(tuple(self.given.items()), tuple(self.resolved.items()))
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "options", options)
        for key in ("uid", "gid"):
            number = getattr(options, key)
            if number is not None and getattr(self.in_containers, key) is None:
                what = f"option {key}: the engine's containers have no {number} (they have {self.userns})"
                raise Invalid(what, hint="choose another; or, if it is this host's number, add userns=host")

    @property
    def in_containers(self) -> Options:
        """The options, with `uid` and `gid` as the ids of this host that stand for the container's."""
        uid, gid = self.options.uid, self.options.gid
        uid, gid = None if uid is None else self.userns.uid(uid), None if gid is None else self.userns.gid(gid)
        return replace(self.options, uid=uid, gid=gid)

    @property
    def on_disk(self) -> Options:
        """The options, with `uid` and `gid` as they are on disk."""
        found = self.in_containers
        uid = found.uid if found.host_uid is None else found.host_uid
        return replace(found, uid=uid, gid=found.gid if found.host_gid is None else found.host_gid)

    @property
    def idmap(self) -> IdMap | None:
        """The map that makes ids on disk the containers' ids of this host; None where they are the same."""
        seen, on_disk = self.in_containers, self.on_disk
        uid, gid = Exchange(on_disk.uid or 0, seen.uid or 0), Exchange(on_disk.gid or 0, seen.gid or 0)
        return IdMap(uid, gid) if uid.moves or gid.moves else None

    def differences(self, given: Mapping[str, str]) -> list[str]:
        """One phrase for each option that has another value in *given*."""
        return differences(self.given, given)

    def over(self, given: Mapping[str, str], unset: tuple[str, ...] = ()) -> dict[str, str]:
        """The options *given*, and those of this declaration that neither *given* nor *unset* names.

        `path` has two names: each stands for both.
        """
        kept = {key: value for key, value in self.given.items() if key not in unset}
        if not {"path", ALIAS}.isdisjoint({*given, *unset}):
            kept.pop(path_key(self.given), None)
        return {**kept, **given}

    def changed(self, asked: Declaration, unset: tuple[str, ...] = ()) -> Declaration:
        """This declaration with what is *asked* over it, and without the options *unset*.

        An image that stays keeps what it said when it was given, and so does the user namespace.

        Raises:
            Invalid: the result contradicts itself.
        """
        given, resolved = self.over(asked.given, unset), asked.resolved
        if "image" not in given or ("image" in asked.given and "at" not in asked.given):
            given.pop("at", None)  # it says where in that image
        if "image" not in asked.given:
            resolved = self.resolved if "image" in given else {}
            if given.get("at") != self.given.get("at") and "image" in given:
                raise Invalid("at cannot be unset by itself", hint="give image again, without at")
        userns = asked.userns if "userns" in {*asked.given, *unset} else self.userns
        return Declaration(given, dict(resolved), userns)


@functools.lru_cache(maxsize=1024)
def _parsed(
    given: tuple[tuple[str, str], ...], resolved: tuple[tuple[str, str], ...]
) -> tuple[Mapping[str, str], Options]:
    """Many volumes have the same options: they share them, and the work of parsing them."""
    Options.parse(dict(given))  # what is given has to be right by itself
    return MappingProxyType(dict(given)), Options.parse(dict(resolved) | dict(given))


class Images(Protocol):
    """Who knows images: engine/client.py, which asks an engine, where the administrator has named one."""

    def owner_options(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        """The options `uid` and `gid` for a volume of *image* at *at*.

        Raises:
            NoEngine, NoImage: that cannot be told.
        """


class Resolver:
    """Finds out what options leave open: what an image says, whose ids are meant. One object serves every thread."""

    def __init__(self, images: Images | None, settings: Settings) -> None:
        self.images = images
        self._managed = settings.managed
        self._userns = settings.userns
        self._asking = threading.BoundedSemaphore(_ASKING)

    def whose(self, declared: Declaration) -> str:
        """Whose numbers are declared, as the option `userns` or HOSTPREP_USERNS says it."""
        return declared.options.userns or self._userns

    def of_engine(self, asks: Asks) -> Remap | None:
        """What *asks* tells; to the managed plugin it is its own directory that does."""
        if self._managed:
            return dockerd.of_plugin(Remap.parse(self._userns, self._userns) if ":" in self._userns else None)
        return HOST if rootless.inside() else asks()

    def mapped(self, declared: Declaration, asks: Asks = no_engine) -> Declaration:
        """*declared* with the ids of this host that stand for its own.

        Raises:
            Invalid: they cannot be told, or it has others than these.
        """
        whose = self.whose(declared)
        if rootless.inside() and declared.options.userns not in (None, "auto", "host"):
            why = "option userns: containers of a user's engine have the ids of the user's own namespace"
            raise Invalid(why, hint="leave it out")
        if whose == "host" or rootless.inside():
            return declared
        if self._managed and declared.options.userns not in (None, "auto"):
            why = "the managed plugin does not see the host's /etc/subuid"
            raise Invalid(f"option userns: {why}", hint="leave it out: HOSTPREP_USERNS has the ranges; or userns=host")
        if whose == "auto" or self._managed:
            return replace(declared, userns=self.of_engine(asks) or dockerd.of_host())
        return replace(declared, userns=Remap.parse(whose, whose) if ":" in whose else named(whose))

    def resolve(self, declared: Declaration, deadline: float) -> Declaration:
        """*declared* with what its image says, where it names one.

        Raises:
            NotAllowed: nobody can be asked here.
            NoEngine, NoImage: the image is not there, or does not say its ids; or no engine answers.
            Busy: too many requests ask already.
        """
        options = declared.options
        if options.image is None:
            return declared
        if self.images is None:
            give = "give the uid and gid that hostprep probe shows"
            if self._managed:
                why = "option image: the managed plugin cannot reach an engine to ask"
                raise NotAllowed(why, hint=f"{give}; or install hostprep on the host: make install")
            why = "option image: HOSTPREP_DOCKER_HOST names no engine to ask"
            raise NotAllowed(why, hint=f"the administrator sets it; or {give}")
        if not self._asking.acquire(blocking=False):
            raise Busy("too many images are being looked into", hint="start again later")
        try:
            found = self.images.owner_options(options.image, options.at, deadline)
        finally:
            self._asking.release()
        log.info("image %s: uid %s, gid %s", options.image, found["uid"], found["gid"])
        return replace(declared, resolved=dict(found))
