"""The system calls that Python has no name for."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hostprep.host import linux
from hostprep.host.fds import closing
from tests.support.disks import Disk
from tests.support.host import mounted, owner

pytestmark = pytest.mark.root
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_ONE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_XDEV


@pytest.mark.parametrize(
    ("name", "resolve", "expected"),
    [
        ("missing", 0, errno.ENOENT),
        ("..", linux.RESOLVE_BENEATH, errno.EXDEV),
        ("/etc", linux.RESOLVE_BENEATH, errno.EXDEV),
        ("link", linux.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        ("file", 0, errno.ENOTDIR),
    ],
    ids=["missing", "out", "absolute", "symlink", "file"],
)
def test_openat2_raises_plain_oserror(tmp_path: Path, name: str, resolve: int, expected: int) -> None:
    """A failure is an OSError with the number and the name, as from os.open."""
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "file").touch()
    with closing(os.open(tmp_path, _DIRECTORY)) as fd, pytest.raises(OSError, match=name) as caught:
        linux.openat2(fd, name, _DIRECTORY, resolve)
    assert caught.value.errno == expected
    assert caught.value.filename == name


def test_openat2_opens_and_closes_on_exec(tmp_path: Path) -> None:
    """What is opened is the directory asked for, and no child process inherits it."""
    (tmp_path / "a").mkdir()
    with closing(os.open(tmp_path, _DIRECTORY)) as above, closing(linux.openat2(above, "a", _DIRECTORY, _ONE)) as fd:
        assert os.path.sameopenfile(fd, fd)
        assert os.fstat(fd).st_ino == (tmp_path / "a").stat().st_ino
        assert not os.get_inheritable(fd)


def test_openat2_sees_a_bind_mount_of_the_same_file_system(tmp_path: Path) -> None:
    """RESOLVE_NO_XDEV refuses a bind mount that no device number betrays."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        mounted("--bind", str(tmp_path / "b"), str(tmp_path / "a")),
        closing(os.open(tmp_path, _DIRECTORY)) as fd,
        pytest.raises(OSError, match="a") as caught,
    ):
        linux.openat2(fd, "a", _DIRECTORY, _ONE)
    assert caught.value.errno == errno.EXDEV


@pytest.mark.usefixtures("read_only_machine")
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_fchown_takes_a_pinned_descriptor(tmp_path: Path, kind: str) -> None:
    """An O_PATH descriptor is enough to change an owner, of a symlink itself too."""
    path = tmp_path / "entry"
    make: dict[str, Callable[[], None]] = {
        "file": path.touch,
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to("/etc/passwd"),
    }
    make[kind]()
    with closing(os.open(path, os.O_PATH | os.O_NOFOLLOW)) as fd:
        linux.fchown(fd, 1000, 4294967294)
    assert owner(path) == (1000, 4294967294)
    assert owner(Path("/etc/passwd")) == (0, 0)


def test_fchown_leaves_minus_one_alone(tmp_path: Path) -> None:
    """-1 leaves an id as it is."""
    with closing(os.open(tmp_path, _DIRECTORY)) as fd:
        linux.fchown(fd, 1000, -1)
        linux.fchown(fd, -1, 2000)
    assert owner(tmp_path) == (1000, 2000)


def test_fchown_raises_plain_oserror() -> None:
    """A bad descriptor is an OSError with the number."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.fchown(99999, 1, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("link", errno.ENOTDIR),
        ("file", errno.ENOTDIR),
        ("directory", errno.EINVAL),
        ("directory/subvolume", errno.EINVAL),
        ("..", errno.EINVAL),
        ("missing", errno.ENOENT),
    ],
)
def test_destroy_subvolume_takes_nothing_else(tmp_path: Path, name: str, expected: int) -> None:
    """It destroys a sub-volume that is in the directory itself: not through a link, and no other thing."""
    place = tmp_path / "disk"
    place.mkdir()
    with Disk(tmp_path, "btrfs").mounted(place):
        (place / "directory").mkdir()
        subprocess.run(["btrfs", "-q", "subvolume", "create", place / "directory" / "subvolume"], check=True)
        (place / "file").touch()
        (place / "link").symlink_to("directory/subvolume")
        with closing(os.open(place, _DIRECTORY)) as fd, pytest.raises(OSError, match=".") as caught:
            linux.destroy_subvolume(fd, name)
        assert caught.value.errno == expected
        assert sorted(os.listdir(place)) == ["directory", "file", "link"]
        with closing(os.open(place / "directory", _DIRECTORY)) as fd:
            linux.destroy_subvolume(fd, "subvolume")
        assert os.listdir(place / "directory") == []
