"""Idmapped mounts: the maps that the kernel takes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from hostprep.errors import NotAllowed
from hostprep.host import fds, idmap, linux
from hostprep.host.idmap import Exchange, IdMap
from hostprep.options import MAX_ID
from hostprep.volumes import pins
from tests.support.host import mounted
from tests.support.trees import make_tree

MINE = IdMap(Exchange(1000, 184), Exchange(1001, 998))


@pytest.mark.parametrize(
    ("on_disk", "seen", "lines"),
    [
        (1000, 184, "0 0 184\n184 1000 1\n185 185 815\n1000 184 1\n1001 1001 4294966294\n"),
        (5, 5, "0 0 4294967295\n"),
        (MAX_ID, 1, f"0 0 1\n1 {MAX_ID} 1\n2 2 4294967292\n{MAX_ID} 1 1\n"),
    ],
)
def test_lines(on_disk: int, seen: int, lines: str) -> None:
    """A map exchanges two ids, and leaves every other as it is."""
    assert Exchange(on_disk, seen).lines() == lines


def test_each_id_has_one_counterpart() -> None:
    """Whatever is exchanged, the ranges cover every id once, on both sides."""
    chance = random.Random(7)  # noqa: S311  # no secret is made of it
    ids = [0, 1, 184, 1000, MAX_ID, MAX_ID - 1, *(chance.randrange(1, MAX_ID) for _ in range(20))]
    for on_disk in ids[1:]:
        for seen in ids:
            ranges = [tuple(map(int, line.split())) for line in Exchange(on_disk, seen).lines().splitlines()]
            for side in (0, 1):
                at = 0
                for start, count in sorted((each[side], each[2]) for each in ranges):
                    assert start == at
                    at = start + count
                assert at == MAX_ID + 1


def test_root_is_nobody_elses() -> None:
    """Where a host user's files are root's in the container, no user of the container is root on disk."""
    moved = Exchange(1000, 0)
    assert [moved.seen_of(number) for number in (1000, 0, 184)] == [0, 2**32 - 3, 184]


@pytest.mark.root
class TestPutOn:
    def test_owner(self, tmp_path: Path) -> None:
        """Through the mount a file has the container's owner; what is created there has the host's on disk."""
        make_tree(tmp_path, "dir data 1000:1001 700", "file data/mine 1000:1001", "file data/other 5:6")
        with fds.closing(os.open(tmp_path / "data", os.O_RDONLY)) as data, pins.clone(data, MINE) as tree:
            seen = {name: os.stat(name, dir_fd=tree) for name in (".", "mine", "other")}
            made = os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=tree)
            os.fchown(made, 184, 998)
            os.close(made)
            assert MINE.shows(os.fstat(data), seen["."])
            assert not IdMap(Exchange(7, 7), Exchange(8, 8)).shows(os.fstat(data), seen["."])
        owners = [(st.st_uid, st.st_gid) for st in seen.values()]
        assert owners == [(184, 998), (184, 998), (5, 6)]
        made_on_disk = os.stat(tmp_path / "data" / "made")
        assert (made_on_disk.st_uid, made_on_disk.st_gid) == (1000, 1001)

    def test_one_namespace_for_a_map(self, tmp_path: Path) -> None:
        """Mounts with one map use one user namespace; no process of it stays."""
        with fds.closing(os.open(tmp_path, os.O_RDONLY)) as data:
            before = len(os.listdir("/proc/self/fd"))
            unused = IdMap(Exchange(4321, 1234), Exchange(5, 5))
            for _ in range(3):
                with pins.clone(data, unused):
                    pass
            assert len(os.listdir("/proc/self/fd")) == before + 1
            assert os.fstat(idmap._kept[unused]).st_ino != os.stat("/proc/self/ns/user").st_ino

    def test_ever_more_maps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many maps were asked for, only so many descriptors are kept; one that is gone is made anew."""
        monkeypatch.setattr(idmap, "_MOST", len(idmap._kept) + 2)
        maps = [IdMap(Exchange(4000 + number, 1234), Exchange(5, 5)) for number in range(4)]
        with fds.closing(os.open(tmp_path, os.O_RDONLY)) as data:
            before = len(os.listdir("/proc/self/fd"))
            for each in (*maps, *maps):
                pins.check(data, each)
            assert len(os.listdir("/proc/self/fd")) <= before + 2

    def test_what_is_mounted_inside(self, tmp_path: Path) -> None:
        """What is mounted in the directory has the map, too; what cannot have it is refused in words."""
        make_tree(tmp_path, "dir data 1000:1001", "dir data/disk", "dir data/proc")
        with fds.closing(os.open(tmp_path / "data", os.O_RDONLY)) as data:
            with mounted("-t", "tmpfs", "-o", "uid=1000,gid=1001", "none", f"{tmp_path}/data/disk"):
                with pins.clone(data, MINE) as tree:
                    assert os.stat("disk", dir_fd=tree).st_uid == 184
            with mounted("-t", "proc", "none", f"{tmp_path}/data/proc"):
                with pytest.raises(NotAllowed, match="mounted in it"):
                    pins.check(data, MINE)

    def test_on_an_idmapped_mount(self, tmp_path: Path) -> None:
        """A directory that has a map already is refused in words."""
        with fds.closing(os.open(tmp_path, os.O_RDONLY)) as data, pins.clone(data, MINE) as tree:
            with pytest.raises(NotAllowed, match="idmapped mount already"):
                pins.check(tree, MINE)

    def test_without_user_namespaces(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no user namespace can be made, the drop-in that allows it is named."""
        monkeypatch.setattr(idmap, "_CHILD", f"import os; os.write(1, b'{errno.EPERM}')")
        with fds.closing(os.open(tmp_path, os.O_RDONLY)) as data:
            with pytest.raises(NotAllowed, match=r"Operation not permitted \(the drop-in user-ids.conf"):
                pins.check(data, IdMap(Exchange(77, 78), Exchange(5, 5)))

    def test_old_kernel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before Linux 5.12 it is refused with that number."""
        monkeypatch.setattr(linux, "SYS_MOUNT_SETATTR", 9999)
        with fds.closing(os.open(tmp_path, os.O_RDONLY)) as data, pytest.raises(NotAllowed, match="Linux 5.12"):
            pins.check(data, MINE)
