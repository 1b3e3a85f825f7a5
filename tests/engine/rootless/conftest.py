"""A test here may assume a user who is not root, with a dockerd and a hostprep of his own, and with no volume yet.

They stay for the next test, which has to leave nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from testbed import releases
from testbed.engine import TOP, Engine, Hostprep, Unavailable, ask, environment, wait_for
from testbed.images import busybox
from tests.support.rootless import ACCOUNT, User, lacking

from ..client import Docker, Podman
from ..conftest import COPY_UP

# Podman comes with a release; this machine may have none.
collect_ignore = [] if releases.RELEASE else ["test_podman.py"]

SCRIPT = "/usr/share/docker.io/contrib/dockerd-rootless.sh"
# What Podman needs where no systemd runs.
CONTAINERS = """
[containers]
cgroups = "disabled"
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""


class Rootless(Engine):
    """The dockerd of a user, started by Docker's own script, and room for the user's podman."""

    prefix = "hostprep-rootless-"
    user: User

    def _start_namespaces(self) -> None:
        if missing := lacking():
            raise Unavailable(missing)
        for program in ("rootlesskit", "slirp4netns"):
            if not self.has(program):
                raise Unavailable(f"{program} is not installed (package {program})")
        super()._start_namespaces()
        self.home.chmod(0o755)
        self.user = User(self.home)
        self.user.variables |= {"DOCKER_HOST": self.host, "DOCKER_CONFIG": f"{self.user.home}/.docker"}
        # The machine's own directory for temporary files, and its tun device, may be closed to users.
        set_up = f"""
            mount -t tmpfs -o mode=1777 tmpfs /tmp
            mknod -m 0666 "$1/tun" c 10 200
            [ -w /dev/net/tun ] && mount --bind "$1/tun" /dev/net/tun
            {ACCOUNT}
        """
        subprocess.run(self.beside("sh", "-euc", set_up, "sh", str(self.home)), check=True)
        if (unified := "/sys/fs/cgroup/unified") in self.mounts():
            self.run("umount", unified)  # crun runs nothing where control groups are of both versions
        self._install()

    def _install(self) -> None:
        """What `make install-user` writes for the engines; and for Docker before 26 what docs/rootless.md says."""
        staged = self.home / "staged"
        variables = {
            "DESTDIR": str(staged), "SYSTEM_PACKAGES": "1", "SYSTEM_PYTHON": sys.executable,
            "HOME": str(self.user.home), "XDG_RUNTIME_DIR": str(self.user.run),
        }  # fmt: skip
        install = [str(TOP / "systemd/setup"), "install", "--user"]
        subprocess.run(install, env=environment(variables), stdin=subprocess.DEVNULL, check=True)
        made = Path(f"{staged}{self.user.home}")
        (made / ".config/hostprep/hostprep.env").unlink()
        subprocess.run(["cp", "-a", f"{made}/.config", f"{made}/.local", str(self.user.home)], check=True)
        (self.user.home / ".config/containers/containers.conf").write_text(CONTAINERS)
        wrapper = self.user.home / ".local/lib/hostprep-dockerd/dockerd"
        wrapper.parent.mkdir()
        wrapper.write_bytes((TOP / "systemd/user/dockerd").read_bytes())
        wrapper.chmod(0o755)
        (self.user.home / ".docker").mkdir()
        (self.user.home / ".docker/config.json").write_text("{}")  # Podman 4.3 wants to read it
        self.user.owns(self.user.home)

    def start(self, *flags: str) -> None:
        """Start the user's dockerd, and wait until it answers."""
        if not self.view(SCRIPT).exists():
            raise Unavailable(f"{SCRIPT} is missing (package docker.io)")
        log, variables = self.home / "dockerd.log", {}
        (self.user.run / "docker.pid").unlink(missing_ok=True)
        if self.version() < 26:
            variables["PATH"] = f"{self.user.home}/.local/lib/hostprep-dockerd:{self.user.variables['PATH']}"
        argv = self.user.become(
            "sh",
            SCRIPT,
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            *flags,
            **variables,
        )
        self.flags = flags
        self.dockerd = dockerd = self._spawn(argv, self.beside(*argv), log=log)
        wait_for(lambda: not dockerd.running() or self.answers(), "dockerd to answer")
        if not self.answers():
            tail = log.read_text(errors="replace").splitlines()[-5:]
            raise Unavailable("\n".join(["rootless dockerd does not run here:", *tail]))

    def version(self) -> int:
        """The first number of dockerd's version."""
        said = subprocess.run(self.beside("dockerd", "--version"), capture_output=True, text=True, check=True).stdout
        return int(said.split("version ")[1].split(".")[0])

    @property
    def host(self) -> str:
        return f"unix://{self.user.run}/docker.sock"

    def answers(self) -> bool:
        return ask(self.user.run / "docker.sock", "GET /_ping").startswith("HTTP/1.0 200")

    def _client(self, argv: Sequence[str], cwd: Path | None = None) -> Sequence[str]:
        become = self.user.become(*argv)
        return self.beside("sh", "-c", 'cd "$0" && exec "$@"', str(cwd or self.user.home), *become)


