"""The removal of a tree: everything in it goes, and nothing outside."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import Final

import pytest

from hostprep.host import linux
from hostprep.host.fds import closing
from hostprep.tree import removal
from hostprep.tree.walk import Outcome
from tests.support.disks import Disk
from tests.support.host import mounted
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_PROJINHERIT: Final = 0x200
_ADD_ENCRYPTION_KEY, _SET_ENCRYPTION_POLICY = 0xC0506617, 0x800C6613


@pytest.fixture(params=["openat2", "before Linux 5.6"], autouse=True)
def any_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the system call openat2."""
    if request.param != "openat2":
        monkeypatch.setattr(linux, "SYS_OPENAT2", 100_000)  # no kernel knows it: ENOSYS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a tree."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that nothing may reach."""
    make_tree(tmp_path, "dir outside/dir", "file outside/file", "file outside/dir/x")
    return tmp_path / "outside"


def removed(root: Path) -> Outcome:
    with closing(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        return removal.remove(fd)


def test_everything_below_goes(root: Path, outside: Path) -> None:
    """Every entry goes, whatever its mode and kind; where a symlink leads stays."""
    make_tree(root, "dir a 1:1 0", "dir b/c/d", "file b/x 1:1 0", f"symlink l {outside}", "fifo f", "device v")
    outcome = removed(root)
    assert os.listdir(root) == []
    assert (outcome.done, outcome.left) == (8, 0)
    assert sorted(os.listdir(outside)) == ["dir", "file"]


def test_mounts_inside_stay(root: Path, outside: Path) -> None:
    """What is mounted inside is not emptied: it is left, and reported."""
    make_tree(root, "dir a/b", "file c", "file d")
    with mounted("--bind", str(outside), f"{root}/a/b"), mounted("--bind", f"{outside}/file", f"{root}/c"):
        outcome = removed(root)
        assert sorted(os.listdir(outside)) == ["dir", "file"]
    assert "a/b: is a mount point" in outcome.sentences()
    assert sorted(os.listdir(root)) == ["a", "c"]


def test_deeper_than_any_path(root: Path) -> None:
    """A tree deeper than any path may be long goes."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert removed(root).left == 0
    assert os.listdir(root) == []


def test_more_than_one_directory_read(root: Path) -> None:
    """Removing entries while reading their directory misses none, in a directory of any size."""
    make_tree(root, *(f"file {'n' * 100}{number}" for number in range(3000)))
    assert removed(root).done == 3000
    assert os.listdir(root) == []


def test_what_root_made_immutable_stays(root: Path) -> None:
    """What root forbade to remove stays; its path is told, those of the directories above it are not."""
    make_tree(root, "dir a/b", "file a/b/kept", "file a/b/other", "dir c/d", "file c/d/inside", "file e")
    for path in (root / "a/b/kept", root / "c/d"):
        subprocess.run(["chattr", "+i", path], check=True)
    try:
        outcome = removed(root)
    finally:
        for path in (root / "a/b/kept", root / "c/d"):
            subprocess.run(["chattr", "-i", path], check=True)
    assert sorted(outcome.sentences()) == [f"{each}: Operation not permitted" for each in ("a/b/kept", "c/d/inside")]
    assert (outcome.left, sorted(os.listdir(root))) == (2, ["a", "c"])
    assert removed(root).left == 0
    assert os.listdir(root) == []


def test_directories_that_may_not_move(root: Path, tmp_path: Path) -> None:
    """A tree too deep goes, too, where its owner gave directories to another project, so that they cannot move up."""

    def project(path: Path, number: int) -> None:
        with closing(os.open(path, os.O_RDONLY)) as fd:
            attributes = bytearray(28)  # struct fsxattr
            fcntl.ioctl(fd, _FSGETXATTR, attributes)
            struct.pack_into("=I8xI", attributes, 0, _PROJINHERIT, number)
            fcntl.ioctl(fd, _FSSETXATTR, bytes(attributes))

    with Disk(tmp_path, "xfs").mounted(root):
        project(root, 5)
        last = root / "/".join("d" * 200)
        last.mkdir(parents=True)
        for path in (last, *last.parents[:199]):
            project(path, 6)
        (last / "file").touch()
        with pytest.raises(OSError, match="cross-device"):
            os.rename(last.parent, root / "up")
        assert removed(root).sentences() == ()
        assert os.listdir(root) == []


def test_directories_whose_key_is_gone(root: Path, tmp_path: Path) -> None:
    """A tree too deep goes, too, where its owner encrypted it and took the key away, so that nothing in it can move."""
    disk = Disk(tmp_path, "ext4 encrypt")
    with disk.mounted(root):
        (root / "a").mkdir()
        with closing(os.open(root / "a", os.O_RDONLY)) as fd:
            key = bytearray(struct.pack("=I36xI36x64s", 2, 64, os.urandom(64)))  # struct fscrypt_add_key_arg
            fcntl.ioctl(fd, _ADD_ENCRYPTION_KEY, key)
            policy = struct.pack("=BBBB4x16s", 2, 1, 4, 0, key[8:24])  # struct fscrypt_policy_v2, AES-256
            fcntl.ioctl(fd, _SET_ENCRYPTION_POLICY, policy)
        here = root / "a" / "/".join("d" * 200)
        here.mkdir(parents=True)
        (here / "file").touch()
    with disk.mounted(root):
        (name,) = os.listdir(root / "a")
        with pytest.raises(OSError, match="Required key not available"):
            os.rename(root / "a" / name, root / "a" / "up")
        assert set(os.listdir(root)) == {"a", "lost+found"}
        assert removed(root).sentences() == ()
        assert os.listdir(root) == []


def test_what_stays_in_the_depth_is_told_once(root: Path) -> None:
    """What moved up, and stays there, is one entry that was left, with the path that it has now."""
    here = root / "/".join("d" * 140)
    here.mkdir(parents=True)
    with mounted("-t", "tmpfs", "none", str(here)):
        outcome = removed(root)
        (up,) = os.listdir(root)
        assert outcome.sentences() == (f"{up}/{'/'.join('d' * 11)}: is a mount point",)
    assert removed(root).left == 0


def test_more_deep_ones_than_are_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many directories that are too deep, those go as well whose new names a removal did not remember."""
    monkeypatch.setattr(removal, "_MAX_MOVED", 2)
    for number in range(9):
        (root / "/".join("d" * 130) / f"{number}" / "/".join("e" * 130)).mkdir(parents=True)
    assert removed(root).left == 0
    assert os.listdir(root) == []
