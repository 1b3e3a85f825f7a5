"""Copy-up into a directory below the root (volume-subpath): it ends right, and what a container made stays its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.host import fds
from hostprep.volumes import copying
from hostprep.volumes.driver import Driver
from hostprep.volumes.passes import Pass
from hostprep.volumes.record import settled
from tests.support.fixtures import OpenDriver
from tests.support.host import Host, eventually, mounted, owner, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
OWNED, IMAGES, OTHERS = (184, 998), (33, 33), (55, 66)
LONG_AGO = 1_000_000_000


class Engine:
    """What Docker does to directories of the volume mongo."""

    def __init__(self, driver: Driver, host: Host, **options: str) -> None:
        self.driver = driver
        self.data = host.data("mongo")
        self.noted = host.volume("mongo") / copying.FILE
        driver.create("mongo", {**MONGO, **options}, soon())
        # Those of other containers, in each of which is what may not change.
        make_tree(self.data, "dir www 33:33 700", "file www/page 33:33", "dir roots 0:0 700", "file roots/key 0:0 600")
        os.utime(self.data / "www/page", (LONG_AGO, LONG_AGO))
        self.others = owners(self.data)

    def begin(self, path: str) -> None:
        """The directory becomes the image's, whose time it gets, too."""
        os.chown(self.data / path, *IMAGES)
        os.chmod(self.data / path, 0o700)
        os.utime(self.data / path, (LONG_AGO, LONG_AGO))

    def copy(self, path: str, *names: str) -> None:
        """Copy-up: the directory becomes the image's, then one file after the other is there."""
        self.begin(path)
        self.go_on(path, *names)

    def go_on(self, path: str, *names: str) -> None:
        for name in names:
            (self.data / path / name).parent.mkdir(exist_ok=True)
            for each in {(self.data / path / name).parent, self.data / path}:
                os.chown(each, *IMAGES)
            make_tree(self.data / path, f"file {name} 33:33 600")
            os.utime(self.data / path / name, (LONG_AGO, LONG_AGO))

    def mount(self, mount: str, engine: int = 0) -> None:
        self.driver.mount("mongo", soon(), mount=mount, engine=engine)

    def unmount(self, mount: str) -> None:
        self.driver.unmount("mongo", soon(), mount=mount)

    @property
    def status(self) -> tuple[bool, int]:
        """Whether the volume is ready, and how many warnings there are, but for the one of others' directories."""
        found = self.driver.get("mongo")["Status"]
        return found["ready"], sum("belong to others" not in each for each in found["warnings"])

    def owners(self, path: str) -> set[tuple[int, int]]:
        return {owner(self.data / path), *owners(self.data / path).values()}

    def others_are_as_before(self) -> bool:
        return self.others.items() <= owners(self.data).items() and owner(self.data) == OWNED


@pytest.fixture
def engine(driver: Driver, host: Host) -> Engine:
    return Engine(driver, host)


@contextlib.contextmanager
def held(tmp_path: Path, directory: Path) -> Iterator[None]:
    """What dockerd has mounted for itself while it copies into a directory."""
    place = tmp_path / "safe-mount123456789"
    place.mkdir()
    with mounted("--bind", str(directory), str(place)):
        yield


FILES = ["seed", "conf/main"]


@pytest.mark.parametrize("made_by", ["184:998", "0:0"])
@pytest.mark.parametrize(("path", "files"), [("sub", FILES), ("a/b", FILES), ("a/b/c", FILES), ("sub", [])])
def test_a_copy_up(engine: Engine, path: str, files: list[str], made_by: str) -> None:
    """A directory that Docker copied into is right after the Unmount, and nothing beside it has changed."""
    make_tree(engine.data, f"dir {path} {made_by}")
    engine.mount("one")
    assert engine.status == (True, 0)
    engine.copy(path, *files)
    assert engine.status == (False, 1)
    engine.unmount("one")
    assert (engine.owners(path), engine.status) == ({OWNED}, (True, 0))
    assert engine.others_are_as_before()
    assert not engine.noted.exists()
    assert (engine.data / path).stat().st_mode & 0o7777 == 0o700


