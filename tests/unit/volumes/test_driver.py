"""Volumes by path, changes in place, retained data: the verbs without HTTP."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from hostprep.errors import (
    Busy,
    Conflict,
    HostprepError,
    Invalid,
    NoImage,
    NoSuchVolume,
    NotAllowed,
    NotReady,
    Unreadable,
)
from hostprep.options import Name
from hostprep.serve.wire import create_app
from hostprep.volumes import trash
from hostprep.volumes.driver import Driver
from hostprep.volumes.record import Record
from tests.support.fixtures import Gate, OpenDriver
from tests.support.host import Docker, Host, eventually, label, mode, mounted, owner, set_label, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}


class TestByPath:
    def test_a_new_directory(self, driver: Driver, host: Host) -> None:
        """A path whose last component is missing is made, as declared, and is what the engine is told."""
        driver.create("mongo", {**MONGO, "mode": "0750", "path": f"{host.srv}/db"}, soon())
        assert driver.mount("mongo", soon()) == f"{host.srv}/db"
        assert (owner(host.srv / "db"), mode(host.srv / "db")) == ((184, 998), "0750")
        assert not host.data("mongo").exists()

    def test_a_new_directory_without_more(self, driver: Driver, host: Host) -> None:
        """A new directory by path is root's and 0755 where nothing else is declared."""
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        assert (owner(host.srv / "db"), mode(host.srv / "db")) == ((0, 0), "0755")

    def test_a_directory_that_is_there(self, driver: Driver, host: Host) -> None:
        """A directory that is there is adopted: what is not declared, and all its contents, stay."""
        make_tree(host.srv, "dir db 55:66 2711", "file db/file 55:66 640")
        set_label(host.srv / "db", "system_u:object_r:etc_t:s0")
        driver.create("mongo", {"uid": "184", "path": f"{host.srv}/db"}, soon())
        driver.mount("mongo", soon())
        assert (owner(host.srv / "db"), mode(host.srv / "db")) == ((184, 66), "2711")
        assert label(host.srv / "db") == "system_u:object_r:etc_t:s0"
        assert owner(host.srv / "db" / "file") == (55, 66)

    def test_contents_follow_where_asked(self, driver: Driver, host: Host) -> None:
        """With recurse=mismatch an adopted tree follows its root, at Create already."""
        make_tree(host.srv, "dir db 55:66", "dir db/a 55:66", "file db/a/b 55:66")
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}, soon())
        assert set(owners(host.srv).values()) == {(184, 998)}
        assert not (host.volume("mongo") / "pass.json").exists()

    def test_by_mountpoint(self, driver: Driver, host: Host) -> None:
        """mountpoint makes the same volume, is recorded as given, and a Create with path in its place is equal."""
        driver.create("mongo", {"mountpoint": f"{host.srv}/db"}, soon())
        assert driver.mount("mongo", soon()) == f"{host.srv}/db"
        assert driver.get("mongo")["Status"]["options"] == {"mountpoint": f"{host.srv}/db"}
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        driver.apply("mongo", {"path": f"{host.srv}/db", "uid": "184"}, (), soon())
        assert driver.get("mongo")["Status"]["options"] == {"path": f"{host.srv}/db", "uid": "184"}
        with pytest.raises(Conflict, match="cannot be changed"):
            driver.apply("mongo", {}, ("mountpoint",), soon())
        with pytest.raises(NotAllowed, match="^option mountpoint: "):
            driver.create("other", {"mountpoint": "/opt/db"}, soon())
        with pytest.raises(NotReady, match="^option mountpoint: "):
            driver.create("other", {"mountpoint": f"{host.srv}/none/db"}, soon())

    def test_removal(self, driver: Driver, host: Host) -> None:
        """Remove takes the record to the trash and does not touch the directory, made or adopted."""
        make_tree(host.srv, "dir db 55:66")
        driver.create("adopted", {"path": f"{host.srv}/db"}, soon())
        driver.create("made", {"path": f"{host.srv}/new"}, soon())
        for name in ("adopted", "made"):
            driver.remove(name, soon())
        assert driver.purge(None).gone == 2
        assert sorted(os.listdir(host.srv)) == ["db", "new"]

    def test_foreign_owners(self, driver: Driver, host: Host) -> None:
        """Foreign owners among the direct entries give a warning, of at most 100 looked at, whatever recurse is."""
        make_tree(host.srv, "dir db", *(f"file db/{number} 55:66" for number in range(120)))
        driver.create("mongo", {"uid": "184", "path": f"{host.srv}/db"}, soon())
        (warning,) = driver.get("mongo")["Status"]["warnings"]
        assert "100 of the first 100 entries belong to others than user 184" in warning
        driver.apply("mongo", {"recurse": "mismatch"}, (), soon())
        assert driver.get("mongo")["Status"]["warnings"] == [warning]
        driver.repair("mongo")
        assert driver.get("mongo")["Status"]["warnings"] == []

    def test_the_parent_must_be_there(self, driver: Driver, host: Host) -> None:
        """Only the last component is made: a missing parent is an error that names it."""
        with pytest.raises(NotReady, match=f"{host.srv}/a does not exist"):
            driver.create("mongo", {"path": f"{host.srv}/a/b/c"}, soon())
        assert (os.listdir(host.srv), host.left_in_volumes(), host.trash()) == ([], [], [])

    @pytest.mark.usefixtures("read_only_machine")
    @pytest.mark.parametrize(
        "path", ["{srv}", "{srv}x/db", "{above}/db", "/etc/db", "{root}/volumes/x", "/srv/hostprep-test-not-allowed"]
    )
    def test_outside_of_every_prefix(self, driver: Driver, host: Host, path: str) -> None:
        """A path that is not strictly below an allowed prefix is refused, with what is allowed."""
        path = path.format(srv=host.srv, above=host.srv.parent, root=host.root)
        with pytest.raises(NotAllowed, match=f"HOSTPREP_ALLOW.*{host.srv}"):
            driver.create("mongo", {"path": path}, soon())
        assert (host.left_in_volumes(), host.trash()) == ([], [])
        assert not os.path.lexists("/etc/db")

    def test_no_prefix(self, open_driver: OpenDriver, host: Host) -> None:
        """Without HOSTPREP_ALLOW no path is allowed, and the message says who sets it."""
        with pytest.raises(NotAllowed, match="HOSTPREP_ALLOW is empty"):
            open_driver(HOSTPREP_ALLOW="").create("mongo", {"path": f"{host.srv}/db"}, soon())

    @pytest.mark.parametrize("where", ["on-the-way", "the-last", "dangling"])
    def test_symlinks(self, driver: Driver, host: Host, where: str) -> None:
        """A symlink anywhere below the prefix is refused, and what it leads to is not touched."""
        (host.srv / "real" / "db").mkdir(parents=True)
        (host.srv / "link").symlink_to("real" if where != "dangling" else "nowhere")
        path = f"{host.srv}/link/db" if where == "on-the-way" else f"{host.srv}/link"
        with pytest.raises((NotAllowed, NotReady)):
            driver.create("mongo", {**MONGO, "path": path}, soon())
        assert owners(host.srv) == dict.fromkeys(["real", "real/db", "link"], (0, 0))
        assert (host.left_in_volumes(), host.trash()) == ([], [])

    def test_a_file(self, driver: Driver, host: Host) -> None:
        """A file in the place of the directory is refused, and stays."""
        make_tree(host.srv, "file db 0:0 600 text")
        with pytest.raises((NotAllowed, NotReady)):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
        assert ((host.srv / "db").read_text(), owner(host.srv / "db")) == ("text", (0, 0))
        assert host.left_in_volumes() == []

    @pytest.mark.parametrize("path", ["db", "db/below", "."], ids=["equal", "below", "above"])
    def test_another_volumes_path(self, driver: Driver, host: Host, path: str) -> None:
        """A path equal to, below or above another volume's is 409, and names that volume."""
        (host.srv / "a" / "db").mkdir(parents=True)
        driver.create("mongo", {"path": f"{host.srv}/a/db"}, soon())
        with pytest.raises(Conflict, match=f"{host.srv}/a/db, which is volume mongo's"):
            driver.create("redis", {"path": os.path.normpath(f"{host.srv}/a/{path}")}, soon())
        assert host.left_in_volumes() == ["mongo"]
        driver.create("redis", {"path": f"{host.srv}/a/dbx"}, soon())

    @pytest.mark.parametrize(
        ("bound", "at", "path"),
        [
            ("a/db", "b", "b"),
            ("a/db", "b", "b/below"),
            ("a/db/below", "b", "b"),
            ("a", "b", "b"),
            ("a", "b", "b/db"),
            ("a", "b", "b/db/below"),
        ],
    )
    def test_another_name_of_another_volumes_path(
        self, driver: Driver, host: Host, bound: str, at: str, path: str
    ) -> None:
        """A bind mount gives another volume's directory a second name: it is 409 by that, too."""
        (host.srv / "a" / "db" / "below").mkdir(parents=True)
        (host.srv / at).mkdir()
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/a/db"}, soon())
        with mounted("--bind", f"{host.srv}/{bound}", f"{host.srv}/{at}"):
            with pytest.raises(Conflict, match=f"{host.srv}/a/db, which is volume mongo's"):
                driver.create("redis", {"uid": "5", "path": f"{host.srv}/{path}"}, soon())
        assert owner(host.srv / "a" / "db") == (184, 998)
        assert host.left_in_volumes() == ["mongo"]

    def test_hostpreps_own_under_another_name(self, open_driver: OpenDriver, host: Host) -> None:
        """A bind mount of hostprep's root below a prefix leads to no volume, record or trash."""
        driver = open_driver()
        driver.create("mongo", MONGO, soon())
        (host.srv / "b").mkdir()
        with mounted("--bind", str(host.root), f"{host.srv}/b"):
            for path in ("b", "b/volumes", "b/volumes/mongo/_data", "b/new"):
                with pytest.raises(NotAllowed, match=f"lies in {host.root}"):
                    driver.create("redis", {"uid": "5", "path": f"{host.srv}/{path}"}, soon())
        assert owner(host.data("mongo")) == (184, 998)
        assert host.left_in_volumes() == ["mongo"]

    @pytest.mark.parametrize("path", ["docker", "docker/volumes", "docker/volumes/db/_data", "docker/new"])
    def test_an_engines_data(self, driver: Driver, host: Host, path: str) -> None:
        """An engine's data below a prefix is refused, wherever that engine keeps it."""
        make_tree(host.srv, "dir docker/volumes/db/_data 5:5", "file docker/volumes/metadata.db")
        with pytest.raises(NotAllowed, match=f"{host.srv}/docker, where an engine keeps its data"):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/{path}"}, soon())
        assert owner(host.srv / "docker/volumes/db/_data") == (5, 5)
        assert host.left_in_volumes() == []

    def test_another_volumes_path_at_once(self, driver: Driver, host: Host) -> None:
        """Of parallel Creates for one path one wins, and the others are told."""
        docker = Docker(create_app(driver).test_client())
        barrier, statuses = threading.Barrier(6), []

        def one(number: int) -> None:
            barrier.wait()
            statuses.append(docker.create(f"v{number}", path=f"{host.srv}/db").status)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] + [409] * 5

    @pytest.mark.parametrize("verb", ["create", "reuse", "restore"])
    def test_while_another_path_is_taken(self, driver: Driver, host: Host, verb: str) -> None:
        """Whoever takes a path waits for whoever else takes one: made, retained before, or restored."""
        if verb != "create":
            retained = {"on_remove": "retain"} if verb == "reuse" else {}
            driver.create("mongo", {"path": f"{host.srv}/db", **retained}, soon())
            driver.remove("mongo", soon())
        with driver.store.claim(f"{host.srv}/other", Name("other"), soon()), pytest.raises(Busy):
            if verb == "restore":
                driver.restore("mongo", entry=None, new_name=None, deadline=time.monotonic())
            else:
                driver.create("mongo", {"path": f"{host.srv}/db"} if verb == "create" else {}, time.monotonic())
        assert driver.volumes() == ()

    def test_a_path_is_free_after_removal(self, driver: Driver, host: Host) -> None:
        """After Remove the path may be another volume's, and then the first cannot be restored."""
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        driver.remove("mongo", soon())
        driver.create("redis", {"path": f"{host.srv}/db"}, soon())
        with pytest.raises(Conflict, match="redis"):
            driver.restore("mongo", entry=None, new_name=None, deadline=soon())

    def test_no_longer_allowed(self, driver: Driver, open_driver: OpenDriver, host: Host) -> None:
        """A path no longer under a prefix: Get answers, not ready, with the reason; Mount is refused with 403."""
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
        os.chown(host.srv / "db", 0, 0)
        docker = Docker(create_app(open_driver(HOSTPREP_ALLOW=str(host.srv / "other"))).test_client())
        status = docker.status("mongo")
        assert status["ready"] is False
        assert any("HOSTPREP_ALLOW" in warning for warning in status["warnings"])
        answer = docker.mount("mongo")
        assert answer.status == 403
        assert "Mountpoint" not in answer.body
        assert owner(host.srv / "db") == (0, 0)
        assert docker.names() == ["mongo"]

    def test_a_name_of_one_character(self, driver: Driver, host: Host) -> None:
        """A volume of such a name that is there, or retained, is kept, and found by Create; no new one is made."""
        driver.create("one", {"on_remove": "retain"}, soon())
        with pytest.raises(Invalid, match="volume name z has one character"):
            driver.create("z", {}, soon())
        assert host.left_in_volumes() == ["one"]
        record = host.record("one").read_text().replace('"one"', '"z"')
        host.volume("one").rename(host.volume("z"))
        host.record("z").write_text(record)
        driver.create("z", {}, soon())
        driver.remove("z", soon())
        driver.create("z", {}, soon())
        assert driver.get("z")["Name"] == "z"

    def test_statuses(self, driver: Driver, host: Host) -> None:
        """On the wire a path that is not allowed or unsafe is 403, an overlapping one 409."""
        docker = Docker(create_app(driver).test_client())
        make_tree(host.srv, "symlink link /")
        assert docker.create("one", path="/opt/db").status == 403
        assert docker.create("one", path=f"{host.srv}/link/db").status == 403
        docker.created("one", path=f"{host.srv}/db")
        assert docker.create("two", path=f"{host.srv}/db").status == 409

    @pytest.mark.parametrize("swap", ["symlink", "parent-symlink", "file", "gone"])
    def test_swapped_after_create(self, driver: Driver, host: Host, swap: str) -> None:
        """Every component is looked at again at each Mount: a swapped one is refused, nothing elsewhere is touched."""
        outside = host.srv.parent / "outside"
        make_tree(host.srv.parent, "dir outside", "dir outside/db")
        (host.srv / "a").mkdir()
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/a/db"}, soon())
        if swap == "parent-symlink":
            (host.srv / "a").rename(host.srv / "moved")
            (host.srv / "a").symlink_to(outside)
        else:
            (host.srv / "a" / "db").rename(host.srv / "moved")
            if swap == "symlink":
                (host.srv / "a" / "db").symlink_to(outside)
            elif swap == "file":
                (host.srv / "a" / "db").touch()
        with pytest.raises(NotReady if swap == "gone" else NotAllowed):
            driver.mount("mongo", soon())
        driver.unmount("mongo", soon())
        assert owner(outside) == owner(outside / "db") == (0, 0)
        assert driver.get("mongo")["Status"]["ready"] is False
        if swap == "gone":
            assert not (host.srv / "a" / "db").exists()

    def test_an_unmounted_disk(self, driver: Driver, host: Host) -> None:
        """A directory that is missing at Mount is an error that says so, and is never made again."""
        (host.srv / "disk").mkdir()
        with mounted("-t", "tmpfs", "-o", "mode=0755", "none", f"{host.srv}/disk"):
            driver.create("mongo", {"path": f"{host.srv}/disk/db"}, soon())
        with pytest.raises(NotReady, match="is its disk mounted"):
            driver.mount("mongo", soon())
        assert os.listdir(host.srv / "disk") == []

    def test_a_prefix_that_is_mounted_later(self, open_driver: OpenDriver, host: Host) -> None:
        """A prefix may be missing at the start; until it is there, a path below it cannot be made."""
        driver = open_driver(HOSTPREP_ALLOW=f"{host.srv}/later")
        with pytest.raises(NotReady, match=f"{host.srv}/later does not exist"):
            driver.create("mongo", {"path": f"{host.srv}/later/db"}, soon())
        (host.srv / "later").mkdir()
        driver.create("mongo", {"path": f"{host.srv}/later/db"}, soon())


