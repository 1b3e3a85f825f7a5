"""Passes over a tree, and its removal: nothing outside is reached, and what is left alone is told."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.host import fds, linux
from hostprep.host.fds import held
from hostprep.tree import process, removal, walk, workers
from hostprep.tree.walk import Order, Outcome
from hostprep.tree.workers import Endless
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


def over(root: Path, order: Order = MONGO) -> Outcome:
    with held(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        return process.run(fd, order)


def removed(root: Path) -> Outcome:
    with held(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        return removal.remove(fd)


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

    def test_every_mixture(self, root: Path) -> None:
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
        outcome = over(root, Order(184, 998, LABEL))
        assert set(owners(root).values()) == {(184, 998)}
        assert {label(path) for path in root.rglob("*")} == {LABEL}
        assert outcome.changed == 120 * 3 - len(right)
        assert {path: path.stat().st_ctime_ns for path in right} == right
        assert over(root, Order(184, 998, LABEL)).changed == 0

    def test_labels_that_are_right_are_not_written(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where owners are wrong and labels right, no label is written."""
        written = []
        real = os.setxattr
        monkeypatch.setattr(os, "setxattr", lambda *args, **how: (written.append(args), real(*args, **how)))
        for number in range(20):
            make_tree(root, f"file {number} 55:66")
            real(root / str(number), "security.selinux", LABEL.encode() + b"\0")
        assert over(root, Order(184, 998, LABEL)).changed == 20
        assert written == []

    def test_modes_stay(self, root: Path) -> None:
        """mode is for the root of a volume only."""
        make_tree(root, "dir a 0:0 2711", "file a/b 0:0 640")
        over(root)
        assert (mode(root / "a"), mode(root / "a/b")) == ("2711", "0640")

    def test_setuid_is_stripped(self, root: Path) -> None:
        """A change of owner strips setuid, setgid and file capabilities, as chown does."""
        make_tree(root, "file a 0:0 6755", "file b 0:0 755", "file c 184:998 4755")
        os.setxattr(root / "b", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        over(root)
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

    def test_what_is_left_alone_is_not_changed(self, root: Path) -> None:
        """An entry that the kernel refuses to change counts as left alone, not as changed."""
        make_tree(root, "file a", "file b")
        subprocess.run(["chattr", "+i", root / "a"], check=True)
        try:
            outcome = over(root)
        finally:
            subprocess.run(["chattr", "-i", root / "a"], check=True)
        assert outcome.sentences() == ("a: Operation not permitted",)
        assert (outcome.done, outcome.changed, outcome.left) == (2, 1, 1)

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
        assert removed(root).left == 0
        assert os.listdir(root) == []

    def test_progress(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is told how many entries were looked at."""
        make_tree(root, *(f"file {number}" for number in range(200)))
        monkeypatch.setattr(workers, "_TICK", 0.0)
        told: list[tuple[int, int | None]] = []
        with held(os.open(root, os.O_RDONLY)) as fd:
            process.run(fd, MONGO, lambda done, estimate: told.append((done, estimate)))
        assert told
        assert told == sorted(told)
        assert told[-1] == (200, None)


class TestRaces:
    """Its owner changes the tree at the very moment: what was looked at is something else when it is opened."""

    @pytest.mark.parametrize("what", ["symlink", "other", "nothing"])
    @pytest.mark.parametrize("kind", ["dir", "file"])
    def test_swapped_between_look_and_open(
        self, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, kind: str, what: str
    ) -> None:
        """Whatever takes an entry's place between look and open, nothing outside is reached."""
        make_tree(root, f"{kind} a")
        swapped: list[str] = []

        def swapping(module: object, name: str) -> None:
            call = getattr(module, name)

            def swap(*args: Any, **kwargs: Any) -> Any:
                if args[-1 if module is walk.Walk else 1 if name == "open_below" else 0] in ("a", b"a") and not swapped:
                    swapped.append(name)
                    (root / "a").rename(root.parent / "moved")
                    if what == "symlink":
                        (root / "a").symlink_to(outside if kind == "dir" else outside / "file")
                    elif what == "other":
                        make_tree(root, f"{'file' if kind == 'dir' else 'dir'} a")
                return call(*args, **kwargs)

            monkeypatch.setattr(module, name, swap)

        swapping(walk.Walk, "_open")
        swapping(fds, "open_below")
        swapping(os, "lchown")
        outcome = over(root)
        assert swapped
        assert outcome.left == 0


class TestDepth:
    """However deep a tree is, few directories are open, and those closed meanwhile are found again or told of."""

    def comb(self, root: Path, levels: int) -> None:
        """A chain of directories, each with a second directory and a file beside the one that goes on."""
        for level in range(levels):
            chain = "/".join("d" * (level + 1))
            make_tree(root, f"dir {chain}", f"dir {chain}/e", f"file {chain}/e/f", f"file {chain}/g")

    @pytest.fixture
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only four directories may be open."""
        monkeypatch.setattr(walk, "_OPEN", 4)

    @pytest.mark.usefixtures("few")
    def test_a_comb(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All entries of a deep tree that forks at each level are mended, with few descriptors."""
        self.comb(root, 60)
        most = 0
        enter = walk.Walk._enter

        def counting(*args: Any) -> None:
            nonlocal most
            enter(*args)
            most = max(most, len(os.listdir("/proc/self/fd")))

        monkeypatch.setattr(walk.Walk, "_enter", counting)
        before = len(os.listdir("/proc/self/fd"))
        outcome = over(root)
        assert set(owners(root).values()) == {(184, 998)}
        assert (outcome.done, outcome.changed, outcome.left) == (240, 240, 0)
        assert most - before < 20

    @pytest.mark.usefixtures("few")
    def test_moved_while_closed(self, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory that is not where it was when it is to be opened again is told of, and nothing else is opened."""
        self.comb(root, 20)
        enter = walk.Walk._enter

        def moving(each: walk.Walk, above: Any, name: bytes) -> None:
            enter(each, above, name)
            if above.depth == 18 and not (root / "moved").exists():
                (root / "d/d/d").rename(root / "moved")
                (root / "d/d/d").symlink_to(outside)

        monkeypatch.setattr(walk.Walk, "_enter", moving)
        outcome = over(root)
        assert outcome.left > 0
        assert "d/d/d: was moved while the pass was in it" in outcome.examples or outcome.left > len(outcome.examples)

    def test_too_deep(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """There is an end to it: what is deeper is told of."""
        monkeypatch.setattr(walk, "_DEEPEST", 3)
        make_tree(root, "dir d/d/d/d/d")
        outcome = over(root)
        assert outcome.sentences() == ("d/d/d/d: is 3 levels deep, what is in it was not looked at",)

    def test_many_directories_in_one(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A directory is read on after some of those in it were entered."""
        monkeypatch.setattr(walk, "_PENDING", 3)
        make_tree(root, *(f"dir {n}/{m}" for n in range(10) for m in range(10)))
        assert over(root).done == 110
        assert set(owners(root).values()) == {(184, 998)}

    def test_endless(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pass that has met more entries than the file system had when it began gives up, in words."""
        make_tree(root, *(f"file {n}" for n in range(600)))
        monkeypatch.setattr(workers, "_TICK", 0.0)
        monkeypatch.setattr(workers, "_most", lambda _: 300)
        with pytest.raises(Endless, match="stop what writes to it"):
            over(root)

    def test_more_names_than_files(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another name of a file is not another file: trees with many hard links are no endless ones."""
        make_tree(root, "file a", *(f"link l{n} a" for n in range(600)))
        monkeypatch.setattr(workers, "_TICK", 0.0)
        monkeypatch.setattr(workers, "_most", lambda _: 300)
        assert over(root).done == 601


class TestRemove:
    def test_everything_below_goes(self, root: Path, outside: Path) -> None:
        """Every entry goes, whatever its mode and kind; where a symlink leads stays."""
        make_tree(root, "dir a 1:1 0", "dir b/c/d", "file b/x 1:1 0", f"symlink l {outside}", "fifo f", "device v")
        outcome = removed(root)
        assert os.listdir(root) == []
        assert (outcome.done, outcome.left) == (8, 0)

    def test_mounts_inside_stay(self, root: Path, outside: Path) -> None:
        """What is mounted inside is not emptied: it is left, and reported."""
        make_tree(root, "dir a/b", "file c", "file d")
        with mounted("--bind", str(outside), f"{root}/a/b"), mounted("--bind", f"{outside}/file", f"{root}/c"):
            outcome = removed(root)
            assert sorted(os.listdir(outside)) == ["dir", "file"]
        assert "a/b: is a mount point" in outcome.sentences()
        assert sorted(os.listdir(root)) == ["a", "c"]

    def test_more_than_one_directory_read(self, root: Path) -> None:
        """Removing entries while reading their directory misses none, in a directory of any size."""
        make_tree(root, *(f"file {'n' * 100}{number}" for number in range(3000)))
        assert removed(root).done == 3000
        assert os.listdir(root) == []


def run_as_process(root: Path, order: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    with held(os.open(root, os.O_RDONLY)) as fd:
        return subprocess.run(
            [sys.executable, "-m", "hostprep.tree.process", str(fd), json.dumps(order)],
            cwd=REPOSITORY,
            pass_fds=[fd],
            capture_output=True,
            text=True,
            check=False,
        )


def test_as_a_process(root: Path) -> None:
    """Run as a process of its own, it prints its outcome as the last line of JSON, and raises its own limits."""
    make_tree(root, "dir a", "file a/b")
    done = run_as_process(root, {"uid": 184, "gid": 998, "label": None})
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1]) == {"done": 2, "changed": 2, "left": 0, "examples": []}
    assert set(owners(root).values()) == {(184, 998)}
