"""What two clients do at the same moment, made to meet where it matters. Any others meet in test_histories.py."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hostprep.errors import NoSuchVolume
from hostprep.options import Name
from hostprep.volumes import listing, store, trash
from hostprep.volumes.driver import Driver
from hostprep.volumes.volume import LockedVolume
from tests.support.fixtures import Command, Gate, OpenDriver
from tests.support.host import Docker, Host, eventually, owner, soon

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["adopted", "retained"])
def test_removed_as_soon_as_it_was_there(
    driver: Driver, docker: Docker, host: Host, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A Create whose volume another client removes before it is answered has succeeded, and the volume is removed."""
    given = {"path": f"{host.srv}/db"} if kind == "adopted" else {"on_remove": "retain"}
    if kind == "adopted":
        (host.srv / "db").mkdir()
    else:
        docker.created("mongo", **given)
        docker.remove("mongo")
    ensure = driver.readiness.ensure

    def ensure_too_late(name: Name, *more: Any, **rest: Any) -> str:
        driver.remove(name, soon())
        return ensure(name, *more, **rest)

    monkeypatch.setattr(driver.readiness, "ensure", ensure_too_late)
    answer = docker.create("mongo", **given)
    assert (answer.status, answer.error) == (200, "")
    assert docker.names() == []
    assert len(host.trash()) == (kind == "adopted")
    assert len(driver.retained_volumes()) == (kind == "retained")


def test_removed_and_purged_before_another_remove(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Remove that waited for another one succeeds, although a purge left no trace of the volume meanwhile."""
    driver.create("mongo", {}, soon())
    locked = driver.store.locked

    @contextlib.contextmanager
    def another_waits(name: Name, deadline: float) -> Iterator[LockedVolume]:
        with locked(name, deadline) as volume:
            yield volume
        monkeypatch.undo()
        assert driver.purge(None).gone == 1
        driver.remove(name, deadline)

    monkeypatch.setattr(driver.store, "locked", another_waits)
    driver.remove("mongo", soon())


@pytest.mark.parametrize("new_name", [None, "other"])
def test_purged_while_it_is_restored(
    open_driver: OpenDriver, host: Host, monkeypatch: pytest.MonkeyPatch, new_name: str | None
) -> None:
    """A restore that meets the purge of its entry says so, and there is no volume then, nor a part of one."""
    driver, other = open_driver(), open_driver()
    driver.create("mongo", {"uid": "184"}, soon())
    driver.remove("mongo", soon())
    (entry,) = host.trash()
    entries = trash.entries

    def purged_behind(of: store.Store) -> list[trash.Removed]:
        found = entries(of)
        trash.purge(other.store, [entry])
        return found

    monkeypatch.setattr(trash, "entries", purged_behind)
    with pytest.raises(NoSuchVolume, match="purged a moment ago"):
        driver.restore("mongo", entry=None, new_name=new_name, deadline=soon())
    assert (host.left_in_volumes(), host.trash()) == ([], [])


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_removed_while_all_are_listed(
    driver: Driver, hostprep: Command, monkeypatch: pytest.MonkeyPatch, as_json: list[str]
) -> None:
    """A volume that is removed between the list and the look at it is not shown as one that cannot be used."""
    driver.create("mongo", {}, soon())
    driver.create("redis", {}, soon())
    volumes = Driver.volumes

    def removed_behind(self: Driver) -> listing.Listing:
        found = volumes(self)
        driver.remove("mongo", soon())
        return found

    monkeypatch.setattr(Driver, "volumes", removed_behind)
    done = hostprep("ls", *as_json)
    assert done.code == 0
    assert "redis" in done.out
    assert "mongo" not in done.out


@pytest.mark.parametrize("then", ["gone", "another"])
def test_removed_by_another_process_during_a_pass(
    docker: Docker, open_driver: OpenDriver, host: Host, gate: Gate, then: str
) -> None:
    """A Mount that waits for a pass when another process removes the volume is told so, or has the new one."""
    docker.created("mongo", uid="184")
    (host.data("mongo") / "file").touch()
    os.chown(host.data("mongo"), 55, 66)
    other, answers = open_driver(HOSTPREP_SELINUX="force"), []
    waiting = threading.Thread(target=lambda: answers.append(docker.mount("mongo")))
    waiting.start()
    eventually(lambda: len(gate.waiting()) == 1, "the pass is begun")

    other.remove("mongo", soon())
    if then == "another":
        other.create("mongo", {"uid": "12"}, soon())
    gate.open()
    waiting.join()

    assert answers[0].status == (404 if then == "gone" else 200), answers
    assert docker.names() == ([] if then == "gone" else ["mongo"])
    if then == "another":
        assert owner(host.data("mongo")) == (12, 0)


@pytest.mark.parametrize("ids", [None, []], ids=["all", "due"])
def test_purged_by_two(
    open_driver: OpenDriver, host: Host, monkeypatch: pytest.MonkeyPatch, ids: list[str] | None
) -> None:
    """Two that purge the same entries at once both succeed, and say together how many are gone."""
    driver, other = open_driver(HOSTPREP_TRASH_KEEP="0"), open_driver(HOSTPREP_TRASH_KEEP="0")
    for name in ("mongo", "redis"):
        driver.create(name, {}, soon())
        driver.remove(name, soon())
    purge = trash.purge
    begun: list[int] = []

    def purge_behind(of: store.Store, chosen: list[str], *, insist: bool = True, why: str = "") -> trash.Purge:
        if not begun:
            begun.append(purge(other.store, chosen[:1]).gone)
        return purge(of, chosen, insist=insist, why=why)

    monkeypatch.setattr(trash, "purge", purge_behind)
    assert driver.purge(ids).gone == 1
    assert begun == [1]
    assert host.trash() == []
