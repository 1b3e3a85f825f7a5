"""`hostprep doctor` on a real engine: each broken state by its name, and the printed command that mends it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.engine import Engine, Hostprep, environment

from .client import IDS, OPTIONS, WRITE, Docker, owner

pytestmark = pytest.mark.engine
Found = dict[str, Any]


class Doctor:
    """The command, asking the private engine."""

    def __init__(self, docker: Docker, hostprep: Hostprep) -> None:
        self.docker = docker
        self.hostprep = hostprep

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.hostprep.command("--docker-host", self.docker.engine.host, "doctor", *arguments)

    def found(self, *arguments: str) -> Found:
        done = self(*arguments, "--json")
        found = json.loads(done.stdout or "null")
        assert isinstance(found, dict), done.stderr
        assert done.returncode == (0 if found["usable"] else 1)
        return found

    def sick(self, check: str, *arguments: str) -> Found:
        """The finding of what is broken, by its name; it is the first that says so."""
        found = self.found(*arguments)
        bad = [each for each in found["findings"] if each["verdict"] == "bad"]
        assert bad, found
        assert bad[0]["check"] == check, bad
        return dict(bad[0])

    def well(self, *arguments: str) -> Found:
        found = self.found(*arguments)
        assert found["usable"], found
        return found

    def paste(self, command: str) -> None:
        """Run a printed command, as its reader would."""
        engine = self.docker.engine
        env = {
            "HOSTPREP_ROOT": str(self.hostprep.root),
            "DOCKER_HOST": engine.host,
            "PATH": f"{engine.home}/bin:{environment()['PATH']}",
            **{f"HOSTPREP_{name.upper()}": value for name, value in self.hostprep.settings.items()},
        }
        done = subprocess.run(
            engine.inside("sh", "-euc", command), env=environment(env), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@pytest.fixture
def doctor(docker: Docker, hostprep: Hostprep, engine: Engine) -> Doctor:
    from demo.engine import TOP
    import sys

    command = engine.home / "bin" / "hostprep"
    if not command.exists():
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -m plugin "$@"\n')
        command.chmod(0o755)
    return Doctor(docker, hostprep)


def test_well(doctor: Doctor, docker: Docker) -> None:
    """A volume that is right is usable for its declared owner, and for the container that runs with it."""
    docker.create("mongo")
    assert doctor.well("mongo")["whom"] == [IDS]
    docker.daemon("db", "mongo:/data")
    assert doctor.well("mongo")["whom"] == [f"{IDS} in container db"]
    assert {each["check"] for each in doctor.well("mongo", "--container", "db")["findings"]} >= {"mount", "owner"}


def test_owner(doctor: Doctor, docker: Docker) -> None:
    """A volume of another user than the container's."""
    docker.create("mongo", "-o", "uid=5", "-o", "gid=6")
    docker.daemon("db", "mongo:/data")
    finding = doctor.sick("owner", "mongo", "--container", "db")
    assert finding["fix"] == "hostprep apply mongo -o uid=184 -o gid=998"

    doctor.paste(finding["fix"])

    assert docker.exec("db", WRITE) == "written"
    doctor.well("mongo", "--container", "db")
