"""A connection to an engine, by the Docker SDK, which only this module knows.

Nothing of an image is run. The engine makes a container of it, which is never started, and shows that container's
files one by one. Then the container is removed, also after an error or Ctrl-C (after a kill -9 it stays:
`docker rm $(docker ps -aqf label=hostprep.probe)`).

No request waits for a volume, so an engine can answer while it waits for the driver's answer to a Create.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

import docker
import urllib3
from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount
from docker.utils import parse_repository_tag

from ..errors import Conflict, NoContainer, NoEngine, NoImage, NotPulled, printable
from ..options import Mode
from .containers import Container, EngineInfo, EngineVolume
from .image import FILE_LIMIT, Config, ImageEntry, ProbeResult, probe_image, user_files
from .tar import Member, Reader, Work

_T = TypeVar("_T")
_REMOVAL: Final = 5.0  # seconds for the removal of the container, whatever was spent before
_MAX_CONTAINERS: Final = 8  # of one volume
_LABEL: Final = "hostprep.probe"
_MAX_STAT: Final = 32768  # characters of a path's description
_GO_SYMLINK: Final = 1 << 27  # in Go's io/fs.FileMode, in which an engine describes a path


@contextlib.contextmanager
def connect(host: str, deadline: float, *, hint: str) -> Iterator[Connection]:
    """Connect to the engine at *host*, and put into words what goes wrong; *hint* is what to do if it does not answer.

    Raises:
        NoEngine: it does not answer, not in time, or with an error.
    """
    path = host.removeprefix("unix://")
    where = printable(path)
    client: docker.APIClient | None = None
    try:
        # Before the SDK tries it, which makes several errors of one, and leaves its socket open.
        with socket.socket(socket.AF_UNIX) as reached:
            reached.settimeout(_seconds_to(deadline))
            reached.connect(path)
        client = docker.APIClient(base_url=host, version="auto", timeout=_seconds_to(deadline))
        yield Connection(client, deadline)
    except APIError as exc:
        said = printable(str(exc.explanation or exc)[:500])
        raise NoEngine(f"the engine at {where} says: {said}") from None
    except (DockerException, urllib3.exceptions.HTTPError, OSError) as exc:  # requests' are OSErrors
        late = isinstance(exc, TimeoutError) or "timed out" in str(exc).lower()
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        why = "does not answer in time" if late else f"cannot be asked: {printable(said[:500])}"
        raise NoEngine(f"the engine at {where} {why}", hint=hint) from None
    finally:
        if client is not None:
            client.close()


class Connection:
    """A connection to an engine, which has until *deadline* for all that it is asked."""

    def __init__(self, client: docker.APIClient, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self.info = EngineInfo.parse(self._ask(client.info))

    def _ask(self, question: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        self._client.timeout = _seconds_to(self._deadline)
        return question(*arguments, **named)

    # -- containers ------------------------------------------------------------------------------------------------

    def inspect(self, name: str) -> Container:
        """The container of that name or id.

        Raises:
            NoContainer: there is none.
        """
        try:
            found = self._ask(self._client.inspect_container, name)
            container = Container.parse(found)
            if not self.info.podman:
                return container
            # Only in its own API does Podman tell which sub-directory of a volume is mounted.
            where = f"{self._client.base_url}/v4.0.0/libpod/containers/{container.id}/json"
            own = self._client.get(where, timeout=_seconds_to(self._deadline))
            own.raise_for_status()
            return Container.parse(found | {"Mounts": own.json().get("Mounts")}, program="podman")
        except NotFound:
            hint = "docker ps -a shows them"
            raise NoContainer(f"the engine has no container {printable(name)}", hint=hint) from None

    def using(self, volume: str) -> list[Container]:
        """The containers that have *volume* mounted and run or restart, at most 8, the oldest first.

        And the one that ended last, if that was with an error: the volume may have been the reason.
        """
        listed = self._ask(self._client.containers, all=True, filters={"volume": volume})
        found, ended = [], False
        for each in listed[:_MAX_CONTAINERS]:
            with contextlib.suppress(NoContainer):  # it was removed meanwhile
                container = self.inspect(str(each.get("Id")))
                if container.mounts_of(volume) and (container.active or (container.failed and not ended)):
                    ended = ended or not container.active
                    found.append(container)
        return found[::-1]

    def local_volumes(self) -> frozenset[str]:
        """The names of the engine's own volumes, of driver local. No other driver is asked."""
        listed = self._ask(self._client.volumes, filters={"driver": "local"}).get("Volumes") or ()
        return frozenset(str(each.get("Name")) for each in listed)

    def volumes(self, name: str | None = None) -> dict[str, EngineVolume]:
        """The volumes that the engine lists, or the one of that *name*.

        None is inspected: of a volume that the engine does not know yet, that makes a record without options.
        """
        filters = {} if name is None else {"name": name}  # of which it lists what has that in its name
        listed = self._ask(self._client.volumes, filters=filters).get("Volumes") or ()
        return {str(each.get("Name")): EngineVolume.parse(each) for each in listed if name in (None, each.get("Name"))}

    def options(self, volume: str) -> Mapping[str, str]:
        """The options that the Status of *volume*, which its driver tells the engine, shows."""
        with _conflicts():
            found = self._ask(self._client.inspect_volume, volume)
        return dict((found.get("Status") or {}).get("options") or {})

    def record(self, name: str, driver: str, options: Mapping[str, str], labels: Mapping[str, str]) -> EngineVolume:
        """Have the engine record a volume that *driver* has. What it knows already stays in its record as it was.

        Raises:
            Conflict: it has one of that name of another driver.
        """
        with _conflicts(f"docker volume inspect {name} shows whose it is"):
            made = self._ask(self._client.create_volume, name, driver, dict(options), dict(labels))
        return EngineVolume.parse(made)

    def remove_volume(self, name: str) -> None:
        """Have the engine and its driver remove a volume.

        Raises:
            Conflict: a container has it, stopped or not.
        """
        with _conflicts():
            self._ask(self._client.remove_volume, name)

    def user_files(self, container: Container) -> tuple[bytes | None, bytes | None]:
        """The passwd and group of the image of *container*.

        Not the container's own: to show them the engine would mount its volumes, and a Mount changes them.

        Raises:
            NoImage: the image does not tell.
        """
        described = self._ask(self._client.inspect_image, container.image)
        with self._files(Config.parse(described, image_id=container.image)) as files:
            return user_files(files)

    # -- images ----------------------------------------------------------------------------------------------------

    def probe(self, image: str, paths: tuple[str, ...], user: str | None = None, *, only: bool = False) -> ProbeResult:
        """See image.probe_image. With *only* the image's VOLUMEs are not looked at, *paths* alone are.

        Raises:
            NotPulled: the engine does not have the image.
            NoImage: the image does not say, or the engine cannot show it.
        """
        try:
            described = self._ask(self._client.inspect_image, image)
        except NotFound:
            shown = printable(image)
            hint = f"docker pull {shown}, or hostprep probe --pull {shown}"
            raise NotPulled(f"the engine has no image {shown}", hint=hint) from None
        if not isinstance(described, dict):
            raise NoImage(f"the engine does not describe image {printable(image)}")
        if self.info.podman:
            # It packs a container's files as if all had one owner, whoever owns them in the image.
            hint = "podman save -o image.tar IMAGE; hostprep probe --archive image.tar; then give uid and gid"
            raise NoImage("Podman does not show who owns the files of an image", hint=hint)
        if (self.info.userns and self.info.remap is None) or self.info.rootless:
            hint = "probe an archive (docker save), and give uid and gid"
            what = "which ids the engine's containers have on this host is not known (userns-remap or rootless)"
            raise NoImage(what, hint=hint)
        config = Config.parse(described, image_id=str(described.get("Id")))
        with self._files(config) as files:
            return probe_image(image, config, files, paths if only else (*config.volumes, *paths), user)

    def pull(self, image: str, report: Callable[[int, int], None]) -> None:
        """See Engine.pull."""
        repository, tag = parse_repository_tag(image)
        tag = tag or "latest"
        cannot = f"{printable(repository)}:{printable(tag)} cannot be pulled"
        self._client.timeout = None  # an engine that unpacks a layer says nothing for a while
        layers: dict[str, tuple[int, int]] = {}
        try:
            for event in self._client.pull(repository, tag, stream=True, decode=True):
                if message := event.get("error"):
                    raise NoImage(f"{cannot}: {printable(message)}")
                detail = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and detail.get("total"):
                    layers[event["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
                elif event.get("status") in ("Download complete", "Pull complete") and event.get("id") in layers:
                    total = layers[event["id"]][1]
                    layers[event["id"]] = (total, total)
                report(sum(done for done, _ in layers.values()), sum(total for _, total in layers.values()))
        except NotFound as exc:
            raise NoImage(f"{cannot}: {printable(str(exc.explanation)[:500])}") from None

    @contextlib.contextmanager
    def _files(self, config: Config) -> Iterator[_ContainerFiles]:
        """The files of an image, by a container of it that is not started and ends with this."""
        # Its name is known before the engine has answered: an interruption then leaves nothing either.
        name = f"hostprep-probe-{secrets.token_hex(8)}"
        # Without these the engine would make a volume for each VOLUME, copy into it what the image has there, and
        # show that instead.
        mounts = [Mount(target=path, source=None, type="tmpfs") for path in config.volumes]
        patience = 1.0
        try:
            self._ask(
                self._client.create_container,
                config.id,
                # Never run. An image without a program of its own makes no container without one.
                entrypoint=["hostprep-probe"],
                name=name,
                labels={_LABEL: ""},
                network_disabled=True,
                host_config=self._client.create_host_config(network_mode="none", mounts=mounts),
            )
            patience = 0
            yield _ContainerFiles(self, name)
        finally:
            with _uninterrupted():
                self._remove(name, patience)

    def _remove(self, name: str, patience: float) -> None:
        """Remove the container *name*, which may appear as late as in *patience* seconds.

        Raises:
            NoEngine: it could not be removed.
        """
        self._client.timeout = _REMOVAL
        end = time.monotonic() + patience
        while True:
            try:
                self._client.remove_container(name, v=True, force=True)
            except NotFound:
                if time.monotonic() > end:
                    return
                time.sleep(0.05)
            except (DockerException, OSError) as exc:
                why = printable(str(exc)[:200])
                raise NoEngine(f"container {name} was not removed: {why}", hint=f"docker rm {name}") from None
            else:
                return

    def archive(self, container: str, path: str, *, head: bool) -> Any:
        """The engine's answer, to be closed, to a request for a path of a container: 200, or 404 for none.

        Not by the SDK's get_archive: that leaves the connection open, and knows no HEAD.
        """
        client = self._client
        answer = client.request(
            "HEAD" if head else "GET",
            f"{client.base_url}/v{client.api_version}/containers/{container}/archive",
            params={"path": os.fsencode(path)},  # a link may hold any bytes
            headers={"Accept-Encoding": "identity"},
            stream=True,
            timeout=_seconds_to(self._deadline),
        )
        if answer.status_code not in (200, 404) and not head:  # with a HEAD it does not say why
            text = answer.raw.read(500).decode(errors="replace")
            answer.close()
            raise NoImage(f"the engine does not show {printable(path[:200])} of the image: {printable(text)}")
        return answer


class _ContainerFiles:
    """The files of a container that was never started: a Tree (image.py)."""

    def __init__(self, connection: Connection, container: str) -> None:
        self._connection = connection
        self._container = container
        self._work = Work()
        self._links: dict[str, str | None] = {}

    def link(self, path: str) -> str | None:
        if path not in self._links:
            self._links[path] = self._link(path)
        return self._links[path]

    def _link(self, path: str) -> str | None:
        # A HEAD costs the engine 2 ms, a GET 40: it starts a program of its own to pack what it shows.
        with contextlib.closing(self._connection.archive(self._container, path, head=True)) as answer:
            if answer.status_code == 404:
                return None
            if answer.status_code == 200 and not self._is_symlink(answer.headers, path):
                return None
        with self._packed(path) as (_, members):
            member = next(members, None)
            return member.link if member is not None and member.kind == "symlink" else None

    def _is_symlink(self, headers: Mapping[str, str], path: str) -> bool:
        try:
            stat = json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"][:_MAX_STAT]))
            return bool(stat["mode"] & _GO_SYMLINK)
        except (KeyError, TypeError, ValueError):
            raise NoImage(f"the engine does not say what {printable(path[:200])} is") from None

    def entry(self, path: str) -> ImageEntry | None:
        with self._packed(path) as (_, members):
            if (member := next(members, None)) is None:
                return None
            filled = member.kind == "directory" and next(members, None) is not None
            owner: tuple[int, int] | None = (member.uid, member.gid)
            if (remap := self._connection.info.remap) is not None:  # with userns-remap it packs the host's ids
                owner = remap.inside(member.uid, member.gid)
            if owner is None:
                shown = f"{printable(path[:200])} as {member.uid}:{member.gid}"
                raise NoImage(f"the engine shows {shown}, which its user namespace {remap} does not have")
            return ImageEntry(member.kind, Mode(member.mode), *owner, filled)

    def read(self, path: str) -> bytes | None:
        with self._packed(path) as (reader, members):
            member = next(members, None)
            return reader.contents(FILE_LIMIT) if member is not None and member.kind == "file" else None

    @contextlib.contextmanager
    def _packed(self, path: str) -> Iterator[tuple[Reader, Iterator[Member]]]:
        """The members of the tar of *path*: itself, then what is in it; none where there is nothing."""
        with contextlib.closing(self._connection.archive(self._container, path, head=False)) as answer:
            there = answer.status_code == 200
            reader = Reader(answer.raw if there else io.BytesIO(), f"{printable(path[:200])} of the image", self._work)
            yield reader, iter(reader)


@contextlib.contextmanager
def _conflicts(hint: str = "") -> Iterator[None]:
    """Make a Conflict of the engine's answer that there is one, or that there is no such volume (any more)."""
    try:
        yield
    except APIError as exc:
        if exc.status_code not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
            raise
        raise Conflict(printable(str(exc.explanation)[:500]), hint=hint) from None


def _seconds_to(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the end. Only in the main thread could they interrupt anything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
