"""What the driver and the command line ask an engine. The Docker SDK (connection.py) is imported when something is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ..errors import NoEngine
from .image import ProbeResult, owner_options

if TYPE_CHECKING:
    from .connection import Connection

_PATIENCE: Final = 10.0  # seconds for all questions about one image; a person may have more
_IS_IT: Final = "is it running, and is this its socket?"
_WITHOUT_IT: Final = f"{_IS_IT} uid and gid can be given as numbers without it"
_ANOTHER: Final = f"{_IS_IT} --docker-host names another"


class Engine:
    """The engine at *host*: `unix://` and the path of its socket. Each of these opens a connection of its own."""

    def __init__(self, host: str) -> None:
        self._host = host

    @contextlib.contextmanager
    def connect(self, *, seconds: float, hint: str = _ANOTHER) -> Iterator[Connection]:
        """Connect to the engine, which then has *seconds* for all that it is asked.

        Raises:
            NoEngine: it does not answer, or not in time.
        """
        try:
            from .connection import connect
        except ImportError:
            needed = "install python3-docker, or PyPI's docker, for the Python that runs hostprep"
            raise NoEngine("an engine cannot be asked without the Docker SDK for Python", hint=needed) from None
        with connect(self._host, time.monotonic() + seconds, hint=hint) as connection:
            yield connection

    def owner_options(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        """The options `uid` and `gid` for a volume of *image* at *at*.

        Raises:
            NoEngine: the engine does not answer by *deadline*, or within 10 s.
            NoImage: it does not have the image, or the image does not say.
        """
        seconds = min(deadline - time.monotonic(), _PATIENCE)
        with self.connect(seconds=seconds, hint=_WITHOUT_IT) as connection:
            return owner_options(connection.probe(image, () if at is None else (at,), only=at is not None))

    def probe(self, image: str, paths: tuple[str, ...], user: str | None, *, seconds: float) -> ProbeResult:
        """Find out about *image*, its VOLUMEs and *paths*.

        Raises:
            NoEngine, NoImage: as for `owner_options`.
        """
        with self.connect(seconds=seconds, hint=_WITHOUT_IT) as connection:
            return connection.probe(image, paths, user)

    def pull(self, image: str, report: Callable[[int, int], None]) -> None:
        """Have the engine pull *image*, however long that takes; *report* is told how many bytes of how many are there.

        Raises:
            NoEngine, NoImage: it cannot.
        """
        with self.connect(seconds=_PATIENCE, hint=_WITHOUT_IT) as connection:
            connection.pull(image, report)
