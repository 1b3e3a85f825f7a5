"""The guest in the words of the tests: its dockerd, the hostprep that serves it, what its kernel denied."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
ROOT = Path("/var/lib/hostprep")
SOCKET = "/run/docker/plugins/hostprep.sock"
SRV = Path("/srv")

IDS = "184:998"
OWNED = {"uid": "184", "gid": "998"}
CONTAINER_FILE = "system_u:object_r:container_file_t:s0"


def command(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is."""
    return subprocess.run(argv, cwd=TOP, env=env, capture_output=True, text=True, timeout=600, check=False)


def checked(*argv: str) -> str:
    """Run a program that must succeed, and answer what it prints."""
    done = command(*argv)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def label(path: Path) -> str:
    return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()


def set_label(path: Path, text: str) -> None:
    os.setxattr(path, "security.selinux", text.encode() + b"\0", follow_symlinks=False)


def owner(path: Path) -> str:
    found = os.lstat(path)
    return f"{found.st_uid}:{found.st_gid}"


class Docker:
    """`docker ARGS`; what it prints is the answer, and a failure fails the test."""

    def __call__(self, *args: str) -> str:
        return checked("docker", *args)

    def fails(self, *args: str) -> str:
        """Run a command that must fail, and answer what the user sees."""
        done = command("docker", *args)
        assert done.returncode != 0, f"docker {' '.join(args)} succeeded: {done.stdout}"
        return done.stderr.strip()

    def create(self, name: str, **options: str) -> Path:
        """Create a hostprep volume, for 184:998 unless *options* say otherwise, and answer its directory."""
        flags = [f"--opt={key}={value}" for key, value in {**OWNED, **options}.items()]
        self("volume", "create", "-d", "hostprep", *flags, name)
        return Path(self("volume", "inspect", "-f", "{{.Mountpoint}}", name))

    def run(self, volume: str, script: str, *flags: str, image: str = "busybox") -> str:
        """Run a shell script, to its first failure, as 184:998 in a new container with *volume*."""
        done = command("docker", "run", "--rm", "-u", IDS, "-v", volume, *flags, image, "sh", "-euc", script)
        return (done.stdout + done.stderr).strip()

    def daemon(self, name: str, volume: str) -> None:
        """Start a container that stays, as 184:998."""
        flags = ("-d", "--name", name, "-u", IDS, "-v", volume, "--stop-signal=KILL")
        self("run", *flags, "busybox", "sleep", "600")

    def exec(self, container: str, script: str) -> str:
        """Run a shell script in a running container."""
        done = command("docker", "exec", container, "sh", "-euc", script)
        return (done.stdout + done.stderr).strip()

    def remove_everything(self) -> None:
        if containers := self("ps", "-aq").split():
            self("rm", "-f", "-v", *containers)
        if volumes := self("volume", "ls", "-q").split():
            self("volume", "rm", *volumes)


class Hostprep:
    """The service as `make install` leaves it, in the domain that the policy gives it, for the guest's dockerd."""

    UNIT = "hostprep.service"
    LIB = Path("/usr/local/lib/hostprep")
    SETTINGS = Path("/etc/hostprep/hostprep.env")

    def __init__(self, log: Path) -> None:
        self._log = log
        # HOSTPREP_SELINUX=off in the environment of the tests shows which of them witness hostprep's labels.
        self.settings = {k: v for k, v in os.environ.items() if k.startswith("HOSTPREP_")}
        self.settings["HOSTPREP_ALLOW"] = f"{SRV}:/home/user"

    def start(self) -> None:
        """Install it, over settings that are there and a drop-in of the administrator's."""
        drop_in = Path(f"/etc/systemd/system/{self.UNIT}.d/log.conf")
        drop_in.parent.mkdir(parents=True)
        drop_in.write_text(f"[Service]\nStandardError=append:{self._log}\n")
        self.SETTINGS.parent.mkdir()
        self.set()
        self.install()
        eventually(self.answers, "hostprep answers")

    def set(self, **more: str) -> None:
        """Write the settings; the next start of the service has them."""
        lines = [f"{key}={value}\n" for key, value in {**self.settings, **more}.items()]
        self.SETTINGS.write_text("".join(lines))

    def install(self) -> str:
        """The guest has no network: Flask and the others are Debian's."""
        return checked("make", "--silent", "install", "SYSTEM_PACKAGES=1")

    def show(self, name: str) -> str:
        """A property of the service."""
        return checked("systemctl", "show", f"--property={name}", "--value", self.UNIT)

    def process(self) -> Path:
        """Where /proc has the server."""
        return Path("/proc", self.show("MainPID"))

    def domain(self) -> str:
        """The context that the server runs in."""
        return (self.process() / "attr/current").read_text().rstrip("\0\n")

    def log(self) -> str:
        return self._log.read_text()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("/Plugin.Activate", {}) == {"Implements": ["VolumeDriver"]}
        return False

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request on the socket; the answer must be JSON, whether it is an error or not."""
        connection = http.client.HTTPConnection("localhost", timeout=300)
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(SOCKET)
            connection.request("POST", path, json.dumps(body))
            answer = json.load(connection.getresponse())
        assert isinstance(answer, dict)
        return answer

    def __call__(self, verb: str, name: str, **more: Any) -> dict[str, Any]:
        """A verb of the protocol that must succeed: what the engine would ask, without the engine."""
        answer = self.ask(f"/VolumeDriver.{verb}", {"Name": name, **more})
        assert answer.get("Err", "") == "", answer
        return answer

    def create(self, name: str, **options: str) -> Path:
        self("Create", name, Opts=options or None)
        return Path(self("Path", name)["Mountpoint"])

    def mount(self, name: str) -> None:
        self("Mount", name, ID="c" * 64)

    def status(self, name: str) -> dict[str, Any]:
        status = self("Get", name)["Volume"]["Status"]
        assert isinstance(status, dict)
        return status

    def command(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The installed command line."""
        return command("hostprep", *args, env={**os.environ, **environ})


@dataclass(frozen=True)
class Denial:
    """One access that the kernel denied, in its own words."""

    permissions: str
    tclass: str
    source: str
    target: str


class Audit:
    """The kernel's denials, from the audit log: those of container_t that were enforced."""

    _AVC = re.compile(
        r"type=AVC .*:(?P<serial>\d+)\): avc: +denied +{ (?P<permissions>.*) } .* scontext=(?P<source>\S+) "
        r"tcontext=(?P<target>\S+) tclass=(?P<tclass>\S+) permissive=0"
    )

    _marks = itertools.count()

    def __init__(self) -> None:
        self._seen = 0
        self.denials()

    def denials(self) -> list[Denial]:
        """What was denied since the last call."""
        # The log is written behind the kernel's back: what comes before this mark in it is complete.
        mark = f"hostprep-test-{next(self._marks)}-"
        checked("auditctl", "-m", mark)
        log, end = "", time.monotonic() + 300
        while not (marked := re.search(rf"type=USER .*:(\d+)\): .*{mark}", log)):
            assert time.monotonic() < end, "the audit log has the mark"
            log = command("ausearch", "--input-logs", "--raw", "-m", "AVC,USER", "-ts", "boot").stdout
        seen, self._seen = self._seen, int(marked[1])
        return [
            Denial(found["permissions"], found["tclass"], found["source"], found["target"])
            for found in self._AVC.finditer(log)
            if seen < int(found["serial"]) and ":container_t:" in found["source"]
        ]


def eventually(true: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
