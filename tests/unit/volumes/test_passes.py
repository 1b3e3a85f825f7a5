"""A pass: one a volume, in a process of its own, joined by whoever waits."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hostprep.errors import Busy
from hostprep.host.fds import closing
from hostprep.options import Name
from hostprep.tree import walk
from hostprep.tree.process import Progress
from hostprep.volumes import passes
from hostprep.volumes.driver import Driver
from hostprep.volumes.passes import Finish, Pass, Passes
from hostprep.volumes.volume import MARK, LockedVolume, write_progress
from tests.support.fixtures import Gate
from tests.support.host import Host, catch_pass, eventually, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
ORDER = walk.Order(184, 998, None)


class Volume:
    """A volume, open, whose tree a pass can go over."""

    def __init__(self, driver: Driver, host: Host, stack: ExitStack) -> None:
        driver.create("mongo", {}, soon())
        make_tree(host.data("mongo"), "dir a", "file a/b", "file c")
        self.data = host.data("mongo")
        self.driver = driver
        self.data_fd = stack.enter_context(closing(os.open(self.data, os.O_RDONLY)))
        self.passes = Passes(driver.store)
        self.outcomes: list[walk.Outcome] = []

    def start(self, passes: Passes | None = None, finish: Finish | None = None) -> Pass:
        with self.locked() as volume:
            return (passes or self.passes).start(volume, self.data_fd, ORDER, finish or self.outcomes.append)

    def locked(self) -> AbstractContextManager[LockedVolume]:
        return self.driver.store.locked(Name("mongo"), soon())


@pytest.fixture
def volume(driver: Driver, host: Host) -> Iterator[Volume]:
    with ExitStack() as stack:
        yield Volume(driver, host, stack)


def test_it_ends(volume: Volume) -> None:
    """A pass does its work in another process, hands over what it did, and is forgotten."""
    begun = volume.start()
    assert begun.over.wait(20)
    assert (begun.failure, volume.outcomes) == ("", [walk.Outcome(done=3, changed=3)])
    assert volume.passes.running("mongo") is None
    assert set(owners(volume.data).values()) == {(184, 998)}


def test_one_a_volume(volume: Volume, gate: Gate) -> None:
    """Who starts a pass while one runs joins that."""
    first, second = volume.start(), volume.start()
    assert first is second
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    gate.open()
    assert first.over.wait(20)
    assert len(volume.outcomes) == 1


def test_one_a_volume_of_all_processes(volume: Volume, driver: Driver, gate: Gate) -> None:
    """While another process runs it, a pass waits for that one's end, and leaves the rest to the next look."""
    first = volume.start()
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    other = Passes(driver.store)
    followed = volume.start(other)
    assert not followed.over.wait(0.2)
    assert len(gate.waiting()) == 1
    gate.open()
    assert first.over.wait(20)
    assert followed.over.wait(20)
    assert (followed.failure, len(volume.outcomes)) == ("", 1)


def test_cancelled(volume: Volume, gate: Gate) -> None:
    """A cancelled pass ends at once, fails nobody, and has done nothing more."""
    begun = volume.start()
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    volume.passes.cancel("mongo")
    assert begun.over.wait(5)
    assert (begun.failure, volume.outcomes) == ("", [])
    assert set(owners(volume.data).values()) == {(0, 0)}
    volume.passes.cancel("mongo")
    volume.passes.cancel("never-there")


def test_cancelled_before_it_runs(volume: Volume) -> None:
    """A pass that is cancelled before its process is there begins none."""
    begun = volume.start()
    begun.cancel()
    assert begun.over.wait(20)
    assert begun.failure == ""


def test_stopped(volume: Volume, gate: Gate) -> None:
    """After stop every pass is ended, and none is begun."""
    begun = volume.start()
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    volume.passes.stop()
    assert begun.over.wait(5)
    with pytest.raises(Busy, match="stopping"):
        volume.start()


