"""`-o image=`: the engine waits for the driver's answer to Create, and the driver asks that engine about the image."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep
from testbed.images import Entry, busybox

from .client import Docker, owner
from .probed import FILES

pytestmark = pytest.mark.engine
TWO = (Entry("data", 0o755, 999, 998), Entry("logs", 0o755, 1000, 1001))


@pytest.fixture
def asking(docker: Docker, hostprep: Hostprep, engine: Engine) -> Iterator[Docker]:
    """A hostprep that may ask the engine that it serves, and images to ask about."""
    hostprep.stop()
    hostprep.start(docker_host=engine.host)
    volumes = ("--change", "VOLUME /data", "--change", "USER app")
    docker("import", *volumes, "-", "app", stdin=busybox(*FILES, Entry("data", 0o750, 1000, 1001)))
    docker("import", "--change", "VOLUME /data", "--change", "VOLUME /logs", "-", "two", stdin=busybox(*FILES, *TWO))
    yield docker
    assert docker("ps", "-aq", "--filter", "label=hostprep.probe") == ""


def test_create(asking: Docker) -> None:
    """docker volume create takes the numbers from the image, and Status shows both."""
    mountpoint = asking.create("mongo", "-o", "image=app")

    assert owner(mountpoint) == (1000, 1001)
    status = asking.inspect("mongo")["Status"]
    assert status["options"] == {"image": "app"}
    assert status["resolved"] == {"uid": 1000, "gid": 1001}
    assert status["ready"] is True
    assert asking.volumes() == ["mongo"]


def test_explicit_options_win(asking: Docker) -> None:
    """A uid that is given stands, and the gid is the image's."""
    assert owner(asking.create("mongo", "-o", "image=app", "-o", "uid=5")) == (5, 1001)


def test_at(asking: Docker) -> None:
    """`at` says where in the image; VOLUMEs of different owners need it."""
    assert "at=" in asking.fails("volume", "create", "-d", "hostprep", "-o", "image=two", "mongo")
    assert owner(asking.create("data", "-o", "image=two", "-o", "at=/data")) == (999, 998)
    assert owner(asking.create("logs", "-o", "image=two", "-o", "at=/logs")) == (1000, 1001)


def test_at_without_image(asking: Docker) -> None:
    """`at` alone is refused."""
    assert "image" in asking.fails("volume", "create", "-d", "hostprep", "-o", "at=/data", "mongo")


def test_absent(asking: Docker, hostprep: Hostprep) -> None:
    """An image that the engine does not have is an error that says how to pull it; nothing is left."""
    said = asking.fails("volume", "create", "-d", "hostprep", "-o", "image=absent:7", "mongo")
    assert "docker pull absent:7" in said
    assert os.listdir(hostprep.root / "volumes") == []


def test_run(asking: Docker) -> None:
    """docker run, which holds its container while the volume is made, makes one with the image's numbers."""
    mount = "type=volume,source=mongo,target=/data,volume-driver=hostprep,volume-opt=image=app"
    printed = asking(
        "run", "--rm", "--mount", mount, "app", "sh", "-euc", "id -u; touch /data/file; stat -c %u:%g /data"
    )
    assert printed.split() == ["1000", "1000:1001"]


def test_many_at_once(asking: Docker) -> None:
    """Many Creates at once ask the engine at once, and all are answered."""
    begun = [
        asking.begin("volume", "create", "-d", "hostprep", "-o", "image=app", f"volume{number}") for number in range(12)
    ]
    for process in begun:
        assert process.communicate(timeout=180)[1] == ""
        assert process.returncode == 0
    assert {owner(asking.inspect(name)["Mountpoint"]) for name in asking.volumes()} == {(1000, 1001)}


def test_mount_asks_nobody(asking: Docker, hostprep: Hostprep) -> None:
    """When the image is gone, and the server may ask nobody, containers start as before."""
    asking("tag", "app", "app:old")
    mountpoint = asking.create("mongo", "-o", "image=app:old")
    asking("rmi", "app:old")
    hostprep.stop()
    hostprep.start()
    os.chown(mountpoint, 0, 0)
    asking.run("mongo:/data", "touch /data/file", user="1000:1001")
    assert owner(mountpoint) == (1000, 1001)


def test_create_again(asking: Docker, hostprep: Hostprep) -> None:
    """An equal Create succeeds although the image is gone; the command line meets the same volume."""
    asking("tag", "app", "app:old")
    asking.create("mongo", "-o", "image=app:old")
    asking("rmi", "app:old")
    host = ("--docker-host", asking.engine.host)
    assert hostprep.command(*host, "create", "mongo", "-o", "image=app:old").returncode == 0
    assert hostprep.command("create", "mongo", "-o", "image=app:old").returncode == 0
    assert hostprep.command(*host, "create", "mongo", "-o", "image=app").returncode == 1


def test_apply(asking: Docker, hostprep: Hostprep) -> None:
    """apply looks into the image again."""
    mountpoint = asking.create("mongo", "-o", "image=app")
    done = hostprep.command("--docker-host", asking.engine.host, "apply", "mongo", "-o", "image=two", "-o", "at=/data")
    assert done.returncode == 0, done.stderr
    assert owner(mountpoint) == (999, 998)
    record = json.loads((hostprep.root / "volumes/mongo/volume.json").read_text())
    assert record["options"] == {"image": "two", "at": "/data"}
    assert record["resolved"] == {"uid": "999", "gid": "998"}


def test_not_allowed(docker: Docker) -> None:
    """Without HOSTPREP_DOCKER_HOST the option is refused, with who sets it."""
    said = docker.fails("volume", "create", "-d", "hostprep", "-o", "image=busybox", "mongo")
    assert "HOSTPREP_DOCKER_HOST" in said


def test_an_engine_that_hangs(asking: Docker, hostprep: Hostprep, engine: Engine) -> None:
    """A Create gives up on an engine that does not answer; until then other verbs on that name do not wait for it."""
    # Not the whole group: its nsenter stops when it sees that dockerd has, which may then be after the SIGCONT.
    os.kill(engine.dockerd.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            create = pool.submit(post, hostprep, "Create", {"Name": "hanging", "Opts": {"image": "app"}})
            time.sleep(1)  # by now it has asked, or is about to
            assert "no volume hanging" in post(hostprep, "Mount", {"Name": "hanging", "ID": "x"})
            assert "no volume hanging" in post(hostprep, "Remove", {"Name": "hanging"})
            assert not create.done()
            assert "does not answer in time" in create.result()
    finally:
        engine.dockerd.signal(signal.SIGCONT)
    assert not Path(hostprep.root / "volumes/hanging").exists()


def post(hostprep: Hostprep, verb: str, body: dict[str, object]) -> str:
    """What the driver answers to the engine, when the engine itself cannot ask."""
    data = json.dumps(body).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(hostprep.socket))
        head = f"POST /VolumeDriver.{verb} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        answer = b""
        while got := connection.recv(65536):
            answer += got
    return answer.decode()
