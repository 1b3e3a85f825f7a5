"""A private Docker engine and a hostprep that serves it: for the demo, the tests and the benchmarks.

dockerd, hostprep and all containers live in namespaces of their own:

- mount, with a tmpfs on /run and on /etc/docker, so that they meet neither another engine's sockets and
  plugins nor its settings. Propagation is slave: what the host mounts is seen here, nothing goes back. Within it
  mounts are shared, as systemd has them on a host;
- pid, so that with its first process everything ends, whoever started it. As in a container of systemd-nspawn, all that
  uses the engine's volumes runs inside;
- net, so that none of the host's interfaces and firewall rules is touched.

Standard library only: the demo must need no more than hostprep itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TOP = Path(__file__).resolve().parent.parent
# The distribution's programs first, so that every machine runs the same; and root's PATH may lack sbin.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", "")

# The first process sets the scene, says so, and then only reaps orphans. With a tree, that is the root directory, so
# that engine and clients are another distribution's; all else runs in the machine's own, at MACHINE below it. What both
# have at the same path are mounts of one peer group: a mount that one makes there, the other has, too.
MACHINE = "/machine"
INIT = """
mount -t tmpfs -o mode=0755 tmpfs /run && mount -t tmpfs tmpfs /etc/docker && mkdir -p /run/docker/plugins || exit
mkdir /run/systemd && echo systemd-nspawn > /run/systemd/container || exit
home=$1 tree=$2 machine=$3 temporary=$4 shared=
if [ "$tree" ]; then
    # What engines write beside their data does not get into the tree, which is used again.
    mkdir "$home/tree" "$home/upper" "$home/work" || exit
    mount -t overlay -o "lowerdir=$tree,upperdir=$home/upper,workdir=$home/work" overlay "$home/tree" || exit
    mkdir "$home/tree$machine" && cd "$home/tree" && pivot_root . ".$machine" && cd / || exit
    shared="/proc /sys /dev /run /srv $temporary $home"
fi
mount --make-rshared / || exit
for directory in $shared; do
    mkdir -p "$directory" && mount --rbind "$machine$directory" "$directory" || exit
done
echo ready || exit
while :; do sleep 3600 & wait; done
"""


class Unavailable(Exception):
    """This machine cannot run a private engine; the text says why."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait until *condition* holds, *seconds* at most."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def with_the_capabilities_of_the_service(*drop_ins: str) -> list[str]:
    """The command that runs another with the capabilities of systemd/hostprep.service and *drop_ins*, and no others."""
    units = "".join((TOP / "systemd" / name).read_text() for name in ("hostprep.service", *drop_ins))
    names = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", units, re.MULTILINE))
    kept = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in names.split())
    return ["setpriv", f"--bounding-set=-all,{kept}", "--no-new-privs"]


_MADE = "trusted.hostprep.testbed"


@contextlib.contextmanager
def present(directory: Path, mode: int = 0o755) -> Iterator[None]:
    """Have the machine's *directory* there, to mount on. The last engine that needs it removes it, if one made it."""
    while True:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode)
            os.setxattr(directory, _MADE, b"")
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:  # or another engine has removed it meanwhile
            break
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _MADE in os.listxattr(fd):
                directory.rmdir()
        os.close(fd)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without any that steer an engine, its clients or hostprep; and *extra*."""
    steering = ("DOCKER_", "COMPOSE_", "HOSTPREP_", "LISTEN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return kept | {"PATH": PATH, "LC_ALL": "C.UTF-8"} | dict(extra or {})


def first_child(process: subprocess.Popen[bytes]) -> int:
    """The pid of the first child of *process*, once it has one."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: process.poll() is not None or children.read_text(), f"{process.args!r} to start")
    if process.poll() is not None:
        raise ChildProcessError(f"{process.args!r} ended at once, with {process.returncode}")
    return int(children.read_text().split()[0])


