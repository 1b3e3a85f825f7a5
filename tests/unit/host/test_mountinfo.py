"""The mount table as the kernel prints it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hostprep.host import fds, mountinfo
from hostprep.host.mountinfo import Mount, mount_table
from tests.support.host import mounted

pytestmark = pytest.mark.root


def at(place: Path) -> list[Mount]:
    """What is mounted at *place*."""
    return [mount for mount in mount_table() if mount.point == str(place)]


@pytest.mark.parametrize(
    "name", [" ", "a\nb", "a\\b", "a\tb", "#", "a\rb", "\\040", "ü", os.fsdecode(b"\xff"), "x" * 255], ids=ascii
)
def test_mountinfo(tmp_path: Path, name: str) -> None:
    """A mount point of any name is read as it is."""
    (tmp_path / name).mkdir()
    with mounted("--bind", str(tmp_path), f"{tmp_path}/{name}"):
        (found,) = at(tmp_path / name)
        with fds.closing(os.open(tmp_path / name, os.O_RDONLY)) as fd:
            assert found.id == fds.mount_id(fd)


@pytest.mark.parametrize(("flag", "expected"), [("shared", (True, False)), ("private", (False, False))])
def test_propagation(tmp_path: Path, flag: str, expected: tuple[bool, bool]) -> None:
    """Whether a mount is shared, or the slave of another, is read."""
    for each in ("a", "b"):
        (tmp_path / each).mkdir()
    with mounted("-t", "tmpfs", "none", f"{tmp_path}/a"):
        subprocess.run(["mount", f"--make-{flag}", tmp_path / "a"], check=True)
        (found,) = at(tmp_path / "a")
        assert (found.shared, found.slave) == expected
        with mounted("--bind", f"{tmp_path}/a", f"{tmp_path}/b"):
            subprocess.run(["mount", "--make-slave", tmp_path / "b"], check=True)
            (found,) = at(tmp_path / "b")
            assert (found.shared, found.slave) == (False, flag == "shared")


@pytest.mark.parametrize(
    ("source", "root"),
    [
        ("nas:/srv/a/db", "/srv/a/db"),
        ("[fe80::1%25eth0]:/srv/a", "/srv/a"),
        ("nas:/", "/"),
        (r"nas:/a\040b", "/a b"),
    ],
)
@pytest.mark.parametrize("kind", ["nfs", "nfs4"])
def test_nfs(kind: str, source: str, root: str) -> None:
    """Of NFS the kernel shows as what is mounted always "/", and the directory in the source."""
    assert mountinfo._mount(f"40 28 0:45 / /mnt rw,relatime shared:9 - {kind} {source} rw,vers=4.2").root == root