def test_the_first_file(engine: Engine) -> None:
    """While Docker writes the first file, which is root's until it is complete, Status is not ready."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.begin("sub")
    make_tree(engine.data, "file sub/large 0:0 600")
    assert engine.status == (False, 1)


@pytest.mark.parametrize("why", ["lost", "another server", "late", "reboot"])
def test_an_unmount_that_never_comes(
    engine: Engine, open_driver: OpenDriver, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next Mount makes right what was copied, however late it is; until then Status is not ready."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    if why == "another server":
        engine.driver = open_driver()
    elif why == "late":
        now = copying._now()
        monkeypatch.setattr(copying, "_now", lambda: now + 3601)
    elif why == "reboot":
        engine.noted.write_text(json.dumps({**json.loads(engine.noted.read_text()), "boot": "another"}))
    assert engine.status == (False, 1)
    engine.mount("two")
    assert engine.owners("sub") == {OWNED}
    assert engine.others_are_as_before()
    engine.unmount("two")
    assert engine.status == ((True, 0) if why in ("late", "reboot") else (False, 1))
    engine.unmount("one")
    assert engine.status == (True, 0)


def test_two_at_once(engine: Engine, tmp_path: Path) -> None:
    """What an engine copies behind a pass is made right when its own Mount is over, whoever writes there meanwhile."""
    make_tree(engine.data, "dir sub 184:998")
    with held(tmp_path, engine.data / "sub"):
        engine.mount("one", os.getpid())
        engine.mount("two", os.getpid())
        engine.copy("sub", "a")
        engine.unmount("two")
        assert (engine.owners("sub"), engine.status) == ({OWNED}, (False, 1))
        engine.mount("three", os.getpid())
        make_tree(engine.data, "file sub/new 184:998", "file sub/newer 184:998")
        os.chown(engine.data / "sub/newer", *IMAGES)
        make_tree(engine.data, "file sub/b 33:33")
    assert not engine.status[0]
    engine.unmount("one")
    assert (engine.owners("sub"), engine.status) == ({OWNED}, (True, 0))
    assert engine.others_are_as_before()


@pytest.mark.parametrize("dockerd", ["runs", "has ended"])
def test_a_container_that_runs(engine: Engine, dockerd: str) -> None:
    """A Mount from before, of a container that runs or whose engine has ended, does not keep the volume from ready."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("running", os.getpid() if dockerd == "runs" else 2**30)
    engine.mount("one", os.getpid())
    engine.copy("sub", *FILES)
    engine.unmount("one")
    assert (engine.owners("sub"), engine.status) == ({OWNED}, (True, 0))
    make_tree(engine.data, "file sub/own 55:66")
    engine.mount("another", os.getpid())
    assert owner(engine.data / "sub/own") == OTHERS


def test_several_directories(engine: Engine) -> None:
    """Each of several directories that were copied into is made right, in one Unmount."""
    make_tree(engine.data, *(f"dir {name} 184:998" for name in "abc"))
    engine.mount("one")
    for name in "abc":
        engine.copy(name, *FILES)
    engine.unmount("one")
    assert [engine.owners(name) for name in "abc"] == [{OWNED}] * 3
    assert engine.status == (True, 0)


def own_files(engine: Engine) -> None:
    """It gives its directory to its user, and writes new files."""
    os.chown(engine.data / "sub", *OTHERS)
    make_tree(engine.data, "file sub/a 55:66", "file sub/b 55:66")


def own_directory(engine: Engine) -> None:
    """It only gives its directory to its user."""
    os.chown(engine.data / "sub", *OTHERS)


def one_file_in_a_deep_directory(engine: Engine) -> None:
    own_directory(engine)
    make_tree(engine.data / "sub", "dir x/y/z 55:66", "file x/y/z/file 55:66")


def unpacked_below_its_own(engine: Engine) -> None:
    """It unpacks old files where the owner is right."""
    make_tree(engine.data, "file sub/old 55:66")
    os.utime(engine.data / "sub/old", (LONG_AGO, LONG_AGO))


