"""What a user of Podman does every day, as the user root."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from testbed import releases
from testbed.engine import TOP, Engine, Hostprep, wait_for

from ..client import IDS, OPTIONS, WRITE, Docker, Podman, mode, owner

pytestmark = pytest.mark.engine
FIRST = "echo written > /data/file; cat /data/file; cat /data/seed"


def test_create(podman: Podman) -> None:
    """A new volume is a directory on the host with the declared owner; inspect says what was asked."""
    mountpoint = podman.create("mongo", *OPTIONS, "-o", "mode=0750")

    assert (owner(mountpoint), mode(mountpoint)) == ((184, 998), "0750")
    found = podman.inspect("mongo")
    assert (found["Driver"], found["Options"]) == ("hostprep", {"uid": "184", "gid": "998", "mode": "0750"})


def test_wrong_option(podman: Podman) -> None:
    """What hostprep says of a wrong option reaches the user; nothing is left of it."""
    said = podman.fails("volume", "create", "--driver", "hostprep", "-o", "mode=488", "mongo")

    assert 'mode: "0750"' in said
    assert podman.volumes() == []


def test_owner_in_its_own_words(podman: Podman) -> None:
    """`o=uid=…,gid=…`, which Podman sends with UID and GID, declares owner and group; the same again is no conflict."""
    mountpoint = podman.create("mongo", "-o", "o=uid=184,gid=998", "-o", "mode=0750")
    assert (owner(mountpoint), mode(mountpoint)) == ((184, 998), "0750")
    assert podman.run("mongo:/data", WRITE) == "written"


def test_quadlet(podman: Podman, engine: Engine) -> None:
    """User= and Group= of a Quadlet's volume declare owner and group, and PodmanArgs= any other option."""
    quadlet, units = "/usr/libexec/podman/quadlet", engine.home / "quadlets"
    if not engine.view(quadlet).exists():
        assert podman("--version").startswith("podman version 4.3.")  # the last without Quadlet
        return
    units.mkdir()
    page = (TOP / "docs/podman.md").read_text()
    (units / "mongo.volume").write_text(page.split("```ini\n")[1].split("```")[0])

    said = engine.client("env", f"QUADLET_UNIT_DIRS={units}", quadlet, "-dryrun")
    shutil.rmtree(units)

    (start,) = (line for line in said.stdout.splitlines() if line.startswith("ExecStart="))
    podman(*shlex.split(start.removeprefix("ExecStart="))[1:])
    assert (owner(podman.mountpoint("mongo")), mode(podman.mountpoint("mongo"))) == ((184, 998), "0750")
    assert podman.run("mongo:/data", WRITE) == "written"


def test_run(podman: Podman) -> None:
    """A container that runs as 184:998 writes into the volume, and the next one finds the file."""
    mountpoint = podman.create("mongo")

    assert podman.run("mongo:/data", WRITE) == "written"
    assert podman.run("mongo:/data", "cat /data/file; ls -A /data") == "written\nfile"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


def test_copy_up(podman: Podman) -> None:
    """What Podman copies from the image, after Mount, keeps the image's owners; the root is the declared owner's.

    recurse=always gives it to the owner at the next start, and `:U` does in the first.
    """
    mountpoint = podman.create("mongo", *OPTIONS, "-o", "recurse=always")
    contents = [f"{mountpoint}/{name}" for name in ("seed", "conf", "conf/main")]

    assert podman.run("mongo:/data", WRITE, image="copyup") == "written"
    assert owner(mountpoint) == (184, 998)
    assert podman.run("mongo:/data", "cat /data/seed") == "from the image"
    assert {owner(path) for path in contents} == {(184, 998)}

    podman.create("redis")
    assert podman.run("redis:/data:U", FIRST, image="copyup") == "written\nfrom the image"


def test_copied_up_once(podman: Podman) -> None:
    """With recurse=mismatch, and the root being right, what the image brought stays its owner's."""
    mountpoint = podman.create("mongo")

    podman.run("mongo:/data", WRITE, image="copyup")
    podman.run("mongo:/data", "true")

    assert owner(mountpoint) == (184, 998)
    assert owner(f"{mountpoint}/seed") == (55, 66)


