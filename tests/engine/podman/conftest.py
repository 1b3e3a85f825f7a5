"""A test here may assume what tests/engine may, and Podman of the chosen release with the same hostprep.

It has to leave nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.engine import TOP, Engine, Hostprep
from testbed.images import busybox

from ..client import Docker, Podman
from ..conftest import COPY_UP

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
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/podman"
runroot = "/run/containers/storage"
"""


@pytest.fixture(scope="session")
def configured(engine: Engine) -> Podman:
    """Podman with the fragment that docs/podman.md says to install, and with the images busybox and copyup."""
    if not engine.tree:  # its /etc would be this machine's own
        pytest.fail("these tests need an engine of a release: HOSTPREP_TEST_ENGINE=trixie")
    unified = "/sys/fs/cgroup/unified"
    if unified in engine.mounts():
        engine.run("umount", unified)  # crun runs nothing where control groups are of both versions
    etc = engine.view("/etc/containers")
    (etc / "containers.conf.d").mkdir(parents=True, exist_ok=True)
    (etc / "containers.conf.d/hostprep.conf").write_bytes((TOP / "docs/podman.conf").read_bytes())
    (etc / "containers.conf.d/machine.conf").write_text(CONTAINERS)
    (etc / "storage.conf").write_text(STORAGE.format(home=engine.home))
    # Podman 4.3 wants to read the file that the engine's clients are told to look for their settings in.
    (engine.home / "client").mkdir(exist_ok=True)
    (engine.home / "client/config.json").write_text("{}")
    podman = Podman(engine)
    podman("import", "-", "busybox", stdin=busybox())
    podman("import", "-", "copyup", stdin=busybox(*COPY_UP))
    return podman


@pytest.fixture
def podman(docker: Docker, hostprep: Hostprep, configured: Podman) -> Iterator[Podman]:
    """The podman client. After the test all its containers and volumes go; then what `docker` sees to."""
    yield configured
    if hostprep.changed or not hostprep.answers():
        hostprep.stop()
        hostprep.start()
    configured.remove_everything()
    assert configured.containers() == []
    assert configured.volumes() == []
