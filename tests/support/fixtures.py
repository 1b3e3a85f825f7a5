"""Fixtures, and the watch over what a test leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hostprep.__main__ import main
from hostprep.host import idmap
from hostprep.serve.wire import create_app
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from tests.support import namespaces
from tests.support.host import PYTHON, Docker, Done, Host, children_of, passes_of

_PR_SET_CHILD_SUBREAPER = 36

# hypothesis fails an example that takes over 200 ms, and a test that draws slowly: on a loaded machine each may.
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")


def _adopt_orphans(yes: int) -> None:
    """Whether what a killed server leaves running becomes this process's child, and so is seen (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, yes, 0, 0, 0)


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}"] += 1
    return Counter({key: n for key, n in found.items() if not key.endswith(f"/proc/{os.getpid()}/fd")})


def _children() -> Counter[str]:
    found: Counter[str] = Counter()
    for pid, command in children_of(os.getpid()).items():
        if not command:  # a zombie that became ours
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
        found[f"{pid} {command.replace(bytes(1), b' ').decode(errors='replace')}"] += 1
    return found


def _threads() -> Counter[str]:
    return Counter(f"thread {thread.name}" for thread in threading.enumerate())


def _mounts() -> Counter[str]:
    return Counter(Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines())


def _known_roots() -> Counter[str]:
    with contextlib.suppress(OSError):
        return Counter(os.listdir(Settings().known_roots))
    return Counter()


_WATCHED: dict[str, Callable[[], Counter[str]]] = {
    "descriptors": _descriptors,
    "child processes": _children,
    "threads": _threads,
    "mounts": _mounts,
    "what this machine remembers": _known_roots,
}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child process, a thread, a mount or a remembered root behind."""
    _adopt_orphans(1)
    before = {what: look() for what, look in _WATCHED.items()}
    yield
    while idmap._kept:  # kept as long as the process, by purpose
        os.close(idmap._kept.popitem()[1])
    end = time.monotonic() + 60
    while True:
        left = {what: list(look() - before[what]) for what, look in _WATCHED.items()}
        left = {what: found for what, found in left.items() if found}
        if not left or time.monotonic() > end:
            break
        gc.collect()
        time.sleep(0.02)
    _adopt_orphans(0)  # or the private engine's processes would be ours, and stay as zombies
    assert not left, f"the test left behind: {left}"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a name short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="hp-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def read_only_machine(nothing_left: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing but what is temporary can be changed, even by a guard that is broken."""
    try:
        with namespaces.read_only_machine(Path(tempfile.gettempdir()), tmp_path_factory.getbasetemp()):
            yield
    except NotImplementedError as exc:
        pytest.skip(str(exc))


@pytest.fixture
def host(nothing_left: None, tmp_path: Path, run_dir: Path) -> Iterator[Host]:
    """A host with nothing on it yet."""
    host = Host(tmp_path, run_dir)
    yield host
    host.stop()


OpenDriver = Callable[..., Driver]


@pytest.fixture
def open_driver(host: Host) -> Iterator[OpenDriver]:
    """Open the host's root as another process would, with own settings: `open_driver(HOSTPREP_PATIENCE="0")`."""
    opened: list[Driver] = []

    def open_one(**changed: str) -> Driver:
        opened.append(Driver.open(Settings.read({**host.environ, **changed}), create=True))
        return opened[-1]

    yield open_one
    for driver in opened:
        driver.passes.stop()


@pytest.fixture
def driver(open_driver: OpenDriver) -> Driver:
    """The driver over the host's root, labels kept as plain attributes."""
    return open_driver(HOSTPREP_SELINUX="force")


@pytest.fixture
def docker(driver: Driver) -> Docker:
    """The engine's end of the protocol."""
    return Docker(create_app(driver).test_client())


Command = Callable[..., Done]


@pytest.fixture
def hostprep(host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: `hostprep("create", "mongo", HOSTPREP_SELINUX="force")`."""

    def run(*arguments: str, **changed: str) -> Done:
        logger, root = logging.getLogger("hostprep"), logging.getLogger()
        level, handlers = logger.level, list(root.handlers)
        root.handlers.clear()
        capfd.readouterr()
        code, umask = 0, os.umask(0o022)
        with monkeypatch.context() as patch:
            for variable in [name for name in os.environ if name.startswith("HOSTPREP_")]:
                patch.delenv(variable)
            for variable, value in {**host.environ, **changed}.items():
                patch.setenv(variable, value)
            patch.setattr(sys, "argv", ["hostprep", *arguments])
            try:
                main()
            except SystemExit as exc:
                code = exc.code if isinstance(exc.code, int) else 1
        os.umask(umask)
        root.handlers[:] = handlers
        logger.setLevel(level)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


class Gate:
    """Holds every pass at its very start, while closed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.close()

    def close(self) -> None:
        self._file.touch()

    def open(self) -> None:
        self._file.unlink(missing_ok=True)

    def waiting(self) -> list[int]:
        """The processes that wait at it, or go on behind it."""
        return passes_of(os.getpid())


@pytest.fixture
def gate(host: Host, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A closed gate before every pass that this process starts."""
    gate, script = Gate(run_dir / "closed"), run_dir / "python"
    script.write_text(f'#!/bin/sh\nwhile [ -e {run_dir}/closed ]; do sleep 0.01; done\nexec {PYTHON} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    yield gate
    gate.open()
