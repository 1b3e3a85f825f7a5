"""Passes over a tree: nothing outside is reached, and what is left alone is reported."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hostprep.host import fds, linux
from hostprep.host.fds import closing
from hostprep.tree import process, walk, workers
from hostprep.tree.walk import Order, Outcome
from hostprep.tree.workers import TooManyEntries
from tests.support.host import LABEL, REPOSITORY, label, mode, mounted, owner, set_label
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = Order(184, 998, None)


@pytest.fixture(params=["Linux 5.12", "before Linux 5.12", "before Linux 5.6"], autouse=True)
def any_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all system calls; without mount_setattr, so that there is no clone of a mount; without openat2 too."""
    if request.param != "Linux 5.12":
        monkeypatch.setattr(linux, "SYS_MOUNT_SETATTR", 100_000)  # no kernel knows it: ENOSYS
    if request.param == "before Linux 5.6":
        monkeypatch.setattr(linux, "SYS_OPENAT2", 100_000)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process is forked: what a test replaces counts, and what it counts is all there is."""
    monkeypatch.setattr(workers, "_MOST_PROCESSES", 1)
    monkeypatch.setattr(workers, "_COUNT_AFTER_SECONDS", math.inf)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a tree."""
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that nothing may reach: it is as it was, afterwards."""
    directory = tmp_path / "outside"
    make_tree(
        tmp_path, "dir outside 7:7 750", "file outside/file 7:7 4755", "dir outside/dir 7:7", "file outside/dir/x 7:7"
    )
    before = owners(directory)
    yield directory
    assert owners(directory) == before
    assert (owner(directory), mode(directory), mode(directory / "file")) == ((7, 7), "0750", "4755")
    assert label(directory) is None
    assert label(directory / "file") is None


def over(root: Path, order: Order = MONGO, report: workers.Report = lambda done, estimate: None) -> Outcome:
    with closing(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd, contextlib.chdir("/"):
        return process.run(fd, order, report)


class TestPass:
    def test_everything_below_follows(self, root: Path) -> None:
        """Every entry of every kind gets the owner; the root itself does not."""
        make_tree(root, "dir a", "dir a/b", "file a/b/c", "symlink a/l b", "fifo f", "device d", "file x", "link y x")
        outcome = over(root)
        assert set(owners(root).values()) == {(184, 998)}
        assert owner(root) == (0, 0)
        assert (outcome.done, outcome.changed, outcome.left) == (8, 7, 0)

    @pytest.mark.parametrize(
        ("order", "expected"),
        [(Order(184, None, None), (184, 66)), (Order(None, 998, None), (55, 998)), (Order(None, None, None), (55, 66))],
        ids=["uid", "gid", "neither"],
    )
    def test_what_is_not_declared_stays(self, root: Path, order: Order, expected: tuple[int, int]) -> None:
        """An id that is not declared is left alone in every entry."""
        make_tree(root, "dir a 55:66", "file a/b 55:66", "symlink a/l b 55:66")
        over(root, order)
        assert set(owners(root).values()) == {expected}

    def test_labels(self, root: Path) -> None:
        """Every entry gets the label, a symlink its own."""
        make_tree(root, "dir a", "file a/b", "symlink l a", "fifo f")
        outcome = over(root, Order(None, None, LABEL))
        assert {label(root / name) for name in ("a", "a/b", "l", "f")} == {LABEL}
        assert (outcome.changed, outcome.left) == (4, 0)

    def test_only_the_type(self, root: Path) -> None:
        """Where only the type is kept, categories that a :Z has set stay."""
        make_tree(root, "file a", "file b")
        set_label(root / "a", LABEL + ":c1,c2")
        over(root, Order(None, None, LABEL, type_only=True))
        assert (label(root / "a"), label(root / "b")) == (LABEL + ":c1,c2", LABEL)

    def test_only_what_differs_is_written(self, root: Path) -> None:
        """An entry that is right is not touched: its change time stays."""
        make_tree(root, "dir a 184:998", "file a/b 184:998", "symlink l a 184:998")
        before = [os.lstat(root / name).st_ctime_ns for name in ("a", "a/b", "l")]
        assert over(root).changed == 0
        assert [os.lstat(root / name).st_ctime_ns for name in ("a", "a/b", "l")] == before

    @pytest.mark.parametrize("guarded", [False, True])
    def test_every_mixture(self, root: Path, guarded: bool) -> None:  # noqa: FBT001
        """Whatever is wrong, after whatever entry: all are right then, and what was right is not touched."""
        kinds = list(itertools.product(((184, 998), (55, 66)), (LABEL, LABEL + ":c1,c2", None)))
        for number, order in enumerate(itertools.permutations(kinds, 3)):
            (root / str(number)).mkdir()
            os.chown(root / str(number), 184, 998)
            set_label(root / str(number), LABEL)
            for place, (ids, wanted) in enumerate(order):
                path = root / str(number) / f"{place}-{ids[0]}-{wanted}"
                path.write_text("")
                os.chown(path, *ids)
                if wanted is not None:
                    set_label(path, wanted)
        right = {path: path.stat().st_ctime_ns for path in root.glob(f"*/?-184-{LABEL}")}
        outcome = over(root, Order(184, 998, LABEL, guarded=guarded))
        assert set(owners(root).values()) == {(184, 998)}
        assert {label(path) for path in root.rglob("*")} == {LABEL}
        assert outcome.left == 0
        assert outcome.changed == 120 * 3 - len(right)
        assert {path: path.stat().st_ctime_ns for path in right} == right
        assert over(root, Order(184, 998, LABEL, guarded=guarded)).changed == 0

    @pytest.mark.parametrize("guarded", [False, True])
    def test_labels_that_are_right_are_not_written(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        guarded: bool,  # noqa: FBT001
    ) -> None:
        """Where owners are wrong and labels right, no label is written."""
        written = []
        real = os.setxattr
        monkeypatch.setattr(os, "setxattr", lambda *args, **how: (written.append(args), real(*args, **how)))
        for number in range(20):
            make_tree(root, f"file {number} 55:66")
            real(root / str(number), "security.selinux", LABEL.encode() + b"\0")
        assert over(root, Order(184, 998, LABEL, guarded=guarded)).changed == 20
        assert written == []

    def test_modes_stay(self, root: Path) -> None:
        """mode is for the root of a volume only."""
        make_tree(root, "dir a 0:0 2711", "file a/b 0:0 640")
        over(root)
        assert (mode(root / "a"), mode(root / "a/b")) == ("2711", "0640")

    @pytest.mark.parametrize("guarded", [False, True])
    def test_setuid_is_stripped(self, root: Path, guarded: bool) -> None:  # noqa: FBT001
        """A change of owner strips setuid, setgid and file capabilities, as chown does."""
        make_tree(root, "file a 0:0 6755", "file b 0:0 755", "file c 184:998 4755")
        os.setxattr(root / "b", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        over(root, Order(184, 998, None, guarded=guarded))
        assert mode(root / "a") == "0755"
        assert "security.capability" not in os.listxattr(root / "b")
        assert mode(root / "c") == "4755"

    def test_symlinks_are_not_followed(self, root: Path, outside: Path) -> None:
        """Where a symlink leads is not reached; its own owner and label are set."""
        make_tree(
            root, f"symlink a {outside}", f"symlink b {outside}/file", "symlink c ../outside", "symlink d nowhere"
        )
        over(root, Order(184, 998, LABEL))
        assert set(owners(root).values()) == {(184, 998)}
        assert label(root / "a") == LABEL

    def test_bind_mounts_are_not_crossed(self, root: Path, outside: Path) -> None:
        """A bind mount of the same file system, of a directory or a file, is left alone and reported."""
        make_tree(root, "dir a", "file b", "dir c/d")
        with (
            mounted("--bind", str(outside), f"{root}/a"),
            mounted("--bind", f"{outside}/file", f"{root}/b"),
            mounted("--bind", f"{outside}/dir", f"{root}/c/d"),
        ):
            outcome = over(root)
        assert sorted(outcome.sentences()) == ["a: is a mount point", "b: is a mount point", "c/d: is a mount point"]
        assert owners(root)["c"] == (184, 998)
        assert owner(root / "a") == (0, 0)

    def test_other_file_systems_are_not_crossed(self, root: Path) -> None:
        """A tmpfs in the tree is left alone and reported."""
        make_tree(root, "dir a")
        with mounted("-t", "tmpfs", "none", f"{root}/a"):
            (root / "a" / "x").touch()
            assert over(root).sentences() == ("a: is a mount point",)
            assert owner(root / "a" / "x") == (0, 0)

    def test_guarded(self, root: Path) -> None:
        """In an adopted tree hard links and device nodes are left alone and reported, and directories are not."""
        make_tree(root, "dir a", "dir a/b", "file a/x 0:0 644", "link a/y a/x", "device d", "fifo f", "symlink l a")
        outcome = over(root, Order(184, 998, LABEL, guarded=True))
        assert sorted(outcome.sentences()) == ["a/x: has 2 hard links", "a/y: has 2 hard links", "d: is a device node"]
        found = owners(root)
        assert {name for name, ids in found.items() if ids == (0, 0)} == {"a/x", "a/y", "d"}
        assert label(root / "d") is None
        assert label(root / "a/x") is None

    @pytest.mark.parametrize("guarded", [False, True])
    def test_what_is_left_alone_is_not_changed(self, root: Path, guarded: bool) -> None:  # noqa: FBT001
        """An entry that the kernel refuses to change counts as left alone, not as changed."""
        make_tree(root, "file a", "file b")
        subprocess.run(["chattr", "+i", root / "a"], check=True)
        try:
            outcome = over(root, Order(184, 998, LABEL, guarded=guarded))
        finally:
            subprocess.run(["chattr", "-i", root / "a"], check=True)
        assert outcome.sentences() == ("a: Operation not permitted",)
        assert (outcome.done, outcome.changed, outcome.left) == (2, 1, 1)

    def test_guarded_after_what_was_wrong(self, root: Path) -> None:
        """Also after files that were changed, one with several links is left alone, and reported if it is wrong."""
        make_tree(root, "dir a", *(f"file a/{number}" for number in range(40)), "file x", "file y 184:998")
        set_label(root / "y", LABEL)
        for number in range(40):
            make_tree(root, f"link a/x{number} x", f"link a/y{number} y")
        outcome = over(root, Order(184, 998, LABEL, guarded=True))
        assert (outcome.left, outcome.changed) == (41, 41)
        assert {sentence.rpartition(": ")[2] for sentence in outcome.examples} == {"has 41 hard links"}
        found = owners(root)
        assert {name.rpartition("/")[2][0] for name, ids in found.items() if ids == (0, 0)} == {"x"}
        assert label(root / "x") is None

    def test_many_left_alone(self, root: Path) -> None:
        """A few are named, the others are counted."""
        make_tree(root, *(f"device d{number}" for number in range(12)))
        sentences = over(root, Order(1, 1, None, guarded=True)).sentences()
        assert len(sentences) == 6
        assert sentences[-1] == "and 7 more entries were left alone"

    def test_names_of_any_bytes(self, root: Path) -> None:
        """Names that are no text, or hold line ends, are treated like any, and reported escaped."""
        raw = os.fsencode(root)
        for name in (b"\xff\xfe", b"a\nb", b" ", b"\x1b[31m", b"x" * 255):
            os.mknod(raw + b"/" + name, 0o20600, os.makedev(1, 3))
        assert over(root).left == 0
        assert set(owners(root).values()) == {(184, 998)}
        sentences = over(root, Order(1, 1, None, guarded=True)).sentences()
        assert all(sentence.isprintable() for sentence in sentences)

    def test_a_dry_run(self, root: Path) -> None:
        """A dry run counts, and changes nothing."""
        make_tree(root, "dir a", "file a/b 184:998", "symlink l a")
        before = owners(root)
        outcome = over(root, Order(184, 998, None, dry_run=True))
        assert (outcome.done, outcome.changed) == (3, 2)
        assert owners(root) == before

    def test_a_deep_tree(self, root: Path) -> None:
        """A tree deeper than any path may be long is gone through to its end."""
        here = os.open(root, os.O_RDONLY)
        for _ in range(300):
            os.mkdir("d" * 50, dir_fd=here)
            below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        outcome = over(root)
        assert os.fstat(here).st_uid == 184
        os.close(here)
        assert (outcome.done, outcome.changed, outcome.left) == (300, 300, 0)

    def test_progress(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told how many entries were looked at."""
        make_tree(root, *(f"file {number}" for number in range(200)))
        monkeypatch.setattr(workers, "_REPORT_SECONDS", 0.0)
        told: list[tuple[int, int | None]] = []
        over(root, MONGO, lambda done, estimate: told.append((done, estimate)))
        assert told
        assert told == sorted(told)
        assert told[-1] == (200, None)


