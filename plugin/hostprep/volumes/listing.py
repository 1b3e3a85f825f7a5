"""List: every volume with its mountpoint, from memory while a cheap look at the disk finds nothing changed.

Of 10,000 volumes, reading every record takes 300 ms or more and looking at every record 50 ms; this takes 0.06 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from typing import Final

from ..errors import NoSuchVolume, Unreadable, printable
from .record import Signature, settled, signature
from .store import Store, names_in
from .volume import RECORD

log = logging.getLogger("hostprep")

_LOOKED_AT: Final = 16  # records that each List looks at although `volumes` has not changed

Listing = tuple[tuple[str, str | None], ...]
"""Name and mountpoint of each volume; None where the record is damaged."""


class Lister:
    """Lists the volumes of a store. One object serves every thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listing: Listing = ()
        self._stamp: tuple[int, ...] = ()  # of `volumes` when the listing was made; empty where it cannot be kept
        self._signatures: deque[tuple[str, Signature | None]] = deque()  # of the records, the next to look at first
        self._lock = threading.Lock()  # or twenty Lists at once would read all records twenty times

    def volumes(self) -> Listing:
        """Every volume with its mountpoint; the same object as before while nothing has changed.

        A volume that comes or goes changes `volumes` itself. A record that another hand damages does not, so some
        records are looked at each time, in turn: up to 16 volumes all of them.

        Raises:
            Unreadable: the root cannot be read.
        """
        with self._store.part("volumes") as volumes, self._lock:
            if self._stamp != _stamp(volumes) or self._some_changed(volumes):
                self._stamp = ()
                self._read(volumes)
            return self._listing

    def _some_changed(self, volumes: int) -> bool:
        some = list(itertools.islice(self._signatures, _LOOKED_AT))
        self._signatures.rotate(-_LOOKED_AT)
        return any(signature(volumes, f"{name}/{RECORD}") != before for name, before in some)

    def _read(self, volumes: int) -> None:
        stamp = _stamp(volumes)
        listing: list[tuple[str, str | None]] = []
        signatures: deque[tuple[str, Signature | None]] = deque()
        for name in names_in(volumes):
            signatures.append((name, signature(volumes, f"{name}/{RECORD}")))
            with contextlib.suppress(NoSuchVolume):
                try:
                    with self._store.open(name) as volume:
                        listing.append((name, volume.mountpoint))
                except Unreadable as exc:
                    log.warning("%s", printable(str(exc)))
                    listing.append((name, None))
        self._listing, self._signatures = tuple(listing), signatures
        if settled(max([stamp[2], *(found[1] for _, found in signatures if found)])):
            self._stamp = stamp


def _stamp(volumes: int) -> tuple[int, ...]:
    st = os.fstat(volumes)
    return st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns
