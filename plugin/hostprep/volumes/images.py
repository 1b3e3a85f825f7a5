"""The option `image`: the owner is the one that the image needs, as an engine tells it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final, Protocol

from ..errors import Busy, NotAllowed
from .declaration import Declaration

log = logging.getLogger("hostprep")

# Each has the engine send parts of an image, and keeps the server's connection that it came by meanwhile.
_ASKING: Final = 24  # requests that may wait for an engine's word at once


class Images(Protocol):
    """Who knows images: engine/client.py, which asks an engine, where the administrator has named one."""

    def ids(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        """The options `uid` and `gid` for a volume of *image* at *at*.

        Raises:
            NoImage: that cannot be told.
        """


class Resolver:
    """Asks about images for volumes that are being made or changed. One object serves every thread."""

    def __init__(self, images: Images | None, *, managed: bool) -> None:
        self.images = images
        self._managed = managed
        self._asking = threading.BoundedSemaphore(_ASKING)

    def resolve(self, declared: Declaration, deadline: float) -> Declaration:
        """*declared*, with what its image says, if it names one.

        Raises:
            NotAllowed: nobody can be asked here.
            NoImage: the image is not there, or does not tell its numbers.
            Busy: too many requests ask already.
        """
        options = declared.options
        if options.image is None:
            return declared
        if self.images is None and self._managed:
            raise NotAllowed(
                "option image: the managed plugin reaches no engine that could be asked",
                hint="give the uid and gid that hostprep probe shows; or install hostprep on the host: make install",
            )
        if self.images is None:
            raise NotAllowed(
                "option image: HOSTPREP_DOCKER_HOST names no engine that could be asked",
                hint="the administrator sets it; or give the uid and gid that hostprep probe shows",
            )
        if not self._asking.acquire(blocking=False):
            raise Busy("too many images are being looked into", hint="start again later")
        try:
            found = self.images.ids(options.image, options.at, deadline)
        finally:
            self._asking.release()
        log.info("image %s: uid %s, gid %s", options.image, found["uid"], found["gid"])
        return declared.with_image(found)