@pytest.mark.parametrize("do", [own_files, own_directory, one_file_in_a_deep_directory, unpacked_below_its_own])
def test_what_a_container_does_itself(engine: Engine, do: Callable[[Engine], None]) -> None:
    """What a container does itself to a directory that its Mount found empty stays so, and is no drift."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    do(engine)
    before = owners(engine.data)
    assert engine.status == (True, 0)
    engine.unmount("one")
    engine.mount("two")
    assert owners(engine.data) == before
    assert engine.status == (True, 0)


def somebody_elses(engine: Engine) -> None:
    """The directory was neither the declared owner's nor root's."""
    os.chown(engine.data / "sub", *OTHERS)
    engine.mount("one")
    engine.copy("sub", *FILES)


def roots_own(engine: Engine) -> None:
    """Root puts a copy of its own into a directory of its own."""
    os.chown(engine.data / "sub", 0, 0)
    engine.mount("one")
    make_tree(engine.data, "file sub/key 0:0 600")
    os.utime(engine.data / "sub/key", (LONG_AGO, LONG_AGO))


def later(engine: Engine) -> None:
    """An old copy comes when the Mount counts no more."""
    engine.mount("one")
    noted = json.loads(engine.noted.read_text())
    noted["empty"]["sub"][1] -= 3600 * 10**9
    engine.noted.write_text(json.dumps(noted))
    engine.copy("sub", *FILES)


def not_empty(engine: Engine) -> None:
    """The directory was not empty."""
    make_tree(engine.data, "file sub/before 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)


@pytest.mark.parametrize("do", [somebody_elses, roots_own, later, not_empty])
def test_whose_it_is_not(engine: Engine, do: Callable[[Engine], None]) -> None:
    """What is not known to be Docker's copy into a directory of the volume's owner, or of root, stays as it is."""
    make_tree(engine.data, "dir sub 184:998")
    do(engine)
    before = owners(engine.data)
    engine.unmount("one")
    engine.mount("two")
    assert owners(engine.data) == before
    assert engine.status == (True, 0)


def test_never(driver: Driver, host: Host) -> None:
    """With recurse=never the contents stay as they are, as after a copy-up into the root, and nothing is noted."""
    engine = Engine(driver, host, recurse="never")
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    assert not engine.noted.exists()
    engine.copy("sub", *FILES)
    engine.unmount("one")
    assert (engine.owners("sub"), engine.status) == ({IMAGES}, (True, 0))


def test_never_from_now_on(engine: Engine) -> None:
    """Where recurse=never is declared after a copy-up, it counts."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    engine.driver.apply("mongo", {"recurse": "never"}, (), soon())
    engine.unmount("one")
    assert (engine.owners("sub"), engine.status, engine.noted.exists()) == ({IMAGES}, (True, 0), False)


def test_always(driver: Driver, host: Host) -> None:
    """With recurse=always the contents are right at the Unmount, before the next Mount goes over all of them."""
    engine = Engine(driver, host, recurse="always")
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    engine.unmount("one")
    assert (engine.owners("sub"), engine.status) == ({OWNED}, (True, 0))
    engine.mount("two")
    assert set(owners(engine.data).values()) == {OWNED}


