"""Which paths are taken: from memory, true whatever another process does, and said of damaged records."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hostprep.errors import Conflict
from hostprep.options import Name
from hostprep.volumes import trash
from hostprep.volumes.driver import Driver
from hostprep.volumes.record import Record
from tests.support.fixtures import OpenDriver
from tests.support.hanging import hanging
from tests.support.host import Host, eventually, soon

pytestmark = pytest.mark.root


@pytest.fixture
def other(driver: Driver, open_driver: OpenDriver) -> Driver:
    """The same root, as another process has it."""
    return open_driver(HOSTPREP_SELINUX="force")


def free(driver: Driver, path: Path) -> bool:
    try:
        driver.store.check_claim(str(path), Name("asking"))
    except Conflict:
        return False
    return True


def test_others_are_not_read_again(driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is taken without a look at the other volumes' records, however many there are."""
    for number in range(30):
        driver.create(f"v{number}", {"path": f"{host.srv}/v{number}"}, soon())
    eventually(
        lambda: free(driver, host.srv / "x") and not read_by(driver, host.srv / "x", monkeypatch), "all are known"
    )
    driver.create("new", {"path": f"{host.srv}/new"}, soon())
    assert read_by(driver, host.srv / "x", monkeypatch) == ["new"]


def read_by(driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose records are read to find out whether *path* is free."""
    read: list[str] = []
    find = driver.store.find

    def noting(name: Name) -> Record | None:
        read.append(name)
        return find(name)

    with monkeypatch.context() as patch:
        patch.setattr(driver.store, "find", noting)
        assert free(driver, path)
    return read


def settle(driver: Driver, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock of the disk go on, so that what was read counts."""
    eventually(lambda: not read_by(driver, path, monkeypatch), "what is known counts")


def test_what_another_process_does(driver: Driver, other: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another process makes, removes, restores, retains or takes up again is known at once."""
    db, x = host.srv / "db", host.srv / "x"
    steps: list[tuple[Callable[[], object], bool]] = [
        (lambda: other.create("mongo", {"path": str(db)}, soon()), False),
        (lambda: other.remove("mongo", soon()), True),
        (lambda: other.restore("mongo", entry=None, new_name="again", deadline=soon()), False),
        (lambda: other.remove("again", soon()), True),
        (lambda: other.create("kept", {"path": str(db), "on_remove": "retain"}, soon()), False),
        (lambda: other.remove("kept", soon()), True),
        (lambda: other.create("kept", {}, soon()), False),
    ]
    for number, (step, is_free) in enumerate(steps):
        settle(driver, x, monkeypatch) if "kept" not in other.store.names() else free(driver, x)
        step()
        assert (number, free(driver, db)) == (number, is_free)


def test_another_volume_in_the_same_directory(
    driver: Driver, other: Driver, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume of the same name, in a directory with the same inode, with another path is known for what it is."""
    other.create("mongo", {"path": f"{host.srv}/a"}, soon())
    settle(driver, host.srv / "x", monkeypatch)
    inode = host.volume("mongo").stat().st_ino
    other.remove("mongo", soon())
    (entry,) = host.trash()
    record = host.root / "trash" / entry / "volume.json"
    record.write_text(record.read_text().replace(f"{host.srv}/a", f"{host.srv}/b"))
    other.restore("mongo", entry=None, new_name=None, deadline=soon())
    assert host.volume("mongo").stat().st_ino == inode
    assert (free(driver, host.srv / "a"), free(driver, host.srv / "b")) == (True, False)


class TestDamaged:
    def test_one_without_a_path(self, driver: Driver, host: Host) -> None:
        """A damaged record of a volume that has its own data keeps no path from anybody."""
        driver.create("broken", {}, soon())
        (host.volume("broken") / "volume.json").write_text("{")
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())

    def test_one_whose_path_was_known(self, driver: Driver, host: Host) -> None:
        """A record that was read before it was damaged keeps the path that it had, and no other."""
        driver.create("broken", {"path": f"{host.srv}/a"}, soon())
        assert free(driver, host.srv / "x")
        (host.volume("broken") / "volume.json").write_text("{")
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        with pytest.raises(Conflict, match="volume broken: its record is damaged"):
            driver.create("redis", {"path": f"{host.srv}/a/b"}, soon())

    def test_one_that_could_have_any(self, driver: Driver, other: Driver, host: Host) -> None:
        """One that was never read refuses every path; the refusal names it and says what to do; mended, it does not."""
        driver.create("broken", {"path": f"{host.srv}/a"}, soon())
        record = host.volume("broken") / "volume.json"
        sound = record.read_text()
        record.write_text("{")
        with pytest.raises(Conflict, match="volume broken: its record is damaged") as refused:
            other.create("mongo", {"path": f"{host.srv}/db"}, soon())
        assert str(record) in refused.value.hint
        record.write_text(sound)
        other.create("mongo", {"path": f"{host.srv}/db"}, soon())
        assert not free(other, host.srv / "a")


def test_while_another_is_made_on_a_disk_that_hangs(driver: Driver, host: Host) -> None:
    """A Create whose disk hangs keeps no other from taking a path; what it is about to take is kept for it."""
    with hanging(host.srv / "disk") as disk:
        disk.hang_at_mkdir()
        making = threading.Thread(target=driver.create, args=("slow", {"path": f"{disk.place}/db"}, soon()))
        making.start()
        try:
            eventually(lambda: disk.asked, "it hangs")
            driver.create("mongo", {"path": f"{host.srv}/db"}, soon(10))
            with pytest.raises(Conflict, match="with which volume slow is just being made"):
                driver.store.check_claim(f"{disk.place}/db/below", Name("redis"))
        finally:
            disk.go_on()
            making.join()
        assert driver.get("slow")["Status"]["ready"] is True
        driver.remove("slow", soon())


class TestRemovedLately:
    def test_each_entry_is_read_once(self, driver: Driver, other: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether an unknown name was removed lately is answered from memory; what another process removed, too."""
        for name in ("one", "two"):
            other.create(name, {}, soon())
            other.remove(name, soon())
        read: list[str] = []
        record = trash._record

        def noting(directory: int, entry: str) -> Record | None:
            read.append(entry)
            return record(directory, entry)

        monkeypatch.setattr(trash, "_record", noting)
        names = trash.Names(driver.store)
        assert [names.removed_lately(Name(name)) for name in ("one", "two", "none")] == [True, True, False]
        assert len(read) == 2
        other.create("three", {}, soon())
        other.remove("three", soon())
        read.clear()  # the other process has read some, too
        assert names.removed_lately(Name("three"))
        assert len(read) == 1
