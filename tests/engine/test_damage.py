"""Where hostprep cannot read its state it gives no answer at all: from any other the engine would conclude
that there is no such volume, and make a local one, empty, under the same name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep

from .client import WRITE, Docker

pytestmark = pytest.mark.engine


def truncated(record: Path) -> None:
    record.write_bytes(record.read_bytes()[:20])


def emptied(record: Path) -> None:
    record.write_bytes(b"")


def of_another_name(record: Path) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"name": "other"}))


def with_a_wrong_option(record: Path) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"options": {"uid": "-1"}}))


def of_another_owner(record: Path) -> None:
    os.chown(record, 184, 998)


def a_link(record: Path) -> None:
    record.rename(record.with_name("elsewhere"))
    record.symlink_to("elsewhere")


def a_directory(record: Path) -> None:
    record.unlink()
    record.mkdir()


def gone(record: Path) -> None:
    record.unlink()


DAMAGES = {
    function.__name__: function
    for function in (
        truncated, emptied, of_another_name, with_a_wrong_option, of_another_owner,
        a_link, a_directory, gone,
    )
}  # fmt: skip


def test_damaged_record(docker: Docker, hostprep: Hostprep) -> None:
    """However volume.json is damaged, docker run fails, no local volume is made, and the others work.

    One test for all, since the engine repeats every unanswered request for half a minute.
    """
    records = {}
    for name, damage in DAMAGES.items():
        docker.create(name)
        record = hostprep.root / "volumes" / name / "volume.json"
        records[record] = record.read_bytes()
        damage(record)
    docker.create("healthy")

    command = ("busybox", "touch", "/data/file")
    begun = {name: docker.begin("run", "--rm", "-v", f"{name}:/data", *command) for name in DAMAGES}
    assert docker.run("healthy:/data", WRITE) == "written"
    for process in begun.values():
        process.communicate(timeout=90)

    assert [name for name, process in begun.items() if process.returncode == 0] == []
    assert docker.volumes("--filter", "driver=local") == []
    assert set(docker.volumes("--filter", "driver=hostprep")) == {"healthy", *begun}
    for record, content in records.items():
        assert os.listdir(record.parent / "_data") == []
        restore(record, content)
        assert docker.run(f"{record.parent.name}:/data", WRITE) == "written"


def restore(record: Path, content: bytes) -> None:
    if record.is_dir():
        record.rmdir()
    record.unlink(missing_ok=True)
    record.write_bytes(content)
    record.chmod(0o600)


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


@pytest.mark.parametrize("how", ["moved", "volumes moved", "covered"])
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
