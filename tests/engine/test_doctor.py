"""`hostprep doctor` on a real engine: it names each fault, and the command that it prints repairs it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.engine import TOP, Engine, Hostprep, environment, wait_for

from .client import IDS, OPTIONS, WRITE, Docker
from .conftest import Remapped
from .probed import MADE, made

pytestmark = pytest.mark.engine
Found = dict[str, Any]
MUCH = "head -c 200000 /dev/zero > /data/file; echo written"


class Doctor:
    """The command, asking the private engine."""

    def __init__(self, docker: Docker, hostprep: Hostprep) -> None:
        self.docker = docker
        self.hostprep = hostprep

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.hostprep.command("--docker-host", self.docker.engine.host, "doctor", *arguments)

    def fails(self, *arguments: str) -> str:
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        return line

    def found(self, *arguments: str) -> Found:
        done = self(*arguments, "--json")
        found = json.loads(done.stdout or "null")
        assert isinstance(found, dict), done.stderr
        assert done.returncode == (0 if found["usable"] else 1)
        return found

    def finding(self, check: str, *arguments: str, verdict: str = "bad") -> Found:
        """The first finding of that *verdict*; it has the name of what is broken."""
        found = self.found(*arguments)
        first = next((each for each in found["findings"] if each["verdict"] == verdict), None)
        assert first is not None, found
        assert first["check"] == check, found
        assert isinstance(first, dict)
        return first

    def well(self, *arguments: str) -> Found:
        found = self.found(*arguments)
        assert found["usable"], found
        return found

    def paste(self, command: str) -> None:
        """Run a printed command, as its reader would."""
        engine = self.docker.engine
        settings = {f"HOSTPREP_{name.upper()}": value for name, value in self.hostprep.settings.items()}
        path = f"{engine.home}/bin:{environment()['PATH']}"
        env = {**settings, "HOSTPREP_ROOT": str(self.hostprep.root), "DOCKER_HOST": engine.host}
        done = subprocess.run(
            engine.inside("sh", "-euc", command), env={**environment(env), "PATH": path}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def mended(self, check: str, command: str, *, script: str = WRITE, verdict: str = "bad") -> None:
        """The container db cannot write; *check* says so; the *command* is printed, and pasted; then it can."""
        finding = self.finding(check, "mongo", "--container", "db", verdict=verdict)
        assert finding["fix"] == command
        if finding["verdict"] == "bad":
            done = self.docker.engine.client("docker", "exec", "db", "sh", "-euc", script)
            assert done.returncode != 0, "it was not broken"
        self.paste(command)
        assert self.docker.exec("db", script).endswith("written")
        self.well("mongo", "--container", "db")


@pytest.fixture
def doctor(docker: Docker, hostprep: Hostprep, engine: Engine) -> Doctor:
    """The command; and on the path of what is pasted."""
    command = engine.home / "bin" / "hostprep"
    if not command.exists():
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nPYTHONPATH={TOP}/plugin exec {sys.executable} -m hostprep "$@"\n')
        command.chmod(0o755)
    hostprep.command("purge", "--all")  # what other tests removed would be found
    return Doctor(docker, hostprep)


class Disk:
    """An ext4 of its own in a file, mounted where `path` may point, in the engine's mount namespace."""

    def __init__(self, engine: Engine, file: Path, point: Path) -> None:
        self.engine = engine
        self.file = file
        self.point = point

    def mount(self, *options: str) -> None:
        self.engine.run("mount", "-o", ",".join(["loop", *options]), str(self.file), str(self.point))

    def umount(self) -> None:
        self.engine.run("umount", str(self.point))

    def create(self, docker: Docker) -> None:
        docker.create("mongo", "-o", f"path={self.point}/mongo", *OPTIONS)