class TestApply:
    def test_merges(self, driver: Driver, host: Host) -> None:
        """apply changes what it is given, takes away what is unset, and keeps the rest and the time of creation."""
        driver.create("mongo", {**MONGO, "mode": "0750"}, soon())
        made = driver.get("mongo")["CreatedAt"]
        driver.apply("mongo", {"uid": "185", "label": "none"}, ("mode",), soon())
        volume = driver.get("mongo")
        assert volume["Status"]["options"] == {"uid": "185", "gid": "998", "label": "none"}
        assert volume["CreatedAt"] == made
        driver.mount("mongo", soon())
        assert owner(host.data("mongo")) == (185, 998)
        assert mode(host.data("mongo")) == "0750"

    @pytest.mark.parametrize(
        ("given", "unset", "error"),
        [
            ({"uid": "x"}, (), Invalid),
            ({"colour": "red"}, (), Invalid),
            ({}, ("colour",), Invalid),
            ({"path": "/srv/x"}, (), Conflict),
            ({"path": "{srv}/other"}, (), Conflict),
            ({}, ("path",), Conflict),
            ({"on_remove": "delete"}, (), Invalid),
        ],
        ids=["value", "unknown", "unknown-unset", "path", "other-path", "unset-path", "contradiction"],
    )
    def test_refused(
        self, driver: Driver, host: Host, given: dict[str, str], unset: tuple[str, ...], error: type[Exception]
    ) -> None:
        """What Create would refuse is refused, and a path cannot change; nothing is recorded."""
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
        before = host.record("mongo").read_bytes()
        with pytest.raises(error):
            driver.apply("mongo", {k: v.format(srv=host.srv) for k, v in given.items()}, unset, soon())
        assert host.record("mongo").read_bytes() == before

    def test_its_own_path(self, driver: Driver, host: Host) -> None:
        """The path that the volume has is no change of it."""
        driver.create("mongo", {"path": f"{host.srv}/db"}, soon())
        driver.apply("mongo", {"path": f"{host.srv}/db", "uid": "184"}, (), soon())
        driver.mount("mongo", soon())
        assert owner(host.srv / "db") == (184, 0)

    def test_a_path_for_a_volume_without(self, driver: Driver, host: Host) -> None:
        """A volume of hostprep's own cannot be given a path."""
        driver.create("mongo", {}, soon())
        with pytest.raises(Conflict, match="cannot be changed"):
            driver.apply("mongo", {"path": f"{host.srv}/db"}, (), soon())

    def test_of_none(self, driver: Driver) -> None:
        """apply to an unknown volume is an error."""
        with pytest.raises(NoSuchVolume):
            driver.apply("mongo", MONGO, (), soon())

    def test_while_a_pass_runs(self, driver: Driver, host: Host, gate: Gate) -> None:
        """Options that change while a pass runs win: what ends is as they say."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        with pytest.raises(Busy):
            driver.mount("mongo", soon(0.2))
        driver.apply("mongo", {"uid": "185"}, (), soon())
        gate.open()
        driver.mount("mongo", soon())
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "a") == (185, 998)
        assert driver.get("mongo")["Status"]["ready"] is True

    def test_by_another_process_while_a_pass_runs(
        self, driver: Driver, open_driver: OpenDriver, host: Host, gate: Gate
    ) -> None:
        """The same holds where another process changes them."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        with pytest.raises(Busy):
            driver.mount("mongo", soon(0.2))
        open_driver().apply("mongo", {"uid": "185"}, (), soon())
        gate.open()
        driver.mount("mongo", soon())
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "a") == (185, 998)


