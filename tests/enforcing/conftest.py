"""A test here may assume to be root in a guest whose kernel enforces SELinux, with dockerd and hostprep as services.

tests/vm/run starts that guest. There is no container or volume yet, and no denial in what `audit` tells.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.images import Entry, busybox

from .guest import SRV, Audit, Docker, Hostprep

COPY_UP = [Entry("data", 0o755), Entry("data/seed", 0o644, content=b"from the image\n")]


@pytest.fixture(scope="session")
def engine() -> None:
    """The guest's dockerd, with the images busybox and copyup."""
    enforcing = Path("/sys/fs/selinux/enforce")
    if not enforcing.exists() or enforcing.read_text() != "1":
        pytest.fail("these tests need a kernel that enforces: tests/vm/run runs them in one", pytrace=False)
    subprocess.run(["docker", "import", "-", "busybox"], input=busybox(), check=True)
    subprocess.run(["docker", "import", "-", "copyup"], input=busybox(*COPY_UP), check=True)


@pytest.fixture(scope="session")
def server(engine: None) -> Iterator[Hostprep]:
    hostprep = Hostprep(Path("/var/log/hostprep.log"))
    hostprep.start()
    yield hostprep
    assert hostprep.show("Result") == "success", hostprep.log()


@pytest.fixture
def hostprep(server: Hostprep, request: pytest.FixtureRequest) -> Iterator[Hostprep]:
    """The server. What it logged meanwhile is shown with a test that failed."""
    before = len(server.log())
    yield server
    print(f"hostprep's log:\n{server.log()[before:]}")


@pytest.fixture
def docker(hostprep: Hostprep) -> Iterator[Docker]:
    """The docker client. After the test all containers and volumes go."""
    docker = Docker()
    yield docker
    docker.remove_everything()


@pytest.fixture
def srv() -> Iterator[Path]:
    """A directory that `path` may point below; what is left there goes with the test."""
    yield SRV
    for left in SRV.iterdir():
        shutil.rmtree(left)


@pytest.fixture
def audit() -> Audit:
    """The denials of this test."""
    return Audit()