class TestOpened:
    """What is opened in an adopted tree, and what that does to those who use a file."""

    ADOPTED = Order(184, 998, LABEL, guarded=True)

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        """The names of what is opened by HELD."""
        names: list[bytes] = []
        real = os.open

        def opening(name: Any, flags: int, *args: Any, **how: Any) -> int:
            fd = real(name, flags, *args, **how)
            if flags == fds.HELD:
                names.append(name)
            return fd

        monkeypatch.setattr(os, "open", opening)
        return names

    def test_only_regular_files_that_differ(
        self, root: Path, opened: list[bytes], request: pytest.FixtureRequest
    ) -> None:
        """Regular files with one link are opened, in a clone of the mount; in a right tree nothing is."""
        make_tree(root, "dir a", "file a/b", "file c", "fifo f", "device d", "symlink s c", "file x", "link y x")
        make_tree(root, "dir right 184:998", "file right/r 184:998")
        set_label(root / "right", LABEL)
        set_label(root / "right/r", LABEL)
        over(root, self.ADOPTED)
        assert sorted(set(opened) - {b"x", b"y"}) == ([b"b", b"c"] if cloned(request) else [])
        opened.clear()
        for name in ("x", "y", "d"):
            (root / name).unlink()
        before = [os.lstat(path).st_ctime_ns for path in root.rglob("*")]
        assert over(root, self.ADOPTED).changed == 0
        assert [os.lstat(path).st_ctime_ns for path in root.rglob("*")] == before
        assert opened == []

    def test_not_in_a_dry_run(self, root: Path, opened: list[bytes]) -> None:
        """A dry run opens nothing."""
        make_tree(root, "file a", "file b")
        assert over(root, Order(184, 998, LABEL, guarded=True, dry_run=True)).changed == 2
        assert opened == []

    def test_not_on_other_file_systems(self, root: Path, opened: list[bytes]) -> None:
        """Where an open could fetch something from elsewhere, files are pinned instead, and changed all the same."""
        with mounted("-t", "ramfs", "none", str(root)):  # no list of local file systems has this one
            make_tree(root, "file a", "file b")
            assert over(root, self.ADOPTED).changed == 2
            assert set(owners(root).values()) == {(184, 998)}
        assert opened == []

    @pytest.mark.parametrize("kind", ["F_RDLCK", "F_WRLCK"])
    def test_a_lease_is_not_waited_for(self, root: Path, kind: str) -> None:
        """A file that a lease keeps busy is changed while the lease still stands: its holder has not given it up."""
        make_tree(root, *(f"file {number}" for number in range(3)))
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # the holder is told, and does nothing
        with contextlib.ExitStack() as stack:
            stack.callback(signal.signal, signal.SIGIO, signal.SIG_DFL)
            for number in range(3):
                flags = os.O_RDONLY if kind == "F_RDLCK" else os.O_RDWR
                fd = stack.enter_context(closing(os.open(root / str(number), flags)))
                fcntl.fcntl(fd, fcntl.F_SETLEASE, getattr(fcntl, kind))
            outcome = over(root, self.ADOPTED)
            inodes = {f":{os.stat(root / str(number)).st_ino}" for number in range(3)}
            leases = [line for line in Path("/proc/locks").read_text().splitlines() if " LEASE " in line]
            assert sum(any(f"{inode} " in line for inode in inodes) for line in leases) == 3
        assert (outcome.changed, outcome.left) == (3, 0)
        assert set(owners(root).values()) == {(184, 998)}


