"""A test here may assume a private engine with a hostprep that serves it, and no container or volume yet.

Both stay for the next test, which is why a test has to leave nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from testbed import releases
from testbed.engine import TOP, Engine, Hostprep, Unavailable, wait_for
from testbed.images import Entry, busybox

from .client import Docker
from .doctor import Disk, Doctor, Situation

# Podman comes with a release; this machine may have none. A container can have a sub-directory since Docker 26.
collect_ignore = [] if releases.RELEASE else ["podman"]
if releases.RELEASE in (None, "bookworm"):
    collect_ignore.append("test_subpaths.py")

COPY_UP = [
    Entry("data", 0o755),
    Entry("data/seed", 0o640, 55, 66, b"from the image"),
    Entry("data/conf", 0o755, 55, 66),
    Entry("data/conf/main", 0o644, 55, 66, b"from the image, too"),
    Entry("owned", 0o700, 55, 66),
]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A dockerd of the session's own, with the images busybox and copyup."""
    try:
        with Engine(releases.tree()) as engine:
            docker = Docker(engine)
            docker("import", "-", "busybox", stdin=busybox())
            docker("import", "-", "copyup", stdin=busybox(*COPY_UP))
            yield engine
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def allowed() -> Iterator[Path]:
    """A directory that `path` may point below; every directory above is root's alone."""
    directory = Path("/srv") / f"hostprep-test-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def hostprep(engine: Engine, allowed: Path) -> Iterator[Hostprep]:
    """The server and the command. The server is restarted after a test that changed or killed it."""
    with Hostprep(engine, allow=str(allowed)) as hostprep:
        yield hostprep


@pytest.fixture
def docker(engine: Engine, hostprep: Hostprep) -> Iterator[Docker]:
    """The docker client. After the test all containers and volumes go, and nothing of them may be left."""
    docker = Docker(engine)
    processes, mounts = running(engine), Counter(engine.mounts())
    yield docker
    if engine.flags or not engine.answers():
        engine.stop()
        engine.start()
    if hostprep.changed or not hostprep.answers():
        hostprep.stop()
        hostprep.start()
    docker.remove_everything()
    for entry in (hostprep.root / "trash").iterdir():  # or the next volume of that name speaks of it
        shutil.rmtree(entry)
    assert docker.containers() == []
    assert docker.volumes() == []
    assert [path.name for part in ("volumes", "mounts") for path in (hostprep.root / part).glob("*")] == []
    # The shim of a container ends a moment after the client has its answer.
    wait_for(lambda: not running(engine) - processes, "the containers' last processes to end")
    assert Counter(engine.mounts()) - mounts == Counter()


class Remapped:
    """The engine, to be started with userns-remap. It reads ranges of its own, as does hostprep beside it."""

    RANGES = "daemon:100000:65536\nbin:231072:1000\nbin:400000:64536\n"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self, which: str) -> None:
        """Begin anew with a map of `one` range, or of `two`; and import busybox, which it does not have."""
        self.engine.stop()
        self.engine.start("--userns-remap", {"one": "daemon", "two": "bin"}[which])
        Docker(self.engine)("import", "-", "busybox", stdin=busybox())
        Docker(self.engine)("import", "-", "copyup", stdin=busybox(*COPY_UP))


@pytest.fixture
def remapped(docker: Docker, engine: Engine, tmp_path: Path) -> Iterator[Remapped]:
    """The engine without a map yet; after the test `docker` starts it as it was."""
    # A copy of all of /etc: who replaces a file there by rename takes away what is mounted on it, here too.
    where = {"machine": engine.inside, "tree": engine.beside} if engine.tree else {"machine": engine.inside}
    for name, within in where.items():
        script = 'cp -a /etc "$0" && echo "$1" | tee "$0/subuid" > "$0/subgid" && mount --bind "$0" /etc'
        command = within("sh", "-euc", script, str(tmp_path / name), Remapped.RANGES)
        subprocess.run(command, check=True, timeout=60)
    engine.home.chmod(0o711)
    yield Remapped(engine)
    docker.remove_everything()
    engine.stop()
    engine.home.chmod(0o700)
    for within in where.values():
        subprocess.run(within("umount", "/etc"), check=True, timeout=60)
    engine.start()


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


@pytest.fixture
def disk(docker: Docker, engine: Engine, allowed: Path, tmp_path: Path) -> Iterator[Disk]:
    """A small disk with 64 inodes. It goes when the containers that use it have."""
    disk = Disk(engine, tmp_path / "disk.img", allowed / "disk")
    disk.make()
    disk.mount()
    yield disk
    docker.remove_everything()
    with contextlib.suppress(subprocess.CalledProcessError):
        disk.umount()
    disk.point.rmdir()


@pytest.fixture
def situation(doctor: Doctor, docker: Docker, allowed: Path, tmp_path: Path) -> Iterator[Situation]:
    with contextlib.ExitStack() as undo:
        undo.callback(lambda: [shutil.rmtree(left) for left in allowed.iterdir()])
        undo.callback(docker.remove_everything)
        yield Situation(doctor, allowed, tmp_path, undo)


def running(engine: Engine) -> Counter[str]:
    """How often each program runs in the engine's namespaces."""
    return Counter(line.split()[0] for line in engine.processes().values() if line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of what dockerd and hostprep logged with a test that failed."""
    report = yield
    engine = getattr(item, "funcargs", {}).get("engine")
    if report.failed and isinstance(engine, Engine):
        for log in engine.home.glob("*.log"):
            lines = log.read_text(errors="replace").splitlines()
            told = [line for line in lines if "level=info" not in line]
            report.sections.append((log.name, "\n".join(told[-20:])))
    return report