@pytest.fixture
def disk(docker: Docker, engine: Engine, allowed: Path, tmp_path: Path) -> Iterator[Disk]:
    """A small disk with 64 inodes. It goes when the containers that use it have."""
    disk = Disk(engine, tmp_path / "disk.img", allowed / "disk")
    disk.file.touch()
    os.truncate(disk.file, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", "64", disk.file], check=True)
    disk.point.mkdir()
    disk.mount()
    yield disk
    docker.remove_everything()
    with contextlib.suppress(subprocess.CalledProcessError):
        disk.umount()
    disk.point.rmdir()


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


def test_unknown(doctor: Doctor, docker: Docker) -> None:
    """For an unknown volume the command creates it, for the given user."""
    finding = doctor.finding("volume", "mongo", "--user", IDS)
    assert finding["fix"] == "docker volume create -d hostprep -o uid=184 -o gid=998 mongo"
    doctor.paste(finding["fix"])
    assert docker.run("mongo:/data", WRITE) == "written"


def test_removed(doctor: Doctor, docker: Docker) -> None:
    """For a volume in the trash the command restores it with its data."""
    docker.create("mongo")
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")
    finding = doctor.finding("volume", "mongo")
    assert finding["fix"] == "hostprep restore mongo"
    doctor.paste(finding["fix"])
    assert docker.run("mongo:/data", "cat /data/file") == "written"


def test_retained(doctor: Doctor, docker: Docker) -> None:
    """For retained data the command creates a volume that uses the data again."""
    docker.create("mongo", *OPTIONS, "-o", "on_remove=retain")
    docker.run("mongo:/data", WRITE)
    docker("volume", "rm", "mongo")
    finding = doctor.finding("volume", "mongo")
    assert finding["fix"] == "docker volume create -d hostprep mongo"
    doctor.paste(finding["fix"])
    assert docker.run("mongo:/data", "cat /data/file") == "written"
    doctor.hostprep.command("apply", "mongo", "--unset", "on_remove")


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


def test_missing_directory(doctor: Doctor, docker: Docker) -> None:
    """For a missing directory the command makes an empty one."""
    data = Path(docker.create("mongo"))
    data.rmdir()
    finding = doctor.finding("directory", "mongo")
    assert finding["fix"] == f"mkdir {data}"
    doctor.paste(finding["fix"])
    docker.daemon("db", "mongo:/data")
    assert docker.exec("db", WRITE) == "written"
    doctor.well("mongo")


def test_unmounted_disk(doctor: Doctor, docker: Docker, disk: Disk, tmp_path: Path) -> None:
    """For an unmounted disk that fstab names, the command mounts it."""
    disk.create(docker)
    docker.run("mongo:/data", WRITE)
    disk.umount()
    table = tmp_path / "fstab"
    table.write_text(f"# disks\n{disk.file} {disk.point} ext4 loop 0 0\n")
    there = Path("/etc/fstab").exists()
    if not there:
        Path("/etc/fstab").touch()
    disk.engine.run("mount", "--bind", str(table), "/etc/fstab")
    try:
        finding = doctor.finding("directory", "mongo")
        assert finding["fix"] == f"mount {disk.point}"
        doctor.paste(finding["fix"])
    finally:
        disk.engine.run("umount", "/etc/fstab")
        if not there:
            Path("/etc/fstab").unlink()
    assert docker.run("mongo:/data", "cat /data/file") == "written"


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


def test_read_only(doctor: Doctor, docker: Docker) -> None:
    """For a container made with :ro the command remounts; unless the container was asked for, it is no fault."""
    docker.create("mongo")
    docker.daemon("db", "mongo:/data:ro")
    assert doctor.well("mongo")["whom"] == [f"{IDS} in container db"]
    finding = doctor.finding("mount", "mongo", "--container", "db")
    assert ":ro" in finding["what"]
    assert finding["fix"].startswith("mount -N ")
    assert finding["fix"].endswith(" -o remount,bind,rw /data")
    doctor.paste(finding["fix"])
    assert docker.exec("db", WRITE) == "written"


def test_read_only_when_it_started(doctor: Doctor, docker: Docker, disk: Disk) -> None:
    """A container that started on a read-only mount keeps it read-only and must be restarted."""
    disk.create(docker)
    disk.engine.run("mount", "-o", "remount,bind,ro", str(disk.point))
    docker.daemon("db", "mongo:/data")
    disk.engine.run("mount", "-o", "remount,bind,rw", str(disk.point))
    doctor.mended("mount", "docker restart db")


# -- owner and mode ------------------------------------------------------------------------------------------------


def test_owner(doctor: Doctor, docker: Docker) -> None:
    """For a volume of another user the command makes the container's user the owner."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    docker.daemon("db", "mongo:/data")
    doctor.mended("owner", "hostprep apply mongo -o uid=184 -o gid=998")


def test_an_undeclared_group(doctor: Doctor, docker: Docker) -> None:
    """Where only a user is declared, the command declares no group, and the tree stays its group's."""
    data = docker.create("mongo", "-o", "uid=5")
    docker.daemon("db", "mongo:/data", "-u", "184:5")
    doctor.mended("owner", "hostprep apply mongo -o uid=184 -o gid=5")
    assert os.stat(data).st_gid == 0


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


def test_two_users(doctor: Doctor, docker: Docker) -> None:
    """Containers of two users are both looked at, and --fix asks for which one."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    docker.daemon("db", "mongo:/data")
    docker.daemon("other", "mongo:/data", "-u", "7:8")
    assert sorted(doctor.found("mongo")["whom"]) == ["184:998 in container db", "7:8 in container other"]
    assert "--container" in doctor.fails("mongo", "--fix", "--json")


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


def test_group_without_rights(doctor: Doctor, docker: Docker) -> None:
    """A volume that is shared with a group stays shared: the mode changes, not the owner."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=44", "-o", "mode=0750")
    docker.daemon("db", "mongo:/data", "--group-add", "44")
    doctor.mended("owner", "hostprep apply mongo -o mode=0770")


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