def test_several_containers(podman: Podman) -> None:
    """Podman mounts for the first container and unmounts after the last, and shows where only between these.

    What is changed meanwhile is put right by the last Unmount. Each container sees the others' files.
    """
    mountpoint = podman.create("mongo")
    assert podman.inspect("mongo")["Mountpoint"] == ""
    podman.daemon("first", "mongo:/data")
    os.chmod(mountpoint, 0o777)
    os.chown(mountpoint, 0, 0)
    podman.daemon("second", "mongo:/data")
    assert podman.inspect("mongo")["Mountpoint"] == mountpoint
    assert owner(mountpoint) == (0, 0)

    podman.exec("first", "echo from first > /data/first")
    assert podman.exec("second", "cat /data/first; echo from second > /data/second") == "from first"
    podman("rm", "-f", "first")

    assert podman.exec("second", f"cat /data/first; {WRITE}") == "from first\nwritten"
    assert owner(mountpoint) == (0, 0)
    podman("rm", "-f", "second")
    assert owner(mountpoint) == owner(f"{mountpoint}/second") == (184, 998)
    assert podman.inspect("mongo")["Mountpoint"] == ""


def test_restart(podman: Podman) -> None:
    """For a restart Podman 5 asks nothing; stop and start put right what somebody changed on the host."""
    mountpoint = podman.create("mongo", *OPTIONS, "-o", "mode=0750")
    log = Path(mountpoint, "log")
    # Goes on where it cannot write: at its end there would be an Unmount.
    podman.daemon("mongod", "mongo:/data", script="echo started >> /data/log || :; sleep 600")
    wait_for(lambda: log.exists() and log.read_text() == "started\n", "the container to write")
    podman("restart", "mongod")
    wait_for(lambda: log.read_text() == "started\nstarted\n", "the container to write again")

    os.chown(mountpoint, 0, 0)
    os.chmod(mountpoint, 0o700)
    podman("restart", "mongod")
    if releases.RELEASE != "bookworm":  # 4.3 asks, or does not, as it happens
        assert (owner(mountpoint), mode(mountpoint)) == ((0, 0), "0700")
    podman("stop", "-t", "0", "mongod")
    log.write_text("")
    podman("start", "mongod")

    wait_for(lambda: log.read_text() == "started\n", "the container to write after all")
    assert (owner(mountpoint), mode(mountpoint)) == ((184, 998), "0750")
    assert owner(log) == (184, 998)


def test_cp(podman: Podman, tmp_path: Path) -> None:
    """podman cp into a container that runs, and out of it; with one that is stopped Podman refuses."""
    mountpoint = podman.create("mongo")
    podman.daemon("mongod", "mongo:/data")
    (tmp_path / "given").write_text("from the host\n")

    podman("cp", str(tmp_path / "given"), "mongod:/data/given")

    assert podman.exec("mongod", f"cat /data/given; {WRITE}") == "from the host\nwritten"
    podman("cp", "mongod:/data/file", str(tmp_path / "taken"))
    podman("stop", "-t", "0", "mongod")
    assert "not mounted" in podman.fails("cp", "mongod:/data/file", str(tmp_path / "again"))
    assert (tmp_path / "taken").read_text() == "written\n"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


def test_rm(podman: Podman, hostprep: Hostprep) -> None:
    """A volume in use stays; one that is removed is the command line's to restore, and Podman's after a reload."""
    podman.create("mongo")
    podman.daemon("mongod", "mongo:/data", script=f"{WRITE}; sleep 600")
    assert "being used" in podman.fails("volume", "rm", "mongo")
    assert podman.exec("mongod", "cat /data/file") == "written"
    podman("rm", "-f", "mongod")
    podman("volume", "rm", "mongo")
    assert not (hostprep.root / "volumes" / "mongo").exists()

    restored = hostprep.command("restore", "mongo")
    podman("volume", "reload")

    assert restored.returncode == 0, restored.stderr
    assert podman.run("mongo:/data", "cat /data/file") == "written"