class TestRetain:
    @pytest.fixture
    def retained(self, driver: Driver, host: Host) -> Path:
        """A volume that was removed with on_remove=retain, with data."""
        driver.create("mongo", {**MONGO, "on_remove": "retain"}, soon())
        make_tree(host.data("mongo"), "file a 184:998 644 kept")
        driver.remove("mongo", soon())
        return host.data("mongo")

    def test_the_data_stays(self, driver: Driver, host: Host, retained: Path) -> None:
        """Remove leaves the data and renames the record; the volume is gone for the engine."""
        assert (retained / "a").read_text() == "kept"
        assert sorted(os.listdir(host.volume("mongo"))) == ["_data", "retained.json"]
        assert (driver.volumes(), host.trash()) == ((), [])
        with pytest.raises(NoSuchVolume):
            driver.get("mongo")
        with pytest.raises(NoSuchVolume):
            driver.mount("mongo", soon())
        assert [each["name"] for each in driver.retained_volumes()] == ["mongo"]

    def test_create_takes_it_up(self, driver: Driver, retained: Path) -> None:
        """Create without options takes it up with the retained ones, and Status says so."""
        driver.create("mongo", {}, soon())
        status = driver.get("mongo")["Status"]
        assert status["options"] == {**MONGO, "on_remove": "retain"}
        assert "taken up again" in status["warnings"][0]
        assert (retained / "a").read_text() == "kept"
        assert driver.retained_volumes() == []

    def test_create_with_new_options(self, driver: Driver, retained: Path) -> None:
        """New options apply over the retained ones, and the contents follow."""
        driver.create("mongo", {"uid": "185"}, soon())
        assert driver.get("mongo")["Status"]["options"] == {"uid": "185", "gid": "998", "on_remove": "retain"}
        assert owner(retained) == owner(retained / "a") == (185, 998)

    def test_create_again(self, driver: Driver, retained: Path) -> None:
        """The engine repeats a Create that it got no answer to: equal options succeed then, others do not."""
        driver.create("mongo", {"uid": "185"}, soon())
        driver.create("mongo", {"uid": "185"}, soon())
        with pytest.raises(Conflict, match="uid is 185, asked for 186"):
            driver.create("mongo", {"uid": "186"}, soon())

    def test_the_time_of_creation(self, driver: Driver, host: Host) -> None:
        """CreatedAt is that of the data."""
        driver.create("mongo", {"on_remove": "retain"}, soon())
        text = host.record("mongo").read_text()
        made = driver.get("mongo")["CreatedAt"]
        host.record("mongo").write_text(text.replace(made, "2020-01-01T00:00:00Z"))
        driver.remove("mongo", soon())
        driver.create("mongo", {}, soon())
        assert driver.get("mongo")["CreatedAt"] == "2020-01-01T00:00:00Z"

    def test_a_create_that_is_refused(self, driver: Driver, host: Host, retained: Path) -> None:
        """A bad or contradicting option leaves it retained as it was."""
        before = (host.volume("mongo") / "retained.json").read_bytes()
        for options, error in (({"uid": "x"}, Invalid), ({"path": f"{host.srv}/db"}, Conflict)):
            with pytest.raises(error):
                driver.create("mongo", options, soon())
        assert (host.volume("mongo") / "retained.json").read_bytes() == before
        assert not host.record("mongo").exists()

    def test_a_create_that_fails(self, driver: Driver, host: Host, retained: Path) -> None:
        """Where it cannot be made right, the data stays retained: it never goes to the trash for a failed Create."""
        subprocess.run(["chattr", "+i", retained], check=True)
        try:
            with pytest.raises((OSError, NotReady)):
                driver.create("mongo", {"uid": "185"}, soon())
        finally:
            for place in (retained, *host.root.glob("trash/*/_data")):
                if place.exists():
                    subprocess.run(["chattr", "-i", place], check=True)
        assert host.trash() == []
        assert (retained / "a").read_text() == "kept"
        assert [each["name"] for each in driver.retained_volumes()] == ["mongo"]
        driver.create("mongo", {}, soon())
        assert driver.get("mongo")["Status"]["options"] == {**MONGO, "on_remove": "retain"}

    def test_a_create_without_its_data(self, driver: Driver, host: Host, retained: Path) -> None:
        """Where the retained directory is gone, Create fails, says so, and makes none."""
        shutil.rmtree(retained)
        with pytest.raises(NotReady, match="is not there"):
            driver.create("mongo", {}, soon())
        assert not retained.exists()

    def test_discard(self, driver: Driver, host: Host, retained: Path) -> None:
        """rm --retained moves it to the trash, from where restore brings it back."""
        driver.discard_retained("mongo", soon())
        assert not host.volume("mongo").exists()
        driver.restore("mongo", entry=None, new_name=None, deadline=soon())
        assert driver.get("mongo")["Status"]["ready"] is True
        assert (retained / "a").read_text() == "kept"

    def test_discard_of_none(self, driver: Driver) -> None:
        """rm --retained of a live or unknown volume is an error, and touches nothing."""
        driver.create("mongo", {}, soon())
        for name in ("mongo", "other"):
            with pytest.raises(NoSuchVolume, match=f"retained volume {name}|no volume {name}"):
                driver.discard_retained(name, soon())
        assert driver.get("mongo")["Status"]["ready"] is True

    def test_restore_refuses_its_name(self, driver: Driver, host: Host) -> None:
        """A retained volume keeps its name from being restored to."""
        driver.create("mongo", {}, soon())
        driver.remove("mongo", soon())
        driver.create("mongo", {"on_remove": "retain"}, soon())
        driver.remove("mongo", soon())
        with pytest.raises(Conflict):
            driver.restore("mongo", entry=None, new_name=None, deadline=soon())
        assert driver.restore("mongo", entry=None, new_name="other", deadline=soon()).name == "other"

    def test_a_damaged_record(self, driver: Driver, host: Host, retained: Path) -> None:
        """A retained record that is damaged: Create fails and touches nothing."""
        (host.volume("mongo") / "retained.json").write_text("{")
        with pytest.raises(Unreadable):
            driver.create("mongo", {}, soon())
        assert (retained / "a").read_text() == "kept"

    def test_discard_of_a_damaged_record(self, driver: Driver, host: Host, retained: Path) -> None:
        """rm --retained takes retained data away whose record is damaged: nothing else can be done with it."""
        (host.volume("mongo") / "retained.json").write_text("{")
        driver.discard_retained("mongo", soon())
        assert not host.volume("mongo").exists()
        (entry,) = host.trash()
        assert (host.root / "trash" / entry / "_data" / "a").read_text() == "kept"

    def test_by_path(self, driver: Driver, host: Host) -> None:
        """A retained path volume is taken up with its path, unless another has that by now."""
        driver.create("mongo", {"path": f"{host.srv}/db", "on_remove": "retain"}, soon())
        driver.remove("mongo", soon())
        driver.create("mongo", {}, soon())
        assert driver.mount("mongo", soon()) == f"{host.srv}/db"
        driver.remove("mongo", soon())
        driver.create("redis", {"path": f"{host.srv}/db"}, soon())
        with pytest.raises(Conflict, match="redis"):
            driver.create("mongo", {}, soon())
        assert [each["name"] for each in driver.retained_volumes()] == ["mongo"]


