"""README's first volume, pasted line by line, with an image that has the numbers of the official one."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from testbed.engine import Engine, Hostprep
from testbed.images import Entry, busybox
from tests.support.pages import code, section

from .client import Docker

pytestmark = pytest.mark.engine
IMAGE = "mongo:8.0"


@pytest.fixture
def mongo(docker: Docker) -> None:
    """An image of the official one's name, user and data directory, that sleeps."""
    changes = ("--change", "VOLUME /data/db", "--change", 'CMD ["sleep", "1000"]')
    passwd = Entry("etc/passwd", 0o644, content=b"root:x:0:0::/:/bin/sh\nmongodb:x:999:999::/:/bin/sh\n")
    docker(
        "import", *changes, "-", IMAGE, stdin=busybox(passwd, Entry("data", 0o755), Entry("data/db", 0o755, 999, 999))
    )


def pasted(engine: Engine, hostprep: Hostprep, heading: str) -> list[str]:
    """Run the commands of README below *heading*, and answer what each prints."""
    printed = []
    for line in code(section(heading)):
        argv = shlex.split(line.replace("/var/lib/hostprep", str(hostprep.root)), comments=True)
        if argv[:1] == ["docker"]:
            done = engine.client(*argv)
        elif argv[:1] == ["hostprep"]:
            done = hostprep.command("--docker-host", engine.host, *argv[1:])
        elif argv[:1] == ["stat"]:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        else:
            continue
        assert done.returncode == 0, f"{line}: {done.stderr}"
        printed.append(done.stdout.strip())
    return printed


@pytest.mark.usefixtures("mongo")
def test_first_volume(docker: Docker, engine: Engine, hostprep: Hostprep) -> None:
    """Each command succeeds: the volume has the numbers that README says, probe finds them, and both containers run."""
    _, _, owner, probed, _ = pasted(engine, hostprep, "Your first volume")

    assert owner in section("Your first volume")
    assert f"uid={owner.split(':')[0]} gid={owner.split(':')[1]}" in re.sub(r"\s+", " ", probed)
    assert len(docker("ps", "-q").split()) == 2
    assert docker.inspect("mongo2")["Status"]["uid"] == docker.inspect("mongo")["Status"]["uid"] == 999
