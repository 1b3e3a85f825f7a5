"""Where hostprep cannot read its state it gives no answer at all: from any other the engine would conclude
that there is no such volume, and make a local one, empty, under the same name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep

from .client import WRITE, Docker

pytestmark = pytest.mark.engine


def test_damaged_record(docker: Docker, hostprep: Hostprep) -> None:
    """With volume.json cut short docker run fails, no local volume is made, and other volumes work.

    What else may be wrong with a record, and is answered in the same way, is told by tests/unit/volumes/test_record.py.
    """
    docker.create("damaged")
    docker.create("healthy")
    record = hostprep.root / "volumes/damaged/volume.json"
    content = record.read_bytes()
    record.write_bytes(content[:20])

    begun = docker.begin("run", "--rm", "-v", "damaged:/data", "busybox", "touch", "/data/file")
    assert docker.run("healthy:/data", WRITE) == "written"
    begun.communicate(timeout=180)  # the engine repeats the unanswered request for half a minute

    assert begun.returncode != 0
    assert docker.volumes("--filter", "driver=local") == []
    assert set(docker.volumes("--filter", "driver=hostprep")) == {"healthy", "damaged"}
    assert os.listdir(record.parent / "_data") == []
    record.write_bytes(content)
    assert docker.run("damaged:/data", WRITE) == "written"


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    away = path.with_name("away")
    path.rename(away)
    yield
    if path.exists():
        shutil.rmtree(path)
    away.rename(path)


@contextlib.contextmanager
def covered(engine: Engine, path: Path) -> Iterator[None]:
    """As by a disk mounted in its place."""
    engine.run("mount", "-t", "tmpfs", "tmpfs", str(path))
    yield
    engine.run("umount", str(path))


@pytest.mark.parametrize(
    "how", ["moved", *(pytest.param(how, marks=pytest.mark.thorough) for how in ("volumes moved", "covered"))]
)
def test_unreadable_root(docker: Docker, engine: Engine, hostprep: Hostprep, how: str) -> None:
    """Without its root directory docker run fails, and no local volume is made; with it all is as before."""
    docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    root = hostprep.root
    taken = {
        "moved": moved_away(root),
        "volumes moved": moved_away(root / "volumes"),
        "covered": covered(engine, root),
    }

    with taken[how]:
        docker.fails("run", "--rm", "-v", "mongo:/data", "busybox", "touch", "/data/file")
        local = docker.volumes("--filter", "driver=local")

    assert local == []
    assert docker.run("mongo:/data", "ls /data; cat /data/file") == "file\nwritten"