class TestKept:
    """A Remove and what follows, as when an engine is to forget a volume and to record it anew."""

    OPTIONS: tuple[dict[str, str], ...] = (
        {},
        {"on_remove": "retain"},
        {"on_remove": "delete", "image": "mongo"},
        {"path": "/db"},
    )

    @pytest.mark.parametrize("refused", [True, False], ids=["refused", "removed"])
    @pytest.mark.parametrize("options", OPTIONS, ids=map(str, OPTIONS))
    def test_all_is_as_before(
        self, open_driver: OpenDriver, host: Host, options: dict[str, str], *, refused: bool
    ) -> None:
        """Whether or not the engine refused, record, data and time of creation are as before.

        Throughout, the volume is there: an engine that asked for it in vain would make a local one of its name.
        """
        driver, server = open_driver(), open_driver()
        driver.resolver.images = Known()
        options = {key: f"{host.srv}{value}" if key == "path" else value for key, value in options.items()}
        driver.create("mongo", {"uid": "184", **options}, soon())
        place = Path(driver.mount("mongo", soon()))
        make_tree(place, "file file 184:998 644 kept")
        os.utime(place, (1, 1))
        record, before = host.record("mongo").read_bytes(), driver.get("mongo")
        with contextlib.suppress(Conflict), driver.kept("mongo", soon()) as meanwhile:
            if refused:
                raise Conflict("a container has it")
            server.remove("mongo", soon())
            assert server.get("mongo")["Status"]["options"] == meanwhile
        assert host.record("mongo").read_bytes() == record
        assert server.get("mongo") == before
        assert (place / "file").read_text() == "kept"
        assert (driver.retained_volumes(), host.trash()) == ([], [])

    def test_a_remove_that_comes_later(self, driver: Driver, open_driver: OpenDriver, host: Host) -> None:
        """Where the engine did not say whether it removes the volume, its Remove, however late, deletes nothing."""
        server = open_driver()
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file file 184:998 644 kept")
        with pytest.raises(OSError, match="timed out"), driver.kept("mongo", soon()):
            raise OSError("timed out")
        server.remove("mongo", soon())
        assert ([each["name"] for each in driver.retained_volumes()], host.trash()) == (["mongo"], [])
        assert (host.data("mongo") / "file").read_text() == "kept"

    def test_several_at_once(self, driver: Driver, open_driver: OpenDriver) -> None:
        """Two at once wait for each other: none takes the other's on_remove for what was declared."""
        driver.create("mongo", MONGO, soon())
        with driver.kept("mongo", soon()), pytest.raises(Busy), open_driver().kept("mongo", time.monotonic()):
            pass
        assert driver.get("mongo")["Status"]["options"] == MONGO

    def test_what_changes_meanwhile(self, driver: Driver, open_driver: OpenDriver) -> None:
        """The volume's lock is not held meanwhile: what others change stays."""
        driver.create("mongo", MONGO, soon())
        with driver.kept("mongo", soon()):
            open_driver().apply("mongo", {"uid": "200"}, (), soon())
        assert driver.get("mongo")["Status"]["options"] == {"uid": "200", "gid": "998"}

    def test_killed_meanwhile(self, driver: Driver, host: Host) -> None:
        """Of whoever is killed before the Remove, the data is retained, and a Create takes it up."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file file 184:998 644 kept")
        script = """
