"""Tools that remove a volume and make it anew when its options change, as docs/recreating-tools.md says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker as sdk
import pytest

from testbed.engine import Engine, Hostprep

from .client import Docker

pytestmark = pytest.mark.engine
FILE = """
version: "3.4"
services:
  db:
    image: busybox
    user: "%(uid)s:998"
    network_mode: none
    volumes: ["db:/data"]
    command: ["sh", "-euc", "echo written by %(uid)s >> /data/file"]
volumes:
  db:
    driver: hostprep
    driver_opts: { uid: "%(uid)s", gid: "998"%(more)s }
"""
BUILT = """
version: "3.4"
services:
  app:
    build: .
    image: built
    network_mode: none
    volumes: ["data:/data"]
volumes:
  data:
    driver: hostprep
    driver_opts: { image: "built", at: "/data" }
"""
RETAIN = ', on_remove: "retain"'


class Compose:
    """A project with a service and a volume, whose owner a test changes in the file."""

    def __init__(self, engine: Engine, hostprep: Hostprep, directory: Path) -> None:
        self._engine = engine
        self._hostprep = hostprep
        self._directory = directory
        self.version = tuple(map(int, self("version", "--short").stdout.strip().split(".")[:2]))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._engine.client("docker-compose", "--project-name", "shop", *arguments, cwd=self._directory)

    def up(self, uid: int, *flags: str, more: str = "") -> subprocess.CompletedProcess[str]:
        """`up` with a file that declares this owner, until the container has ended."""
        (self._directory / "docker-compose.yml").write_text(FILE % {"uid": uid, "more": more})
        return self("up", *flags, "--abort-on-container-exit")

    def hostprep(self, *arguments: str) -> str:
        """A hostprep command that may tell the engine; what it says on stderr."""
        flags = ("--log-level", "warning", "--docker-host", self._engine.host)
        done = self._hostprep.command(*flags, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def written(self) -> list[str]:
        """What the containers have left in the volume that there is now."""
        file = self._hostprep.root / "volumes/shop_db/_data/file"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def compose(docker: Docker, engine: Engine, hostprep: Hostprep, tmp_path: Path) -> Compose:
    if not engine.has("docker-compose"):
        pytest.skip("docker-compose is not installed")
    return Compose(engine, hostprep, tmp_path)


def succeeds(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose(compose: Compose, docker: Docker) -> None:
    """down, apply, up with the changed file: Compose asks nothing, and the data is there."""
    succeeds(compose.up(184))
    succeeds(compose("down"))
    assert compose.hostprep("apply", "shop_db", "-o", "uid=200") == ""
    succeeds(compose.up(200))
    assert compose.written() == ["written by 184", "written by 200"]
    succeeds(compose("down", "-v"))
    assert docker.volumes() == []


@pytest.mark.thorough
def test_compose_without_apply(compose: Compose, docker: Docker) -> None:
    """Without it 1.29 refuses, 2.26 keeps the old options, and 2.40 makes the volume anew, of which Status tells."""
    succeeds(compose.up(184))
    asked_nothing = ("-y",) if compose.version >= (2, 30) else ()
    changed = compose.up(200, *asked_nothing)
    warnings = docker.inspect("shop_db")["Status"]["warnings"]
    if compose.version < (2, 0):
        assert "please remove the existing volume" in changed.stderr
        assert (compose.written(), warnings) == (["written by 184"], [])
    elif compose.version < (2, 30):
        assert (docker.inspect("shop_db")["Options"]["uid"], compose.written()) == ("184", ["written by 184"])
    else:
        assert compose.written() == ["written by 200"]
        succeeds(compose("down"))
        (said,) = warnings
        for command in said.rpartition("then: ")[2].split(" && "):
            assert compose.hostprep(*command.split()[1:]) == ""
        assert compose.written() == ["written by 184"]
        assert docker.inspect("shop_db")["Options"] == {"uid": "184", "gid": "998"}
        succeeds(compose.up(184))
        succeeds(compose("down", "-v"))
        assert docker.volumes() == []


@pytest.mark.thorough
def test_compose_with_retain(compose: Compose, docker: Docker) -> None:
    """With on_remove=retain the volume that is made anew has the data, and the options of the changed file."""
    succeeds(compose.up(184, more=RETAIN))
    if compose.version >= (2, 30):
        succeeds(compose.up(200, "-y", more=RETAIN))
    else:
        succeeds(compose("down", "-v"))
        succeeds(compose.up(200, more=RETAIN))
    assert compose.written() == ["written by 184", "written by 200"]
    succeeds(compose("down"))
    compose.hostprep("apply", "shop_db", "--unset", "on_remove")


@pytest.mark.thorough
def test_compose_after_a_restore(compose: Compose, docker: Docker) -> None:
    """With the labels that the page names, what was restored after `down -v` is the project's again."""
    succeeds(compose.up(184))
    succeeds(compose("down", "-v"))
    labels = ("--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.volume=db")
    assert compose.hostprep("restore", "shop_db", *labels) == ""
    again = compose.up(184)
    succeeds(again)
    assert "not created by Docker Compose" not in again.stderr
    assert compose.written() == ["written by 184", "written by 184"]
    succeeds(compose("down", "-v"))
    assert docker.volumes() == []


