"""Access control lists (acl(5)): hostprep hands none on, sees those that are there, and lets nobody in by them.

On each file system, with real lists, and asked of the kernel as the users whom the lists name.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hostprep.volumes.driver import Driver
from tests.support.disks import KINDS, Disk
from tests.support.fixtures import Command, OpenDriver
from tests.support.host import LABEL, PYTHON, REPOSITORY, Host, label, mode, mounted, owner, set_label, soon
from tests.support.trees import make_tree, owners
from tests.support.users import ACCESS, has_list, listed, may, set_list, writing

pytestmark = pytest.mark.root
OPTIONS: Final = {"uid": "184", "gid": "998", "mode": "0770"}
STRANGER: Final = (1005, 1005)
GROUP: Final = (7, 998)
HANDED_ON: Final = ("u::rwx", "u:1005:rwx", "g::r-x", "m::rwx", "o::---")


@pytest.fixture(params=["tmpfs", *KINDS])
def srv(request: pytest.FixtureRequest, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for `path`, on a file system of its own."""
    if request.param == "tmpfs":
        there = mounted("-t", "tmpfs", "none", str(host.srv))
    else:
        there = Disk(tmp_path_factory.mktemp("images"), request.param).mounted(host.srv)
    with there:
        host.srv.chmod(0o755)
        yield host.srv


@pytest.fixture
def adopted(host: Host) -> Path:
    """A directory that is there, with an entry that its mask has closed but for reading."""
    data = host.srv / "data"
    data.mkdir()
    os.chown(data, 55, 998)
    data.chmod(0o750)
    set_list(data, "u:1005:rwx", "m::r-x")
    assert (may(data, *STRANGER), may(data, *GROUP)) == ("r-x", "r-x")
    return data


