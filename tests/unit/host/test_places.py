"""Places on file systems, told by the mount table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host.mountinfo import mount_table
from hostprep.host.places import Places, share
from tests.support.host import mounted
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A directory `a/b/c`, bind mounts of `a` and `a/b`, a tmpfs in `a`, and one over a directory with a mount."""
    make_tree(tmp_path, "dir a/b/c", "dir a/disk", "dir all", "dir part", "dir twice", "dir hidden/below")
    with (
        mounted("--bind", f"{tmp_path}/a", f"{tmp_path}/all"),
        mounted("--bind", f"{tmp_path}/a/b", f"{tmp_path}/part"),
        mounted("-t", "tmpfs", "none", f"{tmp_path}/a/disk"),
        mounted("-t", "tmpfs", "none", f"{tmp_path}/twice"),
        mounted("--bind", f"{tmp_path}/a/b", f"{tmp_path}/twice"),
        mounted("--bind", f"{tmp_path}/a/b", f"{tmp_path}/hidden/below"),
        mounted("-t", "tmpfs", "none", f"{tmp_path}/hidden"),
    ):
        yield tmp_path


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "all", True),
        ("a/b", "all/b", True),
        ("a/b", "all", True),
        ("a", "all/b/c", True),
        ("a/b", "part", True),
        ("a", "part", True),
        ("all", "part/c", True),
        ("a/b/c", "part/c", True),
        ("a/b/c", "part", True),
        ("part", "twice", True),
        ("a/missing", "all/missing", True),
        ("a", "a/disk/x", True),
        ("a/b/c", "part/d", False),
        ("a/bc", "part", False),
        ("a/disk", "a/b", False),
        ("a/disk/x", "x", False),
        ("hidden/below", "part", False),
        ("a", "other", False),
    ],
)
def test_shared(here: Path, one: str, other: str, shared: bool) -> None:  # noqa: FBT001
    """Two directories share something where one is the other or lies in it, whatever mounts give them their names."""
    places = Places(mount_table())
    found = [places.of(f"{here}/{path}") for path in (one, other)]
    assert share(*found) is share(*reversed(found)) is shared


def test_without_a_mount_table() -> None:
    """Where no mount can be seen, as in a chroot, names are compared."""
    places = Places([])
    assert share(places.of("/srv/a"), places.of("/srv/a/b"))
    assert not share(places.of("/srv/a"), places.of("/srv/ab"))
    assert share(places.of("/"), places.of("/srv"))
