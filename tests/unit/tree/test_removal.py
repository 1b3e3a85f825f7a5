"""The removal of a tree: everything in it goes, and nothing outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostprep.host import linux
from hostprep.host.fds import closing
from hostprep.tree import removal
from hostprep.tree.walk import Outcome
from tests.support.host import mounted
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


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
