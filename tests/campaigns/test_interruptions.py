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
FILES = 3_000
RIGHT, WRONG = (184, 998), (55, 66)
TRIES = 40  # of killing a pass in its middle; on an idle machine it takes one or two
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
        eventually(lambda: self.mark.exists() or server.poll() is not None, "the mark is there", pause=0.0002)

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
        return any(owner(path) == RIGHT for path in self._contents[::100])

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


def interrupted(mongo: Mongo, seed: int, prepare: Callable[[], None]) -> Iterator[tuple[set[tuple[int, int]], bool]]:
    """The owners of the contents and whether there is a mark, once it was killed, each time after *prepare*.

    At moments anywhere between a server's start and a pass's end; then, however busy the machine is, until a pass was
    killed in its middle. Every time the next Mount is to complete it.
    """
    dice = random.Random(seed)  # noqa: S311  # the same at each run
    began = time.monotonic()
    mongo.spoil(root=True)
    length = mongo.seconds()
    start = time.monotonic() - began - length

    def early(server: subprocess.Popen[bytes]) -> None:
        time.sleep(start * dice.random())

    def late(server: subprocess.Popen[bytes]) -> None:
        mongo.marked(server)
        time.sleep(length * dice.random())

    def within(server: subprocess.Popen[bytes]) -> None:
        while not mongo.begun() and server.poll() is None:
            pass

    for moment in (early, late, late, *[within] * TRIES):
        prepare()
        mongo.killed(moment)
        contents, marked = mongo.contents(), mongo.mark.exists()
        yield contents, marked
        mongo.completed()
        if moment is within and (contents, marked) == ({RIGHT, WRONG}, True):
            return
    raise AssertionError("no pass was killed in its middle")


def test_at_any_moment(mongo: Mongo) -> None:
    """A right root without a mark means right contents, whenever server and pass were killed; the next Mount mends."""
    for contents, marked in interrupted(mongo, 4, lambda: mongo.spoil(root=True)):
        root = owner(mongo.data)
        if root == RIGHT:
            assert contents == {RIGHT}
        if RIGHT in contents and not marked:
            assert (contents, root) == ({RIGHT}, RIGHT)


def test_when_the_root_was_right_before(mongo: Mongo) -> None:
    """A pass that had been interrupted before goes on, and keeps its mark until the end, though the root is right."""

    def prepare() -> None:
        mongo.spoil(root=False)
        mongo.mark.write_text("{}")  # as the earlier pass left it

    for contents, marked in interrupted(mongo, 5, prepare):
        assert owner(mongo.data) == RIGHT
        assert marked or contents == {RIGHT}


def test_always(open_driver: OpenDriver, host: Host) -> None:
    """With recurse=always a mark is there before the first entry below a right root is changed."""
    mongo = Mongo(host, open_driver(HOSTPREP_SELINUX="off"), "always")
    for contents, marked in interrupted(mongo, 6, lambda: mongo.spoil(root=False)):
        assert marked or len(contents) == 1, "begun, not ended, and nothing says so"


def test_only_the_pass(mongo: Mongo) -> None:
    """A pass that is killed fails the Mount that waits for it; the mark stays, and the next Mount takes it up."""
    killed_within = False
    for _ in range(TRIES):
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
