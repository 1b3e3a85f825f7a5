"""What doctor looks at: a volume with its directory open, and the users who are to use it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ..errors import printable
from ..host.labels import UNSUPPORTED, read_label
from ..host.mountinfo import mount_of
from ..options import Mode
from ..volumes.driver import Driver
from ..volumes.volume import Volume
from .filesystem import FileSystem, given_at_mount
from .finding import Apply, Finding, Verdict
from .permissions import Who, read_acl
from .subject import Subject

MAX_ENTRIES: Final = 1000  # of the volume's directory itself


class InspectedVolume:
    """A volume, its open directory as it was found, and the *subjects* who are to use it."""

    def __init__(self, driver: Driver, volume: Volume, data: int, subjects: Sequence[Subject]) -> None:
        self.driver = driver
        self.labels = driver.labels
        self.volume = volume
        self.record = volume.record
        self.data = data
        self.subjects = subjects
        self.place = volume.place
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
        with os.scandir(self.data) as entries:
            for _, entry in zip(range(MAX_ENTRIES), entries, strict=False):
                with contextlib.suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISLNK(st.st_mode) and entry.name != "lost+found":
                        yield entry.name, st, f"/proc/self/fd/{self.data}/{entry.name}"

    def severity(self, remedy: Apply | str, subjects: Sequence[Subject]) -> Verdict:
        """How bad a fault of the directory itself is that *remedy* repairs.

        Only a warning where the next start of a container repairs it, and no container of *subjects* runs now.
        """
        running = any(subject.container and subject.container.pid for subject in subjects)
        return Verdict.BAD if running or remedy != Apply() else Verdict.WARNING

    def given_at_mount(self, who: Who) -> Finding:
        """See filesystem.given_at_mount."""
        label = (self.labels.default or None) if self.labels.applied else None
        return given_at_mount(self.file_system, who, label)
