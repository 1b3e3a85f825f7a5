"""Entries that belong to others than the declared owner, among the first of a volume: what root has put there, often.

A right root says nothing of them, and no Mount looks. They may be meant so, as by a container that runs as several
users: they are told, and are no drift.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from itertools import islice
from typing import Final

from ..errors import printable
from ..options import Name
from ..tree.plan import Want
from ..tree.walk import not_ours
from .record import settled
from .volume import Volume

_LOOKED_AT: Final = 100  # direct entries, for Status
_KEPT_SECONDS: Final = 10.0  # an owner may change while neither directory does
_KEPT: Final = 2_000  # volumes, at about 0.5 kB each


def foreign(volume: Volume, data: int, want: Want, most: int) -> str:
    """A sentence where any of the first *most* entries of *data* belongs to another; empty where none does.

    What a pass would leave alone, or says that it has, does not count, nor does lost+found.
    """
    others = looked = 0
    device = os.fstat(data).st_dev
    told = {"lost+found", *(line.rpartition(": ")[0] for line in volume.record.entries_left_alone)}
    with os.scandir(data) as entries:
        for entry in islice(entries, most):
            with contextlib.suppress(FileNotFoundError):
                st = entry.stat(follow_symlinks=False)
                looked += 1
                if (want.uid in (None, st.st_uid) and want.gid in (None, st.st_gid)) or st.st_dev != device:
                    continue
                guarded = volume.record.guarded and not stat.S_ISDIR(st.st_mode)
                others += not (guarded and not_ours(st)) and printable(entry.name) not in told
    return f"{others} of the first {looked} entries belong to others than {owner(want)}" if others else ""


def owner(want: Want) -> str:
    """The declared owner, in words."""
    if want.uid is not None and want.gid is not None:
        return f"{want.uid}:{want.gid}"
    return f"user {want.uid}" if want.gid is None else f"group {want.gid}"


class Foreign:
    """What was last seen of each volume: a look at 100 entries takes longer than all the rest of a Get.

    It is kept while neither the data directory has changed, nor the volume's own, as by a pass of any process, and for
    ten seconds at most. One object serves every thread.
    """

    def __init__(self) -> None:
        self._seen: dict[Name, tuple[tuple[int | None, ...], float, str]] = {}

    def sentence(self, volume: Volume, data: int, want: Want) -> str:
        """What `foreign` says of the volume, whose directory is *data*, in its first hundred entries."""
        if want.uid is None and want.gid is None:
            return ""
        own, st, now = os.fstat(volume.fd), os.fstat(data), time.monotonic()
        stamp = own.st_dev, own.st_ino, own.st_ctime_ns, st.st_dev, st.st_ino, st.st_ctime_ns, want.uid, want.gid
        kept = self._seen.get(volume.name)
        if kept and kept[0] == stamp and now - kept[1] < _KEPT_SECONDS:
            return kept[2]
        said = foreign(volume, data, want, _LOOKED_AT)
        if settled(max(own.st_ctime_ns, st.st_ctime_ns)):
            if len(self._seen) >= _KEPT:
                self._seen.clear()
            self._seen[volume.name] = stamp, now, said
        return said
