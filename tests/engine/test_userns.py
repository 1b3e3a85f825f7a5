"""Engines with userns-remap: uid and gid are the container's, and the host's ids that stand for them are on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep
from testbed.images import Entry, busybox

from .client import IDS, OPTIONS, WRITE, Docker, owner
from .conftest import Remapped
from .doctor import Doctor
from .probed import FILES

pytestmark = pytest.mark.engine
SHOW = f"{WRITE}; stat -c %u:%g /data /data/file"


@pytest.mark.parametrize(
    ("ranges", "ids", "there"),
    [
        pytest.param("one", "184:998", (100184, 100998), marks=pytest.mark.thorough),
        pytest.param("two", "184:998", (231256, 232070), marks=pytest.mark.thorough),
        ("two", "1500:998", (400500, 232070)),
    ],
)
def test_run(
    docker: Docker, remapped: Remapped, hostprep: Hostprep, ranges: str, ids: str, there: tuple[int, int]
) -> None:
    """A container writes as who it is, and root in it may, too; on disk are the ids that stand for it."""
    remapped.start(ranges)
    uid, gid = ids.split(":")
    mountpoint = docker.create("mongo", "-o", f"uid={uid}", "-o", f"gid={gid}")
    assert docker.run("mongo:/data", SHOW, user=ids).split() == ["written", ids, ids]
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == there
    assert docker.inspect("mongo")["Status"]["warnings"] == []
    docker.run("mongo:/data", "touch /data/roots; chown 7 /data/roots", user="0:0")
    status = docker.inspect("mongo")["Status"]
    assert (status["uid"], status["host_uid"], status["ready"]) == (int(uid), there[0], True)


@pytest.mark.thorough
def test_nothing_declared(docker: Docker, remapped: Remapped) -> None:
    """A volume without options is the container's root's; an image's directory gives it that one's owner."""
    remapped.start("one")
    docker("volume", "create", "-d", "hostprep", "plain")
    assert owner(docker.mountpoint("plain")) == (100000, 100000)
    docker.run("plain:/data", "touch /data/file", user="0:0")
    docker("volume", "create", "-d", "hostprep", "filled")
    docker.run("filled:/owned", "true", user="0:0", image="copyup")
    assert owner(docker.mountpoint("filled")) == (100055, 100066)


def test_copy_up(docker: Docker, remapped: Remapped) -> None:
    """What the image brings is the container's user's at the first instruction, and docker cp is put right."""
    remapped.start("two")
    mountpoint = docker.create("mongo")
    assert docker.run("mongo:/data", f"{SHOW}; cat /data/seed", image="copyup").endswith("from the image")
    there = [mountpoint, *(f"{mountpoint}/{name}" for name in ("seed", "conf", "conf/main", "file"))]
    assert {owner(path) for path in there} == {(231256, 232070)}


@pytest.mark.thorough
def test_restart(docker: Docker, remapped: Remapped, engine: Engine, hostprep: Hostprep) -> None:
    """Engine and hostprep are restarted, the owner is spoilt meanwhile: the container that restarts writes again."""
    remapped.start("one")
    mountpoint = docker.create("mongo")
    docker.daemon("db", "mongo:/data", "--restart", "always")
    engine.stop()
    hostprep.stop()
    os.chown(mountpoint, 184, 998)
    hostprep.start()
    engine.start(*engine.flags)
    assert docker.exec("db", SHOW).split() == ["written", IDS, IDS]
    assert owner(mountpoint) == (100184, 100998)


@pytest.mark.thorough
def test_userns_host(docker: Docker, remapped: Remapped) -> None:
    """For containers with the host's ids the volume says userns=host; without it they do not get in."""
    remapped.start("one")
    mountpoint = docker.create("mongo", *OPTIONS, "-o", "userns=host")
    assert docker.run("mongo:/data", SHOW, "--userns=host").split() == ["written", IDS, IDS]
    assert owner(mountpoint) == (184, 998)
    assert docker.inspect("mongo")["Status"]["warnings"] == []
    docker.create("other")
    mount = ("-u", IDS, "-v", "other:/data", "--userns=host")
    assert "denied" in docker.fails("run", "--rm", *mount, "busybox", "touch", "/data/file")


