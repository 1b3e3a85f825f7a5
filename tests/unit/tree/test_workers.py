"""Several processes on one pass: they share the work, and none is left or waited for in vain."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from hostprep.host.fds import held
from hostprep.tree import workers
from hostprep.tree.removal import remove
from tests.support.host import REPOSITORY, children_of, eventually
from tests.support.trees import make_tree, many, owners

pytestmark = pytest.mark.root

# At once what else takes a large tree: other processes after no time, the count too, a report for each entry or so.
_EAGER = """
import sys
from hostprep.tree import process, walk, workers
workers._ALONE = 0.0
workers._PROCESSES = 2
workers._TICK = 0.001
workers._COUNTED_AFTER = 0.0
walk._LOOK_UP = 7
{more}
process.main(sys.argv[1:])
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a tree of some size."""
    root = tmp_path / "tree"
    root.mkdir()
    many(root, 8000)
    for number in range(8):
        make_tree(root, *(f"dir {number}/sub/{other}/sub" for other in range(40)), f"symlink {number}/l /etc")
    return root


@contextmanager
def eager(root: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    """A pass that has others help it from the start."""
    order = json.dumps({"uid": 184, "gid": 998, "label": None})
    with held(os.open(root, os.O_RDONLY)) as fd:
        argv = [sys.executable, "-c", _EAGER.format(more=more), str(fd), order]
        with subprocess.Popen(
            argv, cwd=REPOSITORY, pass_fds=[fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                yield child
            finally:
                child.kill()


def helpers(pid: int) -> list[int]:
    return list(children_of(pid))


def test_all_is_done_once(root: Path) -> None:
    """Together they look at each entry once, and the tree is as ordered."""
    expected = len(owners(root))
    with eager(root) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {"done": expected, "changed": expected, "left": 0, "examples": []}
    assert set(owners(root).values()) == {(184, 998)}


def test_the_work_is_shared(root: Path) -> None:
    """Others do some of it, as the files that each of them changed tell."""
    with eager(
        root, "import os; chown = os.lchown\nos.lchown = lambda name, *_: chown(name, os.getpid(), 998)"
    ) as child:
        child.communicate(timeout=60)
    assert len({uid for uid, _ in owners(root).values()} - {184}) > 1


def test_progress_and_estimate(root: Path) -> None:
    """Reports grow, and once the tree is counted they say how many entries there are about."""
    expected = len(owners(root))
    slow = "import time; lstat = os.lstat\nos.lstat = lambda name: (time.sleep(0.0002), lstat(name))[1]"
    with eager(root, f"import os; {slow}") as child:
        out, _ = child.communicate(timeout=60)
    reports = [json.loads(line) for line in out.splitlines()][:-1]
    assert [each["done"] for each in reports] == sorted(each["done"] for each in reports)
    assert {each["estimate"] for each in reports} == {None, expected}


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_leader_dies(root: Path, sent: signal.Signals) -> None:
    """When the leader ends, however it does, the others do."""
    with eager(root, "import os, time; os.lstat = lambda name: time.sleep(60)") as child:
        eventually(lambda: len(helpers(child.pid)) >= 3, "others were asked to help")
        others = helpers(child.pid)
        child.send_signal(sent)
        child.wait(10)
        eventually(lambda: not any(alive(pid) for pid in others), "the others are gone")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_another_dies(root: Path) -> None:
    """One of the others that is killed ends the pass, which says so, and no process stays."""
    with eager(
        root, "import os, time; lstat = os.lstat\nos.lstat = lambda n: (time.sleep(0.01), lstat(n))[1]"
    ) as child:
        eventually(lambda: len(helpers(child.pid)) >= 3, "others were asked to help")
        others = helpers(child.pid)
        os.kill(others[0], signal.SIGKILL)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (1, "")
        assert "ended before its time" in json.loads(out.splitlines()[-1])["error"]
        assert not any(alive(pid) for pid in others)


def test_a_fault_of_another(root: Path) -> None:
    """A fault in one of the others is in what the pass says at its end, too."""
    fault = "import os; leader, lchown = os.getpid(), os.lchown\n"
    fault += "os.lchown = lambda *a: lchown(*a) if os.getpid() == leader else 1 / 0"
    with eager(root, fault) as child:
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "ZeroDivisionError" in err


def test_memory(tmp_path: Path) -> None:
    """A directory of 200,000 directories takes no more memory than one of few."""
    for number in range(200_000):
        os.mkdir(f"{tmp_path}/{number}")
    most = """import atexit, re; status = open("/proc/self/status")
atexit.register(lambda: print(re.search("VmHWM:[^0-9]*([0-9]+) kB", status.read()).group(1)))"""
    with eager(tmp_path, most) as child:
        out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-2])["done"] == 200_000
    assert int(out.splitlines()[-1]) < 30_000


def test_a_chain_is_not_handed_to_and_fro(tmp_path: Path) -> None:
    """A chain of directories is walked by whoever is in it, to its end at a depth of 4,000, with few open files."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(4000):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with eager(tmp_path, limit) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["done"] == 4000
    assert os.fstat(here).st_uid == 184
    os.close(here)
    with held(os.open(tmp_path, os.O_RDONLY)) as fd:
        assert remove(fd).done == 4000


def test_parts_of_a_deep_tree(tmp_path: Path) -> None:
    """Parts are given away at any depth: of a path too long for a message its end does."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        for name in ("d" * 200, "e", "f", "g"):
            os.mkdir(name, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with eager(tmp_path) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["changed"] == 4800
    with held(os.open(tmp_path, os.O_RDONLY)) as fd:
        assert remove(fd).done == 4800


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Interrupt what takes longer."""

    def stuck(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Hasty:
    """A poll object that says at first that something is there, as it does when another process then takes it."""

    def __init__(self) -> None:
        self._poll = REAL_POLL()
        self._said = False

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)

    def poll(self, milliseconds: int) -> object:
        if not self._said:
            self._said = True
            return [(0, select.POLLIN)]
        return self._poll.poll(milliseconds)


REAL_POLL = select.poll


def test_another_was_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a part that another process takes goes on with what is due meanwhile, and is not stuck."""
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            table._in.shutdown(socket.SHUT_RDWR)  # all is done

    with closing(workers._Table()) as table:
        monkeypatch.setattr(select, "poll", Hasty)
        monkeypatch.setattr(workers, "_TICK", 0.01)
        with within(60):
            assert table.take(tick) is None
    assert len(ticks) >= 3


def test_nobody_listens() -> None:
    """What is told again and again does not wait for a leader who does not listen."""
    with closing(workers._Table()) as table:
        with within(60):
            for number in range(5000):
                table.tell(last=False, done=number)
        assert table.heard(0)[0] == {"done": 0}