def test_mode(doctor: Doctor, docker: Docker) -> None:
    """For a mode with which even the owner cannot write, the command changes it."""
    docker.create("mongo", *OPTIONS, "-o", "mode=0555")
    docker.daemon("db", "mongo:/data")
    doctor.mended("mode", "hostprep apply mongo -o mode=0755")


def test_access_list(doctor: Doctor, docker: Docker, hostprep: Hostprep) -> None:
    """For an access control list whose mask takes away what an entry gives, the command changes the list."""
    data = docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    subprocess.run(["setfacl", "-m", "u:184:rwx,m::r-x", data], check=True)
    docker.daemon("db", "mongo:/data")
    doctor.mended("acl", f"setfacl -m u:184:rwx {data}")
    assert os.stat(data).st_uid == 5


def test_access_list_and_mode(doctor: Doctor, docker: Docker) -> None:
    """Where a declared mode bounds the list, the command widens that, too, and a restart changes nothing."""
    data = docker.create("mongo", "-o", "uid=5", "-o", "gid=6", "-o", "mode=0750")
    subprocess.run(["setfacl", "-m", "u:184:rwx,m::r-x", data], check=True)
    docker.daemon("db", "mongo:/data")
    doctor.mended("acl", f"hostprep apply mongo -o mode=0770 && setfacl -m u:184:rwx {data}")
    docker("restart", "-t", "0", "db")
    doctor.well("mongo", "--container", "db")
    assert docker.exec("db", WRITE) == "written"


def test_changed_owner(doctor: Doctor, docker: Docker) -> None:
    """If somebody changed the owner under a running container, the command restores it."""
    data = docker.create("mongo")
    docker.daemon("db", "mongo:/data")
    os.chown(data, 0, 0)
    doctor.mended("owner", "hostprep apply mongo")


def test_harmless_drift(doctor: Doctor, docker: Docker) -> None:
    """Drift that denies nobody access is a warning."""
    data = docker.create("mongo", *OPTIONS, "-o", "mode=0750")
    docker.daemon("db", "mongo:/data")
    os.chmod(data, 0o755)
    doctor.mended("drift", "hostprep apply mongo", verdict="warning")
    assert os.stat(data).st_mode & 0o777 == 0o750


def test_contents(doctor: Doctor, docker: Docker) -> None:
    """For root's files in a volume whose root is right, the command goes over the contents once."""
    docker.create("mongo")
    docker.run("mongo:/data", "umask 077; echo theirs > /data/file", user="0:0")
    docker.daemon("db", "mongo:/data")
    doctor.mended("contents", "hostprep repair mongo")
    assert docker.inspect("mongo")["Status"]["options"] == {"uid": "184", "gid": "998"}


