"""A volume that a doctor looks at, its directory open, and what all the looks at it need."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from ..errors import printable
from ..host.labels import UNSUPPORTED, read_label
from ..options import Mode
from ..volumes.driver import Driver
from ..volumes.volume import Volume
from . import permissions
from .filesystem import FileSystem, given_at_mount
from .finding import Apply, Finding, Verdict
from .permissions import Who
from .subject import Patient

_LOOKED_AT: Final = 1000  # entries of the volume's directory itself


class Case:
    """One volume, and those for whom it is looked at."""

    def __init__(self, driver: Driver, volume: Volume, data: int, patients: Sequence[Patient]) -> None:
        self.driver = driver
        self.labels = driver.labels
        self.volume = volume
        self.record = volume.record
        self.data = data
        self.patients = patients
        self.place = volume.place
        self.shown = printable(self.place)
        self.found = os.fstat(data)
        self.mode = Mode(stat.S_IMODE(self.found.st_mode))
        self.acl = acl_of(f"/proc/self/fd/{data}/.")
        self.where = FileSystem.of(data, self.place)
        try:
            self.label = read_label(data)
        except OSError as exc:
            if exc.errno != UNSUPPORTED:
                raise
            self.label = None

    def entries(self) -> Iterator[tuple[str, os.stat_result, str]]:
        """Name and state of the first entries, symlinks and what a new file system has left out."""
        with os.scandir(self.data) as entries:
            for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
                with contextlib.suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISLNK(st.st_mode) and entry.name != "lost+found":
                        yield entry.name, st, f"/proc/self/fd/{self.data}/{entry.name}"

    def bad(self, remedy: Apply | str, patients: Sequence[Patient]) -> Verdict:
        """How bad it is, what *remedy* mends: what is as declared again at a start does not keep from starting."""
        runs = any(patient.container and patient.container.pid for patient in patients)
        return Verdict.BAD if runs or remedy != Apply() else Verdict.WARNING

    def given_at_mount(self, who: Who) -> Finding:
        label = (self.labels.default or None) if self.labels.applied else None
        return given_at_mount(self.where, who, label)


def acl_of(file: str) -> tuple[permissions.Entry, ...]:
    """The access control list of a path in /proc/self/fd; empty where there is none."""
    try:
        return permissions.parse_acl(os.getxattr(file, permissions.ATTRIBUTE, follow_symlinks=False))
    except ValueError:
        return ()
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT):
            raise
        return ()