def test_killed(volume: Volume, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """A process that dies is a failure, which is logged, and the next pass can begin."""
    begun = volume.start()
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    os.kill(gate.waiting()[0], 9)
    assert begun.over.wait(5)
    assert "mongo" in begun.failure
    assert begun.failure in caplog.text
    eventually(lambda: not volume.passes.runs_elsewhere("mongo"), "what the shell started is gone too")
    gate.open()
    assert volume.start().over.wait(20)
    assert len(volume.outcomes) == 1


def test_a_finish_that_fails(volume: Volume) -> None:
    """What goes wrong at the end is the pass's failure."""

    def fail(_: walk.Outcome) -> None:
        raise PermissionError(1, "Operation not permitted", "x")

    begun = volume.start(finish=fail)
    assert begun.over.wait(20)
    assert begun.failure == "x: Operation not permitted"


def test_an_error_that_nobody_expected(volume: Volume) -> None:
    """Whatever goes wrong in a pass is its failure: else who waits would begin the next one, again and again."""
    begun = volume.start(finish=lambda _: bool(1 // 0))
    assert begun.over.wait(20)
    assert begun.failure == "internal error: ZeroDivisionError: integer division or modulo by zero"


def test_a_program_that_is_missing(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can be started, that is the pass's failure."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    begun = volume.start()
    assert begun.over.wait(20)
    assert "/nowhere/python" in begun.failure


def test_a_removed_volume(volume: Volume, driver: Driver, host: Host) -> None:
    """A pass keeps the tree that it was given, wherever another process moves it."""
    begun = volume.start()
    driver.remove("mongo", soon())
    assert begun.over.wait(20)
    assert (begun.failure, len(host.trash())) == ("", 1)


def test_another_volume_of_its_name(driver: Driver, host: Host, gate: Gate) -> None:
    """A pass over a volume that another process removed does not mark a new one of that name as done."""
    driver.create("mongo", {"uid": "184"}, soon())
    make_tree(host.data("mongo"), "file old")
    os.chown(host.data("mongo"), 0, 0)
    with pytest.raises(Busy):
        driver.mount("mongo", soon(0.1))
    other = Driver(driver.settings, driver.store, driver.labels)
    other.remove("mongo", soon())
    other.create("mongo", {"uid": "184"}, soon())
    make_tree(host.data("mongo"), "file new")
    os.chown(host.data("mongo"), 0, 0)
    (host.volume("mongo") / MARK).write_text("{}")
    first = driver.passes.running("mongo")
    gate.open()
    if first:
        assert first.over.wait(20)
    driver.mount("mongo", soon())
    assert set(owners(host.data("mongo")).values()) == {(184, 0)}


def test_the_environment_cannot_change_what_runs(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the working directory nor PYTHONPATH puts other code in the place of the pass's."""
    make_tree(tmp_path, "dir evil/hostprep", "file evil/hostprep/__init__.py", "file evil/json.py 0:0 644 raise")
    monkeypatch.chdir(tmp_path / "evil")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "evil"))
    begun = volume.start()
    assert begun.over.wait(20)
    assert begun.failure == ""


class TestTurns:
    """As many passes work at a time as help."""

    @pytest.fixture
    def many(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Twelve volumes whose next Mounts each begin a pass, on a machine with two processors."""
        monkeypatch.setattr(passes, "_AT_ONCE", 2)
        names = [f"v{number:02}" for number in range(12)]
        for name in names:
            driver.create(name, {"uid": "184"}, soon())
            make_tree(host.data(name), "file a")
            os.chown(host.data(name), 0, 0)
        return names

    def begin(self, driver: Driver, *names: str) -> str:
        """Begin a pass for each of them, in this order; what the last Mount is told."""
        for name in names:
            with pytest.raises(Busy) as told:
                driver.mount(name, soon(0))
            eventually(partial(self.stands_in_line, driver, name), "it stands in line")
        return str(told.value)

    def stands_in_line(self, driver: Driver, name: str) -> bool:
        return name in [each.name for each in driver.passes._turns._queue]

    def ahead(self, driver: Driver, *names: str) -> list[int]:
        """How many each of them waits for."""
        return [each.ahead for each in map(driver.passes.running, names) if each]

    def ended(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        return re.findall(r"pass over (\w+): \d+ entries", caplog.text)

    def test_two_work(self, driver: Driver, many: list[str], gate: Gate) -> None:
        """Of twelve passes at once two work; the others begin as those end, and all volumes become ready."""
        self.begin(driver, *many)
        eventually(lambda: len(gate.waiting()) == 2, "two work")
        eventually(lambda: self.ahead(driver, *many) == [0, 0, *range(2, 12)], "the others wait")
        assert len(gate.waiting()) == 2
        gate.open()
        for name in many:
            driver.mount(name, soon())
            assert driver.get(name)["Status"]["ready"] is True

    def test_in_order_of_arrival(
        self, driver: Driver, many: list[str], gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who came first works first."""
        begun: list[str] = []
        begin = passes.begin

        def note(data: int, *arguments: Any, **keywords: Any) -> Any:
            begun.append(Path(os.readlink(f"/proc/self/fd/{data}")).parent.name)
            return begin(data, *arguments, **keywords)

        monkeypatch.setattr(passes, "begin", note)
        monkeypatch.setattr(passes, "_AT_ONCE", 1)
        order = [*reversed(many[:5]), *many[5:]]
        self.begin(driver, *order)
        gate.open()
        eventually(lambda: begun == order, "they begin in the order in which they came")
        for name in many:
            driver.mount(name, soon())

    def test_what_is_said(self, driver: Driver, many: list[str], gate: Gate) -> None:
        """Mount and Status say of a pass that waits that it does; its mark is on disk."""
        self.begin(driver, *many[:3])
        eventually(lambda: self.ahead(driver, "v02") == [2], "the third waits")
        assert self.begin(driver, "v02") == (
            "preparing v02 waits for other volumes: 2 are before it "
            "(it begins by itself; start the container again later)"
        )
        status = driver.get("v02")["Status"]
        assert status["progress"] == {"done": 0, "estimate": None, "rate": 0.0, "seconds_left": None}
        assert status["ready"] is False
        with driver.store.open(Name("v02")) as waiting:
            assert waiting.pending() == Progress()
        other = Driver(driver.settings, driver.store, driver.labels)  # as another process
        assert other.get("v02")["Status"]["progress"]["done"] == 0

    @pytest.mark.parametrize("how", ["remove", "by-another-process", "apply", "stop"])
    def test_not_wanted_any_more(self, driver: Driver, many: list[str], gate: Gate, how: str) -> None:
        """A pass that waits is over as soon as its volume is removed or changed, or the server stops."""
        self.begin(driver, *many[:3])
        waiting = driver.passes.running("v02")
        assert waiting is not None
        other = Driver(driver.settings, driver.store, driver.labels)
        {
            "remove": lambda: driver.remove("v02", soon()),
            "by-another-process": lambda: other.remove("v02", soon()),
            "apply": lambda: driver.apply("v02", {"uid": "55"}, (), soon()),
            "stop": driver.passes.stop,
        }[how]()
        assert waiting.over.wait(60)
        assert waiting.failure == ""
        assert how == "stop" or len(gate.waiting()) == 2

    def test_one_that_hangs(
        self, driver: Driver, many: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A pass that gets no further keeps no other from working, and is completed when it does."""
        caplog.set_level("INFO")
        monkeypatch.setattr(passes, "_AT_ONCE", 1)
        monkeypatch.setattr(passes, "_STUCK", 0.5)
        self.begin(driver, "v00")
        stopped = catch_pass(os.getpid())
        try:
            self.begin(driver, "v01", "v02")
            eventually(lambda: sorted(self.ended(caplog)) == ["v01", "v02"], "the others work")
        finally:
            os.kill(stopped, signal.SIGCONT)
        eventually(lambda: "v00" in self.ended(caplog), "it goes on")


class TestMark:
    def test_what_is_written_is_read(self, volume: Volume, driver: Driver) -> None:
        """The mark keeps how far a pass is."""
        progress = Progress(10, 100, 5.0, 18.0)
        with volume.locked() as locked:
            assert locked.pending() is None
            write_progress(locked, progress, durable=True)
            assert locked.pending() == progress

    def test_it_is_not_in_the_data(self, volume: Volume, driver: Driver, host: Host) -> None:
        """The mark stands beside the data, never in it: what a container sees is its own."""
        with volume.locked() as locked:
            locked.write_mark()
        assert (host.volume("mongo") / MARK).exists()
        assert sorted(os.listdir(volume.data)) == ["a", "c"]

    @pytest.mark.parametrize("kind", ["symlink", "directory", "fifo", "huge"])
    def test_of_another_kind(self, volume: Volume, host: Host, kind: str) -> None:
        """Whatever stands in its place counts as a mark without progress."""
        mark = host.volume("mongo") / MARK
        make: dict[str, Callable[[], object]] = {
            "symlink": lambda: mark.symlink_to("nowhere"),
            "directory": mark.mkdir,
            "fifo": lambda: os.mkfifo(mark),
            "huge": lambda: mark.write_bytes(b" " * 100_000),
        }
        make[kind]()
        with volume.locked() as locked:
            assert locked.pending() == Progress()

    def test_progress_in_words(self) -> None:
        """Progress reads as entries, of how many where that is known, and so does the time left."""
        assert (str(Progress.now(1234, None, 2.0)), Progress.now(1234, None, 2.0).left) == ("1,234 entries", "")
        assert str(Progress.now(1234, 5000, 10.0)) == "1,234 of about 5,000 entries"
        assert [Progress.now(100, 200 * n, 10.0).left for n in (1, 4, 50)] == ["10 s", "70 s", "16 minutes"]
        assert Progress.now(0, 200, 1.0).left == ""


def test_waiting_costs_no_lock(volume: Volume, driver: Driver, gate: Gate) -> None:
    """While a pass runs, the volume's lock is free."""
    begun = volume.start()
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    free = threading.Event()

    def lock() -> None:
        with driver.store.lock("mongo", soon()):
            free.set()

    thread = threading.Thread(target=lock)
    thread.start()
    assert free.wait(2)
    thread.join()
    gate.open()
    assert begun.over.wait(20)
