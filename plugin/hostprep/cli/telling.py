"""The engine's own record of a volume: its options and labels, by which Compose and Ansible decide to make it anew.

An engine records them at its own create alone, and then keeps them. So what the command line makes, brings back or
changes is told to the engine, by a create: it does not reach a driver that has the volume. What the engine has recorded
already it has to forget first, by a removal at which hostprep removes nothing (Driver.kept).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import Conflict, HostprepError, NoEngine, in_words, printable
from ..options import check_name
from ..settings import Settings
from ..volumes.driver import Driver
from ..volumes.volume import Volume
from .shared import deadline, engine_address, sigterm_raises

if TYPE_CHECKING:
    from ..engine.connection import Connection

_SECONDS: Final = 30.0
_OF_OPTIONS: Final = "com.docker.compose.config-hash"
"""The label by which Compose sees that its file declares other options than those with which it made the volume."""


def tell_engine(
    settings: Settings, driver: Driver, name: str, labels: Mapping[str, str] | None = None, *, changed: bool = False
) -> None:
    """Have the engine record the options of a volume. Where that cannot be, print why, and what to do, to stderr.

    Args:
        labels: which it is to have besides those that the engine knows.
        changed: its options were changed, so the engine may have others in its record.
    """
    with driver.store.open(check_name(name)) as volume:
        place, options = volume.mountpoint, dict(volume.record.given)
        told = {**_noted_labels(volume), **(labels or {})}
    telling = _Telling(settings, driver, name, place, options, told, changed)
    try:
        host = engine_address(settings)
        if not os.path.exists(path := host.removeprefix("unix://")):
            raise NoEngine(f"there is no engine at {printable(path)}")
        from ..engine.client import Engine  # not imported where there is none

        with Engine(host).connect(seconds=_SECONDS) as engine:
            telling.tell(engine)
    except (HostprepError, OSError) as exc:
        why, hint = exc.message if isinstance(exc, HostprepError) else in_words(exc), telling.commands()
        if isinstance(exc, Conflict):
            hint = exc.hint
        print(f"hostprep: the options of {name} are in no engine's record: {why} ({hint})", file=sys.stderr)


def _noted_labels(volume: Volume) -> dict[str, str]:
    """The labels of a volume, as the server has noted them where it may ask the engine."""
    noted, same = volume.noted(), volume.noted().options == volume.record.given
    return {key: value for key, value in noted.labels.items() if key != _OF_OPTIONS or same}


@dataclass(slots=True)
class _Telling:
    """What an engine is told of a volume."""

    settings: Settings
    driver: Driver
    name: str
    place: str
    options: dict[str, str]
    labels: dict[str, str]
    changed: bool
    unsure: bool = False
    """Whether the engine did not say if it removes the volume, which then keeps on_remove=retain."""

    def commands(self) -> str:
        """What a person can do instead, on one line for a shell."""
        declared = self.options.get("on_remove")
        if self.unsure:
            return f"hostprep apply {self.name} {f'-o on_remove={declared}' if declared else '--unset on_remove'}"
        words = [word for key, value in self.options.items() for word in ("-o", f"{key}={value}")]
        words += [word for key, value in self.labels.items() for word in ("--label", f"{key}={value}")]
        create = " ".join(map(_quoted, ["docker", "volume", "create", "-d", "hostprep", *words, self.name]))
        if not self.changed:
            return create
        if declared == "retain":
            return f"docker volume rm {self.name} && {create}"
        if self.settings.trash_keep:
            return f"docker volume rm {self.name} && hostprep restore {self.name} && {create}"
        return f"hostprep apply {self.name} -o on_remove=retain"  # which then says the rest

    def tell(self, engine: Connection) -> None:
        """Tell *engine*.

        Raises:
            Conflict: it has another record, and keeps it; or it does not have this volume.
            NoEngine: it does not answer.
        """
        if engine.info.podman:
            raise Conflict("Podman keeps a list of its own", hint="podman volume reload")
        listed = engine.volumes(self.name).get(self.name)
        if listed is not None and not listed.is_of(self.settings.socket):
            why = f"the engine has a volume of that name of driver {printable(listed.driver)}"
            hint = f"when nothing in that is needed: docker volume rm {self.name} && {self.commands()}"
            raise Conflict(why, hint=hint)
        elsewhere = Conflict(
            "no hostprep serves this volume to the engine",
            hint=f"is hostprep running, with this root? Then: {self.commands()}",
        )
        if listed is None or not self._here(listed.mountpoint):
            raise elsewhere
        wanted = {**listed.labels, **self.labels}
        if listed.options != self.options:
            wanted.pop(_OF_OPTIONS, None)
        self.labels = wanted
        if self._recorded(engine, listed.driver):
            return
        what = "the engine keeps what it recorded of that volume before"
        hint = f"remove its containers (docker ps -a --filter volume={self.name}), then: hostprep apply {self.name}"
        if users := self.driver.users(self.name):
            raise Conflict(f"{what}, which is in use: {printable(users[0])}", hint=hint)
        try:
            with sigterm_raises(), self.driver.kept(self.name, deadline(self.settings)) as options:
                self.unsure = True
                if served := engine.options(self.name) == options:
                    engine.remove_volume(self.name)
            self.unsure = False
        except Conflict as exc:
            self.unsure = False
            raise Conflict(f"{what}: {exc.message}", hint=hint) from None
        if not served:  # it has another root at the same path, as an engine in a container may
            raise elsewhere
        if not self._recorded(engine, listed.driver):
            raise Conflict(f"{what}: somebody looked at it just then", hint=f"hostprep apply {self.name}")

    def _recorded(self, engine: Connection, driver: str) -> bool:
        """Have *engine* record it, and look whether it has."""
        recorded = engine.record(self.name, driver, self.options, self.labels)
        return (recorded.options, recorded.labels) == (self.options, self.labels)

    def _here(self, mountpoint: str) -> bool:
        """Whether that is the volume's directory: the engine may have another hostprep, with another root."""
        with contextlib.suppress(OSError):
            return mountpoint == self.place or os.path.samefile(mountpoint, self.place)
        return False


def _quoted(word: str) -> str:
    """*word* for a shell; where not all of it can be printed, as bash, zsh and POSIX of 2024 read it."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (c if c.isprintable() and c not in "\\'" else "".join(f"\\x{b:02x}" for b in c.encode()) for c in word)
    return f"$'{''.join(shown)}'"
