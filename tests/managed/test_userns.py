"""The managed plugin on an engine with userns-remap: it sees the first ids only, and is told the ranges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Engine
from testbed.images import busybox
from tests.engine.client import IDS, OPTIONS, WRITE, owner

from .conftest import NAME, Built, Plugin, on_host

pytestmark = pytest.mark.engine
CREATE = ("volume", "create", "-d", "hostprep", *OPTIONS)


@pytest.fixture
def remapped(engine: Engine, built: Built, tmp_path: Path) -> Iterator[Plugin]:
    """The plugin on its engine, which has userns-remap and so other data; afterwards the engine is as it was."""
    # A copy of all of /etc: who replaces a file there by rename takes away what is mounted on it, here too.
    script = 'cp -a /etc "$0" && echo daemon:100000:65536 | tee "$0/subuid" > "$0/subgid" && mount --bind "$0" /etc'
    on_host(engine, "sh", "-euc", script, str(tmp_path / "etc"))
    engine.home.chmod(0o711)
    engine.stop()
    try:
        engine.start("--userns-remap", "daemon")
        plugin = Plugin(engine)
        plugin.docker("import", "-", "busybox", stdin=busybox())
        plugin("create", NAME, str(built.directory))
        plugin.enable()
        yield plugin
        plugin.docker.remove_everything()
        plugin("rm", "--force", NAME)
    finally:
        engine.stop()
        engine.home.chmod(0o700)
        on_host(engine, "umount", "/etc")
        engine.start()


def test_told(remapped: Plugin) -> None:
    """Without the ranges a volume is refused, with what to set; with them 184 writes, and is 100184 on disk."""
    docker = remapped.docker
    assert "HOSTPREP_USERNS=0:100000:COUNT" in docker.fails(*CREATE, "mongo")
    docker(*CREATE, "-o", "userns=host", "hosts")
    assert owner(remapped.root / "volumes/hosts/_data") == (184, 998)

    remapped.disable()
    remapped.set(userns="0:200000:65536")
    remapped.enable()
    assert "root is 100000:100000 on this host" in docker.fails(*CREATE, "mongo")

    remapped.disable()
    remapped.set(userns="0:100000:65536")
    remapped.enable()
    docker(*CREATE, "mongo")
    assert docker.run("mongo:/data", f"{WRITE}; stat -c %u:%g /data/file").split() == ["written", IDS]
    assert owner(remapped.root / "volumes/mongo/_data") == (100184, 100998)
    status = docker.inspect("mongo")["Status"]
    assert (status["uid"], status["host_uid"], status["warnings"]) == (184, 100184, [])
