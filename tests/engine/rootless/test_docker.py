"""What a user of rootless Docker does with a hostprep of his own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from testbed.engine import wait_for
from testbed.images import Entry, busybox
from tests.support.rootless import COUNT, on_host

from ..client import WRITE, Docker, mode, owner
from ..test_lifecycle import COMPOSE
from .conftest import Rootless, Users

pytestmark = pytest.mark.engine


def test_run(docker: Docker, hostprep: Users) -> None:
    """The container writes as 184:998, which on the host are those of the user's ranges; inspect says 184 and 998."""
    mountpoint = docker.create("mongo")
    assert mountpoint == f"{hostprep.root}/volumes/mongo/_data"

    assert docker.run("mongo:/data", f"{WRITE}; stat -c %u:%g /data /data/file") == "written\n184:998\n184:998"

    assert owner(mountpoint) == owner(f"{mountpoint}/file") == on_host(184, 998)
    status = docker.inspect("mongo")["Status"]
    assert (status["uid"], status["gid"], status["ready"], status["warnings"]) == (184, 998, True, [])


@pytest.mark.thorough
def test_copy_up(docker: Docker) -> None:
    """What Docker copies from the image is the declared owner's, in the container and on disk."""
    mountpoint = docker.create("mongo")

    said = docker.run("mongo:/data", f"cat /data/seed; {WRITE}; stat -c %u:%g /data/seed", image="copyup")

    assert said == "from the imagewritten\n184:998"
    assert {owner(path) for path in (mountpoint, f"{mountpoint}/seed", f"{mountpoint}/conf/main")} == {
        on_host(184, 998)
    }


@pytest.mark.thorough
def test_repair(docker: Docker) -> None:
    """A start repairs what the user changed meanwhile, with the whole tree."""
    mountpoint = docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    for path in (mountpoint, f"{mountpoint}/file"):
        os.chown(path, *on_host(0, 0))

    assert docker.run("mongo:/data", "echo more >> /data/file; stat -c %u:%g /data /data/file") == "184:998\n184:998"


@pytest.mark.thorough
def test_compose(docker: Docker, engine: Rootless) -> None:
    """Compose makes the volume from driver_opts, uses it at the next up, and removes it with down -v."""
    if not engine.has("docker-compose"):
        pytest.skip("docker-compose is not installed")
    directory = engine.user.home / "compose"
    directory.mkdir()
    (directory / "docker-compose.yml").write_text(COMPOSE % '"0750"')
    engine.user.owns(directory)

    def compose(*args: str) -> None:
        done = engine.client("docker-compose", "--project-name", "demo", *args, cwd=directory)
        assert done.returncode == 0, done.stdout + done.stderr

    for _ in range(2):
        compose("up", "--abort-on-container-exit")
    mountpoint = docker.mountpoint("demo_mongo")
    assert (owner(mountpoint), mode(mountpoint)) == (on_host(184, 998), "0750")
    assert Path(mountpoint, "file").read_text() == "written\nwritten\n"
    compose("down", "--volumes")
    assert docker.volumes() == []


@pytest.mark.thorough
def test_restarts(docker: Docker, engine: Rootless, hostprep: Users) -> None:
    """With hostprep started before it, the engine has its containers up again; and hostprep may restart below them."""
    docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", "--restart", "always", script=f"{WRITE}; sleep 600")
    hostprep.stop()
    docker.exec("mongod", "echo meanwhile >> /data/file")
    hostprep.start()
    docker("restart", "-t", "0", "mongod")

    engine.stop()
    engine.start()

    wait_for(lambda: "mongod" in docker("ps", "--format", "{{.Names}}").split(), "the container to be up")
    assert docker.exec("mongod", "stat -c %u:%g /data /data/file") == "184:998\n184:998"
    assert docker.volumes("--filter", "driver=hostprep") == ["mongo"]


