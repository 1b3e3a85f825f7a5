"""A host in the words of the tests: a root of hostprep's, a directory that `path` may lie in, and what is there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from hostprep.host.mountinfo import mount_table
from hostprep.serve.wire import NoAnswer
from hostprep.volumes.driver import Driver
from testbed.engine import with_the_capabilities_of_the_service
from tests.support.unixhttp import Answer, Connection

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
ATTRIBUTE = "security.selinux"
LABEL = "system_u:object_r:container_file_t:s0"


def owner(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(os.lstat(path).st_mode):04o}"


def label(path: Path) -> str | None:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode()
    except OSError:
        return None


def set_label(path: Path, text: str) -> None:
    os.setxattr(path, ATTRIBUTE, text.encode() + b"\0", follow_symlinks=False)


def eventually(true: Callable[[], bool], what: str, seconds: float = 60.0, *, pause: float = 0.01) -> None:
    """Wait until *true* answers so. The limit only keeps a broken test from hanging: a busy machine is a usual one."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(pause)


def soon(seconds: float = 60.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


class Docker:
    """The engine's end of the protocol, without a socket between: `docker.mount(Name="mongo")`."""

    def __init__(self, client: FlaskClient) -> None:
        self._client = client

    def ask(self, verb: str, body: bytes) -> Answer:
        path = verb if verb.startswith("/") else f"/VolumeDriver.{verb}"
        response = self._client.post(path, data=body)
        answer = json.loads(response.data)
        assert isinstance(answer, dict)
        return Answer(response.status_code, answer)

    def __call__(self, verb: str, **body: Any) -> Answer:
        return self.ask(verb, json.dumps(body).encode())

    def create(self, name: str, **options: str) -> Answer:
        return self("Create", Name=name, Opts=options or None)

    def created(self, name: str, **options: str) -> Path:
        """Create a volume, which must succeed, and answer its directory."""
        made = self.create(name, **options)
        assert made == Answer(200, {"Err": ""})
        return Path(self.get(name)["Mountpoint"])

    def mount(self, name: str) -> Answer:
        return self("Mount", Name=name, ID="c" * 64)

    def mounted(self, name: str) -> Path:
        """Mount a volume, which must succeed, and answer its directory."""
        answer = self.mount(name)
        assert answer.status == 200, answer.error
        return Path(answer.body["Mountpoint"])

    def unmount(self, name: str) -> Answer:
        return self("Unmount", Name=name, ID="c" * 64)

    def remove(self, name: str) -> Answer:
        return self("Remove", Name=name)

    def get(self, name: str) -> dict[str, Any]:
        """What Get says of a volume that must be there."""
        answer = self("Get", Name=name)
        assert answer.status == 200, answer.error
        volume = answer.body["Volume"]
        assert isinstance(volume, dict)
        return volume

    def status(self, name: str) -> dict[str, Any]:
        status = self.get(name)["Status"]
        assert isinstance(status, dict)
        return status

    def knows(self, name: str) -> bool | None:
        """What Get says of *name*: True and False are answers, None is none."""
        try:
            answer = self("Get", Name=name)
        except NoAnswer:
            return None
        assert answer.status in (200, 404), answer
        return answer.status == 200

    def names(self) -> list[str]:
        return [volume["Name"] for volume in self.listed()]

    def listed(self) -> list[dict[str, str]]:
        answer = self("List")
        assert answer.status == 200, answer.error
        found = answer.body["Volumes"]
        assert isinstance(found, list)
        return found


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Host:
    """Directories under pytest's temporary one, which is root's alone, and the settings that point there."""

    def __init__(self, directory: Path, run: Path) -> None:
        self.root = directory / "root"
        self.srv = directory / "srv"
        self.srv.mkdir(mode=0o755)
        self.socket = run / "hostprep.sock"
        self.environ = {
            "HOSTPREP_ROOT": str(self.root),
            "HOSTPREP_SOCKET": str(self.socket),
            "HOSTPREP_ALLOW": str(self.srv),
            "HOSTPREP_KNOWN_ROOTS": str(directory / "known"),
            "DOCKER_HOST": f"unix://{directory}/no-engine.sock",  # not this machine's
        }
        self.started: list[subprocess.Popen[str]] = []

    def data(self, name: str) -> Path:
        return self.root / "volumes" / name / "_data"

    def volume(self, name: str) -> Path:
        return self.root / "volumes" / name

    def record(self, name: str) -> Path:
        return self.volume(name) / "volume.json"

    def trash(self) -> list[str]:
        return sorted(os.listdir(self.root / "trash"))

    def left_in_volumes(self) -> list[str]:
        return sorted(os.listdir(self.root / "volumes"))

    def process_environ(self, changed: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **self.environ, **(changed or {})}

    def begin(self, *arguments: str, under: Sequence[str] = (), **changed: str) -> subprocess.Popen[str]:
        """Start `python -m hostprep`, by the command *under* if there is one, and do not wait for it."""
        return self._begin([*under, PYTHON, "-m", "hostprep", *arguments], changed)

    def begin_script(self, script: str, *arguments: str, **changed: str) -> subprocess.Popen[str]:
        """Start `python -m hostprep`, in which *script* runs first, and do not wait for it."""
        script += "\nimport hostprep.__main__\nhostprep.__main__.main()"
        return self._begin([PYTHON, "-c", script, *arguments], changed)

    def _begin(self, command: list[str], changed: Mapping[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=self.process_environ(changed),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **changed: str) -> Done:
        """Run `python -m hostprep` as a process of its own, in a pipe."""
        process = self.begin(*arguments, **changed)
        out, err = process.communicate(timeout=60)
        self.started.remove(process)
        return Done(process.returncode, out, err)

    def serve(self, *flags: str, **changed: str) -> Server:
        """Start a server, with the capabilities that the systemd service has, and wait until it answers."""
        socket = Path(changed.get("HOSTPREP_SOCKET", self.socket))
        process = self.begin(*flags, "serve", under=with_the_capabilities_of_the_service(), **changed)
        server = Server(process, socket)
        server.wait()
        return server

    def stop(self) -> None:
        """End every process that the test left running."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)
        self.started.clear()


class Server:
    """A `hostprep serve` on its socket. Its log is read all the time, so that it never waits for the pipe."""

    def __init__(self, process: subprocess.Popen[str], socket: Path) -> None:
        self.process = process
        self.socket = socket
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            self._lines.extend(self.process.stderr)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def connect(self, timeout: float = 60.0) -> Connection:
        return Connection(self.socket, timeout)

    def ask(self, path: str, body: bytes | None = b"", **options: Any) -> Answer:
        """One request on a connection of its own."""
        path = path if path.startswith("/") else f"/VolumeDriver.{path}"
        with contextlib.closing(self.connect()) as connection:
            return connection.ask(path, body, **options)

    def __call__(self, verb: str, **body: Any) -> Answer:
        return self.ask(verb, json.dumps(body).encode())

    def answers(self) -> bool:
        try:
            return self.ask("/Plugin.Activate").status == 200
        except (OSError, ValueError):
            return False

    def wait(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.log}"
            return self.answers()

        eventually(up, "the server answers")

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, seconds: float = 60.0) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=60)
        return code


def _mount_ids() -> dict[int, str]:
    """The mount points of this process by mount id."""
    return {mount.id: mount.point for mount in mount_table()}


@contextlib.contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """`mount ARGUMENTS`, of which the last is the mount point, until the end, wherever it was moved to by then."""
    before = _mount_ids()
    subprocess.run(["mount", *arguments], check=True)
    # Of those that came meanwhile, another's among them, the last at this place. Numbers are used again.
    made = max(each for each, point in _mount_ids().items() if point == arguments[-1] and before.get(each) != point)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", _mount_ids()[made]], check=True)


def wait_for_passes(driver: Driver, name: str) -> None:
    if running := driver.passes.running(name):
        assert running.over.wait(60), "the pass is over"


def children_of(pid: int) -> dict[int, bytes]:
    """The processes that *pid* has started and that are there still, with their command lines; a zombie has none."""
    found = {}
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found[int(process)] = Path(f"/proc/{process}/cmdline").read_bytes()
    return found


def passes_of(pid: int) -> list[int]:
    """The processes of passes that the process *pid* has started."""
    return [child for child, command in children_of(pid).items() if b"hostprep.tree.process" in command]


def catch_pass(pid: int) -> int:
    """Wait for a pass of the process *pid*, stop it (SIGSTOP) while its Python still starts, and answer its id."""
    found: list[int] = []

    def begun() -> bool:
        found.extend(passes_of(pid))
        return bool(found)

    eventually(begun, "a pass is begun", pause=0)
    os.kill(found[0], signal.SIGSTOP)
    return found[0]
