"""What a volume is declared to be: the options as they were given, and what the image said that they name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from ..errors import Invalid
from ..options import ALIAS, Options, differences, path_key

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Declaration:
    """The options of a volume. Made of malformed ones it raises Invalid."""

    given: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """The options as they were given."""
    resolved: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """`uid` and `gid` as the image says them; the same options win where they are given."""
    options: Options = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given, options = _parsed(tuple(self.given.items()), tuple(self.resolved.items()))
        object.__setattr__(self, "given", given)
        object.__setattr__(self, "options", options)

    @property
    def unresolved(self) -> bool:
        """Whether it names an image that nobody has asked about yet."""
        return self.options.image is not None and not self.resolved

    def with_image(self, resolved: Mapping[str, str]) -> Declaration:
        """The same options, with what their image says."""
        return replace(self, resolved=dict(resolved))

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
