"""`hostprep doctor` on the private engine, and a disk of its own for what may be wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testbed.engine import Engine, Hostprep, environment
from tests.support.remedies import STATE

from .client import OPTIONS, WRITE, Docker

Found = dict[str, Any]


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
        done = self.shell(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command line, with hostprep and the engine's client at hand."""
        engine = self.docker.engine
        path = f"{engine.home}/bin:{environment()['PATH']}"
        env = {**self.hostprep.variables(), "DOCKER_HOST": engine.host}
        return subprocess.run(
            engine.inside("sh", "-euc", command), env={**environment(env), "PATH": path}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

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


class Disk:
    """An ext4 of its own in a file, mounted where `path` may point, in the engine's mount namespace."""

    def __init__(self, engine: Engine, file: Path, point: Path) -> None:
        self.engine = engine
        self.file = file
        self.point = point

    def make(self) -> None:
        """Make it, with 64 inodes."""
        self.file.touch()
        os.truncate(self.file, 8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-N", "64", self.file], check=True)
        self.point.mkdir()

    def mount(self, *options: str) -> None:
        self.engine.run("mount", "-o", ",".join(["loop", *options]), str(self.file), str(self.point))

    def umount(self) -> None:
        self.engine.run("umount", str(self.point))

    def create(self, docker: Docker) -> None:
        docker.create("mongo", "-o", f"path={self.point}/mongo", *OPTIONS)


class Situation:
    """The private engine, with what a row may need."""

    def __init__(self, asked: Doctor, allowed: Path, tmp_path: Path, undo: ExitStack) -> None:
        self.asked = asked
        self.run = asked.docker
        self.engine = asked.docker.engine
        self.hostprep = asked.hostprep
        self.allowed = allowed
        self.tmp_path = tmp_path
        self.undo = undo

    def doctor(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.asked(*arguments)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return self.asked.shell(command)

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.engine.client("docker", *arguments)

    def state(self, directory: str) -> str:
        argv = self.engine.inside(sys.executable, "-c", STATE, directory)
        return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=90, check=True).stdout

    def volume(self, *options: str) -> Path:
        """Have the volume mongo, and the container db with it."""
        data = Path(self.run.create("mongo", *options))
        self.run.daemon("db", "mongo:/data")
        return data

    def mounted(self, name: str, *mount: str) -> Path:
        """Mount something below where `path` may point, until the container is gone."""
        point = self.allowed / name
        point.mkdir()
        self.undo.callback(point.rmdir)
        self.engine.run("mount", *mount, str(point))
        self.undo.callback(self.engine.run, "umount", str(point))
        self.undo.callback(self.run.remove_everything)
        return point

    def disk(self, *options: str) -> Disk:
        """A disk of its own."""
        disk = Disk(self.engine, self.tmp_path / "disk.img", self.allowed / "disk")
        disk.make()
        self.undo.callback(disk.point.rmdir)
        disk.mount(*options)
        self.undo.callback(disk.umount)
        self.undo.callback(self.run.remove_everything)
        return disk
