"""What a user does every day, on a real engine."""

from __future__ import annotations

import datetime
import json
import os
import re
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep

from .client import IDS, WRITE, Docker, mode, owner

pytestmark = pytest.mark.engine


def test_create(docker: Docker) -> None:
    """A new volume is a directory on the host with the declared owner, before any container has used it."""
    mountpoint = docker.create("mongo")

    assert owner(mountpoint) == (184, 998)
    assert mode(mountpoint) == "0755"
    assert os.listdir(mountpoint) == []


def test_inspect(docker: Docker, hostprep: Hostprep) -> None:
    """inspect shows where the volume is, what was asked and what is on disk."""
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)

    docker.create("mongo", "-o", "uid=184", "-o", "gid=998", "-o", "mode=02770")

    found = docker.inspect("mongo")
    status = found["Status"]
    assert found["Driver"] == "hostprep"
    assert found["Scope"] == "local"
    assert found["Mountpoint"] == f"{hostprep.root}/volumes/mongo/_data"
    assert found["Options"] == status["options"] == {"uid": "184", "gid": "998", "mode": "02770"}
    assert (status["uid"], status["gid"], status["mode"]) == (184, 998, "02770")
    assert (status["ready"], status["drift"], status["warnings"]) == (True, [], [])
    assert "progress" not in status
    created = datetime.datetime.fromisoformat(found["CreatedAt"])
    assert before <= created <= datetime.datetime.now(datetime.UTC)


def test_ls(docker: Docker) -> None:
    """ls names every volume, with its driver."""
    docker.create("mongo")
    docker.create("redis")

    listed = docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}").splitlines()

    assert sorted(listed) == ["hostprep mongo", "hostprep redis"]


def test_rm(docker: Docker) -> None:
    """rm takes the volume away from the engine and from the host's volumes."""
    mountpoint = docker.create("mongo")

    docker("volume", "rm", "mongo")

    assert docker.volumes() == []
    assert not Path(mountpoint).parent.exists()


def test_rm_in_use(docker: Docker) -> None:
    """A volume that a container uses stays, with its data."""
    docker.create("mongo")
    docker.daemon("writer", "mongo:/data", script="echo written > /data/file; sleep 600")

    assert "in use" in docker.fails("volume", "rm", "mongo")

    assert docker.exec("writer", "cat /data/file") == "written"


def test_rm_unknown(docker: Docker) -> None:
    """The engine says of an unknown volume that there is none."""
    assert "no such volume" in docker.fails("volume", "rm", "nothing").lower()


def test_create_again(docker: Docker) -> None:
    """Creating a volume that exists succeeds and changes nothing: the engine does not even ask."""
    docker.create("mongo")
    before = docker.inspect("mongo")

    docker.create("mongo", "-o", "uid=7")

    assert docker.inspect("mongo")["Status"]["uid"] == 184
    assert docker.inspect("mongo")["CreatedAt"] == before["CreatedAt"]


def test_run(docker: Docker) -> None:
    """A container that runs as 184:998 writes into the volume, and the host sees its file as 184:998's."""
    mountpoint = docker.create("mongo")

    assert docker.run("mongo:/data", WRITE) == "written"

    assert (Path(mountpoint) / "file").read_text() == "written\n"
    assert owner(f"{mountpoint}/file") == owner(mountpoint) == (184, 998)


def test_run_sees_only_data(docker: Docker) -> None:
    """Nothing of hostprep's is in the directory that the container sees."""
    docker.create("mongo")

    assert docker.run("mongo:/data", "ls -A /data") == ""


def test_run_read_only(docker: Docker) -> None:
    """A :ro mount of the volume can be read and not written."""
    docker.create("mongo")
    docker.run("mongo:/data", WRITE)

    assert docker.run("mongo:/data:ro", "cat /data/file; ! touch /data/file 2>/dev/null") == "written"


def test_run_mount(docker: Docker) -> None:
    """--mount with volume-driver and volume-opt makes the volume and uses it."""
    options = "volume-opt=uid=184,volume-opt=gid=998,volume-opt=mode=0700"
    mount = f"type=volume,source=mongo,target=/data,volume-driver=hostprep,{options}"

    assert docker("run", "--rm", "-u", IDS, "--mount", mount, "busybox", "sh", "-euc", WRITE) == "written"

    mountpoint = docker.inspect("mongo")["Mountpoint"]
    assert owner(mountpoint) == (184, 998)
    assert mode(mountpoint) == "0700"


