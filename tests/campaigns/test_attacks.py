"""The owner of a tree changes it, as fast as a process can, while hostprep's passes and removals go over it.

Every attack is a process of its own with the owner's rights, or root's where only root could do it. Afterwards the
canary outside is as it was, change time included, and every pass has ended by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import resource
import stat
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hostprep.errors import Busy, NotAllowed, NotReady
from hostprep.host import fds
from hostprep.host.fds import closing
from hostprep.tree.walk import Order, Outcome
from hostprep.volumes.driver import Driver
from tests.support.disks import Disk
from tests.support.fixtures import OpenDriver
from tests.support.host import LABEL, PYTHON, REPOSITORY, Host, eventually, label, owner, set_label, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
SUPPORT = REPOSITORY / "tests/support"
OWNER = 184
ORDERS = (Order(OWNER, 998, LABEL), Order(OWNER, 999, LABEL + ":c1"))  # in turn, so that each pass has to write
PASS_ENDS = 60.0  # seconds after which a pass counts as one without end
ATTACKED = 0.5  # seconds of passes, one after the other, under each attack
IN_OPEN = 0x20
NAMES = tuple(f"e{number}" for number in range(8))
REMOVE = "import sys; from hostprep.tree.removal import remove; print(remove(int(sys.argv[1])))"

Kernel = list[str]


@pytest.fixture(
    params=["this kernel", "before Linux 5.12", pytest.param("before Linux 5.6", marks=pytest.mark.thorough)]
)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """What to put before a command so that it runs on this kernel, or on an older one."""
    version = request.param.rpartition(" ")[2]
    return [] if request.param == "this kernel" else [PYTHON, "-P", "-S", str(SUPPORT / "old_kernel.py"), version]


def seen(path: Path) -> tuple[Any, ...]:
    """All that a pass could change of an entry. Whatever changes owner, mode, label or links changes its ctime."""
    st = os.lstat(path)
    content = path.read_bytes() if stat.S_ISREG(st.st_mode) else sorted(os.listdir(path)) if path.is_dir() else b""
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path)}
    return (st.st_ino, st.st_uid, st.st_gid, oct(st.st_mode), st.st_rdev, st.st_ctime_ns, content, attributes)


class Canary:
    """Somebody else's directory and what is in it: what has to survive."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.look()

    def look(self) -> None:
        """From now on it has to stay as it is."""
        self.entries = sorted([self.directory, *self.directory.rglob("*")])
        self.before = {path: seen(path) for path in self.entries}

    def dead(self) -> bool:
        return any(not os.path.lexists(path) or seen(path) != self.before[path] for path in self.entries)

    def check(self) -> None:
        for path in self.entries:
            assert seen(path) == self.before[path], f"{path} was reached"


def canary_at(directory: Path) -> Canary:
    """A canary in which every name of the attacked tree is somebody's file or directory, too."""
    directory.mkdir(mode=0o755, exist_ok=True)
    (directory / "canary").write_text("sings")
    (directory / "below").mkdir()
    (directory / "below" / "canary").write_text("sings")
    for path in [*directory.rglob("*"), directory]:
        os.chown(path, 7, 7)
        set_label(path, "system_u:object_r:shadow_t:s0")
    os.chmod(directory / "canary", 0o4700)
    return Canary(directory)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """Outside of the tree, on the same file system, and untouched at the end."""
    canary = canary_at(tmp_path / "outside")
    yield canary
    canary.check()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The root of the tree, its attacker's own. It goes by rm, which takes any depth."""
    root = tmp_path / "tree"
    root.mkdir()
    os.chown(root, OWNER, OWNER)
    yield root
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


