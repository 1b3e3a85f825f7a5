"""Full, dead and read-only disks, and limits: an error in words, no wrong answer, and once it is over all goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.support import steps
from tests.support.disks import Disk, sync
from tests.support.host import Host, eventually, mounted
from tests.support.trial import FULL, Trial, on_tmpfs
from tests.support.verbs import CASES, Case, engine, look, opened, run

pytestmark = pytest.mark.root


@pytest.fixture
def place(nothing_left: None, tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    return place


@pytest.fixture
def images(nothing_left: None, tmp_path: Path) -> Iterator[Path]:
    images = tmp_path / "images"
    images.mkdir()
    with mounted("-t", "tmpfs", "none", str(images)):
        yield images


class Fault:
    """Something that befalls the file system at *place*, and goes away again."""

    says = ""
    """What whoever meets it is told."""

    def __init__(self, disk: Disk, place: Path) -> None:
        self.disk = disk
        self.place = place

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """As an administrator ends it: the disk is mounted anew."""
        self.disk.mount_again(self.place)


class Full(Fault):
    says = os.strerror(errno.ENOSPC)

    def begin(self) -> None:
        with (self.place / "filler").open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass

    def end(self) -> None:
        (self.place / "filler").unlink()


class NoInodes(Fault):
    says = os.strerror(errno.ENOSPC)

    def begin(self) -> None:
        (self.place / "fillers").mkdir()
        with contextlib.suppress(OSError):
            for number in range(10_000):
                (self.place / "fillers" / str(number)).touch()

    def end(self) -> None:
        for filler in (self.place / "fillers").iterdir():
            filler.unlink()
        (self.place / "fillers").rmdir()


class Dead(Fault):
    """Every read and write of the disk is an I/O error."""

    says = os.strerror(errno.EIO)

    def begin(self) -> None:
        self.disk.shut_down(self.place)


class ReadOnly(Fault):
    """The file system has found itself damaged, and writes nothing more (errors=remount-ro)."""

    says = os.strerror(errno.EROFS)

    def begin(self) -> None:
        self.disk.find_damaged(self.place)


class Gone(Fault):
    """The disk is not mounted any more; what was open on it still is."""

    def begin(self) -> None:
        self.disk.take_away(self.place)


def told_in_words(said: str) -> bool:
    line = said.strip().splitlines()[-1]
    return line.startswith("hostprep: ") and "internal" not in said and "Traceback" not in said


KINDS = (Full, NoInodes, Dead, ReadOnly, Gone)
EACH = [
    (case, kind)
    for number, case in enumerate(CASES)
    for kind in (KINDS if FULL else (KINDS[number % 5],))
    if kind is not Gone or case.before is not None  # who asks for a root to be made where none is, has it made
]


@pytest.mark.parametrize(("case", "kind"), EACH, ids=lambda each: getattr(each, "__name__", str(each)))
def test_at_every_step(case: Case, kind: type[Fault], images: Path, place: Path, run_dir: Path) -> None:
    """What is under way fails in words, Get tells nobody no, and when it is over the same server goes on by itself."""
    disk = Disk(images, "ext4 small")
    empty = disk.copy()

    @contextlib.contextmanager
    def fresh() -> Iterator[None]:
        disk.put_back(empty)
        with disk.mounted(place):
            yield

    tried = Trial(case, place, run_dir, fresh)
    fault = kind(disk, place)
    for number in tried.some(9):
        with tried.host() as host:
            sync(place)
            server = None
            if case.before is not None:
                if isinstance(fault, Gone):  # what is remembered of the root is not on its disk
                    host.environ["HOSTPREP_KNOWN_ROOTS"] = tempfile.mkdtemp(dir=run_dir)
                server = engine(opened(host))

            def at(step: steps.Step, number: int = number) -> int:
                if step.number == number:
                    fault.begin()
                return steps.GO

            ended, said = run(case, host, at)
            if len(ended.steps) <= number:
                continue
            try:
                assert ended.code in (0, 1)
                if ended.code:
                    assert told_in_words(said)
                if server is not None:
                    for name in tried.before.live:
                        if name in tried.after.live:
                            assert server.knows(name) is not False
                    if isinstance(fault, Full | NoInodes) and "other" in tried.before.live:
                        assert server.knows("other") is True
                        server.mounted("other")
                if isinstance(fault, Gone):
                    again, said_again = run(case, host)
                    assert again.code == 1
                    assert told_in_words(said_again)
                    assert os.listdir(place) == []
                fault.end()
                if ended.code == 0 and not case.repairs:
                    assert look(host, fine=False) == tried.after
                if server is not None:
                    opened(host).store.remove_leftovers()
                tried.is_sound(host, server, told=True)
            except BaseException as exc:
                exc.add_note(f"at {ended.at(number)}, with which it ended as {ended.code} and said {said!r}")
                raise


# In a pass an entry that cannot be changed is left alone and reported: test_refusals.py.
@pytest.mark.parametrize("case", [case for case in CASES if not case.walks], ids=str)
def test_one_call_fails(case: Case, place: Path, run_dir: Path) -> None:
    """Any one call may fail with EIO, an fsync too: an error, or what was asked for; the same again ends it."""
    tried = Trial(case, place, run_dir, on_tmpfs(place))
    for number in range(len(tried.steps)):
        with tried.host() as host:
            ended, said = run(case, host, steps.only(errno.EIO, number))
            try:
                assert ended.code in (0, 1)
                assert told_in_words(said) if ended.code else look(host, fine=False) == tried.after
                tried.is_sound(host, told=True)
            except BaseException as exc:
                exc.add_note(f"{ended.at(number)} failed, with which it ended as {ended.code} and said {said!r}")
                raise


def test_a_server_whose_disk_goes(host: Host, images: Path) -> None:
    """Without its disk a server answers in words, to Get not at all, and writes nothing; with it again all goes on."""
    disk = Disk(images)
    host.root.mkdir(mode=0o700)
    with disk.mounted(host.root):
        host.root.chmod(0o700)
        assert host.run("create", "mongo", "-o", "uid=184").code == 0
        for name in ("old", "older"):
            assert host.run("create", name).code == host.run("rm", name).code == 0
        server = host.serve(HOSTPREP_TRASH_KEEP="0")
        eventually(lambda: host.trash() == [], "what was removed is purged")
        assert server("Create", Name="new").status == server("Remove", Name="new").status == 200
        disk.take_away(host.root)
        for _ in range(3):
            with pytest.raises((OSError, HTTPException)):
                server("Get", Name="mongo")
            with pytest.raises((OSError, HTTPException)):
                server("Get", Name="nobody")
            for verb in ("Create", "Remove", "Mount", "Path", "List"):
                answer = server(verb, Name="mongo", ID="c")
                assert (answer.status, "is its disk mounted?" in answer.error) == (500, True)
            assert server("Unmount", Name="mongo", ID="c").status == 200
        assert host.run("create", "other").code == 1
        assert os.listdir(host.root) == []
        disk.mount_again(host.root)
        assert server("Mount", Name="mongo", ID="c").body["Mountpoint"] == str(host.data("mongo"))
        assert [volume["Name"] for volume in server("List").body["Volumes"]] == ["mongo"]
        assert server("Get", Name="nobody").status == 404
        host.stop()
