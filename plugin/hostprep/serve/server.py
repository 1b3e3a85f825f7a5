"""`hostprep serve`: the driver, the protocol and the socket put together."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ..errors import HostprepError, NoSuchVolume, NotAllowed, Unreadable, in_words, printable
from ..host import fds, rootless
from ..host.process import raise_open_files
from ..options import is_name
from ..settings import Settings
from ..volumes import trash
from ..volumes.driver import Driver
from ..volumes.volume import Noted
from .listen import listen, passed_by_systemd
from .protocol import HANDSHAKE, HANDSHAKE_ANSWER, MEDIA_TYPE
from .worker import Worker

if TYPE_CHECKING:
    from ..engine.client import Engine

log = logging.getLogger("hostprep")

_PURGE_EVERY: Final = 60.0  # seconds
_RECORDED_WITHIN: Final = 2.0  # seconds in which an engine records what it had a driver create
_LISTED_WITHIN: Final = 60.0  # seconds that an engine has to list its volumes
_RETRY: Final = 3600.0  # seconds after which a purge is tried again that something was in the way of


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way, remove the socket and return.

    Raises:
        BadSetting: it cannot start; nothing has been changed.
    """
    logging.basicConfig(stream=sys.stderr, format="hostprep: %(levelname)s %(message)s")
    log.setLevel(settings.log_level.upper())
    raise_open_files()
    images = None
    if settings.docker_host:
        from ..engine.client import Engine

        images = Engine(settings.docker_host)
    driver = Driver.open(settings, create=True, images=images)
    driver.store.remove_leftovers()
    listener, remove_socket = listen(settings.socket)
    where = "the socket that systemd passed" if passed_by_systemd() else settings.socket
    log.info("serving %s at %s", settings.root, printable(where))

    def at_end() -> None:
        remove_socket()  # at once: who comes now is to wait for the next server
        driver.passes.stop()  # wakes the requests that wait for one

    threading.Thread(target=_purge_now_and_then, args=(driver,), daemon=True).start()
    if images is not None:
        threading.Thread(target=_note_what_is_recorded, args=(driver, images), daemon=True).start()
    threading.Thread(target=_name_unusable, args=(settings.allow,), daemon=True).start()  # a disk may hang
    try:
        Worker(listener, Application(driver), at_end=at_end).init_process()
    finally:
        remove_socket()


def _name_unusable(prefixes: tuple[str, ...]) -> None:
    """Log below which prefixes no path can be used."""
    for prefix in prefixes:
        try:
            os.close(fds.walk(prefix, trusted=False))
        except (NotAllowed, OSError) as exc:
            log.warning("HOSTPREP_ALLOW: no path below %s can be used: %s", printable(prefix), printable(in_words(exc)))


class Application:
    """Answers the handshake, and loads Flask behind it: that takes longer than all the rest of a start."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._app: WSGIApplication | None = None
        self._guard = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._app is None and environ["PATH_INFO"] == HANDSHAKE and environ["REQUEST_METHOD"] == "POST":
            length = str(len(HANDSHAKE_ANSWER))
            start_response("200 OK", [("Content-Type", MEDIA_TYPE), ("Content-Length", length)])
            threading.Thread(target=self._load, daemon=True).start()
            return [HANDSHAKE_ANSWER]
        return (self._app or self._load())(environ, start_response)

    def _load(self) -> WSGIApplication:
        with self._guard:
            if self._app is None:
                from .wire import create_app

                self._app = create_app(self._driver)
            return self._app


def _purge_now_and_then(driver: Driver) -> None:
    purges = Purges(driver)
    while True:
        try:
            purges.start()
        except Exception as exc:  # whatever it is, the next minute has another purge
            known = isinstance(exc, HostprepError | OSError)
            log.warning("purge: %s", printable(in_words(exc) if known else traceback.format_exc()))
        driver.removed.wait(_PURGE_EVERY)
        driver.removed.clear()


def _note_what_is_recorded(driver: Driver, engine: Engine) -> None:
    """Note the labels that *engine* has given to volumes; see `Noted`. It is asked when no request waits for that."""
    while True:
        driver.created.wait()
        driver.created.clear()  # first: what is made from now on may be recorded after the engine was asked
        time.sleep(_RECORDED_WITHIN)
        try:
            with engine.connect(seconds=_LISTED_WITHIN) as connection:
                listed = {} if connection.info.podman else connection.volumes()
            for name, each in listed.items():
                if is_name(name) and each.is_of(driver.settings.socket) and (each.options or each.labels):
                    with contextlib.suppress(NoSuchVolume, Unreadable), driver.store.open(name) as volume:
                        if volume.mountpoint == each.mountpoint:
                            volume.note(Noted(each.options, each.labels))
        except Exception as exc:  # whatever it is, the next Create has it tried again
            known = isinstance(exc, HostprepError | OSError)
            log.info("labels are not noted: %s", printable(in_words(exc) if known else traceback.format_exc()))


class Purges:
    """Starts a purge, in a process of its own, whenever there is something for it to delete."""

    def __init__(self, driver: Driver) -> None:
        self._store = driver.store
        self._settings = driver.settings
        self._told: set[str] = set()
        self._tried: dict[str, float] = {}

    def start(self) -> None:
        """Run a purge to its end, if anything is due that nobody uses, or a purge was interrupted."""
        chosen, _ = trash.due(self._store)
        kept = trash.in_use(self._store, chosen)
        for entry in kept.keys() - self._told:
            log.warning("%s is not purged: %s", entry, printable(kept[entry]))
        self._told = set(kept)
        now, unfinished, free = time.monotonic(), trash.unfinished(self._store), set(chosen) - self._told
        if any(now - self._tried.get(id_, -_RETRY) >= _RETRY for id_ in free.union(unfinished)):
            self._run()
            # Where not even one went, the file system takes no writes, or each of them is damaged.
            stuck = free if free.issubset(trash.due(self._store)[0]) else ()
            self._tried |= dict.fromkeys([*unfinished, *stuck], now)

    def _run(self) -> None:
        settings = self._settings
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HOSTPREP_")},
            "HOSTPREP_ROOT": settings.root,
            "HOSTPREP_KNOWN_ROOTS": settings.known_roots,
            "HOSTPREP_TRASH_KEEP": f"{settings.trash_keep}s",
            "HOSTPREP_PURGE_FOR_SPACE": "1" if settings.purge_for_space else "0",
            "HOSTPREP_SELINUX": settings.selinux.value,  # what it asks for is asked of that process, too
            "HOSTPREP_MANAGED": "1" if settings.managed else "0",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        also, kept = rootless.heritage()
        # -P, -s: nothing that is not root's is imported, whatever the working directory and HOME are.
        command = [sys.executable, "-P", "-s", "-m", "hostprep", "purge"]
        null = subprocess.DEVNULL
        subprocess.run(command, env=environ | also, pass_fds=kept, stdin=null, stdout=null, check=False)