def test_reload_and_prune(podman: Podman, docker: Docker, hostprep: Hostprep) -> None:
    """A reload makes every volume Podman's, Docker's too, and prune removes those that no container of Podman's uses.

    A container of Docker's goes on; restored, its volume is where it was, with what was written meanwhile.
    """
    podman.create("mine")
    podman.run("mine:/data", WRITE)
    mountpoint = docker.create("mongo")
    docker.daemon("mongod", "mongo:/data", script=f"{WRITE}; sleep 600")

    assert podman.volumes() == ["mine"]
    podman("volume", "reload")
    assert sorted(podman.volumes()) == ["mine", "mongo"]
    podman("volume", "prune", "-f")
    assert podman.volumes() == []
    assert not Path(mountpoint).exists()
    docker.exec("mongod", "echo meanwhile >> /data/file")

    for name in ("mine", "mongo"):
        restored = hostprep.command("restore", name)
        assert restored.returncode == 0, restored.stderr
    assert docker.exec("mongod", "cat /data/file; echo more >> /data/file") == "written\nmeanwhile"
    assert (Path(mountpoint) / "file").read_text() == "written\nmeanwhile\nmore\n"
    assert owner(mountpoint) == (184, 998)
    docker("restart", "mongod")
    podman("volume", "reload")
    assert podman.run("mine:/data", "cat /data/file") == "written"


def test_purge_of_what_an_overlay_is_made_of(podman: Podman, hostprep: Hostprep) -> None:
    """`:O` mounts no volume but an overlay of it, and the volume is in use all the same."""
    mountpoint = podman.create("mongo")
    Path(mountpoint, "file").touch()
    podman("run", "-d", "--name", "one", "-v", "mongo:/data:O", "busybox", "sleep", "1000")
    assert "in the overlay at" in hostprep.command("rm", "mongo").stderr
    assert hostprep.command("rm", "--force", "mongo").returncode == 0
    assert "in the overlay at" in hostprep.command("purge", "--all").stderr
    podman("exec", "one", "ls", "/data/file")
    podman("rm", "-f", "-t", "0", "one")
    assert hostprep.command("purge", "--all").returncode == 0


def test_restored_before_a_reload(podman: Podman, hostprep: Hostprep) -> None:
    """Without a reload Podman does not ask for what was restored: it makes a local volume of that name, empty."""
    podman.create("mongo")
    podman.run("mongo:/data", WRITE)
    podman("volume", "rm", "mongo")
    assert hostprep.command("restore", "mongo").returncode == 0

    assert podman.run("mongo:/data", "ls /data") == ""
    assert podman.inspect("mongo")["Driver"] == "local"

    podman("volume", "rm", "mongo")
    podman("volume", "reload")
    assert podman.run("mongo:/data", "cat /data/file") == "written"


def test_chown(podman: Podman) -> None:
    """`:U` gives the tree to the user that the container starts as, after Mount; at its end it is the owner's."""
    mountpoint = podman.create("mongo")
    podman.run("mongo:/data", WRITE)

    assert podman.run("mongo:/data:U", "stat -c %u:%g /data /data/file", user="0:0") == "0:0\n0:0"

    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
    assert podman.run("mongo:/data:U", "stat -c %u:%g /data /data/file; echo more >> /data/file") == "184:998\n184:998"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


def test_home(podman: Podman, engine: Engine, hostprep: Hostprep, allowed: Path) -> None:
    """A `path` in somebody's home is held by a mount, which Podman's container gets; the data stays after rm."""
    home = allowed / "podman-home"
    (home / "mongodb").mkdir(parents=True)
    os.chown(home, 1000, 1000)
    place = f"{hostprep.root}/mounts/mongo"
    podman.create("mongo", *OPTIONS, "-o", f"path={home}/mongodb")

    assert podman.run("mongo:/data", WRITE) == "written"
    assert engine.mounts().count(place) == 1
    assert owner(home / "mongodb") == owner(home / "mongodb" / "file") == (184, 998)
    podman("volume", "rm", "mongo")

    assert engine.mounts().count(place) == 0
    assert (home / "mongodb" / "file").read_text() == "written\n"