class TestMade:
    """What hostprep makes below a directory that hands a list on."""

    def test_by_path(self, driver: Driver, srv: Path) -> None:
        """Whom nobody declared may do nothing, the declared group what was declared."""
        set_list(srv, *HANDED_ON, default=True)
        data = srv / "data"
        driver.create("mongo", {**OPTIONS, "path": str(data)}, soon())
        assert not has_list(data)
        assert (may(data, *STRANGER), may(data, *GROUP), may(data, 184, 5)) == ("---", "rwx", "rwx")
        status = driver.get("mongo")["Status"]
        assert (status["mode"], status["ready"], status["warnings"]) == ("0770", True, [])

    def test_by_prepare(self, hostprep: Command, srv: Path) -> None:
        """A directory that `prepare` makes has no list either."""
        set_list(srv, *HANDED_ON, default=True)
        done = hostprep("prepare", str(srv / "data"), "-o", "uid=184", "-o", "gid=998", "-o", "mode=0770")
        assert done.code == 0, done.err
        assert not has_list(srv / "data")
        assert (may(srv / "data", *STRANGER), may(srv / "data", *GROUP)) == ("---", "rwx")

    def test_a_root(self, host: Host, open_driver: OpenDriver) -> None:
        """Neither hostprep's root, nor its parts, nor a volume in it has one."""
        set_list(host.root.parent, *HANDED_ON, default=True)
        open_driver().create("mongo", OPTIONS, soon())
        assert [path for path in (host.root, *host.root.rglob("*")) if has_list(path)] == []

    def test_in_an_older_root(self, host: Host, driver: Driver) -> None:
        """A volume has none where an older hostprep let its root inherit one."""
        set_list(host.root / "volumes", *HANDED_ON, default=True)
        driver.create("mongo", OPTIONS, soon())
        assert not has_list(host.volume("mongo"))
        assert not has_list(host.data("mongo"))
        assert (may(host.data("mongo"), *STRANGER), may(host.data("mongo"), *GROUP)) == ("---", "rwx")

    def test_while_it_is_made(self, host: Host, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """From mkdir(2) on nobody but root gets in, until the directory is as declared."""
        set_list(host.srv, *HANDED_ON, default=True)
        data, seen = host.srv / "data", []
        for name in ("mkdir", "open", "getxattr", "removexattr", "fchmod"):
            call = getattr(os, name)

            def noted(*args: object, _call: object = call, **named: object) -> object:
                done = _call(*args, **named)  # type: ignore[operator]
                if data.exists():
                    seen.append((mode(data), owner(data)))
                return done

            monkeypatch.setattr(os, name, noted)
        driver.create("mongo", {**OPTIONS, "path": str(data)}, soon())
        monkeypatch.undo()
        closed = [what for what in seen if what == ("0700", (0, 0))]
        assert len(closed) > 3
        assert {bits for bits, who in seen if who != (184, 998)} == {"0700"}


class TestAdopted:
    """A list that is there."""

    def test_never_widened(self, driver: Driver, srv: Path, adopted: Path) -> None:
        """A mode gives the declared group what it says, and an entry of the list no more than its mask gave it."""
        before = may(adopted, *STRANGER)
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        assert may(adopted, *STRANGER) == before == "r-x"
        assert (may(adopted, *GROUP), may(adopted, 184, 5), may(adopted, 9, 9)) == ("rwx", "rwx", "---")
        status = driver.get("mongo")["Status"]
        assert (status["mode"], status["ready"]) == (mode(adopted), True) == ("0770", True)
        assert "an access list lets user 1005 read and enter" in status["warnings"]

    def test_closed_altogether(self, driver: Driver, host: Host, adopted: Path) -> None:
        """An entry that a mask of 0 had closed stays closed."""
        adopted.chmod(0o700)
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        assert (may(adopted, *STRANGER), may(adopted, *GROUP)) == ("---", "rwx")
        assert "an access list keeps user 1005 out" in driver.get("mongo")["Status"]["warnings"]

    def test_nobody_writes_at_any_moment(self, driver: Driver, host: Host, adopted: Path) -> None:
        """Whom a mask lets only read never writes, while owner and list are spoiled and repaired again and again."""
        closed = os.getxattr(adopted, ACCESS)
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        with writing(adopted, *STRANGER) as attempts:
            for _ in range(100):
                os.setxattr(adopted, ACCESS, closed)
                os.chown(adopted, 55, 66)
                driver.mount("mongo", soon())
        assert attempts.succeeded == 0 < attempts.tried
        assert (may(adopted, *GROUP), mode(adopted)) == ("rwx", "0770")

    def test_who_tries_does_write_where_he_may(self, host: Host, adopted: Path) -> None:
        """The attempts of the test above do succeed where the list allows it."""
        set_list(adopted, "m::rwx")
        with writing(adopted, *STRANGER) as attempts:
            pass
        assert attempts.succeeded == attempts.tried > 0

    def test_a_group_without_its_rights_is_drift(self, driver: Driver, host: Host, adopted: Path) -> None:
        """Where the mode shows what the declared group does not have, the volume is not ready, and a Mount mends it."""
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        set_list(adopted, "g::r-x")
        assert mode(adopted) == "0770"
        status = driver.get("mongo")["Status"]
        assert not status["ready"]
        assert status["drift"] == [
            "mode is 0770 (by the access list, the group may only read and enter), declared 0770"
        ]
        driver.mount("mongo", soon())
        assert may(adopted, *GROUP) == "rwx"
        assert driver.get("mongo")["Status"]["ready"]

    def test_without_a_declared_mode(self, driver: Driver, host: Host, adopted: Path) -> None:
        """A list stays as it is where no mode is declared, whoever becomes the owner, and is told."""
        before = listed(adopted)
        driver.create("mongo", {"uid": "184", "gid": "998", "path": str(adopted)}, soon())
        assert listed(adopted) == before
        assert "an access list lets user 1005 read and enter" in driver.get("mongo")["Status"]["warnings"]

    def test_a_narrower_mode(self, driver: Driver, host: Host, adopted: Path) -> None:
        """A mode closes the list as chmod does, and opens no more of it later."""
        driver.create("mongo", {**OPTIONS, "mode": "0700", "path": str(adopted)}, soon())
        assert may(adopted, *STRANGER) == "---"
        driver.apply("mongo", {"mode": "0775"}, (), soon())
        driver.mount("mongo", soon())
        assert (may(adopted, *STRANGER), may(adopted, *GROUP), may(adopted, 9, 9)) == ("---", "rwx", "r-x")

    def test_an_entry_that_denies(self, driver: Driver, host: Host, adopted: Path) -> None:
        """Whom the list keeps out stays out where the mode lets the others in and the group not: the mask is not 0."""
        set_list(adopted, "u:1005:---")
        driver.create("mongo", {**OPTIONS, "mode": "0705", "path": str(adopted)}, soon())
        assert (may(adopted, *STRANGER), may(adopted, *GROUP), may(adopted, 9, 9)) == ("---", "---", "r-x")
        status = driver.get("mongo")["Status"]
        assert (status["ready"], status["mode"]) == (True, mode(adopted))
        assert "an access list lets the owning group do nothing, whatever the mode shows" in status["warnings"]

    @pytest.mark.parametrize("bits", ["02770", "01777", "06750"])
    def test_every_bit(self, driver: Driver, host: Host, adopted: Path, bits: str) -> None:
        """setuid, setgid and sticky are there beside a list, too."""
        driver.create("mongo", {**OPTIONS, "mode": bits, "path": str(adopted)}, soon())
        assert f"0{mode(adopted).lstrip('0')}" == bits
        assert driver.get("mongo")["Status"]["ready"]

    def test_what_is_inherited_later(self, driver: Driver, srv: Path, adopted: Path) -> None:
        """A default list stays, and Status says what it means for what is made in the volume later."""
        set_list(adopted, *HANDED_ON, default=True)
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        (said,) = [each for each in driver.get("mongo")["Status"]["warnings"] if "later" in each]
        assert said == "what is made in it later inherits an access list, which names user 1005"
        (adopted / "later").mkdir()
        assert has_list(adopted / "later")

    def test_a_mount_with_nothing_to_do(self, driver: Driver, srv: Path, adopted: Path) -> None:
        """A Mount of a volume that is right changes nothing, list or not."""
        driver.create("mongo", {**OPTIONS, "path": str(adopted)}, soon())
        before = os.stat(adopted).st_ctime_ns
        driver.mount("mongo", soon())
        assert os.stat(adopted).st_ctime_ns == before

    def test_by_prepare(self, hostprep: Command, host: Host, adopted: Path) -> None:
        """`prepare` widens none, and says whom the list lets in."""
        done = hostprep("prepare", str(adopted), "-o", "mode=0770", "-o", "gid=998")
        assert done.code == 0, done.err
        assert f"{adopted}: an access list lets user 1005 read and enter" in done.out.splitlines()
        assert (may(adopted, *STRANGER), may(adopted, *GROUP)) == ("r-x", "rwx")

    def test_by_import(self, hostprep: Command, host: Host, adopted: Path) -> None:
        """A directory that is moved here keeps its list, which is told and not widened."""
        flags = [word for key, value in OPTIONS.items() for word in ("-o", f"{key}={value}")]
        done = hostprep("import", "--from", str(adopted), "mongo", *flags)
        assert done.code == 0, done.err
        assert (may(host.data("mongo"), *STRANGER), may(host.data("mongo"), *GROUP)) == ("r-x", "rwx")
        assert "user 1005" in hostprep("status", "mongo").out

    @pytest.mark.parametrize("on_remove", ["delete", "retain"])
    def test_brought_back(self, driver: Driver, host: Host, on_remove: str) -> None:
        """Data that comes back has its list: what a mask had closed then stays closed, whatever is declared now."""
        driver.create("mongo", {"on_remove": on_remove}, soon())
        set_list(host.data("mongo"), "u:1005:rwx", "m::r-x")
        driver.remove("mongo", soon())
        if on_remove == "delete":
            driver.restore("mongo", entry=None, new_name=None, deadline=soon())
            driver.apply("mongo", OPTIONS, (), soon())
            driver.mount("mongo", soon())
        else:
            driver.create("mongo", {**OPTIONS, "on_remove": "retain"}, soon())
        assert (may(host.data("mongo"), *STRANGER), may(host.data("mongo"), *GROUP)) == ("r-x", "rwx")
        assert "an access list lets user 1005 read and enter" in driver.get("mongo")["Status"]["warnings"]

    def test_a_pass_leaves_the_lists_of_the_contents(self, driver: Driver, srv: Path, adopted: Path) -> None:
        """A pass changes owner and label of what is in a volume: its lists stay as they are, to the bit."""
        make_tree(adopted, "dir sub 55:66 750", "file sub/file 55:66 640")
        contents = [adopted / "sub", adopted / "sub" / "file"]
        for path in contents:
            set_list(path, "u:1005:rwx", "m::r-x")
        before = [listed(path) for path in contents]
        driver.create("mongo", {**OPTIONS, "path": str(adopted), "recurse": "always"}, soon())
        driver.mount("mongo", soon())
        assert set(owners(adopted).values()) == {(184, 998)}
        assert [listed(path) for path in contents] == before


_KILLED_AT: Final = """
import os, sys, time
from hostprep.host import acl, linux
from hostprep.settings import Settings
from hostprep.tree import plan
from hostprep.volumes.driver import Driver

driver = Driver.open(Settings.read(os.environ), create=True)
left = int(sys.argv[1])

def dies(module, name):
    call = getattr(module, name)
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    setattr(module, name, counted)

for module, name in ((os, "fchmod"), (acl, "write"), (linux, "fchown"), (plan, "write_label"), (driver.store, "write")):
    dies(module, name)
driver.mount("mongo", time.monotonic() + 30)
"""


@pytest.mark.parametrize("declared", [{}, {"mode": "02770"}], ids=["undeclared", "declared"])
def test_killed_at_each_step(driver: Driver, host: Host, declared: dict[str, str]) -> None:
    """SIGKILL before any step of a repair that closes the directory: the next Mount gives back the list, and no more.

    Whom the list lets in may do afterwards what he might before, whether or not a mode is declared.
    """
    options = {"uid": "184", "gid": "998", "label": "container_file_t", "recurse": "never", **declared}
    driver.create("mongo", options, soon())
    data = host.data("mongo")
    environ = {**os.environ, **host.environ, "HOSTPREP_SELINUX": "force", "PYTHONPATH": str(REPOSITORY / "plugin")}
    wanted = ["user::rwx", "user:7:rwx", "user:1005:rwx", "group::r-x", "mask::r-x", "other::---"]
    if declared:
        wanted = ["user::rwx", "user:7:r-x", "user:1005:r-x", "group::rwx", "mask::rwx", "other::---"]
    for step in range(1, 20):
        subprocess.run(["setfacl", "-b", data], check=True)
        os.chown(data, 55, 66)
        data.chmod(0o2750)
        set_list(data, "u:1005:rwx", "u:7:rwx", "m::r-x")
        set_label(data, "a_u:b_r:c_t:s0")
        argv = [PYTHON, "-c", _KILLED_AT, str(step)]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert may(data, *STRANGER) in ("---", "r-x")
        driver.mount("mongo", soon())
        assert listed(data) == wanted, f"step {step}"
        assert (owner(data), label(data), mode(data)[0]) == ((184, 998), LABEL, "2")
        assert may(data, *STRANGER) == "r-x"
        assert b"narrowed" not in host.record("mongo").read_bytes()
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert step > 6