@pytest.mark.thorough
def test_another_map(docker: Docker, remapped: Remapped, hostprep: Hostprep) -> None:
    """After the engine was given another map, Status and log warn, no owner changes, and apply makes it right."""
    remapped.start("one")
    mountpoint = docker.create("mongo")
    remapped.start("two")
    docker("run", "--rm", "-v", "mongo:/data", "busybox", "true")
    assert owner(mountpoint) == (100184, 100998)
    (warning,) = docker.inspect("mongo")["Status"]["warnings"]
    assert "those of the engine are 0:231072:1000,1000:400000:64536" in warning
    assert f"mount of mongo: {warning}" in hostprep.log.read_text()
    done = hostprep.command("apply", "mongo", "-o", "userns=auto")
    assert done.returncode == 0, done.stderr
    assert docker.run("mongo:/data", SHOW).split() == ["written", IDS, IDS]
    assert docker.inspect("mongo")["Status"]["warnings"] == []


def test_refused(docker: Docker, remapped: Remapped, hostprep: Hostprep) -> None:
    """An id that no container has is refused in words, and leaves nothing."""
    remapped.start("one")
    said = docker.fails("volume", "create", "-d", "hostprep", "-o", "uid=65536", "mongo")
    assert "option uid: the engine's containers have no 65536 (they have 0:100000:65536)" in said
    assert os.listdir(hostprep.root / "volumes") == []


@pytest.mark.thorough
def test_by_path(docker: Docker, remapped: Remapped, allowed: Path) -> None:
    """A directory of the host by path."""
    remapped.start("one")
    docker.create("mongo", *OPTIONS, "-o", f"path={allowed}/remapped")
    assert docker.run("mongo:/data", SHOW).split() == ["written", IDS, IDS]
    assert owner(allowed / "remapped") == (100184, 100998)


@pytest.mark.thorough
@pytest.mark.parametrize("uid", ["184", "0"])
def test_host_ids(docker: Docker, remapped: Remapped, hostprep: Hostprep, uid: str) -> None:
    """With host_uid, what is the container's there is the host user's on disk; its root has power over it all."""
    hostprep.stop()
    hostprep.start(drop_ins=["user-ids.conf"])
    remapped.start("one")
    mine = ("-o", f"uid={uid}", "-o", f"gid={uid}", "-o", "host_uid=1000", "-o", "host_gid=1001")
    docker.create("mongo", *mine)
    on_disk = hostprep.root / "volumes/mongo/_data"
    # What the image's root has, a volume of root's keeps as it comes.
    said = docker.run("mongo:/data", SHOW, user=f"{uid}:{uid}", image="busybox" if uid == "0" else "copyup").split()
    assert said == ["written", *[f"{uid}:{uid}"] * 2]
    assert {owner(path) for path in (on_disk, *on_disk.rglob("*"))} == {(1000, 1001)}
    docker.run("mongo:/data", f"touch /data/roots; chown 7 /data/roots; chown {uid}:{uid} /data/roots", user="0:0")
    assert owner(on_disk / "roots") == (1000, 1001)
    status = docker.inspect("mongo")["Status"]
    shown = [status[key] for key in ("uid", "gid", "host_uid", "host_gid", "idmapped", "ready", "warnings")]
    assert shown == [int(uid), int(uid), 1000, 1001, True, True, []]
    docker.daemon("db", "mongo:/data", "-u", f"{uid}:{uid}")
    assert [each["verdict"] for each in Doctor(docker, hostprep).well("mongo")["findings"]].count("bad") == 0
    docker("rm", "-f", "db")
    assert hostprep.command("apply", "mongo", "-o", "userns=host").returncode == 0  # the map is another then
    docker.daemon("db", "mongo:/data", "-u", f"{uid}:{uid}", "--userns=host")
    assert docker.exec("db", f"{SHOW}").split() == ["written", *[f"{uid}:{uid}"] * 2]
    assert owner(on_disk / "file") == (1000, 1001)


@pytest.mark.thorough
@pytest.mark.parametrize("ranges", ["one", "two"])
def test_image(docker: Docker, remapped: Remapped, hostprep: Hostprep, engine: Engine, ranges: str) -> None:
    """image= and probe give the container's numbers, where the engine itself shows the host's."""
    remapped.start(ranges)
    hostprep.stop()
    hostprep.start(docker_host=engine.host)
    packed = busybox(*FILES, Entry("data", 0o750, 1700, 999))
    docker("import", "--change", "VOLUME /data", "-", "app", stdin=packed)  # as root, which switches to 1700
    mountpoint = docker.create("mongo", "-o", "image=app")
    status = docker.inspect("mongo")["Status"]
    assert status["resolved"] == {"uid": 1700, "gid": 999}
    assert owner(mountpoint) == {"one": (101700, 100999), "two": (400700, 232071)}[ranges]
    assert docker.run("mongo:/data", SHOW, user="1700:999").split() == ["written", "1700:999", "1700:999"]
    probed = hostprep.command("--docker-host", engine.host, "probe", "app")
    assert "uid=1700 -o gid=999" in probed.stdout, probed.stderr
