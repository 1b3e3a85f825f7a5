"""What a user of rootless Podman does with a hostprep of his own."""

from __future__ import annotations

import pytest

from tests.support.rootless import on_host

from ..client import OPTIONS, WRITE, Podman, owner
from .conftest import Users

pytestmark = pytest.mark.engine


def create(podman: Podman, hostprep: Users, *options: str) -> str:
    """Create the volume mongo, and answer where the host has it."""
    podman("volume", "create", "--driver", "hostprep", *options, "mongo")
    return f"{hostprep.root}/volumes/mongo/_data"


def test_run(podman: Podman, hostprep: Users) -> None:
    """The container writes as 184:998, which on the host are those of the user's ranges."""
    mountpoint = create(podman, hostprep, *OPTIONS)

    assert podman.run("mongo:/data", f"{WRITE}; stat -c %u:%g /data /data/file") == "written\n184:998\n184:998"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == on_host(184, 998)


def test_copy_up(podman: Podman, hostprep: Users) -> None:
    """What Podman copies from the image keeps the image's owners, as with Podman of root's."""
    mountpoint = create(podman, hostprep, *OPTIONS)

    assert podman.run("mongo:/data", WRITE, image="copyup") == "written"
    assert owner(mountpoint) == on_host(184, 998)
    assert owner(f"{mountpoint}/seed") == on_host(55, 66)


def test_keep_id(podman: Podman, hostprep: Users) -> None:
    """With keep-id:uid=184,gid=998 the user is 184:998 in the container, and a volume of 0:0 is his, files and all."""
    mountpoint = create(podman, hostprep, "-o", "uid=0", "-o", "gid=0")

    said = podman.run("mongo:/data", f"{WRITE}; stat -c %u:%g /data /data/file", "--userns=keep-id:uid=184,gid=998")

    assert said == "written\n184:998\n184:998"
    assert owner(mountpoint) == owner(f"{mountpoint}/file") == on_host(0, 0)
