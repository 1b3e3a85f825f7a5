"""The requests that are being answered, by volume: how many wait, and which of them hang.

Nothing ends a thread that waits in the kernel for a disk. So the requests of a volume that wait are bounded, and while
one of them hangs the next ones are refused at once. The others are answered meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from ..errors import Busy, HostprepError, printable
from ..host.mountinfo import mount_table
from ..host.places import Places

_WAITS: Final = 1.0  # seconds after which a request counts as one that waits
_MAY_WAIT: Final = 32  # requests of one verb for one volume: so many of its containers may start at once
_AT_ONCE: Final = 200  # the same, whether they wait or not
_CROWDED: Final = 500  # requests in all, from which on one of them may wait, and _MAY_WAIT may be there at once
_MANY_HANG: Final = 100  # requests that hang, from which on other volumes on their disks are refused, too


class Request:
    """A request for a volume that is being answered."""

    def __init__(self, verb: str, volume: str) -> None:
        self.verb = verb
        self.volume = volume
        self.since = time.monotonic()
        self.hangs = False
        """Whether it was given up. Its thread still waits."""


class Waiting:
    """The requests that are being answered. *path* says where a volume is, and touches no disk but that of the root."""

    def __init__(self, path: Callable[[str], str]) -> None:
        self._path = path
        self._under_way: dict[str, list[Request]] = {}
        self._count = 0
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def request(self, verb: str, volume: str, patience: float) -> Iterator[Request]:
        """Count a request *verb* for *volume* that waits so many seconds at most, until the end of the `with` block.

        Raises:
            Busy: too many wait for this volume already, or one has been hanging for longer than this one would wait.
        """
        if self._shares_a_disk_that_hangs(volume):
            raise disk_hangs(volume)
        mine = Request(verb, volume)
        with self._guard:
            self._check(mine, self._under_way.get(volume, []), patience)
            self._under_way.setdefault(volume, []).append(mine)
            self._count += 1
        try:
            yield mine
        finally:
            with self._guard:
                self._count -= 1
                self._under_way[volume].remove(mine)
                if not self._under_way[volume]:
                    del self._under_way[volume]

    def _check(self, mine: Request, others: list[Request], patience: float) -> None:
        if any(each.hangs and mine.since - each.since > patience for each in others):
            raise disk_hangs(mine.volume)
        alike = [each for each in others if each.verb == mine.verb]  # a pass, for which a Mount waits, delays no Get
        waiting = sum(mine.since - each.since > _WAITS for each in alike)
        crowded = self._count >= _CROWDED
        if waiting >= (1 if crowded else _MAY_WAIT) or len(alike) >= (_MAY_WAIT if crowded else _AT_ONCE):
            why = f"{len(alike)} requests {mine.verb} for volume {printable(mine.volume)} wait already"
            raise Busy(why, hint="for its disk, or until it is prepared; try again later")

    def _shares_a_disk_that_hangs(self, volume: str) -> bool:
        """Whether many requests hang, and one of them on the file system that *volume* is on."""
        with self._guard:
            if self._count < _MANY_HANG:
                return False
            hanging = [each.volume for some in self._under_way.values() for each in some if each.hangs]
        if len(hanging) < _MANY_HANG:
            return False
        places, devices = Places(mount_table()), {}
        for name in {volume, *hanging}:
            with contextlib.suppress(HostprepError):
                devices[name] = places.of(self._path(name))[0][0]
        return devices.pop(volume, None) in devices.values()


def disk_hangs(volume: str) -> Busy:
    """The refusal of what would wait for a disk that does not answer."""
    why = f"the disk of volume {printable(volume)} does not answer"
    return Busy(why, hint="see the kernel's log (dmesg); hostprep serves its other volumes meanwhile")
