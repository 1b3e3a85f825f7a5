"""A test here may assume the managed plugin as `make plugin` makes it, enabled on a private engine, without volumes.

It has to leave nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from testbed import releases
from testbed.engine import Engine, Unavailable, environment, present, wait_for
from testbed.images import busybox
from tests.engine.client import Docker

from .building import BASE, Builder, archive, base, build, keep

NAME = "hostprep"
DRIVER = "hostprep:latest"
"""What the engine calls a driver that was asked for by either name."""
DATA = "/var/lib/hostprep"
ID = "usr/lib/hostprep/build"
"""Where a build says which one it is."""


class Built(NamedTuple):
    """What a build made: a directory with rootfs/ and config.json, and the id of its content."""

    directory: Path
    id: str


def on_host(engine: Engine, *argv: str) -> None:
    """Run a command where the engine is, and where DATA is what it is to the engine."""
    subprocess.run(engine.beside(*argv), env=environment(), stdin=subprocess.DEVNULL, timeout=60, check=True)


@contextlib.contextmanager
def place_for_data(engine: Engine) -> Iterator[None]:
    """For this engine alone, its own directory `root` is what it calls DATA."""
    root = engine.home / "root"
    root.mkdir(mode=0o700)
    with present(Path(DATA), 0o700):
        on_host(engine, "mkdir", "-p", "-m", "0700", DATA)
        on_host(engine, "mount", "-o", "bind", str(root), DATA)  # as docs/plugin.md has it
        yield


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A dockerd of the session's own, with the image busybox and the one that the plugin is built on."""
    try:
        image = base()
        with Builder(releases.tree()) as engine, place_for_data(engine):
            docker = Docker(engine)
            docker("import", "-", "busybox", stdin=busybox())
            docker("import", "-", BASE, stdin=image.read_bytes())
            yield engine
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def made(engine: Engine) -> str:
    """The plugin as `make plugin` creates it; the id of its build."""
    said = build(engine, "make", "--silent", "plugin")
    found = re.search(f"created the plugin {DRIVER}, build ([0-9a-f]{{16}})\n", said)
    assert found, said
    return found[1]


@pytest.fixture(scope="session")
def built(engine: Engine, made: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """What another build made: an earlier one of the same inputs where one is kept, or one without a cache."""
    directory = tmp_path_factory.mktemp("built") / "plugin"
    if (kept := archive()).exists():
        directory.mkdir()
        subprocess.run(["tar", "-C", directory, "--same-owner", "-xpf", kept], check=True, timeout=120)
        if packages(directory / "rootfs") != packages(Plugin(engine).rootfs):  # Debian's have changed since
            shutil.rmtree(directory)
    if not directory.exists():
        build(engine, "managed/build", "rootfs", str(directory), flags="--no-cache")
        keep(directory)  # for the guest, too
    id_ = re.search(r" build ([0-9a-f]{16}),", (directory / "rootfs" / ID).read_text())
    assert id_
    yield Built(directory, id_[1])
    shutil.rmtree(directory)


def packages(rootfs: Path) -> list[str]:
    """The packages in it, each with its version."""
    lines = (rootfs / "var/lib/dpkg/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Package:", "Version:"))]


class Plugin:
    """The plugin on its engine, with a directory of the host's that is this engine's alone."""

    def __init__(self, engine: Engine, name: str = NAME) -> None:
        self.engine = engine
        self.docker = Docker(engine)
        self.name = name
        self.root = engine.home / "root"

    def __call__(self, *args: str) -> str:
        return self.docker("plugin", *args)

    def set(self, **settings: str) -> None:
        """Set what can be set while it is disabled."""
        self("set", self.name, *(f"HOSTPREP_{name.upper()}={value}" for name, value in settings.items()))

    def enable(self) -> None:
        assert DATA in self.engine.mounts(), "what the engine has at DATA is its own"
        self("enable", self.name)

    def disable(self) -> None:
        self("disable", "--force", self.name)

    def inspect(self) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", self.name))
        assert isinstance(found, dict)
        return found

    @property
    def rootfs(self) -> Path:
        return self.engine.home / f"data/plugins/{self.inspect()['Id']}/rootfs"

    def log(self) -> str:
        """What dockerd logged of it."""
        mark = f"plugin={self.inspect()['Id']}"
        lines = (self.engine.home / "dockerd.log").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if mark in line)

    def processes(self) -> dict[int, str]:
        """What runs of it: from pid, as its engine sees it, to command line."""
        return {
            pid: line
            for pid, line in self.engine.processes().items()
            if re.search(r"hostprep serve|hostprep\.tree", line) and "tini" not in line
        }

    def inside(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script beside the server, in its namespaces."""
        (server,) = self.processes()
        argv = self.engine.inside("nsenter", "--target", str(server), "--all", "sh", "-c", script)
        return subprocess.run(
            argv, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def plugin(engine: Engine, made: str) -> Iterator[Plugin]:
    """The plugin, enabled and without volumes. What a test set, and whatever else it left, goes."""
    plugin = Plugin(engine)
    if plugin.inspect()["Enabled"]:
        plugin.disable()
    plugin.set(patience="25s", trash_keep="24h", selinux="auto", log_level="info", scope="local")
    plugin.enable()
    yield plugin
    if "--live-restore" in engine.flags or not engine.answers():
        engine.stop()
        engine.start()
    if not plugin.inspect()["Enabled"]:
        plugin.enable()
    plugin.docker.remove_everything()
    wait_for(lambda: len(plugin.processes()) == 1, "the plugin's other processes to end")
    plugin.disable()
    shutil.rmtree(plugin.rootfs / "etc/hostprep")  # or it would not start where its root is gone
    for part in plugin.root.iterdir():
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@pytest.fixture
def docker(plugin: Plugin) -> Docker:
    """The docker client of the plugin's engine."""
    return plugin.docker


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of what dockerd logged with a test that failed."""
    report = yield
    engine = getattr(item, "funcargs", {}).get("engine")
    if report.failed and isinstance(engine, Engine):
        lines = (engine.home / "dockerd.log").read_text(errors="replace").splitlines()
        told = [line for line in lines if "level=info" not in line]
        report.sections.append(("dockerd.log", "\n".join(told[-20:])))
    return report
