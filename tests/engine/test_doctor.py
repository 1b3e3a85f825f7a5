"""`hostprep doctor` on a real engine: it names each fault, and the command that it prints repairs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.engine import TOP, Engine, Hostprep, environment, wait_for

from .client import IDS, OPTIONS, WRITE, Docker
from .conftest import Remapped
from .doctor import Disk, Doctor
from .probed import MADE, made

pytestmark = pytest.mark.engine
MUCH = "head -c 200000 /dev/zero > /data/file; echo written"


# -- well ----------------------------------------------------------------------------------------------------------


def test_well(doctor: Doctor, docker: Docker) -> None:
    """A volume that is right is usable for its declared owner, and for the container that runs with it."""
    docker.create("mongo")
    assert doctor.well("mongo")["whom"] == [IDS]
    docker.daemon("db", "mongo:/data")
    assert doctor.well("mongo")["whom"] == [f"{IDS} in container db"]
    checks = [each["check"] for each in doctor.well("mongo", "--container", "db")["findings"]]
    assert checks == ["volume", "directory", "mount", "owner", "drift", "label", "filesystem"]


def test_text(doctor: Doctor, docker: Docker) -> None:
    """The text fits one screen, with the command on a line of its own."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    docker.daemon("db", "mongo:/data")
    done = doctor("mongo")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "volume mongo for 184:998 in container db: not usable"
    assert [line.split(maxsplit=1)[1] for line in lines if "fix:" in line] == [
        "hostprep apply mongo -o uid=184 -o gid=998"
    ]
    assert len(lines) < 24
    assert max(map(len, lines)) < 160


def test_changes_nothing(doctor: Doctor, docker: Docker, hostprep: Hostprep) -> None:
    """Without --fix it repairs nothing, not even by what the engine does to answer, and leaves no container."""
    data = Path(docker.create("mongo"))
    docker("create", "--name", "db", "-u", "mongodb", "-v", "mongo:/data", "busybox", "sleep", "600")
    os.chown(data, 5, 6)
    before = hostprep.log.read_text()

    found = doctor.found("mongo", "--container", "db")

    assert found["whom"] == [f"{IDS} in container db"]  # by name, from the image: that asks the engine for files
    assert [each["check"] for each in found["findings"] if each["verdict"] == "warning"] == ["owner", "drift"]
    assert (data.stat().st_uid, data.stat().st_gid) == (5, 6)
    assert hostprep.log.read_text() == before
    assert len(docker.containers()) == 1


# -- the volume and its directory ----------------------------------------------------------------------------------


def test_local_volume(doctor: Doctor, docker: Docker) -> None:
    """A local volume that the engine made instead of a forgotten one is named."""
    docker.daemon("db", "mongo:/data")  # of no driver: local
    assert "driver local" in doctor.finding("volume", "mongo", "--container", "db")["what"]
    doctor.hostprep.command("create", "mongo", "-o", "uid=184", "-o", "gid=998")
    shadowed = "the engine has a volume mongo of driver local: containers get that one, not hostprep's"
    for arguments in (["mongo", "--container", "db"], ["mongo"]):
        assert doctor.finding("volume", *arguments)["what"] == shadowed
    assert shadowed in [each["what"] for each in doctor.found()["findings"]]
    docker("rm", "-f", "db")
    docker("volume", "rm", "mongo")
    assert docker.inspect("mongo")["Driver"] == "hostprep"
    docker.daemon("db", "mongo:/data", "--volume-driver", "hostprep")
    doctor.well("mongo", "--container", "db")
    assert docker.exec("db", WRITE) == "written"


# -- the mount in the container ------------------------------------------------------------------------------------


def test_container_without_the_volume(doctor: Doctor, docker: Docker) -> None:
    """A container that does not have the volume is told so."""
    docker.create("mongo")
    docker.daemon("db", "/tmp:/data")
    assert "does not have" in doctor.finding("mount", "mongo", "--container", "db")["what"]


def test_replaced_directory(doctor: Doctor, docker: Docker, allowed: Path) -> None:
    """Another directory is accepted first; then a container that still has the old one must be restarted."""
    place = allowed / "mongo"
    docker.create("mongo", "-o", f"path={place}", *OPTIONS)
    docker.daemon("db", "mongo:/data")
    place.rename(allowed / "old")
    place.mkdir()
    os.chown(place, 184, 998)
    finding = doctor.finding("directory", "mongo", "--container", "db")
    assert (finding["fix"], "is another directory than before" in finding["what"]) == ("", True)
    doctor.paste("hostprep apply mongo --accept-data")
    finding = doctor.finding("mount", "mongo", "--container", "db")
    assert finding["fix"] == "docker restart db"
    doctor.paste(finding["fix"])
    assert docker.exec("db", WRITE) == "written"
    assert (place / "file").exists()
    doctor.well("mongo", "--container", "db")


