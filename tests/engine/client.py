"""The docker client, in the words of the tests."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from testbed.engine import Engine, wait_for

IDS = "184:998"
WRITE = "echo written > /data/file; cat /data/file"
OPTIONS = ("-o", "uid=184", "-o", "gid=998")


def owner(path: str | Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def mode(path: str | Path) -> str:
    return f"{os.lstat(path).st_mode & 0o7777:04o}"


class Docker:
    """`docker ARGS` on a private engine; what it prints is the answer, and a failure fails the test."""

    program = "docker"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, *args: str, stdin: bytes = b"") -> str:
        done = self.engine.client(self.program, *args, stdin=stdin)
        assert done.returncode == 0, f"{self.program} {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def fails(self, *args: str) -> str:
        """Run a command that must fail, and answer what the user sees."""
        done = self.engine.client(self.program, *args)
        assert done.returncode != 0, f"{self.program} {' '.join(args)} succeeded: {done.stdout}"
        return done.stderr.strip()

    def begin(self, *args: str) -> subprocess.Popen[str]:
        """Start a command and do not wait for it."""
        return self.engine.begin(self.program, *args)

    def create(self, name: str, *options: str) -> str:
        """Create a hostprep volume and answer its mount point; without *options*, one for 184:998."""
        self("volume", "create", "--driver", "hostprep", *(options or OPTIONS), name)
        return self.mountpoint(name)

    def mountpoint(self, name: str) -> str:
        """Where the host has the volume."""
        return str(self.inspect(name)["Mountpoint"])

    def inspect(self, name: str) -> dict[str, Any]:
        """What `docker volume inspect` says."""
        (found,) = json.loads(self("volume", "inspect", name))
        assert isinstance(found, dict)
        return found

    def run(self, volume: str, script: str, *flags: str, user: str = IDS, image: str = "busybox") -> str:
        """Run a shell script in a new container with *volume*, and remove the container."""
        return self("run", "--rm", "-u", user, "-v", volume, *flags, image, "sh", "-euc", script)

    def daemon(self, name: str, volume: str, *flags: str, script: str = "sleep 600") -> str:
        """Start a container that stays, as 184:998, and ends at once when it is told to."""
        flags = ("--name", name, "-u", IDS, "-v", volume, "--stop-signal", "KILL", *flags)
        return self("run", "-d", *flags, "busybox", "sh", "-euc", script)

    def exec(self, container: str, script: str) -> str:
        """Run a shell script in a running container, as the user that the container has."""
        return self("exec", container, "sh", "-euc", script)

    def volumes(self, *flags: str) -> list[str]:
        """The names that `docker volume ls` prints."""
        return self("volume", "ls", "-q", *flags).split()

    def containers(self) -> list[str]:
        """All containers, the stopped ones too."""
        return self("ps", "-aq").split()

    def remove_everything(self) -> None:
        """Remove all containers and volumes."""
        # Of one that ends just now, with --rm, dockerd says that its removal is under way: it will be gone.
        if containers := self.containers():
            self.engine.client(self.program, "rm", "-f", "-v", *containers)
            wait_for(lambda: not self.containers(), "the containers to go")
        if volumes := self.volumes():
            self("volume", "rm", *volumes)


class Podman(Docker):
    """`podman ARGS` beside the engine, in the same way."""

    program = "podman"

    def mountpoint(self, name: str) -> str:
        """Where the host has a volume of hostprep's own; Podman says it only while a container has it mounted."""
        return f"{self.engine.home}/root/volumes/{name}/_data"

    def remove_everything(self) -> None:
        """Remove all containers and volumes, also those of which the driver no longer knows."""
        self("rm", "-f", "-a", "-v")
        self.engine.client("podman", "volume", "rm", "-f", "-a")