class Users(Hostprep):
    """The hostprep of the engine's user: without any capability on the host."""

    def __init__(self, engine: Rootless) -> None:
        super().__init__(engine)
        self.user = engine.user
        self.root, self.socket = self.user.root, self.user.socket

    def _command(self, args: Sequence[str], settings: Mapping[str, str]) -> list[str]:
        variables = {f"HOSTPREP_{name.upper()}": value for name, value in {**self.settings, **settings}.items()}
        # Its mount namespace is made from the machine's, not from the engine's: it may be another distribution.
        return ["nsenter", "--target", str(self.engine.pid), "--pid", "--", *self.user.hostprep(*args, **variables)]

    def start(self, *, within: Sequence[str] = (), drop_ins: Sequence[str] = (), **settings: str) -> None:
        assert not within
        assert not drop_ins
        self.changed = bool(settings)
        argv = self._command(["serve"], settings)
        server = self._process = self.engine._spawn(argv, argv, log=self.log)
        wait_for(lambda: not server.running() or self.answers(), "hostprep to answer")
        if not server.running():
            raise ChildProcessError(self.log.read_text(errors="replace")[-2000:])

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(args, {}), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="session")
def engine() -> Iterator[Rootless]:
    """The engine of the session, with the images busybox and copyup."""
    try:
        with Rootless(releases.tree()) as engine:
            docker = Docker(engine)
            docker("import", "-", "busybox", stdin=busybox())
            docker("import", "-", "copyup", stdin=busybox(*COPY_UP))
            yield engine
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def hostprep(engine: Rootless) -> Iterator[Users]:
    """The user's server and command."""
    with Users(engine) as hostprep:
        yield hostprep


@pytest.fixture
def docker(engine: Rootless, hostprep: Users) -> Iterator[Docker]:
    """The user's docker client. After the test nothing is left."""
    docker = Docker(engine)
    yield docker
    if hostprep.changed or not hostprep.answers():
        hostprep.stop()
        hostprep.start()
    docker.remove_everything()
    assert docker.containers() == docker.volumes() == []
    assert os.listdir(hostprep.root / "volumes") == []


@pytest.fixture(scope="session")
def configured(engine: Rootless, hostprep: Users) -> Podman:
    """The user's podman, with the images busybox and copyup."""
    podman = Podman(engine)
    podman("import", "-", "busybox", stdin=busybox())
    podman("import", "-", "copyup", stdin=busybox(*COPY_UP))
    return podman


@pytest.fixture
def podman(configured: Podman, hostprep: Users) -> Iterator[Podman]:
    """The user's podman client. After the test nothing is left."""
    yield configured
    configured.remove_everything()
    assert configured.containers() == configured.volumes() == []
    assert os.listdir(hostprep.root / "volumes") == []
