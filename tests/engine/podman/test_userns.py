"""Podman of root's with a user namespace for the container: whose numbers uid and gid are, and what makes them right.

The volume is declared for 184:998, and the container runs as 184:998.
"""

from __future__ import annotations

import os

import pytest

from testbed import releases
from testbed.engine import Engine

from ..client import IDS, OPTIONS, WRITE, Podman, owner

pytestmark = pytest.mark.engine
SHOW = "stat -c %u:%g /data"
FLAGS = {"auto": "--userns=auto", "uidmap": "--uidmap=0:500000:65536"}
AUTO = 2_000_000, 16 * 65536
"""Where the ranges of --userns=auto begin, and how many numbers they have."""


@pytest.fixture(scope="module", autouse=True)
def ranges(engine: Engine) -> None:
    """The user from whose numbers Podman takes those of --userns=auto, in the release's tree, which is thrown away."""
    assert releases.RELEASE
    with engine.view("/etc/passwd").open("a") as passwd:
        passwd.write("containers:x:1999:1999::/nonexistent:/usr/sbin/nologin\n")
    for file in ("subuid", "subgid"):
        engine.view(f"/etc/{file}").write_text(f"containers:{AUTO[0]}:{AUTO[1]}\n")


@pytest.fixture(params=FLAGS)
def flag(request: pytest.FixtureRequest) -> str:
    return FLAGS[request.param]


def run(podman: Podman, flag: str, volume: str, script: str, *, user: str = IDS, image: str = "busybox") -> str:
    return podman.run(volume, script, flag, user=user, image=image)


def test_plain(podman: Podman, flag: str) -> None:
    """Without more, the volume is nobody's in the container, and its user cannot write; on disk nothing changes."""
    mountpoint = podman.create("mongo")

    assert run(podman, flag, "mongo:/data", f"{SHOW}; touch /data/file 2>/dev/null || echo no") == "65534:65534\nno"
    assert owner(mountpoint) == (184, 998)


def test_idmap(podman: Podman, flag: str) -> None:
    """With `:idmap` the volume is 184:998's in the container, and so is on disk what it writes."""
    mountpoint = podman.create("mongo")

    said = run(podman, flag, "mongo:/data:idmap", f"{WRITE}; {SHOW}; stat -c %u:%g /data/file")

    assert said == "written\n184:998\n184:998"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
    assert run(podman, flag, "mongo:/data:idmap", "echo more >> /data/file; cat /data/file") == "written\nmore"


def test_idmap_shares(podman: Podman) -> None:
    """Containers with other maps, and with none, see the same owners of one volume."""
    podman.create("mongo")
    run(podman, FLAGS["auto"], "mongo:/data:idmap", WRITE)

    assert run(podman, FLAGS["uidmap"], "mongo:/data:idmap", f"cat /data/file; {SHOW}") == "written\n184:998"
    assert podman.run("mongo:/data", f"echo more >> /data/file; {SHOW}") == "184:998"


def test_idmap_root(podman: Podman, flag: str) -> None:
    """Root in the container may do there what it may in any: its files are root's on disk, as its chown says."""
    mountpoint = podman.create("mongo")
    script = "touch /data/root /data/given; chown 184:998 /data/given; chmod 0600 /data/given"

    run(podman, flag, "mongo:/data:idmap", script, user="0:0")

    assert owner(f"{mountpoint}/root") == (0, 0)
    assert owner(f"{mountpoint}/given") == (184, 998)


def test_idmap_copy_up(podman: Podman, flag: str) -> None:
    """What Podman copies from the image has the image's owners; in 4.3 nobody's. The root is the declared owner's.

    recurse=always gives all of it to the declared owner at the next start.
    """
    mountpoint = podman.create("mongo", *OPTIONS, "-o", "recurse=always")
    script = f"{SHOW}; stat -c %u:%g /data/seed"
    seed = "65534:65534" if releases.RELEASE == "bookworm" else "55:66"

    assert run(podman, flag, "mongo:/data:idmap", f"{WRITE}; {script}", image="copyup") == f"written\n184:998\n{seed}"
    assert owner(mountpoint) == (184, 998)
    assert run(podman, flag, "mongo:/data:idmap", script) == "184:998\n184:998"
    assert owner(f"{mountpoint}/seed") == (184, 998)


def test_chown(podman: Podman, flag: str) -> None:
    """With `:U` Podman gives the tree to the container's numbers at each start, and hostprep takes it back after."""
    mountpoint = podman.create("mongo")

    assert run(podman, flag, "mongo:/data:U", f"{WRITE}; {SHOW}") == "written\n184:998"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == (184, 998)
    assert run(podman, flag, "mongo:/data:U", "echo more >> /data/file; stat -c %u:%g /data/file") == "184:998"
    assert owner(f"{mountpoint}/file") == (184, 998)


def test_chown_and_share(podman: Podman, flag: str) -> None:
    """While a container has it with `:U`, its files are no other's: one with another map, or none, cannot write."""
    mountpoint = podman.create("mongo")
    podman.daemon("first", "mongo:/data:U", flag)
    assert owner(mountpoint)[0] >= 500000

    said = podman.run("mongo:/data", "touch /data/file 2>/dev/null || echo no")

    assert said == "no"


def test_chown_and_idmap(podman: Podman, flag: str) -> None:
    """`:U` with `:idmap` translates twice, and the container cannot write; hostprep takes the tree back after."""
    mountpoint = podman.create("mongo")

    assert run(podman, flag, "mongo:/data:U,idmap", "touch /data/file 2>/dev/null || echo no") == "no"
    assert owner(mountpoint) == (184, 998)


def test_partial_idmap(podman: Podman, flag: str) -> None:
    """With a map of few numbers (`:idmap=uids=…`) root in the container has none, and makes no file."""
    mountpoint = podman.create("mongo")

    volume = "mongo:/data:idmap=uids=184-184-1;gids=998-998-1"
    assert run(podman, flag, volume, "touch /data/file 2>&1 || true", user="0:0").endswith(
        "Value too large for defined data type"
    )
    assert os.listdir(mountpoint) == []