# -- owner and mode ------------------------------------------------------------------------------------------------


def test_one_that_restarts(doctor: Doctor, docker: Docker) -> None:
    """A container that fails again and again, or has failed last, is looked at like one that runs."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    flags = ("-u", IDS, "-v", "mongo:/data", "busybox", "touch", "/data/file")
    docker("run", "-d", "--name", "db", "--restart", "always", *flags)
    wait_for(lambda: docker("inspect", "-f", "{{.RestartCount}}", "db") != "0", "it fails")
    assert doctor.finding("owner", "mongo")["fix"] == "hostprep apply mongo -o uid=184 -o gid=998"
    docker("rm", "-f", "db")
    docker.engine.client("docker", "run", "--name", "db", *flags)
    doctor.paste(doctor.finding("owner", "mongo")["fix"])
    doctor.well("mongo")
    docker("start", "-a", "db")


def test_fix(doctor: Doctor, docker: Docker) -> None:
    """--fix applies the remedy, and prints the state after it."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    docker.daemon("db", "mongo:/data")
    done = doctor("mongo", "--fix")
    assert done.returncode == 0, done.stderr
    assert "# hostprep apply mongo -o uid=184 -o gid=998" in done.stdout
    assert docker.exec("db", WRITE) == "written"


def test_root_without_dac_override(doctor: Doctor, docker: Docker) -> None:
    """Root without CAP_DAC_OVERRIDE is a user like any other."""
    docker.create("mongo")
    docker.daemon("db", "mongo:/data", "-u", "0:0", "--cap-drop", "ALL")
    doctor.mended("owner", "hostprep apply mongo -o uid=0 -o gid=0")


def test_root(doctor: Doctor, docker: Docker) -> None:
    """Root with CAP_DAC_OVERRIDE may do all, in a running container and a stopped one."""
    docker.create("mongo", *OPTIONS, "-o", "mode=0700")
    docker.daemon("db", "mongo:/data", "-u", "0:0")
    doctor.well("mongo")
    assert docker.exec("db", WRITE) == "written"
    docker("rm", "-f", "db")
    docker("create", "--name", "db", "-v", "mongo:/data", "busybox", "true")
    doctor.well("mongo", "--container", "db")


def test_group(doctor: Doctor, docker: Docker) -> None:
    """Supplementary groups count, those of --group-add too."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=44", "-o", "mode=0770")
    docker.daemon("db", "mongo:/data", "--group-add", "44")
    doctor.well("mongo", "--container", "db")
    doctor.well("mongo", "--container", "db", "--user", "mongodb")
    doctor.finding("owner", "mongo", "--user", IDS)


def test_user_of_the_container(doctor: Doctor, docker: Docker) -> None:
    """A name is looked up in the running container's passwd, which may differ from its image's."""
    docker.create("mongo")
    docker.daemon("db", "mongo:/data", "-u", "0")
    docker.exec("db", "echo app:x:77:78::/:/bin/sh >> /etc/passwd")
    assert doctor.found("mongo", "--container", "db", "--user", "app")["whom"] == ["77:78 in container db"]
    assert doctor.finding("owner", "mongo", "--container", "db", "--user", "app")["fix"].endswith("-o uid=77 -o gid=78")
    assert "nobody-there" in doctor.fails("mongo", "--container", "db", "--user", "nobody-there")


def test_what_a_container_has_in_the_place_of_its_users(doctor: Doctor, docker: Docker, engine: Engine) -> None:
    """Of a passwd that is no ordinary file nothing is read: doctor says why, and takes numbers without it."""
    docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    passwd = f"/proc/{docker('inspect', '-f', '{{.State.Pid}}', 'db')}/root/etc/passwd"
    for put, why in {
        "ln -s /proc/version": "does not store files",  # /proc/kmsg, but that a reader takes nothing from it
        "mkfifo": "not a regular file",
        "ln -s /dev/zero": "not a regular file",
        "mkdir": "not a regular file",
        "truncate -s 1G": "more than",
    }.items():
        engine.run("sh", "-euc", f"rm {passwd}; {put} {passwd}")
        said = doctor.fails("mongo", "--container", "db", "--user", "mongodb")
        assert said.startswith("hostprep: /etc/passwd of container db: "), said
        assert why in said
        doctor.well("mongo", "--container", "db", "--user", IDS)
        engine.run("sh", "-euc", f"test ! -d {passwd} || rmdir {passwd}; touch {passwd}")


def test_switched_user(doctor: Doctor, docker: Docker) -> None:
    """For a program that started as root and switched to another user, that user counts."""
    changes = [word for change in MADE["switches"].changes for word in ("--change", change)]
    docker("import", *changes, "-", "switches", stdin=made("switches"))
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    program = ("switches", "/bin/sh", "-c", "exec sleep 600")
    docker("run", "-d", "--name", "db", "--stop-signal", "KILL", "-v", "mongo:/data", *program)
    found = doctor.found("mongo", "--container", "db")
    assert found["whom"] == ["999:998 in container db"]
    assert doctor.finding("owner", "mongo", "--container", "db")["fix"] == "hostprep apply mongo -o uid=999 -o gid=998"
    docker("rm", "-f", "db")
    docker("rmi", "switches")


# -- user namespaces -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_user_namespace(doctor: Doctor, docker: Docker, remapped: Remapped) -> None:
    """With userns-remap it shows both numbers, and each command has those that the volume's `userns` means."""
    remapped.start("one")
    docker.create("mongo", *OPTIONS, "-o", "userns=host")
    docker.daemon("db", "mongo:/data")
    finding = doctor.finding("userns", "mongo", "--user", IDS)
    assert finding["what"].startswith("184:998 is 100184:100998 on this host (userns-remap)")
    doctor.mended("userns", "hostprep apply mongo -o uid=100184 -o gid=100998")
    docker.daemon("host", "mongo:/data", "--userns", "host")
    fix = doctor.finding("owner", "mongo", "--container", "host")["fix"]
    assert fix == "hostprep apply mongo -o uid=184 -o gid=998"


