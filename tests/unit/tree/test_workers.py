"""The processes of a pass share the work, and none is left over or waited for in vain."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host.fds import closing
from hostprep.tree import workers
from hostprep.tree.removal import remove
from tests.support.host import REPOSITORY, children_of, eventually, mounted
from tests.support.trees import make_tree, many, owners

pytestmark = pytest.mark.root

# What otherwise takes a large tree happens at once: workers are forked, the tree is counted, and reports come often.
_EAGER = """
import sys
from hostprep.tree import process, walk, workers
workers._ALONE_SECONDS = 0.0
workers._PER_PROCESSOR = 2
workers._REPORT_SECONDS = 0.001
workers._COUNT_AFTER_SECONDS = 0.0
walk._TICK_ENTRIES = 7
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


@contextlib.contextmanager
def eager(root: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    """A pass that forks its workers at once."""
    order = json.dumps({"uid": 184, "gid": 998, "label": None})
    with closing(os.open(root, os.O_RDONLY)) as fd:
        argv = [sys.executable, "-c", _EAGER.format(more=more), str(fd), order]
        with subprocess.Popen(
            argv, cwd=REPOSITORY, pass_fds=[fd], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                yield child
            finally:
                child.kill()


def test_all_is_done_once(root: Path) -> None:
    """Together the processes look at each entry once, and the tree is as ordered."""
    expected = len(owners(root))
    with eager(root) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    said = {"done": expected, "changed": expected, "left": 0, "examples": [], "planned": []}
    assert json.loads(out.splitlines()[-1]) == said
    assert set(owners(root).values()) == {(184, 998)}


def test_the_work_is_shared(root: Path) -> None:
    """Workers do some of it, as the files that each of them changed tell."""
    with eager(
        root, "import os; chown = os.lchown\nos.lchown = lambda name, *_: chown(name, os.getpid(), 998)"
    ) as child:
        child.communicate(timeout=60)
    assert len({uid for uid, _ in owners(root).values()} - {184}) > 1


def test_progress_and_estimate(root: Path) -> None:
    """Reports grow, and once the tree is counted they say how many entries there are about."""
    expected = len(owners(root))
    # Slowly until it is counted, however long that takes, so that there are reports after it.
    slowly = """
import mmap, os, time
lstat, count, counted = os.lstat, workers.Leader._count, mmap.mmap(-1, 1)
def noted(leader):
    count(leader)
    counted[0] = 1
workers.Leader._count = noted
os.lstat = lambda name: (time.sleep(0.0002 if counted[0] else 0.005), lstat(name))[1]
"""
    with eager(root, slowly) as child:
        out, _ = child.communicate(timeout=60)
    reports = [json.loads(line) for line in out.splitlines()][:-1]
    assert [each["done"] for each in reports] == sorted(each["done"] for each in reports)
    assert {each["estimate"] for each in reports} == {None, expected}


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_leader_dies(root: Path, sent: signal.Signals) -> None:
    """When the leader ends, however it ends, the workers end."""
    with eager(root, "import os, time; os.lstat = lambda name: time.sleep(60)") as child:
        eventually(lambda: len(children_of(child.pid)) >= 3, "workers are forked", 60)
        forked = list(children_of(child.pid))
        child.send_signal(sent)
        child.wait(60)
        eventually(lambda: not any(alive(pid) for pid in forked), "the workers are gone", 60)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_worker_dies(root: Path) -> None:
    """A worker that is killed ends the pass, which says so, and no process stays."""
    with eager(
        root, "import os, time; lstat = os.lstat\nos.lstat = lambda n: (time.sleep(0.01), lstat(n))[1]"
    ) as child:
        eventually(lambda: len(children_of(child.pid)) >= 3, "workers are forked", 60)
        forked = list(children_of(child.pid))
        os.kill(forked[0], signal.SIGKILL)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (1, "")
        assert "ended too early" in json.loads(out.splitlines()[-1])["error"]
        assert not any(alive(pid) for pid in forked)


def test_a_fault_in_a_worker(root: Path) -> None:
    """What a fault in a worker prints is in what the pass prints."""
    fault = "import os; leader, lchown = os.getpid(), os.lchown\n"
    fault += "os.lchown = lambda *a: lchown(*a) if os.getpid() == leader else 1 / 0"
    with eager(root, fault) as child:
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "ZeroDivisionError" in err


def test_memory(tmp_path: Path) -> None:
    """A directory of 200,000 directories takes no more memory than one of few."""
    most = """import atexit, re; status = open("/proc/self/status")
atexit.register(lambda: print(re.search("VmHWM:[^0-9]*([0-9]+) kB", status.read()).group(1)))"""
    with mounted("-t", "tmpfs", "-o", "nr_inodes=0", "none", str(tmp_path)):  # gone at once with all that is in it
        for number in range(200_000):
            os.mkdir(f"{tmp_path}/{number}")
        with eager(tmp_path, most) as child:
            out, err = child.communicate(timeout=300)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out.splitlines()[-2])["done"] == 200_000
    assert int(out.splitlines()[-1]) < 30_000


def test_a_chain_is_not_handed_to_and_fro(tmp_path: Path) -> None:
    """A chain of directories is walked by the process that is in it, down to the level where a pass ends."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2049):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    said = "import os; give = walk.Walk.give\n"
    said += "walk.Walk.give = lambda each: (batch := give(each)) and os.write(2, b'given away') and batch"
    with eager(tmp_path, said) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    outcome = json.loads(out.splitlines()[-1])
    assert (outcome["done"], outcome["changed"], outcome["left"]) == (2049, 2049, 1)
    assert os.fstat(here).st_uid == 184
    os.close(here)
    with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
        assert remove(fd).done == 2049


def test_batches_of_a_deep_tree(tmp_path: Path) -> None:
    """Batches are given away at any depth: where a path is too long for a message, its end is sent."""
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
    with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
        assert remove(fd).done == 4800


@contextlib.contextmanager
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
    """A process that waits for a batch which another one takes goes on with what is due meanwhile."""
    ticks: list[None] = []

    def tick() -> None:
        ticks.append(None)
        if len(ticks) == 3:
            shared._give_end.shutdown(socket.SHUT_RDWR)  # all is done

    with contextlib.closing(workers._Shared()) as shared:
        monkeypatch.setattr(select, "poll", Hasty)
        monkeypatch.setattr(workers, "_REPORT_SECONDS", 0.01)
        with within(60):
            assert shared.take(tick) is None
    assert len(ticks) >= 3


def test_nobody_listens() -> None:
    """A report that is not the last does not wait for a leader that does not listen."""
    with contextlib.closing(workers._Shared()) as shared:
        with within(60):
            for number in range(5000):
                shared.report({"done": number}, wait=False)
        assert shared.reports(0)[0] == {"done": 0}