import os, signal, sys
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
driver = Driver.open(Settings.read(os.environ), create=False)
with driver.kept("mongo", sys.float_info.max):
    os.kill(os.getpid(), signal.SIGKILL)
"""
        process = host.begin_script(script)
        process.communicate(timeout=60)
        assert process.returncode == -9
        driver.remove("mongo", soon())
        assert [each["name"] for each in driver.retained_volumes()] == ["mongo"]
        driver.create("mongo", MONGO, soon())
        assert (host.data("mongo") / "file").read_text() == "kept"


class TestLabelsOnAHostWithout:
    def test_recorded_and_reported(self, open_driver: OpenDriver, host: Host) -> None:
        """Without SELinux a label is recorded and reported as not applied, and that is no error."""
        driver = open_driver(HOSTPREP_SELINUX="off")
        driver.create("mongo", {"label": "container_file_t"}, soon())
        driver.mount("mongo", soon())
        status = driver.get("mongo")["Status"]
        assert status["options"] == {"label": "container_file_t"}
        assert (status["label"], status["ready"], status["drift"]) == (None, True, [])
        assert any("not applied" in warning for warning in status["warnings"])
        assert label(host.data("mongo")) is None

    def test_none_is_nothing_to_report(self, open_driver: OpenDriver) -> None:
        """The word none is applied everywhere."""
        driver = open_driver(HOSTPREP_SELINUX="off")
        driver.create("mongo", {"label": "none"}, soon())
        assert driver.get("mongo")["Status"]["warnings"] == []


def test_a_failed_create_after_success_of_another(driver: Driver, host: Host) -> None:
    """An adopted directory that cannot be changed fails Create, in words, and leaves no volume and no trash."""
    make_tree(host.srv, "dir db 55:66", "file db/a 55:66")
    subprocess.run(["chattr", "+i", host.srv / "db"], check=True)
    try:
        with pytest.raises((OSError, NotReady)):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
        with pytest.raises((OSError, NotReady)):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}, soon())
    finally:
        subprocess.run(["chattr", "-i", host.srv / "db"], check=True)
    assert host.left_in_volumes() == []
    assert trash.entries(driver.store) == []
    assert owner(host.srv / "db") == (55, 66)


class TestWithdrawn:
    """A Create that fails takes away what it made itself, and nothing that has its name by then."""

    @pytest.fixture
    def meanwhile(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a Create waits, its volume is removed and an older one of its name is restored; then it fails."""
        driver.create("mongo", {"on_remove": "delete"}, soon())
        make_tree(host.data("mongo"), "file precious 0:0 600 text")
        driver.remove("mongo", soon())
        older = driver.removed_volumes()[0]["id"]
        ensure = driver.readiness.ensure

        def fail(name: str, deadline: float, **options: bool) -> str:
            monkeypatch.setattr(driver.readiness, "ensure", ensure)
            driver.remove(name, soon())
            driver.restore(name, entry=older, new_name=None, deadline=soon())
            raise NotReady("it could not be made right")

        monkeypatch.setattr(driver.readiness, "ensure", fail)

    @pytest.mark.usefixtures("meanwhile")
    def test_another_volume_of_its_name(self, driver: Driver, host: Host) -> None:
        """Another volume of that name, restored meanwhile, stays."""
        make_tree(host.srv, "dir db", "file db/a")
        with pytest.raises(NotReady):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}, soon())
        assert (host.data("mongo") / "precious").read_text() == "text"
        assert driver.get("mongo")["Status"]["options"] == {"on_remove": "delete"}

    def test_another_volume_of_a_retained_name(
        self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So it is where the Create had taken a retained volume up."""
        driver.create("older", {}, soon())
        driver.remove("older", soon())
        driver.create("mongo", {**MONGO, "on_remove": "retain"}, soon())
        driver.remove("mongo", soon())
        ensure = driver.readiness.ensure

        def fail(name: str, deadline: float, **options: bool) -> str:
            monkeypatch.setattr(driver.readiness, "ensure", ensure)
            driver.apply(name, {"on_remove": "delete"}, (), soon())
            driver.remove(name, soon())
            driver.restore("older", entry=None, new_name=name, deadline=soon())
            raise NotReady("it could not be made right")

        monkeypatch.setattr(driver.readiness, "ensure", fail)
        with pytest.raises(NotReady):
            driver.create("mongo", {}, soon())
        assert driver.get("mongo")["Status"]["options"] == {}

    def test_an_equal_create_waits_for_the_first(self, driver: Driver, host: Host, gate: Gate) -> None:
        """A second Create of a name is answered when the first knows whether its volume stays: here it does not."""
        make_tree(host.srv, "dir db 55:66", "file db/a 55:66")
        options = {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}
        answers: list[str] = []

        def create() -> None:
            try:
                driver.create("mongo", options, soon())
                answers.append("made")
            except (HostprepError, OSError):
                answers.append("failed")

        threads = [threading.Thread(target=create) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(gate.waiting()) == 1, "the first waits for its pass")
        time.sleep(0.2)
        assert answers == []
        subprocess.run(["chattr", "+i", host.srv / "db"], check=True)
        try:
            gate.open()
            for thread in threads:
                thread.join()
        finally:
            subprocess.run(["chattr", "-i", host.srv / "db"], check=True)
        assert answers == ["failed", "failed"]
        assert host.left_in_volumes() == []


class Known:
    """Who knows one image, mongo, and may be made to forget it, or to take its time."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str | None], dict[str, str]] = {
            ("mongo", None): {"uid": "184", "gid": "998"},
            ("mongo", "/logs"): {"uid": "5", "gid": "6"},
        }
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def owner_options(self, image: str, at: str | None, deadline: float) -> Mapping[str, str]:
        self.asked += 1
        assert self.gate.wait(20)
        try:
            return self.found[image, at]
        except KeyError:
            raise NoImage(f"the engine has no image {image}") from None


