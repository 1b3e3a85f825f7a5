"""The trash: restore, purge, expiry, and what lack of space does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostprep.errors import Conflict, Invalid, NoSuchVolume, Unreadable
from hostprep.options import Name, check_name
from hostprep.volumes import trash
from hostprep.volumes.driver import Driver
from hostprep.volumes.root import Root
from hostprep.volumes.trash import Purge
from tests.support.disks import KINDS, Disk
from tests.support.fixtures import OpenDriver
from tests.support.host import Host, mounted, owner, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


def removed(driver: Driver, host: Host, name: str = "mongo", *, age: float = 0, text: str = "kept") -> str:
    """A volume in the trash, for *age* seconds already; the id of its entry."""
    driver.create(name, {"uid": "184"}, soon())
    make_tree(host.data(name), f"file file 184:998 644 {text}")
    before = set(host.trash())
    driver.remove(name, soon())
    (entry,) = set(host.trash()) - before
    old = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - age)) + entry[16:]
    (host.root / "trash" / entry).rename(host.root / "trash" / old)
    return old


def restored(driver: Driver, name: str = "mongo", entry: str | None = None, new_name: str | None = None) -> str:
    return driver.restore(name, entry=entry, new_name=new_name, deadline=soon()).name


def test_the_id(driver: Driver, host: Host) -> None:
    """An entry's id is the time of removal in UTC and eight hex digits, and no volume's name begins like a purge's."""
    entry = removed(driver, host)
    assert re.fullmatch(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", entry)
    (shown,) = driver.removed_volumes()
    assert (shown["id"], shown["name"], shown["options"]) == (entry, "mongo", {"uid": "184"})
    assert entry.startswith(re.sub("[-:]", "", shown["removed_at"]))
    with pytest.raises(Invalid):
        check_name(trash.PURGED + entry)


class TestRestore:
    def test_all_is_back(self, driver: Driver, host: Host) -> None:
        """restore brings data, options and time of creation back."""
        driver.create("mongo", {"uid": "184"}, soon())
        before = driver.get("mongo")
        driver.remove("mongo", soon())
        assert restored(driver) == "mongo"
        assert driver.get("mongo") == before
        assert host.trash() == []

    def test_the_newest(self, driver: Driver, host: Host) -> None:
        """Of several of one name the newest is restored, or that of the id."""
        old = removed(driver, host, age=500, text="old")
        removed(driver, host, age=100, text="new")
        removed(driver, host, "other", age=10)
        restored(driver)
        assert (host.data("mongo") / "file").read_text() == "new"
        restored(driver, entry=old, new_name="older")
        assert (host.data("older") / "file").read_text() == "old"
        assert driver.get("older")["Name"] == "older"

    def test_under_another_name(self, driver: Driver, host: Host) -> None:
        """--as gives it another name, in its record too."""
        removed(driver, host)
        driver.create("mongo", {}, soon())
        assert restored(driver, new_name="mongo2") == "mongo2"
        assert driver.get("mongo2")["Status"]["ready"] is True
        assert (host.data("mongo2") / "file").read_text() == "kept"

    def test_under_two_names_at_once(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two that restore one entry under different names one gets it, and the volume is sound."""
        removed(driver, host)
        write, both = Root.write, threading.Barrier(2)

        def together(*args: Any, **rest: Any) -> None:
            write(*args, **rest)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(1)

        monkeypatch.setattr(Root, "write", together)
        with ThreadPoolExecutor() as threads:
            running = [threads.submit(restored, driver, new_name=name) for name in ("one", "two")]
        (name,) = (each.result() for each in running if each.exception() is None)
        assert [type(each.exception()) for each in running if each.exception()] == [NoSuchVolume]
        assert driver.get(name)["Name"] == name
        assert (host.data(name) / "file").read_text() == "kept"

    def test_an_existing_volume(self, driver: Driver, host: Host) -> None:
        """A volume of that name refuses it, and the trash keeps it."""
        removed(driver, host)
        driver.create("mongo", {}, soon())
        with pytest.raises(Conflict, match="--as"):
            restored(driver)
        assert len(host.trash()) == 1

    def test_a_damaged_one_of_its_name(self, driver: Driver, host: Host) -> None:
        """A damaged volume of that name refuses it, too."""
        removed(driver, host)
        driver.create("mongo", {}, soon())
        host.record("mongo").write_text("")
        with pytest.raises(Conflict):
            restored(driver)

    @pytest.mark.parametrize("entry", [None, "20200101T000000Z-00000000", "../volumes/other", "", "nonsense"])
    def test_of_none(self, driver: Driver, host: Host, entry: str | None) -> None:
        """What the trash does not have cannot be restored, and the message says where to look."""
        removed(driver, host, "other")
        with pytest.raises(NoSuchVolume, match="ls --trash"):
            restored(driver, entry=entry)

    def test_an_id_of_another_name(self, driver: Driver, host: Host) -> None:
        """An id that is another volume's is refused."""
        entry = removed(driver, host, "other")
        with pytest.raises(NoSuchVolume):
            restored(driver, entry=entry)
        assert host.trash() == [entry]

    @pytest.mark.parametrize("name", ["../x", "", "a b", ".x"])
    def test_a_bad_name(self, driver: Driver, host: Host, name: str) -> None:
        """A name that no volume can have is refused."""
        removed(driver, host)
        with pytest.raises(Invalid if name else (Invalid, Conflict, NoSuchVolume)):
            restored(driver, name or "-", new_name=name or None)

    def test_a_damaged_record(self, driver: Driver, host: Host) -> None:
        """An entry whose record is damaged is shown without a name, and is not restored by guessing."""
        entry = removed(driver, host)
        (host.root / "trash" / entry / "volume.json").write_text("{")
        assert driver.removed_volumes()[0]["name"] is None
        with pytest.raises(NoSuchVolume):
            restored(driver)

    def test_by_path(self, driver: Driver, host: Host) -> None:
        """A path volume is restored to its directory, which was never away."""
        driver.create("mongo", {"uid": "184", "path": f"{host.srv}/db"}, soon())
        driver.remove("mongo", soon())
        restored(driver)
        assert driver.mount("mongo", soon()) == f"{host.srv}/db"
        assert owner(host.srv / "db") == (184, 0)

    def test_a_pending_pass(self, driver: Driver, host: Host) -> None:
        """A pass that was pending is pending again."""
        driver.create("mongo", {"uid": "184"}, soon())
        make_tree(host.data("mongo"), "file a")
        (host.volume("mongo") / "pass.json").write_text("{}")
        driver.remove("mongo", soon())
        restored(driver)
        assert driver.get("mongo")["Status"]["ready"] is False
        driver.mount("mongo", soon())
        assert owner(host.data("mongo") / "a") == (184, 0)


def told(driver: Driver, name: str = "mongo") -> list[str]:
    """What Status says of an earlier volume's data."""
    return [each for each in driver.get(name)["Status"]["warnings"] if "in the trash" in each]


class TestMadeAnew:
    """A volume of the name of a removed one, whose data is in the trash."""

    def test_it_says_so(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """The log and Status say when the data was removed, and the commands that bring it back do so."""
        older, entry = removed(driver, host, age=900, text="older"), removed(driver, host, age=100)
        driver.create("mongo", {"uid": "184"}, soon())
        (said,) = told(driver)
        assert f"create of mongo: {said}" in caplog.text
        stamp = time.strptime(entry[:16], "%Y%m%dT%H%M%SZ")
        assert time.strftime("removed at %Y-%m-%dT%H:%M:%SZ", stamp) in said
        assert driver.get("mongo")["Status"]["ready"] is True
        assert said.endswith(f"then: hostprep rm mongo && hostprep restore mongo --id {entry}")
        for command in said.rpartition("then: ")[2].split(" && "):
            done = host.run(*command.split()[1:])
            assert done.code == 0, done.err
        assert (host.data("mongo") / "file").read_text() == "kept"
        assert [each for each in told(driver) if older not in each] == []

    @pytest.mark.parametrize("how", ["restored", "purged", "purged by another"])
    def test_until_it_is_gone(self, driver: Driver, host: Host, how: str) -> None:
        """Status says it no more when the data was restored under another name, or purged."""
        entry = removed(driver, host)
        driver.create("mongo", {}, soon())
        assert told(driver) != []
        if how == "restored":
            restored(driver, entry=entry, new_name="old")
        elif how == "purged":
            driver.purge([entry])
        else:
            (host.root / "trash" / entry).rename(host.root / "trash" / (trash.PURGED + entry))
        assert told(driver) == []
        driver.remove("mongo", soon())
        driver.create("mongo", {}, soon())
        assert [entry in each for each in told(driver)] == [False]

    def test_a_new_name(self, driver: Driver, host: Host) -> None:
        """Volumes of another name say nothing, nor one restored under another; a repeated Create says it once."""
        entry = removed(driver, host)
        driver.create("other", {}, soon())
        assert told(driver, "other") == []
        driver.create("mongo", {}, soon())
        driver.create("mongo", {}, soon())
        assert len(told(driver)) == 1
        driver.remove("mongo", soon())
        restored(driver, new_name="again")
        assert told(driver, "again") == []
        assert entry in host.trash()

    def test_data_that_is_not_in_the_trash(self, driver: Driver, host: Host) -> None:
        """Of a volume by path, or with on_remove=retain, the data stayed: the next one has it, and nothing is said."""
        for options in ({"path": f"{host.srv}/db"}, {"on_remove": "retain"}):
            for _ in range(2):
                driver.create("mongo", options, soon())
                assert told(driver) == []
                driver.remove("mongo", soon())

    def test_what_another_process_removed(self, driver: Driver, open_driver: OpenDriver, host: Host) -> None:
        """What the command line removed is found, too, and a damaged entry keeps nobody from it."""
        damaged = removed(driver, host)
        (host.root / "trash" / damaged / "volume.json").write_text("{")
        driver.create("redis", {}, soon())
        assert told(driver, "redis") == []
        entry = removed(open_driver(HOSTPREP_SELINUX="force"), host)
        driver.create("mongo", {}, soon())
        assert [entry in each for each in told(driver)] == [True]

    def test_it_costs_little(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Create reads some hundred records of the trash at most, each once; an anonymous name has it read none."""
        monkeypatch.setattr(trash, "_READ_AT_ONCE", 5)
        entries = [removed(driver, host, f"vol{number}", age=100 * number) for number in range(8)]
        read: list[str] = []
        record = trash._record

        def noting(directory: int, entry: str) -> object:
            read.append(entry)
            return record(directory, entry)

        monkeypatch.setattr(trash, "_record", noting)
        names = trash.Names(driver.store)
        assert names.newest(Name("a" * 64)) == ""
        assert read == []
        assert names.newest(Name("vol7")) == ""  # further back than one Create looks
        assert read == entries[:5]
        assert names.newest(Name("vol7")) == entries[7]
        assert sorted(read) == sorted(entries)

    def test_a_record_of_an_older_version(self, driver: Driver, host: Host) -> None:
        """A record without a word about it says nothing; one that names no entry of a trash is damaged."""
        removed(driver, host)
        driver.create("mongo", {}, soon())
        record = json.loads(host.record("mongo").read_text())
        earlier = record.pop("replaces")
        host.record("mongo").write_text(json.dumps(record))
        assert told(driver) == []
        host.record("mongo").write_text(json.dumps({**record, "replaces": f"../trash/{earlier}"}))
        with pytest.raises(Unreadable, match="no trash id"):
            driver.get("mongo")


class TestPurge:
    def test_ids(self, driver: Driver, host: Host) -> None:
        """purge ID deletes those, whatever their age, and no others."""
        first, second, third = (removed(driver, host, name) for name in ("one", "two", "three"))
        assert driver.purge([first, third]).gone == 2
        assert host.trash() == [second]

    def test_everything(self, driver: Driver, host: Host) -> None:
        """purge --all deletes all that was removed, whenever."""
        for name in ("one", "two"):
            removed(driver, host, name)
        assert driver.purge(None).gone == 2
        assert host.trash() == []

    def test_what_has_expired(self, open_driver: OpenDriver, host: Host) -> None:
        """Without an argument what is older than HOSTPREP_TRASH_KEEP goes."""
        driver = open_driver(HOSTPREP_TRASH_KEEP="2h")
        removed(driver, host, "one", age=7300)
        young = removed(driver, host, "two", age=7100)
        assert driver.purge([]).gone == 1
        assert host.trash() == [young]

    def test_keeping_nothing(self, open_driver: OpenDriver, host: Host) -> None:
        """With HOSTPREP_TRASH_KEEP=0 everything has expired."""
        driver = open_driver(HOSTPREP_TRASH_KEEP="0")
        removed(driver, host)
        assert driver.purge([]).gone == 1

    @pytest.mark.parametrize(
        "entry", ["", "x", "..", "../volumes/live", "20260101T000000Z", ".purge-20260101T000000Z-00000000"]
    )
    def test_what_is_no_id(self, driver: Driver, host: Host, entry: str) -> None:
        """What is no id is refused before anything is deleted."""
        kept = removed(driver, host)
        driver.create("live", {}, soon())
        with pytest.raises(Invalid, match="is no trash id"):
            driver.purge([kept, entry])
        assert host.trash() == [kept]
        assert host.data("live").is_dir()

    def test_an_unknown_id(self, driver: Driver, host: Host) -> None:
        """One unknown id among several is an error before anything is deleted."""
        kept = removed(driver, host)
        with pytest.raises(NoSuchVolume):
            driver.purge([kept, "20200101T000000Z-00000000"])
        assert host.trash() == [kept]

    def test_an_id_twice(self, driver: Driver, host: Host) -> None:
        """An id that is given twice is deleted once."""
        entry = removed(driver, host)
        assert driver.purge([entry, entry]).gone == 1
        assert host.trash() == []

    def test_it_is_logged(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """Each purge is logged, with the volume's name and the id."""
        entry = removed(driver, host)
        with caplog.at_level(logging.INFO, "hostprep"):
            driver.purge(None)
        assert any("mongo" in r.getMessage() and entry in r.getMessage() for r in caplog.records)

    def test_nothing_outside(self, driver: Driver, host: Host) -> None:
        """Where a link in the data leads is not touched; a path volume's directory neither."""
        make_tree(host.srv, "dir a", "file a/b")
        driver.create("mongo", {}, soon())
        driver.create("path", {"path": f"{host.srv}/a"}, soon())
        (host.data("mongo") / "link").symlink_to(host.srv / "a")
        driver.remove("mongo", soon())
        driver.remove("path", soon())
        assert driver.purge(None).gone == 2
        assert os.listdir(host.srv / "a") == ["b"]

    def test_an_interrupted_one(self, driver: Driver, host: Host) -> None:
        """What a purge began to delete is not restored, and the next purge ends it."""
        entry = removed(driver, host)
        (host.root / "trash" / entry).rename(host.root / "trash" / f".purge-{entry}")
        (shown,) = driver.removed_volumes()
        assert (shown["id"], shown["state"]) == (entry, "partly purged; in the way: not known yet")
        with pytest.raises(NoSuchVolume):
            restored(driver)
        assert driver.purge([]).gone == 1
        assert host.trash() == []

    def test_a_mount_inside(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """Removed data with a disk mounted on it, or in it, stays whole, can be restored, and is purged without it."""
        make_tree(host.srv, "dir a", "file a/b")
        entry = removed(driver, host)
        for place in ("", "/m"):
            with contextlib.suppress(FileExistsError):
                (host.root / "trash" / entry / f"_data{place}").mkdir()
            with mounted("--bind", f"{host.srv}/a", f"{host.root}/trash/{entry}/_data{place}"):
                assert driver.purge([]) == Purge(0, {})
                assert "is a mount point" in driver.purge([entry]).kept[entry]
                (shown,) = driver.removed_volumes()
                assert "is a mount point" in shown["state"]
            assert restored(driver) == "mongo"
            driver.remove("mongo", soon())
            (entry,) = host.trash()
        assert driver.purge(None).gone == 1
        assert os.listdir(host.srv / "a") == ["b"]

    def test_what_cannot_be_deleted(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """What a purge cannot delete is listed with the path in the way, and the next purge completes it."""
        entry = removed(driver, host)
        stuck = host.root / "trash" / f".purge-{entry}" / "_data" / "file"
        subprocess.run(["chattr", "+i", host.root / "trash" / entry / "_data" / "file"], check=True)
        try:
            for _ in range(2):
                assert driver.purge([entry]) == Purge(0, {entry: "file: Operation not permitted"})
            assert "is not finished: file: Operation not permitted" in caplog.text
            (shown,) = driver.removed_volumes()
            assert (shown["id"], shown["name"]) == (entry, "mongo")
            assert shown["state"] == "partly purged; in the way: file: Operation not permitted"
        finally:
            subprocess.run(["chattr", "-i", stuck], check=True)
        assert driver.purge([]) == Purge(1, {})
        assert driver.removed_volumes() == []

    def test_what_is_no_directory(self, driver: Driver, host: Host) -> None:
        """What a purge has begun with and can never delete is listed, too, with the reason."""
        entry = "20200101T000000Z-00000000"
        make_tree(host.root / "trash", f"file {entry}")
        assert driver.purge([]) == Purge(0, {entry: "Not a directory"})
        (shown,) = driver.removed_volumes()
        assert (shown["id"], shown["state"]) == (entry, "partly purged; in the way: Not a directory")

    def test_in_an_overlay(self, driver: Driver, host: Host) -> None:
        """The lower directory of an overlay that was mounted before the removal, as Podman's `:O` is, stays."""
        driver.create("mongo", {}, soon())
        make_tree(host.srv, "dir here", "dir upper", "dir work")
        layers = f"lowerdir={host.data('mongo')},upperdir={host.srv}/upper,workdir={host.srv}/work"
        with mounted("-t", "overlay", "-o", layers, "none", f"{host.srv}/here"):
            driver.remove("mongo", soon())
            (entry,) = host.trash()
            assert "in the overlay at" in driver.purge([entry]).kept[entry]
            driver.create("mongo", {}, soon())
            driver.remove("mongo", soon())
            assert entry in driver.purge(None).kept
        assert driver.purge(None).kept == {}
        assert host.trash() == []

    @pytest.mark.parametrize("how", ["renamed", "damaged"])
    def test_in_an_overlay_that_names_it_otherwise(self, driver: Driver, host: Host, how: str) -> None:
        """Where nobody knows which entry the lower directory of an overlay is now, any that it may be stays."""
        driver.create("mongo", {}, soon())
        make_tree(host.srv, "dir here", "dir upper", "dir work")
        other = removed(driver, host, "other")
        layers = f"lowerdir={host.data('mongo')},upperdir={host.srv}/upper,workdir={host.srv}/work"
        with mounted("-t", "overlay", "-o", layers, "none", f"{host.srv}/here"):
            driver.remove("mongo", soon())
            if how == "renamed":
                restored(driver, new_name="new")
                driver.remove("new", soon())
            entry = max(host.trash())
            if how == "damaged":
                (host.root / "trash" / entry / "volume.json").write_text("")
            assert "in the overlay at" in driver.purge([entry]).kept[entry]
            assert host.trash() == [other, entry]

    def test_where_it_cannot_be_told(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the mounts of a process cannot be seen nothing is purged, and the reason is said."""
        entry = removed(driver, host, age=90000)
        monkeypatch.setattr("hostprep.host.uses._hidden", lambda: "half of it is dark")
        for chosen in ([], [entry], None):
            assert driver.purge(chosen) == Purge(0, {entry: "who uses it cannot be told: half of it is dark"})
        assert host.trash() == [entry]

    def test_one_that_is_in_use(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """What somebody has mounted is not purged, however it is asked for, until it is not; others are meanwhile."""
        entry, other = removed(driver, host, "one", age=90000), removed(driver, host, "two", age=90000)
        (host.srv / "here").mkdir()
        with mounted("--bind", f"{host.root}/trash/{entry}/_data", f"{host.srv}/here"):
            assert trash.in_use(driver.store, [entry, other]) == {entry: f"it is mounted at {host.srv}/here"}
            assert driver.purge([]).gone == 1
            assert driver.purge([entry]).gone == 0
            assert driver.purge(None).gone == 0
            assert f"{entry} is not purged: it is mounted at {host.srv}/here" in caplog.text
            assert host.trash() == [entry]
        assert driver.purge([]).gone == 1

    def test_a_damaged_directory(self, open_driver: OpenDriver, host: Host, tmp_path: Path) -> None:
        """One entry that the file system cannot read any more is shown, and keeps nobody from the others."""
        (tmp_path / "images").mkdir()
        host.root.mkdir(mode=0o700)
        disk = Disk(tmp_path / "images")
        with disk.mounted(host.root):
            host.root.chmod(0o700)
            damaged, *_ = [removed(open_driver(), host, name) for name in ("damaged", "other", "mongo")]
            inode = (host.root / "trash" / damaged).stat().st_ino
        disk.clear_inode(inode)
        with disk.mounted(host.root):
            driver = open_driver()
            assert [each["name"] for each in driver.removed_volumes()] == ["mongo", "other", None]
            assert restored(driver) == "mongo"
            assert driver.purge(None) == Purge(1, {damaged: "Structure needs cleaning"})
            assert host.trash() == [damaged]

    def test_a_deep_tree(self, driver: Driver, host: Host) -> None:
        """A tree deeper than a process may open files by default is deleted by the command."""
        driver.create("mongo", {}, soon())
        here = os.open(host.data("mongo"), os.O_RDONLY)
        for _ in range(700):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        driver.remove("mongo", soon())
        process = host.begin("purge", "--all")
        process.communicate(timeout=60)
        assert (process.returncode, host.trash()) == (0, [])

    def test_a_deep_tree_with_the_usual_limit(self, driver: Driver, host: Host) -> None:
        """So it is where the soft limit of open files is the usual 1024."""
        import resource

        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        try:
            self.test_a_deep_tree(driver, host)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class TestSpace:
    """With HOSTPREP_PURGE_FOR_SPACE the oldest goes while less than a tenth is free, but nothing under an hour old."""

    @pytest.fixture
    def driver(self, open_driver: OpenDriver) -> Driver:
        return open_driver(HOSTPREP_PURGE_FOR_SPACE="1")

    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """A disk that is nearly full, until as many entries as said are gone."""
        state = SimpleNamespace(free=50)
        monkeypatch.setattr(
            os,
            "fstatvfs",
            lambda fd: SimpleNamespace(f_bavail=state.free, f_bfree=state.free, f_blocks=1000, f_frsize=4096),
        )
        return state

    def test_the_oldest_first(self, driver: Driver, host: Host, full: SimpleNamespace) -> None:
        """One entry after another goes, the oldest first."""
        old = removed(driver, host, "one", age=9000)
        removed(driver, host, "two", age=8000)
        assert trash.due(driver.store)[0][:1] == [old]

    def test_not_one_in_use(self, driver: Driver, host: Host, full: SimpleNamespace) -> None:
        """One that is in use does not keep the next from going."""
        first = removed(driver, host, "one", age=9000)
        removed(driver, host, "two", age=8000)
        (host.srv / "here").mkdir()
        with mounted("--bind", f"{host.root}/trash/{first}/_data", f"{host.srv}/here"):
            assert driver.purge([]) == Purge(1, {first: f"it is mounted at {host.srv}/here"})
            assert host.trash() == [first]

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_at_a_time(self, open_driver: OpenDriver, host: Host, tmp_path: Path, kind: str) -> None:
        """No more than one goes at once: btrfs says that the space is free only a while after it."""
        (tmp_path / "images").mkdir()
        host.root.mkdir(mode=0o700)
        with Disk(tmp_path / "images", kind).mounted(host.root):
            host.root.chmod(0o700)
            driver = open_driver(HOSTPREP_PURGE_FOR_SPACE="1")
            old = [removed(driver, host, name, age=age) for name, age in (("one", 9000), ("two", 8000))]
            filler = host.root / "trash" / old[0] / "_data" / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
            os.sync()
            assert trash.due(driver.store)[0] == old
            assert driver.purge([]) == Purge(1, {})
            assert host.trash() == old[1:]

    def test_the_young_stay(self, driver: Driver, host: Host, full: SimpleNamespace) -> None:
        """What was removed within the last hour stays, however full the disk is."""
        removed(driver, host, age=3500)
        assert driver.purge([]).gone == 0
        assert len(host.trash()) == 1

    def test_not_at_a_tenth(self, driver: Driver, host: Host, full: SimpleNamespace) -> None:
        """With a tenth free nothing goes before its time."""
        full.free = 100
        removed(driver, host, age=9000)
        assert driver.purge([]).gone == 0

    def test_only_where_it_is_allowed(
        self, open_driver: OpenDriver, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        """On a disk that a container fills nothing goes before its time, unless the administrator wants that."""
        host.root.mkdir(mode=0o700)
        with mounted("-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(host.root)), caplog.at_level("INFO"):
            driver = open_driver()
            entry = removed(driver, host, age=9000)
            driver.create("other", {}, soon())
            (host.data("other") / "file").write_bytes(bytes(3_900_000))
            assert driver.purge([]) == Purge(0, {})
            assert host.trash() == [entry]
            assert open_driver(HOSTPREP_PURGE_FOR_SPACE="1").purge([]) == Purge(1, {})
            assert "before its time, for space: less than a tenth of the file system was free" in caplog.text

    def test_one_that_cannot_be_deleted(self, driver: Driver, host: Host, full: SimpleNamespace) -> None:
        """An entry that cannot be deleted keeps no other from going, and the purge comes to an end."""
        stuck = removed(driver, host, "one", age=9000)
        removed(driver, host, "two", age=8000)
        (host.root / "trash" / stuck / "_data" / "m").mkdir()
        with mounted("-t", "tmpfs", "none", f"{host.root}/trash/{stuck}/_data/m"):
            assert driver.purge([]).gone == 1
            assert host.trash() == [stuck]


def test_strangers_in_the_trash(driver: Driver, host: Host) -> None:
    """What is no entry is neither shown nor restored nor purged."""
    make_tree(host.root / "trash", "dir lost+found", "file note", "file 20200101T000000Z-00000000")
    assert [each["name"] for each in driver.removed_volumes() if each["name"]] == []
    driver.create("mongo", {}, soon())
    driver.remove("mongo", soon())
    assert restored(driver) == "mongo"
    driver.purge([])
    assert (host.root / "trash" / "note").exists()
