"""What cannot be changed is told, and keeps a container from starting only where its directory is of no use to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host.labels import Labels, SELinux
from hostprep.options import Mode
from hostprep.tree.plan import Found, Plan, Want
from hostprep.volumes.driver import Driver
from tests.support.fixtures import OpenDriver
from tests.support.host import LABEL, PYTHON, REPOSITORY, Host, mounted, owner, soon
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
# Root as an NFS server with root_squash sees it: it owns what is uid 0's, and has no power over anything else.
SQUASHED = ("setpriv", "--bounding-set=-chown,-fowner,-fsetid,-dac_override,-dac_read_search")
MOUNT = """
import os, sys, time
from hostprep.volumes.driver import Driver
from hostprep.settings import Settings
driver = Driver.open(Settings.read(os.environ), create=False)
try:
    print(driver.mount("mongo", time.monotonic() + 60))
finally:
    print(*driver.get("mongo")["Status"]["warnings"], sep="\\n")
"""


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """The file system at *directory* can only be read, until the end."""
    with mounted("--bind", str(directory), str(directory)):
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """*path* cannot be changed, until the end."""
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


class TestUsable:
    @pytest.mark.parametrize(
        ("found", "want", "writable", "readable"),
        [
            ((184, 0, "0700"), (184, 998), True, True),
            ((0, 998, "0070"), (184, 998), True, True),
            ((0, 0, "0777"), (184, 998), True, True),
            ((0, 0, "0755"), (184, 998), False, True),
            ((0, 0, "0770"), (184, 998), False, False),
            ((0, 0, "0700"), (184, 998), False, False),
            ((184, 998, "0077"), (184, 998), False, False),  # the owner's bits are all that counts for the owner
            ((7, 7, "0000"), (0, 0), True, True),  # root
            ((7, 7, "0700"), (None, 998), True, True),  # undeclared: whoever it is
        ],
    )
    def test_by_owner_and_mode(
        self,
        found: tuple[int, int, str],
        want: tuple[int | None, int | None],
        writable: bool,  # noqa: FBT001
        readable: bool,  # noqa: FBT001
    ) -> None:
        """The bits that count for the declared owner decide; on a read-only file system reading is enough."""
        labels = Labels.open(SELinux.OFF)
        plan = Plan(-1, Found(found[0], found[1], Mode.parse(found[2]), None, 1), Want(*want), labels)
        assert plan.usable(read_only=False) is writable
        assert plan.usable(read_only=True) is readable

    def test_a_label_counts(self) -> None:
        """A directory with another label than the declared one is of no use."""
        labels = Labels.open(SELinux.FORCE)
        for label, expected in ((LABEL, True), (None, False), ("a_u:b_r:c_t:s0", False)):
            now = Found(184, 998, Mode(0o700), label, 1)
            plan = Plan(-1, now, Want(184, 998, Mode(0o750), LABEL), labels)
            assert plan.usable(read_only=False) is expected


class TestEntries:
    def test_immutable(self, driver: Driver, host: Host) -> None:
        """An immutable entry is told with path and reason, the others and the root are right."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "dir a", "file a/kept", "file a/other")
        os.chown(host.data("mongo"), 0, 0)
        with immutable(host.data("mongo") / "a" / "kept"):
            driver.mount("mongo", soon())
        status = driver.get("mongo")["Status"]
        assert (status["ready"], status["warnings"]) == (True, ["a/kept: Operation not permitted"])
        assert owners(host.data("mongo")) == {"a": (184, 998), "a/kept": (0, 0), "a/other": (184, 998)}
        os.chown(host.data("mongo"), 0, 0)
        driver.mount("mongo", soon())
        assert driver.get("mongo")["Status"]["warnings"] == []

    def test_read_only(self, driver: Driver, host: Host) -> None:
        """Entries of a read-only file system are told and counted, and a root that is right is served."""
        make_tree(host.srv, "dir db 184:998", *(f"file db/{number}" for number in range(9)))
        with read_only(host.srv / "db"):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "always"}, soon())
            assert driver.mount("mongo", soon()) == f"{host.srv}/db"
            warnings = driver.get("mongo")["Status"]["warnings"]
        *examples, more, why = warnings
        assert more == "and 4 more entries were left alone"
        assert len(examples) == 5
        assert all(warning.endswith(": Read-only file system") for warning in examples)
        assert "takes no writes: it is mounted read-only" in why