class TestByImage:
    @pytest.fixture
    def known(self, driver: Driver) -> Known:
        known = Known()
        driver.resolver.images = known
        return known

    def test_the_numbers(self, driver: Driver, known: Known, host: Host) -> None:
        """Owner and group are the image's, and what is declared: they are mended as if they had been given."""
        driver.create("mongo", {"image": "mongo"}, soon())
        assert owner(host.data("mongo")) == (184, 998)
        os.chown(host.data("mongo"), 0, 0)
        assert driver.get("mongo")["Status"]["drift"] == ["owner is 0:0, declared 184:998"]
        driver.mount("mongo", soon())
        assert owner(host.data("mongo")) == (184, 998)
        assert known.asked == 1

    def test_what_is_given_wins(self, driver: Driver, known: Known, host: Host) -> None:
        """A uid that is given stands; both are in Status, as given and as found."""
        driver.create("mongo", {"image": "mongo", "uid": "7"}, soon())
        assert owner(host.data("mongo")) == (7, 998)
        status = driver.get("mongo")["Status"]
        assert status["options"] == {"image": "mongo", "uid": "7"}
        assert status["resolved"] == {"uid": 184, "gid": 998}
        assert known.asked == 1

    def test_by_path(self, driver: Driver, known: Known, host: Host) -> None:
        """A directory by path gets the image's numbers, too."""
        driver.create("mongo", {"image": "mongo", "at": "/logs", "path": f"{host.srv}/db"}, soon())
        assert owner(host.srv / "db") == (5, 6)
        assert known.asked == 1

    def test_an_equal_create(self, driver: Driver, known: Known) -> None:
        """An equal Create succeeds without asking, whatever became of the image; another one is told what differs."""
        driver.create("mongo", {"image": "mongo"}, soon())
        known.found.clear()
        driver.create("mongo", {"image": "mongo"}, soon())
        driver.create("mongo", {}, soon())
        with pytest.raises(Conflict, match="image is mongo, asked for other"):
            driver.create("mongo", {"image": "other"}, soon())
        with pytest.raises(Conflict, match="at is not set, asked for /logs"):
            driver.create("mongo", {"image": "mongo", "at": "/logs"}, soon())
        assert known.asked == 1

    def test_an_image_that_is_not_there(self, driver: Driver, known: Known, host: Host) -> None:
        """Without the image nothing is made."""
        known.found.clear()
        with pytest.raises(NoImage):
            driver.create("mongo", {"image": "mongo"}, soon())
        assert (host.left_in_volumes(), host.trash()) == ([], [])

    def test_not_allowed(self, driver: Driver, host: Host) -> None:
        """Where the administrator named no engine the option is 403, and nothing is made."""
        docker = Docker(create_app(driver).test_client())
        answer = docker.create("mongo", image="mongo")
        assert answer.status == 403
        assert "HOSTPREP_DOCKER_HOST" in answer.error
        assert host.left_in_volumes() == []

    def test_nobody_waits(self, driver: Driver, known: Known) -> None:
        """While an engine takes its time, the verbs for that name and Creates of others are answered."""
        known.gate.clear()
        thread = threading.Thread(target=driver.create, args=("mongo", {"image": "mongo"}, soon()))
        thread.start()
        eventually(lambda: known.asked == 1, "the image to be asked for")
        for verb in (driver.mount, driver.remove):
            with pytest.raises(NoSuchVolume):
                verb("mongo", soon(1))
        driver.unmount("mongo", soon(1))
        driver.create("redis", MONGO, soon(1))
        known.gate.set()
        thread.join()
        assert driver.path("mongo")

    def test_too_many_at_once(self, driver: Driver, known: Known) -> None:
        """Of very many Creates at once some are told to come back: threads are left for the others."""
        known.gate.clear()
        refused: list[Exception] = []

        def create(number: int) -> None:
            try:
                driver.create(f"v{number}", {"image": "mongo"}, soon())
            except Busy as exc:
                refused.append(exc)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        eventually(lambda: known.asked + len(refused) == 30, "all to be asked or refused")
        known.gate.set()
        for thread in threads:
            thread.join()
        assert (known.asked, len(refused)) == (24, 6)

    def test_removed_meanwhile(self, driver: Driver, known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
        """A volume that went between the look whether it is there and its lock is to be asked for again."""
        driver.create("mongo", {}, soon())
        find = driver.store.find

        def removed_behind(name: Name) -> Record | None:
            monkeypatch.setattr(driver.store, "find", find)
            found = find(name)
            driver.remove(name, soon())
            return found

        monkeypatch.setattr(driver.store, "find", removed_behind)
        with pytest.raises(Busy, match="removed a moment ago"):
            driver.create("mongo", {"image": "mongo"}, soon())
        assert known.asked == 0

    def test_apply(self, driver: Driver, known: Known) -> None:
        """apply looks into the image anew whenever it is given, and `at` is of the image that it came with."""
        driver.create("mongo", {"image": "mongo", "at": "/logs"}, soon())
        assert driver.apply("mongo", {"mode": "0750"}, (), soon()).options.uid == 5
        assert known.asked == 1
        changed = driver.apply("mongo", {"image": "mongo"}, (), soon())
        assert (dict(changed.given), changed.options.uid) == ({"image": "mongo", "mode": "0750"}, 184)
        known.found["mongo", None] = {"uid": "185", "gid": "998"}
        assert driver.apply("mongo", {"image": "mongo"}, (), soon()).options.uid == 185
        assert driver.apply("mongo", {"uid": "9"}, (), soon()).options.uid == 9
        assert driver.apply("mongo", {}, ("uid",), soon()).options.uid == 185

    def test_apply_without_the_image(self, driver: Driver, known: Known) -> None:
        """Without its image a volume declares no owner any more; `at` by itself stays."""
        driver.create("mongo", {"image": "mongo", "at": "/logs"}, soon())
        with pytest.raises(Invalid, match="at cannot be unset by itself"):
            driver.apply("mongo", {}, ("at",), soon())
        changed = driver.apply("mongo", {}, ("image",), soon())
        assert (dict(changed.given), dict(changed.declared.resolved), changed.options.uid) == ({}, {}, None)
        assert known.asked == 1

    def test_apply_to_nothing(self, driver: Driver, known: Known) -> None:
        """For a volume that is not there no engine is asked."""
        with pytest.raises(NoSuchVolume):
            driver.apply("mongo", {"image": "mongo"}, (), soon())
        assert known.asked == 0

    def test_retained(self, driver: Driver, known: Known) -> None:
        """A retained volume is taken up with what was found; with an image given, with what is found now."""
        driver.create("mongo", {"image": "mongo", "on_remove": "retain"}, soon())
        driver.remove("mongo", soon())
        driver.create("mongo", {}, soon())
        assert driver.get("mongo")["Status"]["resolved"] == {"uid": 184, "gid": 998}
        driver.remove("mongo", soon())
        driver.create("mongo", {"image": "mongo", "at": "/logs"}, soon())
        assert driver.get("mongo")["Status"]["resolved"] == {"uid": 5, "gid": 6}

    def test_restored(self, driver: Driver, known: Known, host: Host) -> None:
        """What was found comes back from the trash with the volume."""
        driver.create("mongo", {"image": "mongo"}, soon())
        driver.remove("mongo", soon())
        known.found.clear()
        driver.restore("mongo", entry=None, new_name=None, deadline=soon())
        driver.mount("mongo", soon())
        assert owner(host.data("mongo")) == (184, 998)
