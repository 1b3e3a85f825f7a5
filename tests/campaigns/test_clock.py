"""A clock that goes back. Nobody may set this machine's: what hostprep reads of it is set instead."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hostprep.errors import NoSuchVolume
from hostprep.volumes.driver import Driver
from tests.support.fixtures import OpenDriver
from tests.support.host import Docker, Host, soon

pytestmark = pytest.mark.root
HOUR = 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Clock:
    """The clock that tells the time of day; the one that measures time is not touched, as with real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._moved = 0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + self._moved)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + self._moved * 10**9)

    def goes(self, seconds: int) -> None:
        self._moved += seconds


def test_the_newest_is_restored(driver: Driver, host: Host, clock: Clock) -> None:
    """What was removed last is what restore brings back, though the clock went back in between."""
    for number in range(4):
        driver.create("mongo", {}, soon())
        (host.data("mongo") / str(number)).touch()
        driver.remove("mongo", soon())
        clock.goes(-HOUR)
    driver.restore("mongo", entry=None, new_name=None, deadline=soon())
    assert os.listdir(host.data("mongo")) == ["3"]
    assert len(host.trash()) == 3


def test_removed_at_once(driver: Driver, host: Host, clock: Clock) -> None:
    """Volumes that are removed at one moment then each go to the trash."""
    for number in range(12):
        driver.create(f"v{number}", {}, soon())
    driver.remove("v0", soon())
    clock.goes(-HOUR)
    with ThreadPoolExecutor(11) as pool:
        list(pool.map(lambda number: driver.remove(f"v{number}", soon()), range(1, 12)))
    assert sorted(each["name"] for each in driver.removed_volumes()) == sorted(f"v{number}" for number in range(12))


def test_nothing_is_purged_early(driver: Driver, host: Host, clock: Clock) -> None:
    """What was removed before the clock went back, and after, is kept for its time at least."""
    driver.create("mongo", {}, soon())
    driver.remove("mongo", soon())
    clock.goes(-HOUR)
    driver.create("redis", {}, soon())
    driver.remove("redis", soon())
    clock.goes(23 * HOUR)
    assert driver.purge([]).gone == 0
    assert len(host.trash()) == 2
    clock.goes(3 * HOUR)
    assert driver.purge([]).gone == 2


def test_what_is_answered(driver: Driver, docker: Docker, open_driver: OpenDriver, clock: Clock) -> None:
    """Get and List say what is there, whatever the clock does, and see another process's changes at once."""
    other = open_driver()
    for back in (0, HOUR, 400 * 24 * HOUR):
        clock.goes(-back)
        name = f"v{back}"
        other.create(name, {"uid": "184"}, soon())
        assert docker.knows(name) is True
        other.apply(name, {"uid": "185"}, (), soon())
        assert docker.status(name)["options"] == {"uid": "185"}
        assert name in docker.names()
        other.remove(name, soon())
        assert (docker.knows(name), docker.names()) == (False, [])
        assert docker.remove(name).status == 200
        with pytest.raises(NoSuchVolume):
            other.remove("nobody", soon())
