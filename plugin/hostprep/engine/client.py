"""An engine that is asked about images and containers, by the Docker SDK, which only this module knows.

Nothing of the image is run. The engine makes a container of it, which is never started, and shows that container's
files one by one; then the container is removed, also after an error or Ctrl-C (after a kill -9 it stays:
`docker rm $(docker ps -aqf label=hostprep.probe)`).

None of the requests waits for a volume: an engine that waits for the driver's answer to a Create can answer them.
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
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import NoContainer, NoImage, printable
from ..options import Mode
from .containers import Container, remap_of
from .image import FILE_LIMIT, Config, Entry, Findings, chosen, look, user_files
from .tar import Member, Reader

if TYPE_CHECKING:
    import docker

_T = TypeVar("_T")
_PATIENCE: Final = 10.0  # seconds for all questions about one image; a person may have more
_LAST: Final = 5.0  # seconds for the removal of the container, whatever was spent before
_MANY: Final = 8  # containers of one volume that are looked at
_IS_IT: Final = "is it running, and is this its socket?"
_WITHOUT: Final = f"{_IS_IT} uid and gid can be given as numbers without it"
_OTHERWISE: Final = f"{_IS_IT} --docker-host names another"
_LABEL: Final = "hostprep.probe"
_STAT: Final = 32768  # characters of a path's description
_GO_SYMLINK: Final = 1 << 27  # in Go's io/fs.FileMode, in which an engine describes a path

Progress = Callable[[int, int], None]
"""Told how many bytes of how many a pull has so far, as far as that is known."""


class Absent(NoImage):
    """An image that the engine does not have."""


class Images:
    """What the driver asks about images (driver.py), of the engine at *host*, `unix://` and the path of its socket."""

    def __init__(self, host: str) -> None:
        self._host = host

    def ids(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        """The options `uid` and `gid` for a volume of *image* at *at*.

        Raises:
            NoImage: the engine does not answer within 10 s, does not have the image (it is not pulled), or the image
                does not say.
        """
        with _Engine.asked(self._host, min(deadline, time.monotonic() + _PATIENCE)) as engine:
            return chosen(engine.look(image, () if at is None else (at,), only=at is not None))

    def look(self, image: str, paths: tuple[str, ...], user: str | None, *, seconds: float) -> Findings:
        """All about *image*, its VOLUMEs and *paths*.

        Raises:
            NoImage: as for `ids`.
        """
        with _Engine.asked(self._host, time.monotonic() + seconds) as engine:
            return engine.look(image, paths, user)

    def pull(self, image: str, progress: Progress) -> None:
        """Have the engine pull *image*, however long that takes.

        Raises:
            NoImage: it cannot.
        """
        from docker.utils import parse_repository_tag

        repository, tag = parse_repository_tag(image)
        with _Engine.asked(self._host, time.monotonic() + _PATIENCE) as engine:
            engine.pull(repository, tag or "latest", progress)


class Containers:
    """What a doctor asks about containers (doctor.py). Made by `asked`."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        info = engine.info()
        options = [str(option) for option in info.get("SecurityOptions") or []]
        self.version = str(info.get("ServerVersion") or "unknown")
        self.remap = remap_of(info)
        """What userns-remap gives to containers; None without it."""
        self.rootless = any(option.startswith("name=rootless") for option in options)
        self.confines = any(option.startswith("name=selinux") for option in options)
        """Whether it gives containers an SELinux context of their own."""

    @classmethod
    @contextlib.contextmanager
    def asked(cls, host: str, *, seconds: float) -> Iterator[Containers]:
        """Connect to the engine at *host*, which has *seconds* for all that is asked.

        Raises:
            NoContainer: it does not answer, or not in time.
        """
        try:
            with _Engine.asked(host, time.monotonic() + seconds, hint=_OTHERWISE) as engine:
                yield cls(engine)
        except NoImage as exc:
            raise NoContainer(exc.message, hint=exc.hint) from None

    def inspect(self, name: str) -> Container:
        """The container of that name or id.

        Raises:
            NoContainer: there is none.
        """
        import docker.errors

        try:
            return Container.parse(self._engine.describe(name))
        except docker.errors.NotFound:
            hint = "docker ps -a shows them"
            raise NoContainer(f"the engine has no container {printable(name)}", hint=hint) from None

    def using(self, volume: str) -> list[Container]:
        """Those that run and have *volume*, the oldest first."""
        found = []
        for name in self._engine.running_with(volume):
            with contextlib.suppress(NoContainer):  # it ended meanwhile
                found.append(self.inspect(name))
        return [container for container in reversed(found) if container.pid and container.has(volume)]

    def user_files(self, container: Container) -> tuple[bytes | None, bytes | None]:
        """The passwd and group of the image of *container*.

        Not the container's own: to show them the engine would mount its volumes, and a Mount mends them.
        """
        with self._engine.files(container.image) as tree:
            return user_files(tree)