class TestReadOnlyRoots:
    @pytest.mark.parametrize("recurse", ["never", "mismatch", "always"])
    def test_usable(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture, recurse: str) -> None:
        """A root of a read-only file system that its owner can read is served as it is, and Status tells the drift."""
        make_tree(host.srv, "dir db 0:0 755", "file db/file")
        with read_only(host.srv / "db"):
            driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": recurse}, soon())
            for _ in range(2):
                assert driver.mount("mongo", soon()) == f"{host.srv}/db"
                driver.unmount("mongo", soon())
            status = driver.get("mongo")["Status"]
        assert (status["ready"], status["drift"]) == (False, ["owner is 0:0, declared 184:998"])
        assert "mongo stays as it is: Read-only file system" in caplog.text
        driver.mount("mongo", soon())
        assert (owner(host.srv / "db"), driver.get("mongo")["Status"]["ready"]) == ((184, 998), True)

    @pytest.mark.parametrize("recurse", ["never", "mismatch"])
    def test_of_no_use(self, driver: Driver, host: Host, recurse: str) -> None:
        """One that its owner cannot even read is refused with the reason, until it can be mended."""
        make_tree(host.srv, "dir db 184:998", "file db/file 184:998")
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": recurse}, soon())
        os.chown(host.srv / "db", 0, 0)
        os.chmod(host.srv / "db", 0o700)
        with read_only(host.srv / "db"), pytest.raises(Exception, match="Read-only file system"):
            driver.mount("mongo", soon())
        driver.mount("mongo", soon())
        assert owner(host.srv / "db") == (184, 998)


class TestWithoutRootsPower:
    """As on NFS with root_squash. A real server is not to be had on every machine; the errors are the kernel's own."""

    @pytest.fixture
    def database(self, open_driver: OpenDriver, host: Host) -> Path:
        """An adopted directory, another user's, with a file and a directory that are closed to everybody else."""
        make_tree(host.srv, "dir db 184:998 755", "dir db/closed 55:66 700", "file db/file 55:66")
        open_driver().create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "always"}, soon())
        for path in (host.srv / "db" / "closed", host.srv / "db" / "file"):
            os.chown(path, 55, 66)
        return host.srv / "db"

    def mount(self, host: Host) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SQUASHED, PYTHON, "-c", MOUNT],
            cwd=REPOSITORY,
            env=host.process_environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_entries(self, host: Host, database: Path) -> None:
        """Entries that root may not open or change are told with their reason, and do not fail the Mount."""
        done = self.mount(host)
        assert done.returncode == 0, done.stderr
        where, *warnings = done.stdout.splitlines()
        assert where == str(database)
        assert sorted({warning.partition(" (")[0] for warning in warnings}) == [
            "closed: Permission denied",
            "file: Operation not permitted",
        ]

    @pytest.mark.parametrize(("mode", "served"), [(0o777, True), (0o755, False)])
    def test_the_root(self, host: Host, database: Path, mode: int, served: bool) -> None:  # noqa: FBT001
        """A root that cannot be changed is served only where the declared owner may write it as it is."""
        os.chown(database, 55, 66)
        os.chmod(database, mode)
        done = self.mount(host)
        assert (done.returncode == 0) is served
        assert ("mongo stays as it is" in done.stderr or str(database) in done.stdout) is served
        assert served or "Operation not permitted" in done.stderr
        assert owner(database) == (55, 66)