class Process:
    """A program in the engine's namespaces. *pid* is the host's number for it."""

    def __init__(self, argv: Sequence[str], inside: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.argv = argv
        with log.open("ab") as output:
            # nsenter stays, as the program's parent and as the leader of a process group for both.
            self._nsenter = subprocess.Popen(
                inside, env=env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.pid = first_child(self._nsenter)

    def running(self) -> bool:
        return self._nsenter.poll() is None

    def stop(self, seconds: float = 60) -> int:
        """Ask it to end (SIGTERM), and answer its exit status."""
        if self.running():
            os.kill(self.pid, signal.SIGTERM)
        return self._nsenter.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program and to the workers it has."""
        if self.running():
            os.killpg(self._nsenter.pid, number)

    def kill(self) -> None:
        """End it and its workers at once (SIGKILL)."""
        if not self.running():
            return  # its number may be another process's by now
        self.signal(signal.SIGKILL)
        self._nsenter.wait(60)
        wait_for(lambda: not Path(f"/proc/{self.pid}").exists(), f"process {self.pid} to end")


class Engine:
    """A dockerd of its own. A context manager: Unavailable on entry, and on exit nothing is left.

    With *tree*, the root directory of another distribution, dockerd and the clients are that one's.
    """

    network: tuple[str, ...] = ("--net",)
    """What gives it a network of its own, in which there is nothing (unshare(1))."""
    prefix = "hostprep-engine-"
    """How its directory below /var/lib is called."""

    def __init__(self, tree: Path | None = None) -> None:
        self.tree = tree
        self.home = Path()
        self.flags: tuple[str, ...] = ()
        self._unshare: subprocess.Popen[bytes]
        self._init = 0
        self.dockerd: Process
        self._spawned: list[Process] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise Unavailable("only root can run a Docker engine")
        for program, package in {"dockerd": "docker.io", "docker": "docker.io or docker-cli"}.items():
            if not self.has(program):
                raise Unavailable(f"{program} is not installed (package {package})")
        with self._undo as undo:
            # Below directories that are root's alone, as hostprep demands of its root.
            self.home = Path(tempfile.mkdtemp(prefix=self.prefix, dir="/var/lib"))
            undo.callback(shutil.rmtree, self.home, ignore_errors=True)
            undo.callback(self._remove_cgroups)
            undo.enter_context(present(Path("/etc/docker")))
            self._start_namespaces()
            undo.callback(self._end_namespaces)
            self.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _start_namespaces(self) -> None:
        # setpriv and --kill-child: however this process ends, everything ends.
        argv = [
            "setpriv", "--pdeathsig", "KILL",
            "unshare", "--mount", "--propagation", "slave", "--pid", "--mount-proc", *self.network,
            "--fork", "--kill-child", "sh", "-c", INIT,
            "init", str(self.home), str(self.tree or ""), MACHINE, tempfile.gettempdir(),
        ]  # fmt: skip
        self._unshare = subprocess.Popen(
            argv, env=environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self._unshare.stdout
        with self._unshare.stdout as said:
            if (line := said.readline()) != b"ready\n":
                text = (line + said.read()).decode(errors="replace").strip()
                self._unshare.wait(60)
                raise Unavailable(f"no namespaces to be had here: {text}")
        self._init = first_child(self._unshare)

    def _end_namespaces(self) -> None:
        # The kernel ends every process of a pid namespace before its first process counts as ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        # Those include the ones that another has to reap: an nsenter, which may be stopped.
        for process in self._spawned:
            process.kill()
        self._unshare.wait(60)

    def _remove_cgroups(self) -> None:
        groups = Path("/sys/fs/cgroup")
        for top in [*groups.glob(self.home.name), *groups.glob(f"*/{self.home.name}")]:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()

    # dockerd

    def start(self, *flags: str) -> None:
        """Start dockerd, with *flags* besides those it needs here, and wait until it answers."""
        home, log = self.home, self.home / "dockerd.log"
        self.flags = flags
        # dockerd does not start while any process, a zombie too, has the number in its old pid file.
        (home / "docker.pid").unlink(missing_ok=True)
        (home / "daemon.json").write_text("{}")  # not the machine's /etc/docker/daemon.json
        argv = [
            "dockerd", "--config-file", f"{home}/daemon.json", "--pidfile", f"{home}/docker.pid",
            "--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--cgroup-parent", f"/{home.name}",
            "--host", self.host, "--group", "root", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--bridge", "none", "--iptables=false", "--ip6tables=false",
        ]  # fmt: skip
        argv += flags
        self.dockerd = dockerd = self._spawn(argv, self.beside(*argv), log=log)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not dockerd.running() or self.answers(), "dockerd to answer")
        if not self.answers():
            tail = log.read_text(errors="replace").splitlines()[-5:]
            raise Unavailable("\n".join(["dockerd does not run here:", *tail]))

    def stop(self) -> None:
        """Stop dockerd in good order."""
        self.dockerd.stop()

    def kill(self) -> None:
        """End dockerd as a crash does: the containers go on."""
        self.dockerd.kill()

    @property
    def host(self) -> str:
        """What DOCKER_HOST is for this engine."""
        return f"unix://{self.home}/docker.sock"

    def answers(self) -> bool:
        """Whether dockerd answers."""
        return ask(self.home / "docker.sock", "GET /_ping").startswith("HTTP/1.0 200")

    # what is inside

    @property
    def pid(self) -> int:
        """The host's number for the first process inside, by which its namespaces are found."""
        return self._init

    def inside(self, *argv: str) -> list[str]:
        """The command that runs *argv*, a program of this machine's, in the engine's namespaces."""
        return self.beside(*(("chroot", MACHINE) if self.tree else ()), *argv)

    def beside(self, *argv: str) -> list[str]:
        """The command that runs *argv*, a program that the engine came with, in the engine's namespaces."""
        return ["nsenter", "--target", str(self._init), "--mount", "--pid", "--net", "--", *argv]

    def has(self, program: str) -> bool:
        """Whether *program* came with the engine."""
        path = PATH if not self.tree else ":".join(f"{self.tree}{each}" for each in ("/usr/sbin", "/usr/bin"))
        return shutil.which(program, path=path) is not None

    def view(self, path: str) -> Path:
        """Where the host finds what the engine calls *path*."""
        return Path(f"/proc/{self._init}/root{path}")

    def run(self, *argv: str) -> None:
        """Run a command in the engine's namespaces, and insist that it succeeds."""
        inside = self.inside(*argv)
        subprocess.run(inside, env=environment(), stdin=subprocess.DEVNULL, timeout=120, check=True)

    def spawn(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> Process:
        """Start a program in the engine's namespaces. It ends with them at the latest."""
        return self._spawn(argv, self.inside(*argv), log=log, env=env)

    def _spawn(
        self, argv: Sequence[str], inside: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        process = Process(argv, inside, environment(env), log)
        self._spawned.append(process)
        return process

    def processes(self) -> dict[int, str]:
        """All that runs in the namespaces and in containers: from pid, as seen there, to command line."""
        found = {}
        for entry in self.view("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
        return found

    def mounts(self) -> list[str]:
        """The mount points in the engine's mount namespace."""
        lines = Path(f"/proc/{self._init}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines]

    def client(
        self, *argv: str, stdin: bytes = b"", seconds: float = 180, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client of an engine (docker, docker-compose) against this one."""
        done = subprocess.run(
            self._client(argv, cwd), env=self._client_environment(), input=stdin, capture_output=True,
            timeout=seconds, cwd=cwd, check=False,
        )  # fmt: skip
        out, err = (raw.decode(errors="replace") for raw in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def begin(self, *argv: str) -> subprocess.Popen[str]:
        """Start a client and do not wait for it."""
        return subprocess.Popen(
            self._client(argv), env=self._client_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _client(self, argv: Sequence[str], cwd: Path | None = None) -> Sequence[str]:
        if not self.tree:
            return argv
        return self.beside("sh", "-c", 'cd "$0" && exec "$@"', str(cwd or "/"), *argv)

    def _client_environment(self) -> dict[str, str]:
        return environment({"DOCKER_HOST": self.host, "DOCKER_CONFIG": f"{self.home}/client"})


def ask(path: Path, request: str) -> str:
    """How the answer to an HTTP request without a body on the socket *path* begins; empty without one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        try:
            connection.connect(os.fspath(path))
            connection.sendall(f"{request} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
            return connection.recv(4096).decode(errors="replace")
        except OSError:
            return ""


class Hostprep:
    """`hostprep serve` beside an engine, and the hostprep command on the same root."""

    def __init__(self, engine: Engine, **settings: str) -> None:
        self.engine = engine
        self.root = engine.home / "root"
        self.log = engine.home / "hostprep.log"
        self.socket = engine.view("/run/docker/plugins/hostprep.sock")
        self.settings = settings
        self.changed = False
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def variables(self, settings: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables of the server and the command."""
        known = f"{self.root}.known"  # what this machine remembers is not touched
        own = {"HOSTPREP_ROOT": str(self.root), "HOSTPREP_KNOWN_ROOTS": known, "PYTHONPATH": str(TOP / "plugin")}
        given = self.settings | dict(settings or {})
        return own | {f"HOSTPREP_{name.upper()}": value for name, value in given.items()}

    def start(self, *, within: Sequence[str] = (), drop_ins: Sequence[str] = (), **settings: str) -> None:
        """Serve, as the systemd service does, and wait for an answer.

        *settings* (patience="5s" and the like) are for this start only. So are *within*, a command that runs the
        server, and *drop_ins*, files of systemd/ for the service.
        """
        self.changed = bool(settings or within or drop_ins)
        argv = [*within, *with_the_capabilities_of_the_service(*drop_ins), sys.executable, "-m", "hostprep", "serve"]
        server = self._process = self.engine.spawn(argv, log=self.log, env=self.variables(settings))
        wait_for(lambda: not server.running() or self.answers(), "hostprep to answer")
        if not server.running():
            tail = self.log.read_text(errors="replace").splitlines()[-5:]
            raise ChildProcessError("\n".join(["hostprep serve ended at once:", *tail]))

    def answers(self) -> bool:
        """Whether the server answers."""
        return " 200 " in ask(self.socket, "POST /Plugin.Activate")

    @property
    def process(self) -> Process:
        assert self._process, "not started"
        return self._process

    def stop(self) -> int:
        """Stop serving in good order, and answer the exit status."""
        return self.process.stop()

    def kill(self) -> None:
        """End the server at once, workers and all."""
        self.process.kill()

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a hostprep command on the server's root."""
        inside = self.engine.inside(sys.executable, "-m", "hostprep", *args)
        return subprocess.run(
            inside, env=environment(self.variables()), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
