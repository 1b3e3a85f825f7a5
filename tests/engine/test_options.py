"""What `docker volume create` tells the user who writes an option wrong; nothing may be left of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.engine import Hostprep

from .client import Docker, owner

pytestmark = pytest.mark.engine

# Options as written, and what the message has to say besides the first option's name: one of a kind, since
# tests/unit/test_options.py has all of them. ALLOWED stands for the allowed prefix.
WRONG = {
    "uid-name": (["uid=mongodb"], ['"mongodb"', "name", "number"]),
    "mode-yaml": (["mode=488"], ['"488"', 'mode: "0750"']),
    "label-fields": (["label=system_u:object_r:container_file_t"], ["level", ":s0"]),
    "recurse-word": (["recurse=sometimes"], ['"sometimes"', "never", "mismatch", "always"]),
    "on_remove-path": (["on_remove=delete", "path=ALLOWED/new"], ["path", "never removes"]),
    "path-outside": (["path=ALLOWED-not/new"], ["ALLOWED-not/new", "HOSTPREP_ALLOW"]),
    "path-link": (["path=ALLOWED/link"], ["link"]),
    "unknown-near": (["uuid=184"], ['"uuid"', "uid"]),
    "two-of-three-right": (["gid=staff", "uid=184", "mode=0750"], ['"staff"', "name"]),
}


@pytest.fixture(scope="module", autouse=True)
def outside(allowed: Path) -> Iterator[Path]:
    """A directory that no volume may be in, and an allowed name that is a symlink to it."""
    outside = allowed.with_name(f"{allowed.name}-not")
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    yield outside
    (allowed / "link").unlink()
    shutil.rmtree(outside)


def everything(top: Path) -> list[str]:
    return sorted(os.path.join(at, name) for at, dirs, files in os.walk(top) for name in (*dirs, *files))


@pytest.mark.parametrize(("options", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_option(
    docker: Docker, hostprep: Hostprep, allowed: Path, outside: Path, options: list[str], expected: list[str]
) -> None:
    """The message names the option, what was written and what to write; the host is as it was."""
    flags = [word.replace("ALLOWED", str(allowed)) for option in options for word in ("-o", option)]
    before = everything(hostprep.root), everything(allowed), everything(outside), owner(outside)

    said = docker.fails("volume", "create", "-d", "hostprep", *flags, "mongo")

    assert options[0].split("=")[0] in said
    for part in expected:
        assert part.replace("ALLOWED", str(allowed)) in said
    assert docker.volumes() == []
    assert (everything(hostprep.root), everything(allowed), everything(outside), owner(outside)) == before


def test_wrong_name(docker: Docker, hostprep: Hostprep) -> None:
    """A name that no file system could keep is refused with what a name may be."""
    before = everything(hostprep.root)

    said = docker.fails("volume", "create", "-d", "hostprep", "m" * 256)

    assert "255" in said
    assert everything(hostprep.root) == before


def test_wrong_option_of_run(docker: Docker) -> None:
    """docker run with a wrong option fails with the same message, and starts nothing."""
    mount = "type=volume,source=mongo,target=/data,volume-driver=hostprep,volume-opt=uid=mongodb"

    said = docker.fails("run", "--rm", "--mount", mount, "busybox", "true")

    assert '"mongodb"' in said
    assert docker.volumes() == []
    assert docker.containers() == []
