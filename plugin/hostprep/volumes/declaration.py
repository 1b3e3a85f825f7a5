"""What a volume is declared to be: the options as they were given, and what the image says that they name."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Protocol

from ..errors import Busy, Invalid, NotAllowed
from ..options import ALIAS, Options, differences, path_key

log = logging.getLogger("hostprep")

# Each makes the engine send parts of an image, and keeps one of the server's connections meanwhile.
_ASKING: Final = 24  # requests that may ask an engine at once
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Declaration:
    """The options of a volume. Raises Invalid if they are malformed."""

    given: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """The options as they were given."""
    resolved: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """`uid` and `gid` as the image says them; the same options win where they are given."""
    options: Options = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given, options = _parsed(tuple(self.given.items()), tuple(self.resolved.items()))
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "options", options)

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

        An image that stays keeps what it said when it was given.

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
        return Declaration(given, dict(resolved))


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
    """Asks what the images say that options name. One object serves every thread."""

    def __init__(self, images: Images | None, *, managed: bool) -> None:
        self.images = images
        self._managed = managed
        self._asking = threading.BoundedSemaphore(_ASKING)

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