def test_run_volume_driver(docker: Docker, hostprep: Hostprep) -> None:
    """--volume-driver, which knows no options, makes a volume of root's, 0755."""
    flags = ("--volume-driver", "hostprep", "-v", "plain:/data")

    assert docker("run", "--rm", *flags, "busybox", "sh", "-euc", WRITE) == "written"

    mountpoint = docker.inspect("plain")["Mountpoint"]
    assert mountpoint == f"{hostprep.root}/volumes/plain/_data"
    assert owner(mountpoint) == (0, 0)
    assert mode(mountpoint) == "0755"


def test_run_anonymous(docker: Docker, hostprep: Hostprep) -> None:
    """An anonymous volume of a container with --rm is there while it runs, and gone after it."""
    mount = "type=volume,target=/data,volume-driver=hostprep,volume-opt=uid=184,volume-opt=gid=998"
    script = f"{WRITE}; ls -ldn /data"

    printed = docker("run", "--rm", "-u", IDS, "--mount", mount, "busybox", "sh", "-euc", script)

    assert re.fullmatch(r"written\ndrwxr-xr-x +2 184 +998 .* /data", printed)
    assert docker.volumes() == []
    assert os.listdir(hostprep.root / "volumes") == []


def test_run_volumes_from(docker: Docker) -> None:
    """--volumes-from gives a second container the first one's volume, writable."""
    mountpoint = docker.create("mongo")
    docker("create", "--name", "first", "-v", "mongo:/data", "busybox", "true")

    flags = ("--rm", "-u", IDS, "--volumes-from", "first")
    assert docker("run", *flags, "busybox", "sh", "-euc", WRITE) == "written"

    assert owner(f"{mountpoint}/file") == (184, 998)


COMPOSE = """
version: "3.4"
services:
  database:
    image: busybox
    user: "184:998"
    network_mode: none
    volumes: ["mongo:/data"]
    command: ["sh", "-euc", "echo written >> /data/file"]
volumes:
  mongo:
    driver: hostprep
    driver_opts:
      uid: 184
      gid: "998"
      mode: %s
"""


def compose(engine: Engine, directory: Path, mode: str, *args: str) -> tuple[int, str]:
    """Run Compose on one service and one volume: what it ended with, and what it printed."""
    if not engine.has("docker-compose"):
        pytest.skip("docker-compose is not installed")
    (directory / "docker-compose.yml").write_text(COMPOSE % mode)
    done = engine.client("docker-compose", "--project-name", "demo", *args, cwd=directory)
    return done.returncode, done.stdout + done.stderr


def test_compose(docker: Docker, engine: Engine, tmp_path: Path) -> None:
    """Compose makes the volume from driver_opts, uses it at the next up, and removes it with down -v."""
    for _ in range(2):
        code, printed = compose(engine, tmp_path, '"0750"', "up", "--abort-on-container-exit")
        assert code == 0, printed

    found = docker.inspect("demo_mongo")
    mountpoint = found["Mountpoint"]
    assert found["Driver"] == "hostprep"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
    assert mode(mountpoint) == "0750"
    assert (Path(mountpoint) / "file").read_text() == "written\nwritten\n"

    code, printed = compose(engine, tmp_path, '"0750"', "down", "--volumes")
    assert code == 0, printed
    assert docker.volumes() == []


def test_compose_unquoted_mode(docker: Docker, engine: Engine, tmp_path: Path) -> None:
    """A mode without quotes, of which YAML makes another number, is refused with how to write it."""
    code, printed = compose(engine, tmp_path, "0750", "up", "--abort-on-container-exit")

    assert code != 0
    assert '"488"' in printed
    assert 'mode: "0750"' in printed
    assert docker.volumes() == []


def test_server_restarted(docker: Docker, hostprep: Hostprep) -> None:
    """A server that was stopped takes its socket away; the next one knows the same volumes."""
    docker.create("mongo")
    before = docker.inspect("mongo")

    assert hostprep.stop() == 0
    assert not hostprep.socket.exists()
    hostprep.start()

    assert docker.inspect("mongo") == before
    assert docker.run("mongo:/data", WRITE) == "written"


def test_command_line_sees_the_volume(docker: Docker, hostprep: Hostprep) -> None:
    """`hostprep ls` and the engine name the same volume; what the command line makes, the engine can use."""
    docker.create("mongo")

    made = hostprep.command("create", "redis", "-o", "uid=184")
    listed = hostprep.command("ls", "--json")

    assert made.returncode == 0, made.stderr
    assert [volume["name"] for volume in json.loads(listed.stdout)] == ["mongo", "redis"]
    assert docker.run("redis:/data", WRITE) == "written"
