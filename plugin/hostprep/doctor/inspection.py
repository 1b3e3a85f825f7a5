"""What doctor looks at: a directory of a volume, open, and the users who are to use it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..errors import printable
from ..host.labels import UNSUPPORTED, read_label
from ..host.mountinfo import mount_of
from ..host.paths import overlap
from ..options import Mode, Recurse
from ..volumes.driver import Driver
from ..volumes.volume import Volume
from .filesystem import FileSystem, given_at_mount
from .finding import Apply, Finding, Prepare, Remedy, Verdict
from .permissions import Who, read_acl
from .subject import Subject

MAX_ENTRIES: Final = 1000  # of the volume's directory itself


class InspectedVolume:
    """A volume, an open directory of it as it was found, and the *subjects* who are to use that.

    Args:
        data: its root, or the sub-directory that containers have instead.
        subpath: where that is in the volume, without symlinks; empty for the root.
        everyone: the users of each directory of the volume, by its subpath.
    """

    def __init__(
        self,
        driver: Driver,
        volume: Volume,
        data: int,
        subjects: Sequence[Subject],
        *,
        subpath: str = "",
        everyone: Mapping[str, Sequence[Subject]],
    ) -> None:
        self.driver = driver
        self.labels = driver.labels
        self.volume = volume
        self.record = volume.record
        self.data = data
        self.subjects = subjects
        self.subpath = subpath
        self.everyone = everyone
        self.place = os.path.join(volume.place, subpath) if subpath else volume.place
        self.shown = printable(self.place)
        self.found = os.fstat(data)
        self.mode = Mode(stat.S_IMODE(self.found.st_mode))
        self.acl = read_acl(f"/proc/self/fd/{data}/.")
        self.file_system = FileSystem(data, self.place, mount_of(data))
        try:
            self.label = read_label(data)
        except OSError as exc:
            if exc.errno != UNSUPPORTED:
                raise
            self.label = None

    def entries(self) -> Iterator[tuple[str, os.stat_result, str]]:
        """Name, state and path in /proc of the first entries, without symlinks and lost+found."""
        with contextlib.suppress(PermissionError), os.scandir(self.data) as entries:  # root_squash
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                with contextlib.suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISLNK(st.st_mode) and entry.name != "lost+found":
                        yield entry.name, st, f"/proc/self/fd/{self.data}/{entry.name}"

    def severity(self, remedy: Remedy | None, subjects: Sequence[Subject]) -> Verdict:
        """How bad a fault of the directory itself is that *remedy* repairs.

        Only a warning where the next start of a container repairs it, and no container of *subjects* runs now.
        """
        running = any(subject.container and subject.container.pid for subject in subjects)
        restores = isinstance(remedy, Apply) and remedy.restores
        return Verdict.BAD if running or not restores else Verdict.WARNING

    def own_remedy(self, code: str, options: Mapping[str, str], *, contents: bool = False) -> Apply | Prepare:
        """hostprep's remedy for the directory, and for its contents: it changes nothing that is not in it.

        What is declared is the whole volume's. So a sub-directory is changed without being declared, and its remedy has
        a *code* of its own.
        """
        if not self.subpath:
            return Apply(code, options, contents=contents)
        again = {"recurse": Recurse.ALWAYS.value} if contents else {}
        return Prepare(f"{code} of a subpath", self.place, {**options, **again})

    def taken_from(self, who: Who) -> bool:
        """Whether another user needs the directory, or what is above or below it, and could lose it to *who*."""
        return any(
            subject.who.uid != who.uid and not subject.who.overrides
            for subpath, subjects in self.everyone.items()
            if overlap(f"/{subpath}", f"/{self.subpath}")
            for subject in subjects
        )

    def undone(self, who: Who) -> bool:
        """Whether the next start of a container gives the sub-directory to somebody else than *who* again."""
        recurse = self.record.options.recurses
        if not self.subpath or recurse is Recurse.NEVER or self.record.declared.on_disk.uid in (None, who.uid):
            return False
        status = self.driver.get(self.record.name)["Status"]
        return recurse is Recurse.ALWAYS or not status["ready"]

    def given_at_mount(self, who: Who) -> Finding:
        """See filesystem.given_at_mount."""
        label = (self.labels.default or None) if self.labels.applied else None
        subjects = [subject for each in self.everyone.values() for subject in each]
        running = {each.container.id: each.container for each in subjects if each.container and each.container.pid}
        found = given_at_mount(self.file_system, who, label, list(running.values()))
        return replace(found, remedy=None) if self.subpath else found  # the mount's options are for all of it