class Attack:
    """A running attacker."""

    def __init__(self, process: subprocess.Popen[str], memory: mmap.mmap) -> None:
        self.process = process
        self._memory = memory

    def rounds(self) -> int:
        return int(struct.unpack_from("=Q", self._memory)[0])

    def goes_on(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self._memory[8] = 1


@contextlib.contextmanager
def attack(kind: str, directory: Path, *arguments: str, uid: int = OWNER) -> Iterator[Attack]:
    """Have *directory* attacked until the end, from now on."""
    fd = os.memfd_create("rounds")
    os.truncate(fd, mmap.PAGESIZE)
    with closing(fd), mmap.mmap(fd, mmap.PAGESIZE) as memory:
        process = subprocess.Popen(
            [PYTHON, "-P", "-S", SUPPORT / "attacker.py", kind, str(fd), str(uid), directory, *arguments],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        attacking = Attack(process, memory)
        try:
            eventually(lambda: attacking.rounds() > 0 or not attacking.goes_on(), "the attack has begun", 60)
            if attacking.goes_on():
                yield attacking
            ended_early = not attacking.goes_on()
        finally:
            attacking.stop()
            try:
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
                process.wait()
            assert (said, process.returncode) == ("", 0)
        assert not ended_early, "the attack was over too soon"


def run(kernel: Kernel, root: Path, *command: str, files: int | None = None) -> str:
    """Run Python over the open directory *root*; it has to end by itself, and without an error."""

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with closing(os.open(root, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        done = subprocess.run(
            [*kernel, PYTHON, "-P", "-S", *(part.replace("FD", str(fd)) for part in command)],
            env={"PYTHONPATH": str(REPOSITORY / "plugin")},
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PASS_ENDS,
            check=False,
            preexec_fn=limit,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def one_pass(kernel: Kernel, root: Path, order: Order, *, files: int | None = None) -> Outcome:
    """A pass over *root* as the server runs it."""
    out = run(kernel, root, "-m", "hostprep.tree.process", "FD", json.dumps(asdict(order)), files=files)
    return Outcome(**json.loads(out.splitlines()[-1]))


def passes(
    kernel: Kernel,
    root: Path,
    attacking: Attack,
    *,
    guarded: bool = False,
    enough: int = 4,
    told: frozenset[str] = frozenset(),
) -> list[Outcome]:
    """Passes one after the other, until *enough* of them were attacked, and all of *told* was said; their outcomes."""
    outcomes: list[Outcome] = []
    began, attacked = time.monotonic(), 0
    while (
        attacked < enough
        or time.monotonic() - began < ATTACKED
        or (not told <= sentences(outcomes) and time.monotonic() - began < PASS_ENDS)
    ):
        order = ORDERS[len(outcomes) % 2]
        before = attacking.rounds()
        outcomes.append(one_pass(kernel, root, Order(order.uid, order.gid, order.label, guarded=guarded)))
        attacked += attacking.rounds() > before
        assert len(outcomes) < 1000, "the attacker does not get its turn"
    return outcomes


def sentences(outcomes: list[Outcome]) -> set[str]:
    """What is said of the entries that were left alone."""
    return {sentence for outcome in outcomes for sentence in outcome.sentences()}


def caught(canary: Canary, walker: Callable[[], object]) -> bool:
    """Whether a careless walker falls for the attack: some tries, until the canary is not as it was."""
    end = time.monotonic() + 60
    while not canary.dead() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            walker()
    return canary.dead()


@contextlib.contextmanager
def opens_of(watched: list[Path]) -> Iterator[Callable[[], int]]:
    """Count how often anybody opens one of these inodes, whatever their names become (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    with closing(watch):
        for path in watched:
            assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0, os.strerror(ctypes.get_errno())

        def opened() -> int:
            try:
                return len(os.read(watch, 65536)) // 16  # struct inotify_event without a name
            except BlockingIOError:
                return 0

        yield opened


def pairs() -> list[str]:
    """The names of the pairs that are exchanged: `e0/other0`, …"""
    return [f"{name}/other{name}" for name in NAMES]


class TestSwaps:
    """An entry is one thing when it is looked at, and another one when it is opened or changed."""

    @pytest.fixture
    def links_to_directories(self, root: Path, canary: Canary) -> list[str]:
        """Pairs of a directory and a link to the directory outside."""
        for name in NAMES:
            make_tree(root, f"dir {name}/below", f"file {name}/canary", f"file {name}/below/canary")
            make_tree(root, f"symlink other{name} ../outside")
        return pairs()

    @pytest.fixture
    def links_to_files(self, root: Path, canary: Canary) -> list[str]:
        """Pairs of a file and a link to the file outside."""
        for name in NAMES:
            make_tree(root, f"file {name} 184:0", f"symlink other{name} ../outside/canary")
        return pairs()

    @pytest.mark.parametrize("guarded", [False, True])
    def test_directory_and_link(
        self,
        kernel: Kernel,
        root: Path,
        links_to_directories: list[str],
        guarded: bool,  # noqa: FBT001
    ) -> None:
        """A directory becomes a link to one outside: nothing there is reached."""
        with attack("exchange", root, *links_to_directories) as attacking:
            outcomes = passes(kernel, root, attacking, guarded=guarded)
        assert {outcome.left for outcome in outcomes} == {0}, "what changes is no error"
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}

    @pytest.mark.parametrize("guarded", [False, True])
    def test_file_and_link(
        self,
        kernel: Kernel,
        root: Path,
        links_to_files: list[str],
        guarded: bool,  # noqa: FBT001
    ) -> None:
        """A file becomes a link to one outside, which is not reached."""
        with attack("exchange", root, *links_to_files) as attacking:
            outcomes = passes(kernel, root, attacking, guarded=guarded)
        assert {outcome.left for outcome in outcomes} == {0}, "what changes is no error"
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}

    def test_a_careless_walker_is_caught(self, root: Path, tmp_path: Path) -> None:
        """The same two attacks reach the canary of a walker that goes by names: they are worth withstanding."""
        by_links, by_files = canary_at(tmp_path / "first"), canary_at(tmp_path / "second")

        def walk_and_lchown() -> None:
            for above, directories, files in os.walk(root):
                for name in directories + files:
                    os.lchown(os.path.join(above, name), OWNER, 998)

        def look_and_chown() -> None:
            for entry in os.scandir(root):
                if not entry.is_symlink():
                    os.chown(entry.path, OWNER, 998)

        for name in NAMES:
            make_tree(root, f"dir {name}", f"file {name}/canary", f"symlink other{name} ../first")
        with attack("exchange", root, *pairs()):
            assert caught(by_links, walk_and_lchown)
        subprocess.run(["rm", "-rf", *root.iterdir()], check=True)
        for name in NAMES:
            make_tree(root, f"file {name}", f"symlink other{name} ../second/canary")
        with attack("exchange", root, *pairs()):
            assert caught(by_files, look_and_chown)

    @pytest.mark.parametrize("other", ["hard link", "device"])
    def test_guarded(self, kernel: Kernel, root: Path, tmp_path: Path, other: str) -> None:
        """Under path, a file becomes a hard link to one outside, or a device node: neither is ever changed."""
        (tmp_path / "outside").touch()
        for name in NAMES:
            make_tree(root, f"file {name} 184:0")
            if other == "device":
                make_tree(root, f"device other{name} 7:7 600")
            else:
                (root / f"other{name}").hardlink_to(tmp_path / "outside")
        node, kept = root / f"other{NAMES[0]}", stat.S_IFCHR if other == "device" else stat.S_IFREG
        precious = os.open(node, os.O_PATH | os.O_NOFOLLOW)
        with closing(precious):
            before = owner(node), os.listxattr(f"/proc/self/fd/{precious}")
            ids = os.fstat(precious).st_uid, os.fstat(precious).st_gid
            with attack("exchange", root, *pairs()) as attacking:
                outcomes = passes(kernel, root, attacking, guarded=True, enough=2)
            after = os.fstat(precious)
            assert ((after.st_uid, after.st_gid), os.listxattr(f"/proc/self/fd/{precious}")) == (ids, before[1])
        assert stat.S_IFMT(after.st_mode) == kept
        assert any(outcome.left for outcome in outcomes)
        assert one_pass(kernel, root, Order(OWNER, 998, LABEL, guarded=True)).left == len(NAMES)
        assert sorted(owners(root).values()) == [ids] * len(NAMES) + [(184, 998)] * len(NAMES)

    @pytest.mark.parametrize("guarded", [False, True])
    @pytest.mark.parametrize("other", ["fifo", "device", "dir"])
    def test_what_must_not_be_opened(
        self,
        kernel: Kernel,
        root: Path,
        other: str,
        guarded: bool,  # noqa: FBT001
    ) -> None:
        """A directory or file becomes a FIFO or a device: a pass does not open it, and so waits for nobody."""
        for number, name in enumerate(NAMES):
            make_tree(root, f"{'dir' if number % 2 else 'file'} {name} 184:0", f"{other} other{name} 184:0")
        special = [] if other == "dir" else [root / f"other{name}" for name in NAMES]
        with opens_of(special) as opened:
            with attack("exchange", root, *pairs()) as attacking:
                passes(kernel, root, attacking, guarded=guarded, enough=2)
            assert opened() == 0
        left = len(NAMES) if guarded and other == "device" else 0
        assert one_pass(kernel, root, Order(OWNER, 998, LABEL, guarded=guarded)).left == left
        assert sorted(owners(root).values())[left:] == [(184, 998)] * (2 * len(NAMES) - left)

    def test_an_open_is_noticed(self, root: Path) -> None:
        """The test before would see a FIFO opened, be it only for a moment."""
        make_tree(root, "fifo fifo")
        with opens_of([root / "fifo"]) as opened:
            os.close(os.open(root / "fifo", os.O_PATH))
            assert opened() == 0
            os.close(os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK))
            assert opened() == 1


class TestMoves:
    """Directories leave the tree, and mounts enter it, while it is read."""

    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Iterator[Path]:
        """The attacker's own directory beside the tree, with somebody else's files of the names that the tree has."""
        directory = tmp_path / "elsewhere"
        directory.mkdir()
        for number in range(200):
            (directory / f"f{number}").touch()
            os.chown(directory / f"f{number}", 7, 7)
        before = {path: seen(path) for path in directory.iterdir()}
        os.chown(directory, OWNER, OWNER)
        yield directory
        assert {path: seen(path) for path in before} == before
        assert owner(directory) == (OWNER, OWNER)
        assert label(directory) is None

    @pytest.fixture
    def moving(self, root: Path) -> Path:
        """A directory of the tree whose subdirectories are moved away, and back."""
        make_tree(root, "dir a 184:0", *(f"file a/f{number} 184:0" for number in range(200)))
        for name in NAMES:
            make_tree(root, f"dir a/{name}/b/c 184:0")
            for above in (f"a/{name}", f"a/{name}/b", f"a/{name}/b/c"):
                make_tree(root, *(f"file {above}/f{number} 184:0" for number in range(20)))
        subprocess.run(["chown", "-R", f"{OWNER}:0", root], check=True)
        return root / "a"

    def test_moved_out(self, kernel: Kernel, root: Path, moving: Path, elsewhere: Path) -> None:
        """A directory that is moved out while it is read takes nothing along: not even its new neighbours."""
        with attack("carry", moving, str(elsewhere), *NAMES) as attacking:
            outcomes = passes(kernel, root, attacking)
        assert {outcome.left for outcome in outcomes} == {0}, "what vanishes is no error"
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}

    def test_what_is_moved_is_no_mount(self, moving: Path, elsewhere: Path) -> None:
        """A directory that is moved away while it is opened is not there, and not taken for a mount point."""
        met = Counter[str]()
        with (
            attack("carry", moving, str(elsewhere), *NAMES) as attacking,
            closing(os.open(moving, os.O_RDONLY | os.O_DIRECTORY)) as above,
        ):
            end = time.monotonic() + PASS_ENDS
            while (attacking.rounds() < 1000 or min(met["opened"], met["ENOENT"]) < 1000) and time.monotonic() < end:
                for name in NAMES:
                    try:
                        with closing(fds.open_below(above, name, directory=True)):
                            met["opened"] += 1
                    except OSError as exc:
                        met[errno.errorcode[exc.errno or 0]] += 1
        assert met.keys() == {"opened", "ENOENT"}

    def test_moved_out_while_it_is_removed(self, kernel: Kernel, root: Path, moving: Path, elsewhere: Path) -> None:
        """A removal takes what is in the directory that it was about to remove, and none of its new neighbours."""
        with attack("carry", moving, str(elsewhere), *NAMES) as attacking:
            before = attacking.rounds()
            run(kernel, root, "-c", REMOVE, "FD")
            assert attacking.rounds() > before
        run(kernel, root, "-c", REMOVE, "FD")
        assert os.listdir(root) == []

    def test_mounts_that_come_and_go(self, kernel: Kernel, root: Path, canary: Canary, tmp_path: Path) -> None:
        """What is mounted inside during a pass is not crossed, be it the same file system, a directory or a file."""
        make_tree(root, "dir a/below", "dir b", "file canary", *(f"file a/f{number}" for number in range(100)))
        told = frozenset(f"{name}: is a mount point" for name in ("a", "b", "canary"))
        try:
            with attack("mount", root, str(canary.directory), "a", "b", "canary", uid=0) as attacking:
                outcomes = passes(kernel, root, attacking, told=told)
        finally:
            for name in ("a", "b", "canary"):
                subprocess.run(["umount", "-l", "-q", root / name], check=False)
        assert sentences(outcomes) == told
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}


class TestRemoval:
    def test_directory_and_link(self, kernel: Kernel, root: Path, canary: Canary) -> None:
        """What is removed becomes a link to a directory outside: nothing there goes."""
        with attack("replace", root, *pairs()) as attacking:
            end = time.monotonic() + ATTACKED
            while time.monotonic() < end:
                before = attacking.rounds()
                run(kernel, root, "-c", REMOVE, "FD")
                assert attacking.rounds() > before
        run(kernel, root, "-c", REMOVE, "FD")
        assert os.listdir(root) == []

    def test_subvolumes(self, tmp_path: Path) -> None:
        """What is destroyed whole becomes a link to a sub-volume outside, or another one: nothing there goes."""
        place = tmp_path / "disk"
        place.mkdir()
        with Disk(tmp_path, "btrfs").mounted(place):
            root = place / "tree"
            root.mkdir()
            os.chown(root, OWNER, OWNER)
            subprocess.run(["btrfs", "-q", "subvolume", "create", place / "outside"], check=True)
            canary = canary_at(place / "outside")
            subprocess.run(["btrfs", "-q", "subvolume", "create", place / "outside/below/below"], check=True)
            canary.look()
            with attack("subvolumes", root, *pairs()):
                end, gone = time.monotonic() + PASS_ENDS, 0
                while gone < 100 and time.monotonic() < end:
                    gone += int(run([], root, "-c", REMOVE, "FD").partition("done=")[2].partition(",")[0])
                assert gone >= 100, "the attacker does not get its turn"
            run([], root, "-c", REMOVE, "FD")
            assert os.listdir(root) == []
            canary.check()

    def test_a_purge(self, open_driver: OpenDriver, host: Host) -> None:
        """A container that still has a removed volume changes it while it is purged: what it points to stays."""
        driver = open_driver()
        canary = canary_at(host.root.parent / "outside")
        driver.create("mongo", {"uid": str(OWNER)}, soon())
        data = host.data("mongo")
        for name in NAMES:
            make_tree(data, f"dir {name}", f"file {name}/canary", f"symlink other{name} {canary.directory}")
        with attack("replace", data, *pairs()) as attacking:
            driver.remove("mongo", soon())
            before = attacking.rounds()
            end = time.monotonic() + ATTACKED
            while host.trash() and time.monotonic() < end:
                driver.purge(None)
            assert attacking.rounds() > before
        driver.purge(None)
        assert host.trash() == []
        canary.check()


class TestWithoutEnd:
    """The attacker makes more than a pass can do: it ends nevertheless."""

    @pytest.mark.parametrize("what", ["files", "directories"])
    def test_ever_more_entries(self, kernel: Kernel, root: Path, what: str) -> None:
        """Entries made faster than the pass goes do not keep it from ending."""
        with attack("create", root, what, "5000") as attacking:
            before = attacking.rounds()
            assert one_pass(kernel, root, ORDERS[0]).done > 0
            assert attacking.rounds() > before
            assert attacking.goes_on()

    def test_ever_deeper(self, root: Path) -> None:
        """Directories made ahead of the pass, each in the one before, do not keep it from ending."""
        with attack("deepen", root, "6000") as attacking:
            eventually(lambda: attacking.rounds() > 2100, "it is deeper than a pass goes", 60)
            assert one_pass([], root, ORDERS[0]).left == 1
            assert attacking.goes_on()

    def test_two_directories_deep_without_end(self, root: Path) -> None:
        """Two directories, each put into the other one whenever that is opened, are no tree without end."""
        for directory in ("a", "b"):
            make_tree(root, f"dir {directory} 184:0", *(f"file {directory}/f{number}" for number in range(1500)))
        with attack("ladder", root) as attacking:
            before = attacking.rounds()
            done = 0
            for number in range(8):
                try:
                    done = one_pass([], root, ORDERS[number % 2]).done
                except AssertionError as exc:
                    assert "stop what writes to it" in str(exc), "it gives up in words, if it does"
                    done = 3001
                if done > 3000:
                    break
            assert attacking.rounds() > before
        assert done > 3000, "the second directory was seen in the first one, and the first in the second"
        assert one_pass([], root, Order(184, 997, LABEL)).left == 0
        assert set(owners(root).values()) == {(184, 997)}


def deep(root: Path, levels: int, name: bytes = b"d") -> int:
    """A chain of directories below *root*; a descriptor of the last one."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    return here


class TestShapes:
    """Trees that are odd, but hold still."""

    def test_deeper_than_any_path(self, kernel: Kernel, root: Path) -> None:
        """A tree is right down to the level that no path reaches; what is deeper is left alone and reported."""
        with closing(deep(root, 2048)) as bottom:
            os.mkdir("deeper", dir_fd=bottom)
            with closing(os.open("deeper", os.O_RDONLY, dir_fd=bottom)) as deeper:
                os.mknod("file", dir_fd=deeper)
                outcome = one_pass(kernel, root, ORDERS[0])
                assert (os.fstat(bottom).st_uid, os.fstat(deeper).st_uid) == (184, 184)
                assert os.stat("file", dir_fd=deeper).st_uid == 0
        assert (outcome.done, outcome.left) == (2049, 1)
        assert "more than 2048 levels deep" in outcome.examples[0]

    def test_a_chain_of_4000_directories_is_removed(self, root: Path) -> None:
        """A tree deeper than files may be open goes."""
        os.close(deep(root, 4000))
        run([], root, "-c", REMOVE, "FD", files=300)
        assert os.listdir(root) == []

    def test_names(self, kernel: Kernel, root: Path) -> None:
        """Names of 255 bytes, of several lines, of no text, and such as look like options or paths."""
        names = [b"x" * 255, b"\xff" * 255, b"a\nb", b"\n", b"\xff\xfe", b"-rf", b"--", b"-", b" ", b"...", b"\\", b"*"]
        names += [b"\x1b[31m", b"{}", b"%s", b'"', "é".encode(), "é".encode("latin-1"), b"\x01", b"~", b"$(reboot)"]
        raw = os.fsencode(root)
        for name in names:
            os.mkdir(raw + b"/" + name)
            for below in names:
                os.mknod(raw + b"/" + name + b"/" + below)
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}
        assert len(owners(root)) == len(names) + len(names) ** 2
        run(kernel, root, "-c", REMOVE, "FD")
        assert os.listdir(root) == []

    def test_entries_that_may_not_be_opened(self, kernel: Kernel, root: Path, canary: Canary) -> None:
        """FIFOs, devices, sockets and links, dangling, of their own, and through the pass's own descriptors."""
        make_tree(root, "fifo fifo", "device device", "symlink dangling nowhere", "symlink loop loop")
        make_tree(root, "symlink here .", "symlink up ..", "symlink fd /proc/self/fd/3", "symlink cwd /proc/self/cwd")
        make_tree(root, "symlink out ../outside/canary", "symlink process /proc/self/root")
        os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
        before = owner(root.parent)
        assert one_pass(kernel, root, ORDERS[0]).left == 0
        assert set(owners(root).values()) == {(184, 998)}
        assert owner(root.parent) == before
        assert {label(root / name) for name in os.listdir(root)} == {LABEL}


class TestHardLinks:
    """A name in the tree for a file that is elsewhere too."""

    def test_who_may_make_one(self, root: Path, canary: Canary) -> None:
        """The kernel refuses a link to a file that one neither owns nor may write (protected_hardlinks, Linux 3.6)."""
        setting = Path("/proc/sys/fs/protected_hardlinks")
        before = setting.read_text()
        setting.write_text("1")
        try:
            assert link_as(OWNER, canary.directory / "below" / "canary", root) == errno.EPERM
        finally:
            setting.write_text(before)

    def test_none_into_a_volume_of_its_own(self, driver: Driver, host: Host, tmp_path: Path) -> None:
        """Nobody but root reaches hostprep's own directories except through a mount, and links do not cross mounts."""
        driver.create("mongo", {"uid": str(OWNER)}, soon())
        make_tree(tmp_path, "file mine 184:184", "dir container")
        os.chmod(tmp_path, 0o755)
        assert stat.S_IMODE(os.stat(host.root).st_mode) == 0o700
        subprocess.run(["mount", "--bind", host.data("mongo"), tmp_path / "container"], check=True)
        try:
            assert link_as(OWNER, tmp_path / "mine", tmp_path / "container") == errno.EXDEV
        finally:
            subprocess.run(["umount", tmp_path / "container"], check=True)

    def test_under_path(self, driver: Driver, host: Host, canary: Canary) -> None:
        """Under path a file with several links keeps its owner and label, at every Mount, and Status names it."""
        make_tree(host.srv, "dir db", "file db/mine")
        (host.srv / "db" / "link").hardlink_to(canary.directory / "canary")
        canary.look()  # the link has changed its ctime
        driver.create(
            "mongo", {"uid": "184", "path": f"{host.srv}/db", "recurse": "always", "label": "container_file_t"}, soon()
        )
        driver.mount("mongo", soon())
        assert driver.get("mongo")["Status"]["warnings"] == ["link: has 2 hard links"]
        assert owner(host.srv / "db" / "mine")[0] == 184


def link_as(uid: int, source: Path, directory: Path) -> int:
    """What link(2) answers somebody else: an errno, or 0."""
    here = os.open(directory, os.O_RDONLY)
    there, name = os.open(source.parent, os.O_RDONLY), source.name
    with closing(here), closing(there):
        child = os.fork()
        if child == 0:
            code = 255
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                os.link(name, "link", src_dir_fd=there, dst_dir_fd=here)
                code = 0
            except OSError as exc:
                code = exc.errno or 255
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestTheRootItself:
    """The directory of the volume is swapped, or what is above it."""

    @pytest.mark.parametrize("what", ["db/other", "above/aside"])
    def test_between_create_and_mount(self, driver: Driver, host: Host, canary: Canary, what: str) -> None:
        """Its path, or a directory above, becomes a link to another one: Mount follows it in no case."""
        (canary.directory / "db").mkdir()
        canary.look()
        directory, link = what.split("/")
        path = f"{host.srv}/db" if directory == "db" else f"{host.srv}/{directory}/db"
        make_tree(host.srv, f"dir {os.path.relpath(path, host.srv)}", f"symlink {link} {canary.directory}")
        driver.create("mongo", {"uid": "184", "path": path, "mode": "0750", "recurse": "always"}, soon())
        answers: list[bool] = []
        with attack("exchange", host.srv, what, uid=0) as attacking:
            end, before = time.monotonic() + ATTACKED, attacking.rounds()
            while len(answers) < 20 or time.monotonic() < end:
                try:
                    assert driver.mount("mongo", soon()) == path
                    answers.append(True)
                except (NotAllowed, NotReady):
                    answers.append(False)
            assert attacking.rounds() > before
        assert False in answers, "no Mount has met the link"

    def test_given_away_without_end(self, driver: Driver, host: Host) -> None:
        """A root that is never right for long, as a container's root can keep it, has its Mount answered meanwhile."""
        driver.create("mongo", {"uid": "184"}, soon())
        with attack("unsettle", host.data("mongo"), uid=0) as attacking:
            before = attacking.rounds()
            with contextlib.suppress(Busy):
                driver.mount("mongo", soon(1))
            assert attacking.goes_on()
            assert attacking.rounds() > before
        driver.mount("mongo", soon())
        assert owner(host.data("mongo"))[0] == 184

    def test_prepare_in_somebodys_home(self, root: Path, canary: Canary) -> None:
        """`hostprep prepare` below a directory that is not root's refuses a link in its place, whenever it comes."""
        make_tree(root, "dir db 184:0", "file db/file 184:0", "symlink other ../outside")
        codes = set()
        with attack("exchange", root, "db/other") as attacking:
            before = attacking.rounds()
            for number in range(4):
                done = subprocess.run(
                    [PYTHON, "-m", "hostprep", "prepare", root / "db", "-o", f"uid={185 + number % 2}"],
                    cwd=REPOSITORY,
                    capture_output=True,
                    text=True,
                    timeout=PASS_ENDS,
                    check=False,
                )
                codes.add(done.returncode)
                # The last is readlink(2) of what is no link any more (os.path.realpath, before anything is opened).
                refusals = ("is a symlink", "not a directory", "Invalid argument")
                assert done.returncode == 0 or any(refusal in done.stderr for refusal in refusals)
            assert attacking.rounds() > before
        assert codes <= {0, 1}
