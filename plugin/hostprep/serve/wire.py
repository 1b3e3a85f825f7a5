"""The volume driver protocol: eight verbs and the handshake, as Docker and Podman speak it. The only module with Flask.

Success is 200. A failure is any other status with `{"Err": "…"}`: Podman ignores an Err that comes with 200. An engine
takes any answered failure of Get for "no such volume" and forgets the volume, so in doubt Get gives no answer at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ..errors import Busy, Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed, Unreadable, in_words, printable
from ..host import dockerd
from ..volumes.declaration import Asks
from ..volumes.driver import Driver
from ..volumes.listing import Listing
from .listen import peer
from .protocol import HANDSHAKE, HANDSHAKE_ANSWER, MEDIA_TYPE, failure, whole_answer
from .waiting import Request, Waiting, disk_hangs

log = logging.getLogger("hostprep")

_MAX_BODY: Final = 1 << 20
_DONE: Final = b'{"Err": ""}\n'
_SHORT_PATIENCE: Final = 20  # seconds that Create and Unmount wait for a pass, which they do not depend on
_LOOK: Final = 10  # seconds that a disk may take for what is only a look: one that slept has woken up by then
_GRACE: Final = 1  # seconds after its deadline before a request is given up: most see to that by themselves
_STATUS: Final = ((Invalid, 400), (NotAllowed, 403), (NoSuchVolume, 404), (Conflict, 409), (Busy, 503))

Body = Mapping[str, Any]
Answer = Callable[[Body, float], Body | bytes | None]


class NoAnswer(BrokenPipeError):
    """Close the connection without an answer. gunicorn's workers take EPIPE for a client that went away."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "no answer is given")


def create_app(driver: Driver) -> Flask:
    """The protocol over *driver*."""
    app = Flask("hostprep", static_folder=None)
    app.url_map.merge_slashes = False
    app.config["PROPAGATE_EXCEPTIONS"] = True  # only NoAnswer gets that far
    patience = driver.settings.patience
    short = min(patience, _SHORT_PATIENCE)
    scope = json.dumps({"Capabilities": {"Scope": driver.settings.scope.value}}).encode() + b"\n"
    volumes = _CachedList()
    serve = functools.partial(_serve, app, Waiting(driver.path))

    def create(body: Body, arrived: float) -> None:
        driver.create(body["Name"], _options(body), arrived + short, _asks())

    def unmount(body: Body, arrived: float) -> None:
        driver.unmount(body["Name"], arrived + short, mount=_id(body))

    def mount(body: Body, arrived: float) -> Body:
        found = driver.mount(body["Name"], arrived + patience, mount=_id(body), engine=_engine(), asks=_asks())
        return {"Mountpoint": found}

    info, long, brief = logging.INFO, max(patience, _LOOK), max(short, _LOOK)
    serve(HANDSHAKE, lambda *_: HANDSHAKE_ANSWER)
    serve("/VolumeDriver.Capabilities", lambda *_: scope)
    serve("/VolumeDriver.List", lambda *_: volumes.encode(driver.volumes()))
    serve("/VolumeDriver.Get", lambda body, _: {"Volume": driver.get(body["Name"], _asks())}, within=_LOOK)
    serve("/VolumeDriver.Path", lambda body, _: {"Mountpoint": driver.path(body["Name"])}, within=_LOOK)
    serve("/VolumeDriver.Mount", mount, level=info, within=long)
    serve("/VolumeDriver.Unmount", unmount, level=info, within=brief)
    serve("/VolumeDriver.Create", create, level=info, within=brief)
    serve("/VolumeDriver.Remove", lambda body, at: driver.remove(body["Name"], at + patience), level=info, within=long)

    @app.errorhandler(HTTPException)
    def refuse(exc: HTTPException) -> Response:
        """Errors of the HTTP layer as the engine reads them; a Get that is too large to be understood is in doubt."""
        if request.path == "/VolumeDriver.Get" and request.method == "POST":
            raise NoAnswer() from exc
        known = {
            404: f"no endpoint {request.path}: this is a volume driver",
            405: f"{request.method} is not what {request.path} is asked with: use POST",
            413: "the request is over 1 MiB",
        }
        status = exc.code or 500
        return _json(failure(known.get(status, exc.name)), status)

    return app


def _serve(
    app: Flask, waiting: Waiting, path: str, answer: Answer, *, level: int = logging.DEBUG, within: float | None = None
) -> None:
    """Serve *answer* at *path*: it is called with the request's body and the time of its arrival.

    Args:
        level: of the line in the log, where it succeeds.
        within: seconds after which the request is given up; see `_given_up`. None where the body names no volume. What
            else a body says is not read.
    """
    verb = path.rpartition(".")[2]

    def view() -> Response:
        arrived = time.monotonic()
        volume = ""
        try:
            if within is None:
                found = answer({}, arrived)
            else:
                body = _body()
                volume = _name(body)
                with waiting.request(verb, volume, within) as mine, _given_up(mine, arrived + within):
                    found = answer(body, arrived)
            if not isinstance(found, bytes):
                found = json.dumps({**(found or {}), "Err": ""}).encode() + b"\n"
        except (HTTPException, NoAnswer):
            raise
        except Exception as exc:
            _log_failure(verb, volume, exc, arrived)
            if verb == "Get" and not isinstance(exc, NoSuchVolume):
                raise NoAnswer() from exc
            if verb == "Unmount" and isinstance(exc, Busy):
                return _json(_DONE)
            return _json(failure(in_words(exc)), _status_of(exc))
        if log.isEnabledFor(level):
            log.log(level, "%s %s: ok in %.1f ms", verb, printable(volume), (time.monotonic() - arrived) * 1e3)
        return _json(found)

    app.add_url_rule(path, path, view, methods=["POST"], provide_automatic_options=False)


