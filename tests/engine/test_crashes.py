"""hostprep and dockerd restarted and killed: the data is there, its owner right, the next start works."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep, wait_for

from .client import IDS, OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine
LOG = "echo started >> /data/log; sleep 600"


def finished(process: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str]:
    """What a command begun earlier ended with, and what it printed."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def test_plugin_killed_while_a_container_runs(docker: Docker, hostprep: Hostprep) -> None:
    """The container never notices; when hostprep is back it can be removed, and the next one started."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script=LOG)

    hostprep.kill()
    assert docker.exec("mongod", WRITE) == "written"
    hostprep.start()

    docker("rm", "-f", "mongod")
    assert docker.run("mongo:/data", "cat /data/log /data/file") == "started\nwritten"
    assert owner(mountpoint) == (184, 998)


def test_plugin_killed_while_a_create_waits(docker: Docker, hostprep: Hostprep) -> None:
    """The engine repeats the request that got no answer, and the user sees nothing of it."""
    hostprep.process.signal(signal.SIGSTOP)
    creating = docker.begin("volume", "create", "-d", "hostprep", *OPTIONS, "mongo")
    time.sleep(0.5)
    assert creating.poll() is None, finished(creating)

    hostprep.kill()
    hostprep.start()

    assert finished(creating) == (0, "mongo\n")
    assert owner(docker.inspect("mongo")["Mountpoint"]) == (184, 998)
    assert docker.run("mongo:/data", WRITE) == "written"


def test_plugin_killed_in_the_middle_of_a_pass(docker: Docker, hostprep: Hostprep) -> None:
    """A Mount was giving the whole tree its owner: the next start of a container finishes what was begun.

    The engine repeats the Mount without its contents, so nobody can know for which volume: that start fails.
    """
    mountpoint = Path(docker.create("mongo"))
    for directory in map(str, range(20)):
        (mountpoint / directory).mkdir()
        for name in map(str, range(1000)):
            os.mknod(mountpoint / directory / name)
    os.chown(mountpoint, 0, 0)
    mark = mountpoint.parent / "pass.json"

    running = docker.begin("run", "--rm", "-u", IDS, "-v", "mongo:/data", "busybox", "sh", "-euc", WRITE)
    wait_for(mark.exists, "the mark of a pass")
    hostprep.kill()
    interrupted = mark.exists()
    hostprep.start()
    code, printed = finished(running)

    assert interrupted, "the pass was over before the kill: make the tree larger"
    assert (code, printed.count("VolumeDriver.Mount")) == (125, 1)
    assert docker.run("mongo:/data", WRITE) == "written"
    assert not mark.exists()
    owners = {owner(f"{top}/{name}") for top, dirs, files in os.walk(mountpoint) for name in (*dirs, *files)}
    assert owners == {(184, 998)}


def test_dockerd_restarted(docker: Docker, engine: Engine) -> None:
    """dockerd stops and starts, and with it a container that always restarts."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", "--restart", "always", script=LOG)

    engine.stop()
    engine.start()

    log = Path(mountpoint) / "log"
    wait_for(lambda: log.read_text() == "started\nstarted\n", "the container to run again")
    assert docker.inspect("mongo")["Status"]["ready"] is True
    assert owner(mountpoint) == (184, 998)
    docker("rm", "-f", "mongod")
    assert docker.run("mongo:/data", WRITE) == "written"


def test_dockerd_started_before_hostprep(docker: Docker, engine: Engine, hostprep: Hostprep) -> None:
    """Without a socket, an engine that starts forgets the volume, and a new container gets an empty local one.

    Once hostprep is there and that local volume is removed, the data is back.
    """
    docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    hostprep.stop()
    engine.stop()
    engine.start()
    assert docker("run", "--rm", "-v", "mongo:/data", "busybox", "ls", "/data") == ""
    hostprep.start()

    assert docker.inspect("mongo")["Driver"] == "local"
    docker("volume", "rm", "mongo")
    assert docker.run("mongo:/data", "cat /data/file") == "written"


def restart(engine: Engine) -> None:
    engine.stop()
    engine.start("--live-restore")


def crash(engine: Engine) -> None:
    engine.kill()
    engine.start("--live-restore")


@pytest.mark.parametrize("interrupt", [restart, crash])
def test_dockerd_live_restore(docker: Docker, engine: Engine, interrupt: Callable[[Engine], None]) -> None:
    """A container lives on without dockerd, and with the next dockerd can be restarted and removed."""
    engine.stop()
    engine.start("--live-restore")
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script=LOG)

    interrupt(engine)

    assert docker.exec("mongod", f"cat /data/log; {WRITE}") == "started\nwritten"
    assert owner(mountpoint) == (184, 998)
    docker("restart", "mongod")
    assert docker.exec("mongod", "cat /data/log") == "started\nstarted"
    docker("rm", "-f", "mongod")
    assert docker.run("mongo:/data", WRITE) == "written"


def test_dockerd_killed(docker: Docker, engine: Engine) -> None:
    """Without live-restore a crash of dockerd ends the container in the end, and its data is there."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script=LOG)

    engine.kill()
    engine.start()

    docker("start", "mongod")
    assert docker.exec("mongod", f"cat /data/log; {WRITE}") == "started\nstarted\nwritten"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


def test_both_killed(docker: Docker, engine: Engine, hostprep: Hostprep) -> None:
    """After a power cut, as far as that can be had without one, the volume is used as before."""
    mountpoint = docker.create("mongo")
    docker.run("mongo:/data", WRITE)

    engine.kill()
    hostprep.kill()
    hostprep.start()
    engine.start()

    assert docker.volumes() == ["mongo"]
    assert docker.run("mongo:/data", "cat /data/file; echo more >> /data/file") == "written"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
