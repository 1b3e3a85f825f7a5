"""Volumes that another driver made, taken over as docs/migrating.md says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine


def test_a_local_volume(docker: Docker, hostprep: Hostprep) -> None:
    """Data of Docker's local driver is refused while a container runs on it, then moved; Docker lets go of the rest."""
    docker("volume", "create", "database")
    source = str(docker.inspect("database")["Mountpoint"])
    docker.run("database:/data", WRITE, user="0:0")
    docker.daemon("user", "database:/data")
    arguments = ("import", "--from", source, "database", *OPTIONS)

    refused = hostprep.command(*arguments)
    docker("rm", "-f", "user")
    moved = hostprep.command(*arguments)

    assert refused.returncode == 1
    assert "is in use: process" in refused.stderr
    assert moved.returncode == 0, moved.stderr
    assert not Path(source).exists()
    docker("volume", "rm", "database")
    assert not Path(source).parent.exists()
    assert docker.volumes("--filter", "driver=hostprep") == ["database"]
    assert docker.run("database:/data", "cat /data/file; echo more >> /data/file") == "written"
    assert owner(f"{docker.inspect('database')['Mountpoint']}/file") == (184, 998)


def test_local_persist(docker: Docker, hostprep: Hostprep, allowed: Path) -> None:
    """A volume of local-persist's file is Docker's to use at once, with its directory where it was."""
    directory = allowed / "persisted"
    directory.mkdir()
    (directory / "file").write_text("kept\n")
    state = hostprep.root.parent / "local-persist.json"
    state.write_text(json.dumps({"state": {"persisted": str(directory)}}))

    done = hostprep.command("import", "--local-persist", str(state), *OPTIONS)

    assert done.returncode == 0, done.stderr
    assert docker.run("persisted:/data", "cat /data/file; touch /data/new") == "kept"
    assert owner(directory / "new") == (184, 998)
    docker("volume", "create", "-d", "hostprep", "-o", f"mountpoint={directory}", *OPTIONS, "persisted")
    docker("volume", "rm", "persisted")
    assert (directory / "file").exists()


def test_a_local_volume_with_options(docker: Docker, hostprep: Hostprep) -> None:
    """A local volume that mounts something leaves opts.json beside its directory, by which an import refuses it."""
    docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mounting")
    source = str(docker.inspect("mounting")["Mountpoint"])

    refused = hostprep.command("import", "--from", source, "mounting")

    assert refused.returncode == 1
    assert "options of Docker's local driver" in refused.stderr
    assert Path(source).exists()