@pytest.mark.thorough
def test_an_image_that_is_built(compose: Compose, docker: Docker, hostprep: Hostprep, tmp_path: Path) -> None:
    """Compose 1.29 makes a volume with `image` before it builds that image: after a build the first up succeeds."""
    if compose.version >= (2, 0):
        return  # Debian's has nothing to build with
    hostprep.stop()
    hostprep.start(docker_host=docker.engine.host)
    (tmp_path / "docker-compose.yml").write_text(BUILT)
    (tmp_path / "Dockerfile").write_text('FROM busybox\nCOPY --chown=184:998 data /data\nCMD ["touch", "/data/file"]\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data/seed").touch()
    first = compose("up", "--abort-on-container-exit")
    assert "no image built" in first.stderr, first.stdout + first.stderr
    succeeds(compose("build"))
    succeeds(compose("up", "--abort-on-container-exit"))
    assert docker.inspect("shop_data")["Status"]["resolved"] == {"uid": 184, "gid": 998}
    succeeds(compose("down", "-v"))
    docker("rmi", "built")


@pytest.fixture
def api(docker: Docker) -> Iterator[sdk.APIClient]:
    client = sdk.APIClient(base_url=docker.engine.host, version="auto")
    yield client
    client.close()


def ansible(api: sdk.APIClient, options: dict[str, str], *, recreate: bool = True) -> bool:
    """Ask for a volume mongo as Ansible's docker_volume does with `recreate: options-changed`; whether it changed."""
    known = {each["Name"]: each for each in api.volumes()["Volumes"] or ()}
    if "mongo" in known:
        recorded = api.inspect_volume("mongo")["Options"] or {}
        if not recreate or all(recorded.get(key) == value for key, value in options.items()):
            return False
        api.remove_volume("mongo")
    api.create_volume("mongo", driver="hostprep", driver_opts=options)
    return True


def test_ansible(docker: Docker, hostprep: Hostprep, api: sdk.APIClient) -> None:
    """After apply the task finds nothing to change; without it the volume is empty; with retain the data stays."""
    flags = ("--log-level", "warning", "--docker-host", docker.engine.host)
    assert ansible(api, {"uid": "184"})
    file = Path(docker.mountpoint("mongo")) / "file"
    file.write_text("kept")
    assert not ansible(api, {"uid": "200"}, recreate=False)
    assert hostprep.command(*flags, "apply", "mongo", "-o", "uid=200").stderr == ""
    assert not ansible(api, {"uid": "200"})
    assert hostprep.command(*flags, "apply", "mongo", "-o", "on_remove=retain").stderr == ""
    assert ansible(api, {"uid": "201", "on_remove": "retain"})
    assert (file.read_text(), os.stat(file).st_uid) == ("kept", 201)
    assert hostprep.command(*flags, "apply", "mongo", "--unset", "on_remove").stderr == ""
    assert ansible(api, {"uid": "202"})
    assert not file.exists()
    (said,) = [each for each in docker.inspect("mongo")["Status"]["warnings"] if "in the trash" in each]
    for command in said.rpartition("then: ")[2].split(" && "):
        assert hostprep.command(*flags, *command.split()[1:]).stderr == ""
    assert file.read_text() == "kept"
    assert docker.inspect("mongo")["Options"] == {"uid": "201"}


@pytest.mark.thorough
def test_numbers_are_strings(docker: Docker, api: sdk.APIClient) -> None:
    """A number that is not a string is refused by the engine: docker-py and Ansible do not make it one."""
    with pytest.raises(sdk.errors.APIError, match="cannot unmarshal number"):
        api.create_volume("mongo", driver="hostprep", driver_opts={"uid": 184})
    assert docker.volumes() == []
