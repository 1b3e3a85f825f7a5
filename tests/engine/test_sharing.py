"""Several containers on a volume, one after another and at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.engine import Hostprep, wait_for

from .client import OPTIONS, WRITE, Docker, mode, owner

pytestmark = pytest.mark.engine


def test_two_containers(docker: Docker) -> None:
    """Two containers at once see each other's files, and one goes on when the other ends."""
    mountpoint = docker.create("mongo")
    docker.daemon("first", "mongo:/data")
    docker.daemon("second", "mongo:/data")

    docker.exec("first", "echo from first > /data/first")
    docker.exec("second", "cat /data/first; echo from second > /data/second")
    docker("rm", "-f", "second")

    assert docker.exec("first", "cat /data/second; echo more > /data/first") == "from second"
    assert owner(mountpoint) == owner(f"{mountpoint}/second") == (184, 998)


def test_restart(docker: Docker) -> None:
    """A restarted container finds its data, and can write."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script="echo started >> /data/log; sleep 600")

    docker("restart", "mongod")

    assert docker.exec("mongod", "cat /data/log") == "started\nstarted"
    assert owner(mountpoint) == (184, 998)


def test_restart_repairs(docker: Docker) -> None:
    """What somebody changed on the host is shown, and put right before the container runs again."""
    mountpoint = docker.create("mongo", *OPTIONS, "-o", "mode=0750")
    docker.daemon("mongod", "mongo:/data", script="echo started >> /data/log; sleep 600")
    os.chown(mountpoint, 0, 0)
    os.chmod(mountpoint, 0o700)
    status = docker.inspect("mongo")["Status"]
    assert (status["uid"], status["gid"], status["mode"], status["ready"]) == (0, 0, "0700", False)
    assert len(status["drift"]) >= 2

    docker("restart", "mongod")

    assert docker.exec("mongod", "cat /data/log") == "started\nstarted"
    assert owner(mountpoint) == owner(f"{mountpoint}/log") == (184, 998)
    assert mode(mountpoint) == "0750"


def test_run_repairs_the_tree(docker: Docker, tmp_path: Path) -> None:
    """A restored backup, root's throughout, is the container's at its next start."""
    mountpoint = Path(docker.create("mongo"))
    (mountpoint / "db").mkdir()
    (mountpoint / "db" / "table").write_text("from a backup\n")
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "file", mountpoint / "link")
    os.chown(mountpoint, 0, 0)

    script = "cat /data/db/table; echo more >> /data/db/table"
    assert docker.run("mongo:/data", script) == "from a backup"

    assert {owner(mountpoint / name) for name in ("db", "db/table", "link")} == {(184, 998)}
    assert owner(tmp_path / "file") == (0, 0)


def test_impatient(docker: Docker, hostprep: Hostprep) -> None:
    """A start that would have to wait longer than the patience is refused with how far the pass is; it goes on."""
    mountpoint = Path(docker.create("mongo"))
    for name in map(str, range(20_000)):
        os.mknod(mountpoint / name)
    os.chown(mountpoint, 0, 0)
    hostprep.stop()
    hostprep.start(patience="0")

    said = docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")
    wait_for(lambda: docker.inspect("mongo")["Status"]["ready"], "the pass to end")

    assert "entries" in said
    assert {owner(mountpoint / name) for name in os.listdir(mountpoint)} == {(184, 998)}
    assert docker.run("mongo:/data", WRITE) == "written"


def test_cp_into_running(docker: Docker, tmp_path: Path) -> None:
    """docker cp into a running container, for which the engine mounts once more, disturbs nothing."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data")
    (tmp_path / "given").write_text("from the host\n")

    docker("cp", str(tmp_path / "given"), "mongod:/data/given")

    assert docker.exec("mongod", f"cat /data/given; {WRITE}") == "from the host\nwritten"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
    docker("restart", "mongod")
    assert docker.exec("mongod", "cat /data/given") == "from the host"


def test_cp_out_of_running(docker: Docker, tmp_path: Path) -> None:
    """docker cp out of a running container gives the data, and the container goes on writing."""
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data")
    docker.exec("mongod", WRITE)

    docker("cp", "mongod:/data/file", str(tmp_path / "taken"))

    assert (tmp_path / "taken").read_text() == "written\n"
    docker.exec("mongod", "echo more >> /data/file")
    assert (Path(mountpoint) / "file").read_text() == "written\nmore\n"
    assert owner(mountpoint) == (184, 998)
