"""`path` in somebody's home, whose owner may put a link in the directory's place at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep, wait_for

from .client import IDS, OPTIONS, WRITE, Docker, mode, owner

pytestmark = pytest.mark.engine
USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--bounding-set=-all")
SWAP = """
import os, sys, time
directory, link, end = "mongodb", "link", time.monotonic() + 120
os.chdir(sys.argv[1])
while time.monotonic() < end:
    os.rename(directory, "moved")
    os.rename(link, directory)
    time.sleep(0.0005)
    os.rename(directory, link)
    os.rename("moved", directory)
    time.sleep(0.004)
"""


@pytest.fixture
def home(allowed: Path) -> Iterator[Path]:
    """The home of uid 1000, with mongodb in it and a link to the canary, a directory of nobody's beside it."""
    home, canary = allowed / "home", allowed / "canary"
    for directory in (home, home / "mongodb"):
        directory.mkdir(mode=0o755)
        os.chown(directory, 1000, 1000)
    canary.mkdir(mode=0o755)
    (canary / "which").write_text("canary\n")
    (home / "mongodb" / "which").write_text("verified\n")
    (home / "link").symlink_to(canary)
    os.chown(home / "link", 1000, 1000, follow_symlinks=False)
    yield home
    try:
        assert (owner(canary), mode(canary), owner(canary / "which")) == ((0, 0), "0755", (0, 0))
        assert os.listdir(canary) == ["which"]
    finally:
        shutil.rmtree(home)
        shutil.rmtree(canary)


@pytest.fixture
def place(hostprep: Hostprep) -> str:
    return f"{hostprep.root}/mounts/mongo"


def create(docker: Docker, home: Path) -> str:
    return docker.create("mongo", *OPTIONS, "-o", f"path={home}/mongodb")


def test_written_at_home(docker: Docker, engine: Engine, home: Path, place: str) -> None:
    """What the container writes is in the home; the volume goes with its mount, and the data stays."""
    assert create(docker, home) == place
    assert docker.run("mongo:/data", WRITE) == "written"
    assert docker.run("mongo:/data", "cat /data/which /data/file") == "verified\nwritten"
    assert engine.mounts().count(place) == 1
    assert owner(home / "mongodb") == owner(home / "mongodb" / "file") == (184, 998)

    docker("volume", "rm", "mongo")

    assert engine.mounts().count(place) == 0
    assert (home / "mongodb" / "file").read_text() == "written\n"


def test_copy_up(docker: Docker, home: Path) -> None:
    """What the image has there is copied into an empty directory in the home, which stays the declared owner's."""
    (home / "mongodb" / "which").unlink()
    create(docker, home)
    assert docker.run("mongo:/data", "cat /data/seed || ls -n /data", image="copyup", user="0:0") == "from the image"
    assert (home / "mongodb" / "seed").read_text() == "from the image"
    assert owner(home / "mongodb") == (184, 998)


def test_swapped_before_the_engine_binds(docker: Docker, engine: Engine, hostprep: Hostprep, home: Path) -> None:
    """Swapped for a link after hostprep's answer and before the engine binds it: the container has the verified one."""
    create(docker, home)
    real = "/run/hostprep-behind.sock"
    swap = [*USER, "sh", "-c", f"cd {home} && mv mongodb moved && mv link mongodb"]
    proxy = [sys.executable, str(Path(__file__).with_name("swapping.py")), "/run/docker/plugins/hostprep.sock", real]
    hostprep.stop()
    proxying = engine.spawn([*proxy, *swap], log=engine.home / "proxy.log")
    hostprep.start(socket=real)
    try:
        assert docker.run("mongo:/data", f"{WRITE}; cat /data/which", "--volume-driver=hostprep") == "written\nverified"
        assert (home / "mongodb").is_symlink()
        assert owner(home / "moved" / "file") == (184, 998)
        said = docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")
        assert f"{home}/mongodb is a symlink" in said
        docker("volume", "rm", "mongo")
    finally:
        proxying.kill()


def test_swapped_all_the_time(docker: Docker, home: Path) -> None:
    """While the home's owner swaps in a loop, each container has the verified directory or does not start."""
    create(docker, home)
    attacker = subprocess.Popen([*USER, sys.executable, "-c", SWAP, str(home)])
    ran = 0
    try:
        for _ in range(12):
            command = (
                "run",
                "--rm",
                "-u",
                IDS,
                "-v",
                "mongo:/data",
                "busybox",
                "sh",
                "-c",
                f"cat /data/which; {WRITE}",
            )
            done = docker.engine.client("docker", *command)
            assert done.stdout in ("verified\nwritten\n", ""), done.stdout
            assert (done.returncode == 0) is bool(done.stdout), done.stderr
            ran += done.returncode == 0
        assert attacker.poll() is None
    finally:
        attacker.send_signal(signal.SIGKILL)
        attacker.wait()
    assert ran > 0


def test_kept_through_restarts(docker: Docker, engine: Engine, hostprep: Hostprep, home: Path, place: str) -> None:
    """Plugin killed, dockerd restarted: there is the one mount, and the container that always runs has the data."""
    create(docker, home)
    docker.daemon("mongod", "mongo:/data", "--restart", "always", script="echo started >> /data/log; sleep 600")
    hostprep.kill()
    assert docker.exec("mongod", WRITE) == "written"
    hostprep.start()
    engine.stop()
    engine.start()
    log = home / "mongodb" / "log"
    wait_for(lambda: log.read_text() == "started\nstarted\n", "the container to run again")
    assert engine.mounts().count(place) == 1
    docker("rm", "-f", "mongod")
    docker("volume", "rm", "mongo")
    assert engine.mounts().count(place) == 0
    assert (home / "mongodb" / "file").read_text() == "written\n"


def test_after_a_reboot(docker: Docker, engine: Engine, hostprep: Hostprep, home: Path, place: str) -> None:
    """With the mount gone, as after a reboot, the next start of the container makes it anew."""
    create(docker, home)
    docker("run", "--name", "mongod", "-u", IDS, "-v", "mongo:/data", "busybox", "sh", "-c", WRITE)
    engine.run("umount", place)
    assert docker("start", "-a", "mongod") == "written"
    assert engine.mounts().count(place) == 1


def test_in_a_namespace_of_its_own(docker: Docker, engine: Engine, hostprep: Hostprep, home: Path, place: str) -> None:
    """hostprep in a mount namespace of its own, as PrivateTmp= gives it, says why the container does not start."""
    create(docker, home)
    hostprep.stop()
    hostprep.start(within=("unshare", "--mount", "--propagation", "slave"))
    said = docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")
    assert "the engine would not see" in said
    assert engine.mounts().count(place) == 0
