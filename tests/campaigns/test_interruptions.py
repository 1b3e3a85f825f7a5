"""Killed at any moment: whatever is there says whether the tree is right, and the next Mount completes it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hostprep.errors import NotReady
from hostprep.volumes.driver import Driver
from hostprep.volumes.volume import MARK
from tests.support.fixtures import OpenDriver
from tests.support.host import PYTHON, REPOSITORY, Host, eventually, owner, passes_of, soon
from tests.support.trees import make_tree, many, owners

pytestmark = pytest.mark.root
FILES = 12_000
RIGHT, WRONG = (184, 998), (55, 66)
KILLS = 10  # evenly spread over the time of a pass; and half as many between a server's start and the mark
MOUNT = """
import os, time
from hostprep.volumes.driver import Driver
from hostprep.settings import Settings
Driver.open(Settings.read(os.environ), create=False).mount("mongo", time.monotonic() + 60)
"""


class Mongo:
    """A volume of some thousand entries, which a server process prepares."""

    def __init__(self, host: Host, driver: Driver, recurse: str) -> None:
        driver.create("mongo", {"uid": "184", "gid": "998", "recurse": recurse}, soon())
        self._host = host
        self._driver = driver
        self.data = host.data("mongo")
        self.mark = host.volume("mongo") / MARK
        many(self.data, FILES)
        make_tree(self.data, "symlink link nowhere", "fifo fifo", "dir a/b/c/d/e")
        self._contents = [self.data / name for name in owners(self.data)]

    def spoil(self, *, root: bool) -> None:
        """Give the contents, and the root, another owner."""
        for path in [*self._contents, *([self.data] if root else [])]:
            os.lchown(path, *WRONG)

    def contents(self) -> set[tuple[int, int]]:
        return set(owners(self.data).values())

    def serve(self) -> subprocess.Popen[bytes]:
        """Begin a Mount in a server of its own, and with all that it starts in a process group of its own."""
        return subprocess.Popen(
            [PYTHON, "-c", MOUNT],
            cwd=REPOSITORY,
            env=self._host.process_environ({"HOSTPREP_SELINUX": "off"}),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    def killed(self, moment: Callable[[subprocess.Popen[bytes]], None]) -> None:
        """Begin a Mount and kill the server and the pass at *moment*."""
        with self.serve() as server:
            try:
                moment(server)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
        eventually(lambda: not passes_of(os.getpid()), "what it had started is gone, too")

    def marked(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the mark is there."""
        end = time.monotonic() + 20
        while not self.mark.exists() and server.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.0002)

    def completed(self) -> None:
        """The next Mount makes everything right, and says so."""
        self._driver.mount("mongo", soon())
        assert (owner(self.data), self.contents(), self.mark.exists()) == (RIGHT, {RIGHT}, False)
        assert self._driver.get("mongo")["Status"]["ready"] is True

    def mount(self, answers: list[BaseException | str]) -> None:
        """Mount, and append what is answered."""
        try:
            answers.append(self._driver.mount("mongo", soon()))
        except NotReady as exc:
            answers.append(exc)

    def begun(self) -> bool:
        """Whether some entry is right; only a few are looked at, or the pass were over by then."""
        return any(owner(path) == RIGHT for path in self._contents[::200])

    def seconds(self) -> float:
        """How long it takes from the mark to the end of the Mount."""
        with self.serve() as server:
            self.marked(server)
            began = time.monotonic()
            assert server.wait(timeout=60) == 0
        return time.monotonic() - began


@pytest.fixture
def mongo(open_driver: OpenDriver, host: Host) -> Mongo:
    return Mongo(host, open_driver(HOSTPREP_SELINUX="off"), "mismatch")


def moments(mongo: Mongo, seed: int) -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """From a server's start to a pass's end, spread evenly, but not to the microsecond."""
    dice = random.Random(seed)  # noqa: S311  # the same at each run
    began = time.monotonic()
    mongo.spoil(root=True)
    length = mongo.seconds()
    start = time.monotonic() - began - length

    def early(after: float) -> Callable[[subprocess.Popen[bytes]], None]:
        return lambda server: time.sleep(after)

    def late(after: float) -> Callable[[subprocess.Popen[bytes]], None]:
        return lambda server: (mongo.marked(server), time.sleep(after))[1]

    def within(server: subprocess.Popen[bytes]) -> None:
        while not mongo.begun() and server.poll() is None:
            pass

    yield from [within] * 3  # however busy the machine is, one of them is in the middle
    for number in range(KILLS):
        yield late(length * (number + dice.random()) / KILLS)
    for number in range(KILLS // 2):
        yield early(start * (number + dice.random()) / (KILLS // 2))


def test_at_any_moment(mongo: Mongo) -> None:
    """A right root without a mark means right contents, whenever server and pass were killed; the next Mount mends."""
    found = set()
    for moment in moments(mongo, 4):
        mongo.spoil(root=True)
        mongo.killed(moment)
        contents, marked, root = mongo.contents(), mongo.mark.exists(), owner(mongo.data)
        found.add((len(contents), marked))
        if root == RIGHT:
            assert contents == {RIGHT}
        if RIGHT in contents and not marked:
            assert (contents, root) == ({RIGHT}, RIGHT)
        mongo.completed()
    assert (2, True) in found, "no pass was killed in its middle"


def test_when_the_root_was_right_before(mongo: Mongo) -> None:
    """A pass that had been interrupted before goes on, and keeps its mark until the end, though the root is right."""
    found = set()
    for moment in moments(mongo, 5):
        mongo.spoil(root=False)
        mongo.mark.write_text("{}")  # as the earlier pass left it
        mongo.killed(moment)
        contents, marked = mongo.contents(), mongo.mark.exists()
        found.add((len(contents), marked))
        assert owner(mongo.data) == RIGHT
        assert marked or contents == {RIGHT}
        mongo.completed()
    assert (2, True) in found, "no pass was killed in its middle"


def test_always(open_driver: OpenDriver, host: Host) -> None:
    """With recurse=always a mark is there before the first entry below a right root is changed."""
    mongo = Mongo(host, open_driver(HOSTPREP_SELINUX="off"), "always")
    found = set()
    for moment in moments(mongo, 6):
        mongo.spoil(root=False)
        mongo.killed(moment)
        contents, marked = mongo.contents(), mongo.mark.exists()
        found.add((len(contents), marked))
        assert marked or len(contents) == 1, "begun, not ended, and nothing says so"
        mongo.completed()
    assert (2, True) in found, "no pass was killed in its middle"


def test_only_the_pass(mongo: Mongo) -> None:
    """A pass that is killed fails the Mount that waits for it; the mark stays, and the next Mount takes it up."""
    killed_within = False
    for _ in range(12):
        mongo.spoil(root=True)
        answers: list[BaseException | str] = []
        waiting = threading.Thread(target=mongo.mount, args=(answers,))
        waiting.start()
        eventually(mongo.begun, "the pass has begun")
        for pid in passes_of(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        waiting.join()
        (answer,) = answers
        if isinstance(answer, NotReady):
            assert "could not be prepared" in str(answer)
            assert (mongo.mark.exists(), owner(mongo.data)) == (True, WRONG)
            killed_within = mongo.contents() == {RIGHT, WRONG}
        mongo.completed()
        if killed_within:
            break
    assert killed_within, "no pass was killed in its middle"