def test_root_and_below(engine: Engine) -> None:
    """Where the root is wrong, too, all contents follow, as ever."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    os.chown(engine.data, *IMAGES)
    engine.unmount("one")
    assert {owner(engine.data), *owners(engine.data).values()} == {OWNED}
    assert engine.status == (True, 0)


def gone(engine: Engine, outside: Path) -> None:
    (engine.data / "sub").rename(engine.data / "elsewhere")


def a_link(engine: Engine, outside: Path) -> None:
    gone(engine, outside)
    (engine.data / "sub").symlink_to(outside)


def another(engine: Engine, outside: Path) -> None:
    gone(engine, outside)
    make_tree(engine.data, "dir sub 0:0", "file sub/key 0:0 600")


@pytest.mark.parametrize("do", [gone, a_link, another])
def test_another_in_its_place(engine: Engine, tmp_path: Path, do: Callable[[Engine, Path], None]) -> None:
    """Where the directory is gone, or something else is in its place, nothing is changed, and nothing noted stays."""
    outside = tmp_path / "outside"
    make_tree(tmp_path, "dir outside 33:33", "file outside/file 33:33")
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    do(engine, outside)
    before = owners(engine.data)
    engine.unmount("one")
    assert owners(engine.data) == before
    assert (owner(outside), owners(outside)) == (IMAGES, {"file": IMAGES})
    assert (engine.status, engine.noted.exists()) == ((True, 0), False)


def test_it_moves_during_the_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is moved away while a pass goes over it keeps nobody from the volume."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)
    work = Pass.work

    def move(*args: Any, **rest: Any) -> object:
        (engine.data / "sub").rename(engine.data / "elsewhere")
        return work(*args, **rest)

    monkeypatch.setattr(Pass, "work", move)
    engine.mount("two")
    assert owner(engine.data / "elsewhere") == IMAGES
    assert engine.status == (True, 0)


def test_a_pass_that_is_interrupted(engine: Engine, open_driver: OpenDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pass that did not end, and a reboot, the directory is not ready, and the next Mount makes it right."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)

    def fail(*args: Any, **rest: Any) -> None:
        os.chown(engine.data / "sub", *OWNED)
        raise OSError(errno.EIO, "no such luck")

    with monkeypatch.context() as patched:
        patched.setattr(Pass, "work", fail)
        engine.unmount("one")
    engine.noted.write_text(json.dumps({**json.loads(engine.noted.read_text()), "boot": "another"}))
    engine.driver = open_driver()
    assert engine.status == (False, 1)
    engine.mount("two")
    assert (engine.owners("sub"), engine.status, engine.noted.exists()) == ({OWNED}, (True, 0), False)


def test_a_repair(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a repair the volume is ready, though a pass over what was copied had been interrupted."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.copy("sub", *FILES)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no such luck")

    with monkeypatch.context() as patched:
        patched.setattr(Pass, "work", fail)
        engine.unmount("one")
    assert engine.status == (False, 1)
    engine.driver.repair("mongo")
    assert (engine.owners("sub"), engine.status) == ({OWNED}, (True, 0))


def test_what_is_left_alone(driver: Driver, host: Host) -> None:
    """Below a `path`, a copied file with several hard links is left alone, and Status names it."""
    data = host.srv / "mongo"
    driver.create("mongo", {**MONGO, "path": str(data), "recurse": "mismatch"}, soon())
    make_tree(data, "dir sub 184:998")
    driver.mount("mongo", soon(), mount="one")
    os.chown(data / "sub", *IMAGES)
    make_tree(data, "file sub/a 33:33", "link sub/b sub/a", "file sub/c 33:33")
    for name in "abc":
        os.utime(data / "sub" / name, (LONG_AGO, LONG_AGO))
    driver.unmount("mongo", soon(), mount="one")
    assert owners(data) == {"sub": OWNED, "sub/a": IMAGES, "sub/b": IMAGES, "sub/c": OWNED}
    left = [f"sub/{name}: has 2 hard links" for name in "ab"]
    assert sorted(driver.get("mongo")["Status"]["warnings"]) == left


@pytest.mark.parametrize("where", ["the root", "the path"])
@pytest.mark.parametrize("known", ["known before", "not known before"])
def test_a_disk_that_is_read_only(driver: Driver, host: Host, where: str, known: str) -> None:
    """Where the directory cannot be changed any more, the volume is mounted all the same, and is not ready."""
    options, data, disk = MONGO, host.data("mongo"), host.root
    if where == "the path":
        data = disk = host.srv / "mongo"
        options = {**MONGO, "path": str(data), "recurse": "mismatch"}
    driver.create("mongo", options, soon())
    make_tree(data, "dir sub 184:998")
    driver.mount("mongo", soon(), mount="one")
    os.chown(data / "sub", *IMAGES)
    if known == "known before":
        driver.mount("mongo", soon(), mount="two")
        os.chown(data / "sub", *IMAGES)
    make_tree(data, "file sub/seed 33:33")
    os.utime(data / "sub/seed", (LONG_AGO, LONG_AGO))
    with mounted("--bind", str(disk), str(disk)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
        for mount in ("three", "four"):
            driver.mount("mongo", soon(), mount=mount)
            driver.unmount("mongo", soon(), mount=mount)
        assert driver.get("mongo")["Status"]["ready"] is False
    driver.mount("mongo", soon(), mount="five")
    assert owners(data) == {"sub": OWNED, "sub/seed": OWNED}


def test_a_note_of_an_older_version(engine: Engine) -> None:
    """A note from before directories below the root counted is one of the root."""
    for each in engine.data.iterdir():
        each.rename(each.parent.parent / each.name)
    engine.mount("one")
    noted = json.loads(engine.noted.read_text())
    noted = {"boot": noted["boot"], "mounts": {mount: at for mount, (at, _) in noted["mounts"].items()}}
    engine.noted.write_text(json.dumps(noted))
    os.chown(engine.data, *IMAGES)
    make_tree(engine.data, "file a 33:33")
    engine.mount("two")
    make_tree(engine.data, "file b 33:33")
    assert not engine.status[0]
    engine.unmount("one")
    assert (engine.owners("."), engine.status) == ({OWNED}, (True, 0))


DAMAGED = [
    {"empty": {"../../x": [1.0]}},
    {"empty": {"/etc": [1.0]}},
    {"empty": {"sub": ["soon"]}},
    {"empty": {"sub": list(range(10))}},
    {"empty": ["sub"]},
    {"mounts": []},
    {"mounts": {"one": [1.0]}},
    {"mounts": {"one": [1.0, float("inf")]}},
]


@pytest.mark.parametrize("changed", DAMAGED)
def test_a_damaged_note(engine: Engine, changed: dict[str, object]) -> None:
    """A note that cannot be read is none."""
    make_tree(engine.data, "dir sub 184:998")
    engine.mount("one")
    engine.noted.write_text(json.dumps({**json.loads(engine.noted.read_text()), **changed}))
    assert engine.status == (True, 0)
    engine.mount("two")
    engine.copy("sub", *FILES)
    engine.unmount("two")
    assert engine.owners("sub") == {OWNED}


def test_very_many(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many directories there are in a volume, a Mount opens 32 of them, and Get none that is as before."""
    make_tree(engine.data, *(f"dir {number} 184:998" for number in range(300)))
    opened: list[str] = []
    below = fds.open_below

    def count(dirfd: int, name: str, *, directory: bool) -> int:
        opened.append(name)
        return below(dirfd, name, directory=directory)

    monkeypatch.setattr(fds, "open_below", count)
    engine.mount("one")
    looked_at = [name for name in opened if name != "_data"]
    assert len(looked_at) == 32
    opened.clear()
    assert engine.status == (True, 0)
    assert set(opened) <= {"_data"}