@pytest.mark.thorough
def test_mapped(doctor: Doctor, docker: Docker, remapped: Remapped) -> None:
    """A volume that is mapped is well for the engine's containers, and says whose; --userns=host needs another."""
    remapped.start("two")
    docker.create("mongo", "-o", "uid=1500", "-o", "gid=998")
    docker.daemon("db", "mongo:/data", "-u", "1500:998")
    shown = {each["check"]: each["what"] for each in doctor.well("mongo", "--container", "db")["findings"]}
    assert "400500:232070 on this host, 1500:998 in the container," in shown["directory"]
    assert shown["userns"].startswith("1500:998 in container db, on this host 400500:232070 may")
    assert "root in its containers is 231072:231072 on this host" in doctor().stdout
    docker.daemon("host", "mongo:/data", "--userns", "host")
    fix = doctor.finding("owner", "mongo", "--container", "host")["fix"]
    assert fix == "hostprep apply mongo -o uid=184 -o gid=998 -o userns=host"
    docker("rm", "-f", "db")
    docker.daemon("db", "mongo:/data", "-u", "184:5")
    doctor.mended("owner", "hostprep apply mongo -o uid=184 -o gid=5")


# -- the file system -----------------------------------------------------------------------------------------------


def test_inodes_of_a_disk(doctor: Doctor, docker: Docker, disk: Disk) -> None:
    """For a disk without inodes there is a finding, and no command."""
    disk.create(docker)
    docker.daemon("db", "mongo:/data")
    docker("exec", "db", "sh", "-c", "for i in $(seq 100); do touch /data/$i; done 2>/dev/null || :")
    assert doctor.finding("inodes", "mongo", "--container", "db")["fix"] == ""
    docker.exec("db", "rm /data/1*")
    doctor.well("mongo", "--container", "db")


# -- what cannot be told -------------------------------------------------------------------------------------------


def test_no_container(doctor: Doctor, docker: Docker) -> None:
    """An unknown container is an error that names it."""
    docker.create("mongo")
    assert "no container nobody" in doctor.fails("mongo", "--container", "nobody")


# -- the pictures --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_pictures(tmp_path: Path) -> None:
    """`make screens` runs what the pictures of the documentation show, on an engine of its own, and writes them all."""
    argv = [sys.executable, "-m", "demo.screens", str(tmp_path)]
    done = subprocess.run(argv, cwd=TOP, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pictures = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(pictures) == {path.name for path in (TOP / "docs" / "screens").iterdir()}
    assert "not&#160;usable" in pictures["doctor.svg"]
    assert str(tmp_path) not in "".join(pictures.values())