@contextlib.contextmanager
def _given_up(mine: Request, deadline: float) -> Iterator[None]:
    """Have the worker answer in the place of this thread where a disk does not let it come back by *deadline*.

    Get then has no answer. Unmount has succeeded: its engine does not need what it waits for.
    """
    connection = request.environ.get("gunicorn.socket")
    verb, volume = mine.verb, printable(mine.volume)

    def give_up() -> bytes:
        mine.hangs = True
        log.error("%s %s: given up, its disk has not answered for %.0f s", verb, volume, time.monotonic() - mine.since)
        if verb == "Get":
            return b""
        if verb == "Unmount":
            return whole_answer("200 OK", _DONE)
        return whole_answer("503 Service Unavailable", failure(str(disk_hangs(mine.volume))))

    if connection is None:  # asked within this process
        yield
        return
    connection.answer_by(deadline + _GRACE, give_up)
    try:
        yield
    finally:
        if not connection.came_back():
            log.warning("%s %s: its disk answered after %.0f s", verb, volume, time.monotonic() - mine.since)
            raise NoAnswer


class _CachedList:
    """The answer to List, encoded once for each listing that the store gives out."""

    def __init__(self) -> None:
        self._kept: tuple[Listing, bytes] = ((), json.dumps({"Volumes": [], "Err": ""}).encode() + b"\n")
        self._encoding = threading.Lock()  # of ten thousand volumes, not by twenty at once

    def encode(self, listing: Listing) -> bytes:
        with self._encoding:
            kept, encoded = self._kept
            if kept is not listing:
                shown = [{"Name": n, **({"Mountpoint": m} if m is not None else {})} for n, m in listing]
                encoded = json.dumps({"Volumes": shown, "Err": ""}, separators=(",", ":")).encode() + b"\n"
                self._kept = (listing, encoded)
            return encoded


def _body() -> dict[str, Any]:
    """The request's body, whatever its Content-Type: Docker sends none.

    Raises:
        Invalid: it is empty (an engine's retry may be), broken off or malformed, or no JSON object.
        RequestEntityTooLarge: it is over 1 MiB.
    """
    if (request.content_length or 0) > _MAX_BODY:
        raise RequestEntityTooLarge
    try:
        data = request.environ["wsgi.input"].read(_MAX_BODY + 1)  # of a chunked body the length is not known before
    except Exception as exc:  # each server has its own for chunks that are none, and for a client that went away
        hint = printable(f"{type(exc).__name__}: {exc}")
        raise Invalid("the request's body cannot be read to its end", hint=hint) from None
    if len(data) > _MAX_BODY:
        raise RequestEntityTooLarge
    if not data:
        hint = 'its body needs "Name"; an engine repeats a request so when hostprep was restarted: run it again'
        raise Invalid("the request came without its contents", hint=hint)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Invalid("the request's body is not a JSON object", hint='for example {"Name": "mongo"}')
    return body


def _engine() -> int:
    """The process that asks, and that will open what is answered; 0 if it is in another pid namespace (unix(7))."""
    connection = request.environ.get("gunicorn.socket")
    if connection is None:
        return os.getpid()  # asked within this process
    return peer(connection)


def _asks() -> Asks:
    """What tells the ids of the containers of who asks."""
    connection = request.environ.get("gunicorn.socket")
    return functools.partial(dockerd.of_peer, _engine(), dockerd.now() if connection is None else connection.accepted)


def _name(body: Body) -> str:
    name = body.get("Name")
    if not isinstance(name, str) or not name:
        raise Invalid("the request names no volume", hint='its body needs "Name", a string')
    return name


def _id(body: Body) -> str:
    """What the engine calls a Mount; empty where it does not say."""
    found = body.get("ID")
    return found if isinstance(found, str) else ""


def _options(body: Body) -> dict[str, str]:
    options = body.get("Opts")
    if options is None:
        return {}
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        raise Invalid("Opts is not an object of strings", hint='for example {"uid": "184", "gid": "998"}')
    return options


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, mimetype=MEDIA_TYPE)


def _status_of(exc: Exception) -> int:
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507
    return next((status for kind, status in _STATUS if isinstance(exc, kind)), 500)


def _log_failure(verb: str, volume: str, exc: Exception, arrived: float) -> None:
    volume, text, spent = printable(volume) or "-", printable(in_words(exc)), (time.monotonic() - arrived) * 1e3
    if isinstance(exc, HostprepError) and not isinstance(exc, Unreadable):
        level = logging.DEBUG if verb == "Get" else logging.WARNING
        log.log(level, "%s %s: %s, after %.1f ms", verb, volume, text, spent)
    else:
        if not isinstance(exc, OSError | HostprepError):
            text = printable("".join(traceback.format_exception(exc)))  # a line an event, this one too
        log.error("%s %s: %s, after %.1f ms", verb, volume, text, spent)
