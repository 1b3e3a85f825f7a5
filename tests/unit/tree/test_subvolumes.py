"""The removal of what anybody can make on btrfs in a directory of his own: sub-volumes, and read-only snapshots."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hostprep.host import linux
from hostprep.host.fds import closing
from hostprep.tree import removal
from hostprep.tree.walk import Outcome
from tests.support.disks import Disk
from tests.support.host import PYTHON, REPOSITORY, Host, mounted
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
USER: Final = 184
_UNIT: Final = (REPOSITORY / "systemd/hostprep.service").read_text()
SERVICE: Final = re.findall(r"^CapabilityBoundingSet=(.*)$", _UNIT, re.MULTILINE)[0].lower().replace("cap_", "").split()
CONTAINER: Final = ["chown", "dac_override", "fowner", "fsetid"]
REMOVE: Final = """
import sys
from hostprep.tree.removal import remove
outcome = remove(int(sys.argv[1]))
print(outcome.done, outcome.left, *outcome.sentences(), sep="\\n")
"""


def btrfs(where: Path, *command: str, uid: int = USER) -> None:
    """Run `btrfs` in a directory as an unprivileged user."""
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups") if uid else ()
    done = subprocess.run([*user, "btrfs", *command], cwd=where, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def write(*paths: Path) -> None:
    for path in paths:
        path.touch()
        os.chown(path, USER, USER)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory of the user's, on btrfs, with somebody's sub-volume beside it."""
    place = tmp_path / "disk"
    place.mkdir()
    with Disk(tmp_path, "btrfs").mounted(place):
        (place / "tree").mkdir()
        os.chown(place / "tree", USER, USER)
        btrfs(place, "subvolume", "create", "outside", uid=0)
        (place / "outside" / "file").touch()
        yield place / "tree"
        assert os.listdir(place / "outside") == ["file"]


@pytest.fixture(params=[SERVICE, CONTAINER], ids=["the service", "the managed plugin"])
def capabilities(request: pytest.FixtureRequest) -> list[str]:
    """What a removal may do: of these, only CAP_SYS_ADMIN destroys a sub-volume whole."""
    found: list[str] = request.param
    return found


def removed(root: Path, capabilities: list[str]) -> Outcome:
    """A removal with these capabilities and no others, and few descriptors."""
    with closing(os.open(root, _DIRECTORY)) as fd:
        done = subprocess.run(
            ["prlimit", "--nofile=700", "setpriv", f"--bounding-set=-all,+{',+'.join(capabilities)}",
             PYTHON, "-P", "-S", "-c", REMOVE, str(fd)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "plugin")},
            pass_fds=[fd], capture_output=True, text=True, check=True,
        )  # fmt: skip
    number, left, *sentences = done.stdout.splitlines()
    return Outcome(done=int(number), left=int(left), examples=sentences)


def test_all_that_a_user_makes(root: Path, capabilities: list[str]) -> None:
    """Sub-volumes in each other, and what is read-only, whatever is in it, go; somebody's beside them stays."""
    for each in ("_data", "_data/a", "_data/b"):
        btrfs(root, "subvolume", "create", each)
    make_tree(root, "dir _data/d/e 184:184", "dir _data/a/f 184:184", "symlink _data/out ../outside")
    os.chown(root / "_data/d", USER, USER)
    write(root / "_data/d/e/x", root / "_data/a/f/y", root / "_data/b/z")
    btrfs(root, "subvolume", "create", "_data/d/e/deep")
    btrfs(root, "subvolume", "snapshot", "-r", "_data", "_data/a/f/of all")
    btrfs(root, "subvolume", "snapshot", "_data/a", "_data/d/e/deep/of a")
    btrfs(root, "subvolume", "snapshot", "-r", "_data/a/f/of all", "_data/d/again")
    for each in ("_data/a", "_data/d/e/deep", "_data"):
        btrfs(root, "property", "set", "-ts", each, "ro", "true")
    outcome = removed(root, capabilities)
    assert outcome.sentences() == ()
    assert os.listdir(root) == []


def test_a_purge(host: Host, tmp_path: Path) -> None:
    """A volume in which a container's user made sub-volumes, or which is one itself, is purged to the end."""
    host.root.mkdir()
    with Disk(tmp_path, "btrfs").mounted(host.root):
        host.root.chmod(0o700)
        assert host.run("create", "mongo", "-o", f"uid={USER}").code == 0
        host.data("mongo").rmdir()
        btrfs(host.data("mongo").parent, "subvolume", "create", "_data", uid=0)
        os.chown(host.data("mongo"), USER, USER)
        btrfs(host.data("mongo"), "subvolume", "create", "a")
        btrfs(host.data("mongo"), "subvolume", "snapshot", "-r", ".", "a/b")
        assert host.run("rm", "mongo").code == 0
        ended = host.run("purge", "--all")
        assert (ended.code, host.trash()) == (0, [])


def test_one_is_destroyed_whole(root: Path) -> None:
    """A snapshot of any size is one step, and one more for each other sub-volume in it."""
    btrfs(root, "subvolume", "create", "a")
    make_tree(root / "a", "dir d 184:184", *(f"file d/{number}" for number in range(100)))
    btrfs(root, "subvolume", "snapshot", "a", "b")
    btrfs(root, "subvolume", "snapshot", "-r", "a", "c")
    btrfs(root, "subvolume", "create", "b/d/e")
    assert removed(root, SERVICE).done == 4
    assert os.listdir(root) == []