def test_damaged_record(podman: Podman, hostprep: Hostprep) -> None:
    """A record that cannot be read fails every list and the start, in words, and makes no other volume."""
    mountpoint = podman.create("mongo")
    podman.run("mongo:/data", WRITE)
    record = Path(mountpoint).with_name("volume.json")
    content = record.read_bytes()
    record.write_bytes(content[:20])

    podman.fails("volume", "ls")
    podman.fails("run", "--rm", "-v", "mongo:/data", "busybox", "true")

    record.write_bytes(content)
    assert podman.volumes() == ["mongo"]
    assert podman.run("mongo:/data", "cat /data/file") == "written"


def test_patience(podman: Podman, hostprep: Hostprep) -> None:
    """With the fragment a start waits for hostprep, which with Podman's own five seconds fails after three of them."""
    podman.create("mongo")
    # Not the whole group: its nsenter stops by itself, once, when it sees that the server has.
    os.kill(hostprep.process.pid, signal.SIGSTOP)
    try:
        begun = podman.begin("run", "--rm", "-u", IDS, "-v", "mongo:/data", "busybox", "sh", "-euc", WRITE)
        time.sleep(20)
        assert begun.poll() is None, begun.communicate()
    finally:
        hostprep.process.signal(signal.SIGCONT)

    assert begun.communicate(timeout=60)[0] == "written\n"


def test_plugin_killed(podman: Podman, hostprep: Hostprep) -> None:
    """A container does not notice that hostprep died, and with the next one all goes on."""
    mountpoint = podman.create("mongo")
    podman.daemon("mongod", "mongo:/data")

    hostprep.kill()
    assert podman.exec("mongod", WRITE) == "written"
    hostprep.start()

    podman("restart", "-t", "0", "mongod")
    assert podman.exec("mongod", "cat /data/file") == "written"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)


def test_rm_while_stopped(podman: Podman, hostprep: Hostprep) -> None:
    """While nothing listens, rm -f makes Podman forget container and volume; a reload brings the volume back."""
    mountpoint = podman.create("mongo")
    podman.daemon("mongod", "mongo:/data", script=f"{WRITE}; sleep 600")
    wait_for(Path(mountpoint, "file").exists, "the container to write")
    hostprep.stop()

    assert "plugin" in podman.fails("volume", "ls")
    podman.engine.client("podman", "rm", "-f", "mongod")  # 4.3 mostly says nothing of what failed
    assert podman.containers() == []
    assert "plugin" in podman.fails("volume", "rm", "mongo")
    podman.fails("volume", "rm", "-f", "mongo")
    assert podman.volumes() == []

    hostprep.start()
    podman("volume", "reload")
    assert podman.volumes() == ["mongo"]
    assert podman.run("mongo:/data", "cat /data/file") == "written"


def test_container_removed_while_stopped(podman: Podman, hostprep: Hostprep) -> None:
    """Of a container removed while nothing listens Podman keeps a count, and mounts no more until `volume unmount`."""
    mountpoint = podman.create("mongo")
    podman.daemon("mongod", "mongo:/data")
    hostprep.stop()
    podman.engine.client("podman", "rm", "-f", "mongod")  # 4.3 mostly says nothing of what failed
    hostprep.start()
    os.chown(mountpoint, 0, 0)

    assert podman.inspect("mongo")["MountCount"] == 1
    assert podman.run("mongo:/data", "stat -c %u:%g /data") == "0:0"
    podman("volume", "unmount", "mongo")

    assert podman.run("mongo:/data", WRITE) == "written"
    assert owner(mountpoint) == (184, 998)


def test_podmans_data(podman: Podman, hostprep: Hostprep) -> None:
    """Where Podman keeps its data, wherever that is, is known by what is inside, and is no container's."""
    root = podman("info", "--format", "{{.Store.GraphRoot}}")
    for path in (root, f"{root}/volumes", f"{root}/new"):
        done = hostprep.command("prepare", "--dry-run", path, *OPTIONS)
        assert done.returncode == 1
        assert f"{root}, where an engine keeps its data" in done.stderr