def cloned(request: pytest.FixtureRequest) -> bool:
    """Whether the pass of this test has a clone of the mount."""
    return "any_kernel" in request.fixturenames and request.node.callspec.params["any_kernel"] == "Linux 5.12"


class TestRaces:
    """Its owner changes the tree at the very moment: what was looked at is something else when it is opened."""

    @pytest.mark.parametrize("guarded", [False, True])
    @pytest.mark.parametrize("what", ["symlink", "other", "nothing", "fifo"])
    @pytest.mark.parametrize("kind", ["dir", "file"])
    def test_swapped_between_look_and_open(
        self,
        root: Path,
        outside: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: str,
        what: str,
        guarded: bool,  # noqa: FBT001
    ) -> None:
        """Whatever takes an entry's place between look and open, nothing outside is reached."""
        make_tree(root, f"{kind} a")
        swapped: list[str] = []

        def swapping(module: object, name: str) -> None:
            call = getattr(module, name)

            def swap(*args: Any, **kwargs: Any) -> Any:
                if args[1 if name == "open_below" else 0] in ("a", b"a") and not swapped:
                    swapped.append(name)
                    (root / "a").rename(root.parent / "moved")
                    if what == "symlink":
                        (root / "a").symlink_to(outside if kind == "dir" else outside / "file")
                    elif what == "other":
                        make_tree(root, f"{'file' if kind == 'dir' else 'dir'} a")
                    elif what == "fifo":
                        make_tree(root, "fifo a")
                return call(*args, **kwargs)

            monkeypatch.setattr(module, name, swap)

        swapping(os, "open")
        swapping(fds, "open_below")
        swapping(os, "lchown")
        outcome = over(root, Order(184, 998, LABEL, guarded=guarded))
        assert swapped
        assert outcome.left == 0

    @pytest.mark.parametrize("what", ["link", "device"])
    def test_swapped_for_what_is_left_alone(
        self, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        """In an adopted tree a file becomes a hard link or a device when it was looked at: that is not changed."""
        make_tree(root, "file a", "file b", "file c")
        real = os.lstat
        precious = root.parent / "precious"
        make_tree(root.parent, "device precious 7:7" if what == "device" else "file precious 7:7")

        def swapping(path: Any) -> os.stat_result:
            st = real(path)
            if path in (b"a", b"b", b"c") and real(root / os.fsdecode(path)).st_uid == 0:
                for name in "abc":
                    (root / name).unlink()
                    if what == "link":
                        (root / name).hardlink_to(precious)
                    else:
                        make_tree(root, f"device {name} 7:7")
            return st

        monkeypatch.setattr(os, "lstat", swapping)
        outcome = over(root, Order(184, 998, LABEL, guarded=True))
        monkeypatch.undo()
        assert set(owners(root).values()) == {(7, 7)}
        assert {label(root / name) for name in "abc"} == {None}
        assert (outcome.changed, outcome.left) == (0, 3)


class TestDepth:
    """However deep a tree is, and however many entries it has, a pass ends, and says what it has left alone."""

    def test_a_comb(self, root: Path) -> None:
        """All entries are changed in a deep tree that has another directory and a file at each level."""
        for level in range(60):
            chain = "/".join("d" * (level + 1))
            make_tree(root, f"dir {chain}", f"dir {chain}/e", f"file {chain}/e/f", f"file {chain}/g")
        outcome = over(root)
        assert set(owners(root).values()) == {(184, 998)}
        assert (outcome.done, outcome.changed, outcome.left) == (240, 240, 0)

    def test_more_levels_than_descriptors(self, root: Path) -> None:
        """What is so deep that no descriptor is left for it is left alone and reported; the rest is right."""
        make_tree(root, *(f"dir {'/'.join('d' * (level + 1))}" for level in range(100)), "dir e/f", "file e/f/g")
        done = run_as_process(root, asdict(MONGO), files=64)
        assert (done.returncode, done.stderr) == (0, "")
        outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
        assert (outcome.left, outcome.examples[0].rpartition(": ")[2]) == (1, "Too many open files")
        found = owners(root)
        assert sum(ids == (184, 998) for ids in found.values()) == outcome.changed > 40
        assert found["e/f/g"] == (184, 998)

    def test_too_deep(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Below the deepest level that a path can reach nothing is looked at, and that is reported."""
        monkeypatch.setattr(walk, "_MAX_LEVELS", 3)
        make_tree(root, "dir d/d/d/d/d")
        outcome = over(root)
        assert outcome.sentences() == ("d/d/d/d: is more than 3 levels deep, what is in it was not looked at",)

    def test_many_directories_in_one(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory is read on after some of those in it were entered."""
        monkeypatch.setattr(walk, "_MAX_PENDING", 3)
        make_tree(root, *(f"dir {n}/{m}" for n in range(10) for m in range(10)))
        assert over(root).done == 110
        assert set(owners(root).values()) == {(184, 998)}

    def test_too_many_entries(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pass that has met more entries than the file system had when it began gives up, in words."""
        make_tree(root, *(f"file {n}" for n in range(600)))
        monkeypatch.setattr(workers, "_REPORT_SECONDS", 0.0)
        monkeypatch.setattr(workers, "_more_than_there_are", lambda _: 300)
        with pytest.raises(TooManyEntries, match="stop what writes to it"):
            over(root)

    def test_more_names_than_files(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another name of a file is not another file: trees with many hard links are no endless ones."""
        make_tree(root, "file a", *(f"link l{n} a" for n in range(600)))
        monkeypatch.setattr(workers, "_REPORT_SECONDS", 0.0)
        monkeypatch.setattr(workers, "_more_than_there_are", lambda _: 300)
        assert over(root).done == 601


def run_as_process(root: Path, order: dict[str, Any], *, files: int | None = None) -> subprocess.CompletedProcess[str]:
    """A pass as a process of its own, for which only so many *files* may be open."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with closing(os.open(root, os.O_RDONLY)) as fd:
        return subprocess.run(
            [sys.executable, "-m", "hostprep.tree.process", str(fd), json.dumps(order)],
            cwd=REPOSITORY,
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit,
        )


def test_as_a_process(root: Path) -> None:
    """Run as a process of its own, a pass prints its outcome as the last line of JSON."""
    make_tree(root, "dir a", "file a/b")
    done = run_as_process(root, {"uid": 184, "gid": 998, "label": None})
    assert (done.returncode, done.stderr) == (0, "")
    said = {"done": 2, "changed": 2, "left": 0, "examples": [], "planned": []}
    assert json.loads(done.stdout.splitlines()[-1]) == said
    assert set(owners(root).values()) == {(184, 998)}