# -- user namespaces -----------------------------------------------------------------------------------------------


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


def test_read_only_file_system(doctor: Doctor, docker: Docker, disk: Disk) -> None:
    """For a file system that became read-only the command remounts it."""
    disk.create(docker)
    docker.daemon("db", "mongo:/data")
    disk.engine.run("mount", "-o", "remount,ro", str(disk.point))
    doctor.mended("read-only", f"mount -o remount,rw {disk.point}")


def test_noexec(doctor: Doctor, docker: Docker, disk: Disk) -> None:
    """noexec, which keeps programs in the volume from running, is a warning, and the command remounts."""
    disk.umount()
    disk.mount("noexec")
    disk.create(docker)
    docker.daemon("db", "mongo:/data")
    run = "cp /bin/busybox /data/true; /data/true"
    assert "denied" in docker.fails("exec", "db", "sh", "-euc", run)
    finding = doctor.finding("noexec", "mongo", "--container", "db", verdict="warning")
    assert finding["fix"] == f"mount -o remount,exec {disk.point} && docker restart db"
    doctor.paste(finding["fix"])
    docker.exec("db", run)


def test_inodes(doctor: Doctor, docker: Docker, engine: Engine, allowed: Path) -> None:
    """For a tmpfs without inodes the command gives it more."""
    point = allowed / "tmpfs"
    point.mkdir()
    engine.run("mount", "-t", "tmpfs", "-o", "nr_inodes=40", "tmpfs", str(point))
    try:
        docker.create("mongo", "-o", f"path={point}/mongo", *OPTIONS)
        docker.daemon("db", "mongo:/data")
        docker("exec", "db", "sh", "-c", "for i in $(seq 100); do touch /data/$i; done 2>/dev/null || :")
        doctor.mended("inodes", f"mount -o remount,nr_inodes=80 {point}")
    finally:
        docker.remove_everything()
        engine.run("umount", str(point))
        point.rmdir()


def test_space(doctor: Doctor, docker: Docker, engine: Engine, allowed: Path) -> None:
    """For a full tmpfs the command enlarges it."""
    point = allowed / "tmpfs"
    point.mkdir()
    engine.run("mount", "-t", "tmpfs", "-o", "size=1048576", "tmpfs", str(point))
    try:
        docker.create("mongo", "-o", f"path={point}/mongo", *OPTIONS)
        docker.daemon("db", "mongo:/data")
        docker("exec", "db", "sh", "-c", "cat /dev/zero > /data/big 2>/dev/null || :")
        doctor.mended("space", f"mount -o remount,size=2097152 {point}", script=MUCH)
    finally:
        docker.remove_everything()
        engine.run("umount", str(point))
        point.rmdir()


def test_space_in_the_trash(doctor: Doctor, docker: Docker, hostprep: Hostprep, engine: Engine, tmp_path: Path) -> None:
    """Where the trash fills the file system, the command purges it."""
    hostprep.stop()
    image, point = tmp_path / "small.img", engine.home / "small"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    point.mkdir(mode=0o700)
    engine.run("mount", "-o", "loop", str(image), str(point))
    try:
        with Hostprep(engine, root=str(point)) as small:
            small.root = point
            docker.create("mongo")
            docker.create("old")
            docker.daemon("db", "mongo:/data")
            docker.run("old:/data", "cat /dev/zero > /data/big 2>/dev/null || :")
            docker("volume", "rm", "old")
            Doctor(docker, small).mended("space", "hostprep purge --all", script=MUCH)
            docker.remove_everything()
    finally:
        engine.run("umount", str(point))
        point.rmdir()


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


def test_pictures(tmp_path: Path) -> None:
    """`make screens` runs what the pictures of the documentation show, on an engine of its own, and writes them all."""
    argv = [sys.executable, "-m", "demo.screens", str(tmp_path)]
    done = subprocess.run(argv, cwd=TOP, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    pictures = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(pictures) == {path.name for path in (TOP / "docs" / "screens").iterdir()}
    assert "not&#160;usable" in pictures["doctor.svg"]
    assert str(tmp_path) not in "".join(pictures.values())