def become_empty(engine: Engine) -> None:
    """A directory at the third level loses its last file."""
    (engine.data / "a/b/c/file").unlink()


def moved_there(engine: Engine) -> None:
    """An empty one takes the place of another, with its name."""
    (engine.data / "a/b/c").rename(engine.data / "a/c before")
    make_tree(engine.data, "dir a/b/c 184:998")


def given_back(engine: Engine) -> None:
    """An empty one becomes the owner's."""
    os.chown(engine.data / "a/empty", *OWNED)


@pytest.mark.parametrize("do", [become_empty, moved_there, given_back])
def test_a_second_look(engine: Engine, monkeypatch: pytest.MonkeyPatch, do: Callable[[Engine], None]) -> None:
    """Where no directory has changed a Mount reads none, and notes the same; where one has, it notes what is new."""
    make_tree(engine.data, "dir sub 184:998", "dir a/b/c 184:998", "file a/b/c/file", "dir a/empty 33:33")
    read: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda fd: (read.append(fd), scandir(fd))[1])

    def noted() -> set[str]:
        """What the next Mount notes."""
        read.clear()
        engine.mount("one")
        found = set(json.loads(engine.noted.read_text())["empty"])
        engine.unmount("one")
        return found

    eventually(lambda: noted() == {"sub"} and not read, "nothing has changed lately")
    do(engine)
    assert noted() == {"sub", "a/empty" if do is given_back else "a/b/c"}
    assert read


def test_a_look_that_failed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be opened is looked at anew by the next Mount."""
    make_tree(engine.data, "dir sub 184:998")
    eventually(lambda: settled(os.stat(engine.data / "sub").st_ctime_ns), "nothing has changed lately")
    with monkeypatch.context() as patch:
        below = fds.open_below

        def refuse(dirfd: int, name: str, *, directory: bool) -> int:
            if name == "sub":
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return below(dirfd, name, directory=directory)

        patch.setattr(fds, "open_below", refuse)
        engine.mount("one")
        assert not engine.noted.exists()
    engine.mount("two")
    assert set(json.loads(engine.noted.read_text())["empty"]) == {"sub"}


def test_names_that_are_too_long_to_be_noted(engine: Engine) -> None:
    """A Mount that cannot be noted, since the names would be too long to be read back, is answered all the same."""
    long = os.fsdecode(b"\xff" * 240)
    make_tree(engine.data, *(f"dir {long}/{long}/{long}{number} 184:998" for number in range(50)))
    engine.mount("one")
    assert not engine.noted.exists()
    assert engine.status == (True, 0)


@pytest.mark.parametrize("where", ["below many files", "too deep"])
def test_beyond_the_bounds(engine: Engine, where: str) -> None:
    """What lies beyond the bounds of a look is not noted, and stays as Docker makes it."""
    path = "a/b/c/d"
    if where == "below many files":
        make_tree(engine.data, *(f"file {number} 184:998" for number in range(300)))
        path = "a/b"
    make_tree(engine.data, f"dir {path} 184:998")
    engine.mount("one")
    assert not engine.noted.exists()
