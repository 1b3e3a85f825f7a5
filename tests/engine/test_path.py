"""`path`: a volume that lies where the user says, below a prefix that the administrator allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine


def test_created(docker: Docker, allowed: Path) -> None:
    """A missing directory is made, is what the container sees, and stays when the volume is removed."""
    directory = allowed / "mongo-made"

    mountpoint = docker.create("mongo", *OPTIONS, "-o", f"path={directory}")
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")

    assert mountpoint == str(directory)
    assert (directory / "file").read_text() == "written\n"
    assert owner(directory) == owner(directory / "file") == (184, 998)


def test_adopted(docker: Docker, allowed: Path) -> None:
    """A directory that is there is adopted: its root gets the owner, its contents are left alone."""
    directory = allowed / "mongo-there"
    directory.mkdir()
    (directory / "old").write_text("there before\n")

    docker.create("mongo", *OPTIONS, "-o", f"path={directory}")

    assert docker.run("mongo:/data", "cat /data/old; echo new > /data/new") == "there before"
    assert owner(directory) == (184, 998)
    assert owner(directory / "old") == (0, 0)
    assert docker.inspect("mongo")["Status"]["warnings"] != []


def test_missing_at_start(docker: Docker, allowed: Path) -> None:
    """A directory that has gone, as with a disk not mounted, is an error in words and not made anew."""
    directory = allowed / "mongo-gone"
    docker.create("mongo", *OPTIONS, "-o", f"path={directory}")
    os.rmdir(directory)

    said = docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")

    assert str(directory) in said
    assert not directory.exists()


def test_overlap(docker: Docker, allowed: Path) -> None:
    """A directory in, above or the same as another volume's is refused, by that volume's name."""
    directory = allowed / "mongo-shared"
    docker.create("mongo", "-o", f"path={directory}")
    (directory / "inner").mkdir()

    for path in (directory, directory / "inner"):
        said = docker.fails("volume", "create", "-d", "hostprep", "-o", f"path={path}", "other")
        assert "mongo" in said.replace("mongo-shared", "")
    assert docker.volumes() == ["mongo"]


def test_the_engines_data(docker: Docker, hostprep: Hostprep) -> None:
    """The data of an engine that no configuration file names is known by its command line, and is no container's."""
    docker("volume", "create", "local")
    volume = Path(str(docker.inspect("local")["Mountpoint"]))
    root = volume.parents[2]
    for path in (root, root / "volumes", volume.parent, root / "new"):
        done = hostprep.command("prepare", "--dry-run", str(path), *OPTIONS)
        assert done.returncode == 1
        assert f"is, contains or lies in {root}" in done.stderr