def test_deeper_than_any_path(root: Path, capabilities: list[str]) -> None:
    """Sub-volumes and directories in each other, read-only ones among them, go at any depth."""
    btrfs(root, "subvolume", "create", "tip")
    for number in range(12):  # from the innermost out
        btrfs(root, "subvolume", "create", "next")
        last = root / "next" / "/".join(["directory"] * (20 if number % 4 else 150))
        last.mkdir(parents=True)
        os.rename(root / "tip", last / "tip")
        os.rename(root / "next", root / "tip")
    with contextlib.ExitStack() as opened:
        here = opened.enter_context(closing(os.open(root, _DIRECTORY)))
        found = 0
        while below := os.listdir(here):
            here = opened.enter_context(closing(os.open(below[0], _DIRECTORY, dir_fd=here)))
            if below == ["tip"]:
                found += 1
                if found % 3 == 0:
                    fcntl.ioctl(here, linux.BTRFS_IOC_SUBVOL_SETFLAGS, struct.pack("=Q", linux.BTRFS_SUBVOL_RDONLY))
    assert found == 13
    assert removed(root, capabilities).sentences() == ()
    assert os.listdir(root) == []


def test_more_deep_ones_than_are_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that are too deep in a sub-volume, those go as well whose new names a removal did not remember."""
    monkeypatch.setattr(removal, "_MAX_MOVED", 2)
    btrfs(root, "subvolume", "create", "a")
    for number in range(9):
        last = root / "a" / "/".join("d" * 130) / f"{number}" / "/".join("e" * 130)
        last.mkdir(parents=True)
        btrfs(last, "subvolume", "create", "b", uid=0)
    with closing(os.open(root, _DIRECTORY)) as fd:
        assert removal.remove(fd).sentences() == ()
    assert os.listdir(root) == []


@pytest.mark.parametrize("where", ["on it", "in it"])
def test_a_mount_point_stays(root: Path, capabilities: list[str], where: str) -> None:
    """What is mounted on a sub-volume, or in it, stays mounted and as it is, and its path is told."""
    make_tree(root, "file x")
    btrfs(root, "subvolume", "create", "a")
    btrfs(root, "subvolume", "create", "a/b")
    make_tree(root, "dir a/b/c/d", "file a/b/c/x")
    place = root / ("a/b" if where == "on it" else "a/b/c/d")
    with mounted("--bind", f"{root.parent}/outside", f"{place}"):
        outcome = removed(root, capabilities)
        assert os.listdir(place) == ["file"]
    assert outcome.sentences() == (f"{place.relative_to(root)}: is a mount point",)
    assert os.listdir(root) == ["a"]
    assert removed(root, capabilities).left == 0


def test_the_default_one(root: Path) -> None:
    """The sub-volume that is mounted by default stays, for as long as it is that, and its path is told."""
    btrfs(root, "subvolume", "create", "a")
    btrfs(root, "subvolume", "create", "a/b")
    write(root / "a/b/x")
    btrfs(root, "subvolume", "set-default", "a/b", uid=0)
    assert removed(root, SERVICE).sentences() == ("a/b: Operation not permitted",)
    btrfs(root, "subvolume", "set-default", "5", ".", uid=0)
    assert removed(root, SERVICE).left == 0
    assert os.listdir(root) == []


def test_one_that_is_being_sent(root: Path) -> None:
    """The sub-volume that `btrfs send` reads stays until the end of that, and its path is told."""
    btrfs(root, "subvolume", "create", "a")
    (root / "a/x").write_bytes(os.urandom(1 << 20))
    btrfs(root, "property", "set", "-ts", "a", "ro", "true")
    with subprocess.Popen(["btrfs", "-q", "send", root / "a"], stdout=subprocess.PIPE) as sending:
        assert sending.stdout
        assert sending.stdout.read(4) == b"btrf"  # the rest is more than a pipe holds
        assert removed(root, SERVICE).sentences() == ("a: Operation not permitted",)
        assert os.listdir(root / "a") == ["x"]
        sending.stdout.read()
    assert removed(root, SERVICE).left == 0
    assert os.listdir(root) == []


def test_a_swap_file(root: Path) -> None:
    """Of a sub-volume with a swap file in use nothing else stays, and its path is told."""
    btrfs(root, "subvolume", "create", "a")
    write(root / "a/s", root / "a/x")
    subprocess.run(["chattr", "+C", root / "a/s"], check=True)
    subprocess.run(["fallocate", "-l4M", root / "a/s"], check=True)
    (root / "a/s").chmod(0o600)
    os.chown(root / "a/s", 0, 0)
    subprocess.run(["mkswap", "-q", root / "a/s"], check=True)
    subprocess.run(["swapon", root / "a/s"], check=True)
    try:
        outcome = removed(root, SERVICE)
    finally:
        subprocess.run(["swapoff", root / "a/s"], check=True)
    assert outcome.sentences() == ("a/s: Operation not permitted",)
    assert os.listdir(root / "a") == ["s"]
    assert removed(root, SERVICE).left == 0


def test_on_a_full_disk(root: Path, capabilities: list[str]) -> None:
    """Sub-volumes and snapshots go where nothing more can be written."""
    btrfs(root, "subvolume", "create", "a")
    btrfs(root, "subvolume", "create", "a/b")
    make_tree(root / "a", *(f"file {number}" for number in range(2000)))
    btrfs(root, "subvolume", "snapshot", "-r", "a", "c")
    with (root / "a/full").open("wb") as full, pytest.raises(OSError, match="No space"):
        while full.write(bytes(1 << 20)):
            full.flush()
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (root / f"{number}").write_bytes(bytes(1500))
    assert removed(root, capabilities).sentences() == ()
    assert os.listdir(root) == []
