"""Copy-ups that overlap other Mounts: the contents end right, whatever is lost, and Status is not ready before."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from hostprep.host.locks import open_lock_file, try_lock
from hostprep.tree.walk import Outcome
from hostprep.volumes import copying
from hostprep.volumes.driver import Driver
from hostprep.volumes.passes import Pass
from hostprep.volumes.volume import MARK
from tests.support.fixtures import OpenDriver
from tests.support.host import Host, eventually, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
OWNED, IMAGES = (184, 998), (33, 33)


class Engine:
    """What Docker does to the volume mongo."""

    def __init__(self, driver: Driver, host: Host) -> None:
        self.driver = driver
        self.data = host.data("mongo")
        self.noted = host.volume("mongo") / copying.FILE
        driver.create("mongo", MONGO, soon())

    def copy(self, *names: str, root: bool = False) -> None:
        """Copy-up: the root becomes the image's, then one file after the other is there."""
        if root:
            os.chown(self.data, *IMAGES)
        make_tree(self.data, *(f"file {name} 33:33" for name in names))

    def mount(self, mount: str) -> None:
        self.driver.mount("mongo", soon(), mount=mount)

    def unmount(self, mount: str) -> None:
        self.driver.unmount("mongo", soon(), mount=mount)

    def ready(self) -> bool:
        return bool(self.driver.get("mongo")["Status"]["ready"])

    def owners(self) -> set[tuple[int, int]]:
        return {owner(self.data), *(owner(each) for each in self.data.iterdir())}


@pytest.fixture
def engine(driver: Driver, host: Host) -> Engine:
    return Engine(driver, host)


def test_two_at_once(engine: Engine) -> None:
    """What is copied after another Mount has made the root right is made right when the first Mount is over."""
    engine.mount("one")
    engine.copy("a", root=True)
    engine.mount("two")
    assert engine.owners() == {OWNED}
    assert not engine.ready()
    engine.copy("b")
    engine.unmount("two")
    engine.copy("c")
    assert not engine.ready()
    (warning,) = engine.driver.get("mongo")["Status"]["warnings"]
    assert "may still be copying" in warning
    engine.unmount("one")
    assert engine.owners() == {OWNED}
    assert engine.ready()
    assert not engine.noted.exists()


def test_over_while_a_pass_runs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that began before the last copy-up was over is followed by another."""
    engine.mount("one")
    engine.mount("two")
    engine.copy("a", root=True)
    work = Pass.work
    other: list[threading.Thread] = []

    def behind(*args: Any, **rest: Any) -> Outcome | None:
        outcome = work(*args, **rest)
        if not other:
            engine.copy("b")
            other.append(threading.Thread(target=engine.unmount, args=("two",)))
            other[0].start()
            eventually(lambda: not engine.noted.exists(), "the last copy-up is over")
        return outcome

    monkeypatch.setattr(Pass, "work", behind)
    engine.unmount("one")
    other[0].join()
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


def test_a_pass_that_is_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that ends before it has done all, as by `apply`, is begun again, though a copy-up is still under way."""
    engine.mount("one")
    engine.copy("a")
    (engine.data.parent / MARK).touch(0o600)
    work = Pass.work
    cancelled: list[Pass] = []

    def cancel_first(begun: Pass, *args: Any) -> Outcome | None:
        if not cancelled:
            cancelled.append(begun)
            begun.cancel()
        return work(begun, *args)

    monkeypatch.setattr(Pass, "work", cancel_first)
    engine.mount("two")
    assert len(cancelled) == 1
    assert engine.owners() == {OWNED}


def test_a_pass_of_another_process_that_is_killed(engine: Engine) -> None:
    """Where the pass of another process ends early, a Mount that has waited for it does not take it for done."""
    engine.mount("one")
    engine.copy("a")
    (engine.data.parent / MARK).touch(0o600)
    with engine.driver.store.part("locks") as locks:
        other = open_lock_file(locks)
    assert try_lock(other, "pass/mongo")
    mount = threading.Thread(target=engine.mount, args=("two",))
    mount.start()
    eventually(lambda: engine.driver.passes.running("mongo") is not None, "it is waited for")
    os.close(other)
    mount.join(60)
    assert engine.owners() == {OWNED}


def test_one_alone(engine: Engine) -> None:
    """One copy-up alone is made right at its Unmount, and nothing is noted of a volume that is not empty."""
    engine.mount("one")
    engine.copy("a", root=True)
    engine.unmount("one")
    assert engine.ready()
    engine.mount("two")
    assert not engine.noted.exists()


def test_a_root_that_changes_later(engine: Engine) -> None:
    """Where the root changes only after the second Mount, each Unmount but the last leaves the volume not ready."""
    engine.mount("one")
    engine.mount("two")
    engine.copy("a", root=True)
    engine.unmount("two")
    engine.copy("b")
    assert not engine.ready()
    engine.unmount("one")
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


def test_another_server(engine: Engine, open_driver: OpenDriver) -> None:
    """A server that was restarted meanwhile knows of the Mounts before."""
    engine.mount("one")
    engine.copy("a", root=True)
    engine.driver = open_driver()
    engine.mount("two")
    engine.copy("b")
    engine.driver = open_driver()
    engine.unmount("two")
    assert not engine.ready()
    engine.unmount("one")
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


@pytest.mark.parametrize("why", ["late", "reboot"])
def test_an_unmount_that_never_comes(engine: Engine, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Mount makes the contents right; an hour later, or after a reboot, the volume is ready again, too."""
    engine.mount("one")
    engine.copy("a", root=True)
    engine.mount("two")
    engine.copy("b")
    engine.mount("three")
    assert (engine.owners(), engine.ready()) == ({OWNED}, False)
    if why == "late":
        now = copying._now()
        monkeypatch.setattr(copying, "_now", lambda: now + 3601)
    else:
        noted = json.loads(engine.noted.read_text())
        engine.noted.write_text(json.dumps({**noted, "boot": "another"}))
    engine.mount("four")
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"boot": 1, "mounts": []}', '{"boot": "x", "mounts": {"a": "b"}}'])
def test_a_damaged_note(engine: Engine, text: str) -> None:
    """A note that cannot be read is none."""
    engine.noted.touch(0o600)
    engine.noted.write_text(text)
    engine.mount("one")
    engine.copy("a", root=True)
    engine.unmount("one")
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


@pytest.mark.parametrize("mount", ["", "x" * 129])
def test_no_usable_name(engine: Engine, mount: str) -> None:
    """A Mount without a usable ID is not noted; its Unmount, or the next Mount, makes the root and contents right."""
    engine.mount(mount)
    assert not engine.noted.exists()
    engine.copy("a", root=True)
    engine.unmount(mount)
    assert (engine.owners(), engine.ready()) == ({OWNED}, True)


def test_very_many(engine: Engine) -> None:
    """However many Mounts of an empty volume are never over, the note stays within what can be read back."""
    for number in range(300):
        engine.mount(f"{number:0128}")
    with engine.driver.store.open(next(iter(engine.driver.store.names()))) as volume:
        assert len(copying.Notes.read(volume).mounts) == 256