@pytest.mark.thorough
def test_trash(docker: Docker, hostprep: Users) -> None:
    """What was removed is brought back with its data."""
    mountpoint = docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")
    assert not Path(mountpoint).exists()

    restored = hostprep.command("restore", "mongo")
    assert restored.returncode == 0, restored.stderr
    assert docker.run("mongo:/data", "cat /data/file; stat -c %u:%g /data/file") == "written\n184:998"


@pytest.mark.thorough
def test_purge(docker: Docker, hostprep: Users) -> None:
    """Nothing is purged that a container of the user's has mounted; afterwards it is, whatever it is root's to see."""
    docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script=f"{WRITE}; sleep 600")
    assert "mounted at" in hostprep.command("rm", "mongo").stderr
    assert hostprep.command("rm", "--force", "mongo").returncode == 0

    assert "mounted at" in hostprep.command("purge", "--all").stderr
    assert docker.exec("mongod", "cat /data/file") == "written"
    docker("rm", "-f", "mongod")

    purged = hostprep.command("purge", "--all")
    assert purged.returncode == 0, purged.stderr
    assert os.listdir(hostprep.root / "trash") == []


@pytest.mark.thorough
def test_path(docker: Docker, engine: Rootless, hostprep: Users) -> None:
    """A directory in the home becomes a volume where it is, without a mount: nobody but the user could redirect it."""
    data = engine.user.home / "data"
    data.mkdir()
    engine.user.owns(data)
    hostprep.stop()
    hostprep.start(allow=str(data))

    assert docker.create("mongo", "-o", "uid=184", "-o", "gid=998", "-o", f"path={data}/mongo") == f"{data}/mongo"
    assert docker.run("mongo:/data", WRITE) == "written"
    assert owner(data / "mongo") == owner(data / "mongo/file") == on_host(184, 998)
    docker("volume", "rm", "mongo")
    assert (data / "mongo/file").exists()


@pytest.mark.parametrize("option", ["uid", "gid"])
def test_numbers_that_no_container_has(docker: Docker, option: str) -> None:
    """A number beyond the user's ranges is refused in words, and leaves nothing."""
    said = docker.fails("volume", "create", "--driver", "hostprep", "-o", f"{option}={COUNT + 1}", "mongo")

    assert f"option {option}: {COUNT + 1} is no number of this user's containers, which have 0 to {COUNT}" in said
    assert docker.volumes() == []
    docker.create("mongo", "-o", f"{option}={COUNT}")


@pytest.mark.thorough
def test_doctor(docker: Docker, hostprep: Users) -> None:
    """doctor speaks in the container's numbers, and finds the engine, its container and what keeps that out."""
    docker.create("mongo", "-o", "uid=184", "-o", "gid=998", "-o", "mode=0700")
    docker.daemon("mongod", "mongo:/data")
    docker("run", "-d", "--name", "named", "-u", "mongodb", "-v", "mongo:/data", "busybox", "sleep", "600")

    assert "userns" not in (found := hostprep.command("doctor", "mongo")).stdout
    assert found.returncode == 0, found.stdout

    docker("run", "-d", "--name", "other", "-u", "5:5", "-v", "mongo:/data", "busybox", "sleep", "600")
    found = hostprep.command("doctor", "mongo")
    assert found.returncode == 1
    assert "5:5 in container other may not read, write and enter" in found.stdout
    installation = hostprep.command("doctor")
    assert installation.returncode == 0, installation.stdout


@pytest.mark.thorough
def test_image(docker: Docker, engine: Rootless, hostprep: Users) -> None:
    """The numbers of an image are the container's, and the user's hostprep takes them as they are."""
    docker("import", "--change", "VOLUME /data", "-", "app", stdin=busybox(Entry("data", 0o750, 999, 998)))
    hostprep.stop()
    hostprep.start(docker_host=engine.host)

    mountpoint = docker.create("mongo", "-o", "image=app")

    assert owner(mountpoint) == on_host(999, 998)
    assert docker.run("mongo:/data", WRITE, user="999:998", image="app") == "written"
    probed = hostprep.command("probe", "app", "--json")
    assert probed.returncode == 0, probed.stderr
    assert json.loads(probed.stdout)["directories"][0]["options"] == {"uid": "999", "gid": "998"}
