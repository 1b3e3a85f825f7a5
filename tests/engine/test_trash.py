"""A removed volume can be had back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine
RETAIN = (*OPTIONS, "-o", "on_remove=retain")


def test_restore(docker: Docker, hostprep: Hostprep) -> None:
    """docker volume rm, hostprep restore: the data is back, docker run sees it and can write it."""
    mountpoint = docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    before = docker.inspect("mongo")
    docker("volume", "rm", "mongo")
    assert docker.volumes() == []

    restored = hostprep.command("restore", "mongo")

    assert restored.returncode == 0, restored.stderr
    assert docker.volumes("--filter", "driver=hostprep") == ["mongo"]
    assert docker.run("mongo:/data", "cat /data/file; echo more >> /data/file") == "written"
    after = docker.inspect("mongo")
    assert (after["Mountpoint"], after["CreatedAt"]) == (mountpoint, before["CreatedAt"])
    assert after["Status"]["options"] == before["Status"]["options"]
    assert owner(mountpoint) == (184, 998)


# The first process is in a chroot, as that of postfix or bind, or not; another one is not.
PROCESSES = {
    "one process": "exec sleep 1000",
    "first in a chroot": "mkdir /jail; cp /bin/busybox /jail; sleep 1000 & exec chroot /jail /busybox sleep 1000",
}


@pytest.mark.parametrize("script", PROCESSES.values(), ids=PROCESSES)
def test_purge_of_what_is_in_use(docker: Docker, hostprep: Hostprep, script: str) -> None:
    """What somebody removed while a container uses it is not purged before the container is gone."""
    hostprep.command("purge", "--all")
    docker.create("mongo")
    docker("run", "-d", "--name", "one", "-v", "mongo:/data", "busybox", "sh", "-euc", script)
    refused = hostprep.command("rm", "mongo")
    assert (refused.returncode, "volume mongo is in use: process" in refused.stderr) == (1, True)
    assert hostprep.command("rm", "--force", "mongo").returncode == 0

    purged = hostprep.command("purge", "--all")

    assert (purged.returncode, purged.stdout.strip()) == (1, "0 purged")
    assert "is not purged: process" in purged.stderr
    docker("exec", "one", "sh", "-c", "echo kept > /data/file")
    docker("rm", "-f", "one")
    purged = hostprep.command("purge", "--all")
    assert (purged.returncode, purged.stdout.strip()) == (0, "1 purged"), purged.stderr


def test_prune(docker: Docker) -> None:
    """Docker's prunes take no volume of hostprep's that nobody uses, whatever their flags."""
    docker.create("mongo")
    docker("volume", "prune", "-f")
    docker.engine.client("docker", "volume", "prune", "-a", "-f")  # named ones, too, since 23.0
    docker("system", "prune", "--volumes", "-f")
    assert docker.volumes() == ["mongo"]


def test_restore_refused(docker: Docker, hostprep: Hostprep) -> None:
    """A volume that exists is never replaced by one from the trash; under another name both are there."""
    docker.create("mongo")
    docker.run("mongo:/data", "echo old > /data/file")
    docker("volume", "rm", "mongo")
    docker.create("mongo")
    docker.run("mongo:/data", "echo new > /data/file")

    refused = hostprep.command("restore", "mongo")
    restored = hostprep.command("restore", "mongo", "--as", "old-mongo")

    assert refused.returncode == 1
    assert restored.returncode == 0, restored.stderr
    assert docker.run("mongo:/data", "cat /data/file") == "new"
    assert docker.run("old-mongo:/data", "cat /data/file") == "old"


def test_restore_newest(docker: Docker, hostprep: Hostprep) -> None:
    """Of several removed volumes of one name, even within a second, the one removed last is restored."""
    for generation in range(8):
        mountpoint = docker.create("mongo")
        (Path(mountpoint) / "file").write_text(f"{generation}\n")
        docker("volume", "rm", "mongo")

    restored = hostprep.command("restore", "mongo")

    assert restored.returncode == 0, restored.stderr
    assert docker.run("mongo:/data", "cat /data/file") == "7"


def test_listed(docker: Docker, hostprep: Hostprep) -> None:
    """Removed volumes are listed in the trash, each with the id that restores it."""
    docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")

    listed = json.loads(hostprep.command("ls", "--trash", "--json").stdout)

    assert "mongo" in {entry["name"] for entry in listed}


def test_retain(docker: Docker, hostprep: Hostprep) -> None:
    """With on_remove=retain a create of the same name takes the data up again, and says so."""
    mountpoint = docker.create("mongo", *RETAIN)
    docker.run("mongo:/data", WRITE)

    docker("volume", "rm", "mongo")
    assert docker.volumes() == []
    assert (Path(mountpoint) / "file").read_text() == "written\n"
    docker.create("mongo", *RETAIN)

    assert docker.run("mongo:/data", "cat /data/file") == "written"
    assert any("retained" in warning for warning in docker.inspect("mongo")["Status"]["warnings"])
    remove_retained(docker, hostprep)


def test_retain_other_owner(docker: Docker, hostprep: Hostprep) -> None:
    """Taken up with other options, the volume and what is in it follow these."""
    mountpoint = docker.create("mongo", *RETAIN)
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")

    docker.create("mongo", "-o", "uid=1000", "-o", "gid=1000", "-o", "on_remove=retain")

    script = "cat /data/file; echo more >> /data/file"
    assert docker.run("mongo:/data", script, user="1000:1000") == "written"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (1000, 1000)
    remove_retained(docker, hostprep)


def remove_retained(docker: Docker, hostprep: Hostprep) -> None:
    docker("volume", "rm", "mongo")
    removed = hostprep.command("rm", "--retained", "mongo")
    assert removed.returncode == 0, removed.stderr