class _Engine:
    """An engine, until a deadline."""

    def __init__(self, client: docker.APIClient, deadline: float) -> None:
        self._client = client
        self._deadline = deadline

    @classmethod
    @contextlib.contextmanager
    def asked(cls, host: str, deadline: float, *, hint: str = _WITHOUT) -> Iterator[_Engine]:
        """Connect, and put into words what goes wrong until the end."""
        try:
            import docker.errors
            import urllib3
        except ImportError:
            needed = "install python3-docker, or PyPI's docker, for the Python that runs hostprep"
            raise NoImage("no engine can be asked without the Docker SDK for Python", hint=needed) from None
        path = host.removeprefix("unix://")
        where = printable(path)
        client: docker.APIClient | None = None
        try:
            # Before the SDK tries it, which makes several errors of one, and leaves its socket open.
            with socket.socket(socket.AF_UNIX) as reached:
                reached.settimeout(_left(deadline))
                reached.connect(path)
            client = docker.APIClient(base_url=host, version="auto", timeout=_left(deadline))
            yield cls(client, deadline)
        except docker.errors.APIError as exc:
            said = printable(str(exc.explanation or exc)[:500])
            raise NoImage(f"the engine at {where} says: {said}") from None
        except (docker.errors.DockerException, urllib3.exceptions.HTTPError, OSError) as exc:  # requests' are OSErrors
            late = isinstance(exc, TimeoutError) or "timed out" in str(exc).lower()
            said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
            why = "does not answer in time" if late else f"cannot be asked: {printable(said[:500])}"
            raise NoImage(f"the engine at {where} {why}", hint=hint) from None
        finally:
            if client is not None:
                client.close()

    def look(self, image: str, paths: tuple[str, ...], user: str | None = None, *, only: bool = False) -> Findings:
        """See image.look. *only*: of the *paths* alone; the image's VOLUMEs are not looked at."""
        import docker.errors

        try:
            described = self._ask(self._client.inspect_image, image)
        except docker.errors.NotFound:
            shown = printable(image)
            raise Absent(
                f"the engine has no image {shown}",
                hint=f"docker pull {shown}, or hostprep probe --pull {shown}",
            ) from None
        about = self.info()
        if not isinstance(described, dict):
            raise NoImage(f"the engine does not describe image {printable(image)}")
        if "BuildahVersion" in about:
            # What it packs of a container's files has one owner for all, whoever has them in the image.
            raise NoImage(
                "Podman does not show whose the files of an image are",
                hint="podman save -o image.tar IMAGE; hostprep probe --archive image.tar; then give uid and gid",
            )
        security = about.get("SecurityOptions") or []
        if any(str(option).startswith(("name=userns", "name=rootless")) for option in security):
            raise NoImage(
                "the engine gives containers other numbers than the host's (userns-remap or rootless)",
                hint="probe an archive (docker save), add the first number of /etc/subuid, and give uid and gid",
            )
        config = Config.parse(described, image_id=str(described.get("Id")))
        with self._container(config) as container:
            tree = _Files(self, container)
            return look(image, config, tree, paths if only else (*config.volumes, *paths), user)

    @contextlib.contextmanager
    def files(self, image_id: str) -> Iterator[_Files]:
        """The files of an image, until the end."""
        described = self._ask(self._client.inspect_image, image_id)
        with self._container(Config.parse(described, image_id=image_id)) as container:
            yield _Files(self, container)

    def info(self) -> dict[str, Any]:
        """What the engine says of itself."""
        about = self._ask(self._client.info)
        if not isinstance(about, dict):
            raise NoImage("the engine does not describe itself")
        return about

    def describe(self, container: str) -> Any:
        """A container, as it is inspected."""
        return self._ask(self._client.inspect_container, container)

    def running_with(self, volume: str) -> list[str]:
        """The ids of the containers that run with *volume*, the newest first."""
        found = self._ask(self._client.containers, filters={"volume": volume, "status": "running"})
        return [str(each.get("Id")) for each in found][:_MANY]

    @contextlib.contextmanager
    def _container(self, config: Config) -> Iterator[str]:
        """Have a container of the image, not started, until the end."""
        import docker.errors
        from docker.types import Mount

        # Its name is known before the engine has answered: an interruption then leaves nothing either.
        name = f"hostprep-probe-{secrets.token_hex(8)}"
        # Without these the engine would make a volume for each VOLUME, copy into it what the image has there, and
        # show that in the image's place.
        mounts = [Mount(target=path, source=None, type="tmpfs") for path in config.volumes]
        unsure = True
        try:
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
            except docker.errors.APIError:
                unsure = False
                raise
            unsure = False
            yield name
        finally:
            with _uninterrupted():
                self._remove(name, unsure=unsure)

    def _remove(self, name: str, *, unsure: bool) -> None:
        """Remove the container *name*. Where the engine did not answer, it is *unsure* whether there is one yet.

        Raises:
            NoImage: it could not be removed.
        """
        import docker.errors

        self._client.timeout = _LAST
        end = time.monotonic() + (1 if unsure else 0)
        while True:
            try:
                self._client.remove_container(name, v=True, force=True)
            except docker.errors.NotFound:
                if time.monotonic() > end:
                    return
                time.sleep(0.05)
            except (docker.errors.DockerException, OSError) as exc:
                why = printable(str(exc)[:200])
                raise NoImage(f"container {name} was not removed: {why}", hint=f"docker rm {name}") from None
            else:
                return

    def _ask(self, question: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        self._client.timeout = _left(self._deadline)
        return question(*arguments, **named)

    def archive(self, container: str, path: str, *, head: bool) -> Any:
        """The engine's answer, to be closed, to a question for a path of a container: 200, or 404 for none.

        Not by the SDK's get_archive: that leaves the connection open, and knows no HEAD.
        """
        client = self._client
        answer = client.request(
            "HEAD" if head else "GET",
            f"{client.base_url}/v{client.api_version}/containers/{container}/archive",
            params={"path": os.fsencode(path)},  # a link may hold any bytes
            headers={"Accept-Encoding": "identity"},
            stream=True,
            timeout=_left(self._deadline),
        )
        if answer.status_code not in (200, 404) and not head:  # with a HEAD it does not say why
            text = answer.raw.read(500).decode(errors="replace")
            answer.close()
            raise NoImage(f"the engine does not show {printable(path[:200])} of the image: {printable(text)}")
        return answer

    def pull(self, repository: str, tag: str, progress: Progress) -> None:
        """See Images.pull."""
        import docker.errors

        self._client.timeout = None  # an engine that unpacks a layer says nothing for a while
        layers: dict[str, tuple[int, int]] = {}
        try:
            for event in self._client.pull(repository, tag, stream=True, decode=True):
                if message := event.get("error"):
                    raise NoImage(f"{printable(repository)}:{printable(tag)} cannot be pulled: {printable(message)}")
                detail = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and detail.get("total"):
                    layers[event["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
                elif event.get("status") in ("Download complete", "Pull complete") and event.get("id") in layers:
                    total = layers[event["id"]][1]
                    layers[event["id"]] = (total, total)
                progress(sum(done for done, _ in layers.values()), sum(total for _, total in layers.values()))
        except docker.errors.NotFound as exc:
            said = printable(str(exc.explanation)[:500])
            raise NoImage(f"{printable(repository)}:{printable(tag)} cannot be pulled: {said}") from None


class _Files:
    """The files of a container that was never started: a Tree (image.py)."""

    def __init__(self, engine: _Engine, container: str) -> None:
        self._engine = engine
        self._container = container
        self._links: dict[str, str | None] = {}

    def link(self, path: str) -> str | None:
        if path not in self._links:
            self._links[path] = self._link(path)
        return self._links[path]

    def _link(self, path: str) -> str | None:
        # A HEAD costs the engine 2 ms, a GET 40: it starts a program of its own to pack what it shows.
        with contextlib.closing(self._engine.archive(self._container, path, head=True)) as answer:
            if answer.status_code == 404:
                return None
            if answer.status_code == 200 and not self._is_symlink(answer.headers, path):
                return None
        with self._shown(path) as (_, members):
            member = next(members, None)
            return member.link if member is not None and member.kind == "symlink" else None

    def _is_symlink(self, headers: Mapping[str, str], path: str) -> bool:
        try:
            stat = json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"][:_STAT]))
            return bool(stat["mode"] & _GO_SYMLINK)
        except (KeyError, TypeError, ValueError):
            raise NoImage(f"the engine does not say what {printable(path[:200])} is") from None

    def entry(self, path: str) -> Entry | None:
        with self._shown(path) as (_, members):
            if (member := next(members, None)) is None:
                return None
            filled = member.kind == "directory" and next(members, None) is not None
            return Entry(member.kind, Mode(member.mode), member.uid, member.gid, filled)

    def read(self, path: str) -> bytes | None:
        with self._shown(path) as (reader, members):
            member = next(members, None)
            return reader.contents(FILE_LIMIT) if member is not None and member.kind == "file" else None

    @contextlib.contextmanager
    def _shown(self, path: str) -> Iterator[tuple[Reader, Iterator[Member]]]:
        """The members of the tar of *path*: itself, and of a directory what is in it; none where there is nothing."""
        with contextlib.closing(self._engine.archive(self._container, path, head=False)) as answer:
            there = answer.status_code == 200
            reader = Reader(answer.raw if there else io.BytesIO(), f"{printable(path[:200])} of the image")
            yield reader, iter(reader)


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off SIGINT and SIGTERM, in the main thread, where alone they could end what is done here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
