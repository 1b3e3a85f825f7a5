"""Volumes on disk: what interrupted steps leave, and what is synced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from plugin import fds
from plugin.driver import Driver
from plugin.errors import Invalid
from plugin.options import check_name
from plugin.settings import Settings

from .conftest import OpenDriver
from .host import REPOSITORY, Host, owner, soon
from .trees import make_tree

pytestmark = pytest.mark.root


class TestSweep:
    def test_what_interrupted_steps_left(self, driver: Driver, host: Host) -> None:
        """Half-made volumes and temporary files go; volumes stay."""
        driver.create("mongo", {}, soon())
        make_tree(
            host.root / "volumes",
            "dir .new-1/_data 5:5 700",
            "file .new-1/volume.json",
            "file .new-2",
            "dir .new-3",
            "file .new-4",
        )
        driver.store.sweep()
        assert host.left_in_volumes() == ["mongo"]

    def test_data_is_never_swept(self, driver: Driver, host: Host) -> None:
        """A `_data` that holds anything stays, whatever else does."""
        make_tree(
            host.root / "volumes",
            "dir .new-1/_data",
            "file .new-1/_data/precious 0:0 600 text",
            "file .new-1/volume.json",
        )
        driver.store.sweep()
        assert (host.root / "volumes/.new-1/_data/precious").read_text() == "text"

    def test_a_path_directory_that_was_made(self, driver: Driver, host: Host) -> None:
        """The empty directory that an interrupted Create made by path goes; one with contents, or adopted, stays."""
        for number, (name, made) in enumerate([("made", True), ("filled", True), ("adopted", False)]):
            make_tree(host.srv, f"dir {name}")
            make_tree(host.root / "volumes", f"dir .new-{number}")
            record = {
                "name": "mongo",
                "options": {"path": f"{host.srv}/{name}"},
                "created_at": "2026-11-24T00:00:00Z",
                **({"made": True} if made else {}),
            }
            path = host.root / "volumes" / f".new-{number}" / "volume.json"
            path.touch(0o600)
            path.write_text(json.dumps(record))
        (host.srv / "filled" / "precious").touch()
        driver.store.sweep()
        assert sorted(os.listdir(host.srv)) == ["adopted", "filled"]
        assert host.left_in_volumes() == []

    def test_while_another_process_works(self, driver: Driver, open_driver: OpenDriver, host: Host) -> None:
        """While a step is under way, of another process too, nothing is swept."""
        with driver.store.new(soon()) as (new, temporary):
            fds.write_file(new, "volume.json", b"{}", durable=False)
            open_driver().store.sweep()
            assert os.listdir(host.volume(temporary)) == ["volume.json"]
        assert host.left_in_volumes() == []

    def test_while_a_record_is_replaced(
        self, driver: Driver, open_driver: OpenDriver, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that starts while another process replaces a record does not take its temporary file away."""
        driver.create("mongo", {}, soon())
        other, rename = open_driver(), os.rename

        def sweep_first(*names: str, src_dir_fd: int, dst_dir_fd: int) -> None:
            other.store.sweep()
            rename(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        monkeypatch.setattr(os, "rename", sweep_first)
        driver.change("mongo", {"uid": "184"}, (), soon())
        assert driver.get("mongo")["Status"]["options"] == {"uid": "184"}

    def test_a_symlink_among_them(self, driver: Driver, host: Host) -> None:
        """A link is removed, and where it leads is not reached."""
        make_tree(host.srv, "dir a", "file a/volume.json")
        (host.root / "volumes" / ".new-1").symlink_to(host.srv / "a")
        driver.store.sweep()
        assert os.listdir(host.srv / "a") == ["volume.json"]
        assert host.left_in_volumes() == []


class TestCrash:
    """A process that dies between any two system calls leaves the old state or the new one, never half."""

    SCRIPT = """
import os, sys
from plugin import linux
from plugin.driver import Driver
from plugin.settings import Settings
left = int(sys.argv[1])
driver = Driver.open(Settings.read(os.environ), create=True)
def counting(call):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left < 0: os._exit(9)
        return call(*args, **kwargs)
    return counted
for name in ("mkdir", "open", "write", "fsync", "fchmod", "rename", "utime", "unlink", "rmdir"):
    setattr(os, name, counting(getattr(os, name)))
linux.fchown = counting(linux.fchown)
import time
exec(sys.argv[2])
os._exit(0)
"""

    def crash_at_every_step(self, host: Host, code: str, before: str, check: Callable[[Driver, bool], None]) -> int:
        """Run *code* after *before*, dying after ever more steps, and check each time; returns the number of steps."""
        for steps in range(200):
            subprocess.run(["rm", "-rf", host.root, host.srv], check=True)
            host.srv.mkdir()
            driver = Driver.open(Settings.read(host.environ), create=True)
            exec(before, {"driver": driver, "soon": soon, "host": host})  # noqa: S102  # the test's own words
            done = subprocess.run(
                [sys.executable, "-c", self.SCRIPT, str(steps), code],
                cwd=REPOSITORY,
                env=host.process_environ(),
                check=False,
            )
            driver = Driver.open(Settings.read(host.environ), create=True)
            driver.store.sweep()
            check(driver, done.returncode == 0)
            if done.returncode == 0:
                return steps
            assert done.returncode == 9
        raise AssertionError("it never ended")

    def test_create(self, host: Host) -> None:
        """A Create that dies leaves a whole volume or none; the repeated Create succeeds."""

        def check(driver: Driver, finished: bool) -> None:  # noqa: FBT001
            names = [name for name, _ in driver.volumes()]
            assert names == ["mongo"] or (names == [] and not finished)
            assert host.left_in_volumes() == names
            if names:
                assert driver.get("mongo")["Status"]["ready"] is True
            driver.create("mongo", {"uid": "184", "mode": "0750"}, soon())
            assert owner(host.data("mongo")) == (184, 0)

        code = "driver.create('mongo', {'uid': '184', 'mode': '0750'}, time.monotonic() + 9)"
        assert self.crash_at_every_step(host, code, "", check) > 5

    def test_create_by_path(self, host: Host) -> None:
        """A Create by path that dies leaves no directory of its own behind, and never touches an adopted one's data."""

        def check(driver: Driver, finished: bool) -> None:  # noqa: FBT001
            names = [name for name, _ in driver.volumes()]
            assert names == ["mongo"] or (names == [] and not finished)
            assert os.listdir(host.srv) == (["db"] if names else [])
            driver.create("mongo", {"uid": "184", "path": f"{host.srv}/db"}, soon())
            assert owner(host.srv / "db") == (184, 0)

        code = f"driver.create('mongo', {{'uid': '184', 'path': '{host.srv}/db'}}, time.monotonic() + 9)"
        assert self.crash_at_every_step(host, code, "", check) > 5

    def test_remove(self, host: Host) -> None:
        """A Remove that dies leaves the volume or the trash entry, with the data."""

        def check(driver: Driver, finished: bool) -> None:  # noqa: FBT001
            live, trash = [name for name, _ in driver.volumes()], host.trash()
            assert (live == ["mongo"] and not trash and not finished) or (live == [] and len(trash) == 1)
            driver.remove("mongo", soon())
            driver.restore("mongo", entry=None, new_name=None, deadline=soon())
            assert (host.data("mongo") / "file").exists()

        before = "driver.create('mongo', {}, soon()); (host.data('mongo') / 'file').touch()"
        assert self.crash_at_every_step(host, "driver.remove('mongo', time.monotonic() + 9)", before, check) > 2

    def test_retain_and_take_up(self, host: Host) -> None:
        """Retaining and taking up that die leave the volume live or retained, with the data."""

        def check(driver: Driver, finished: bool) -> None:  # noqa: FBT001
            live = [name for name, _ in driver.volumes()]
            assert len(live) + len(driver.retained_volumes()) == 1
            driver.create("mongo", {}, soon())
            assert (host.data("mongo") / "file").exists()
            assert driver.get("mongo")["Status"]["options"]["on_remove"] == "retain"

        made = "driver.create('mongo', {'on_remove': 'retain'}, soon()); (host.data('mongo') / 'file').touch()"
        assert self.crash_at_every_step(host, "driver.remove('mongo', time.monotonic() + 9)", made, check) > 2
        removed = made + "; driver.remove('mongo', soon())"
        code = "driver.create('mongo', {'uid': '184'}, time.monotonic() + 9)"
        assert self.crash_at_every_step(host, code, removed, check) > 2

    def test_apply(self, host: Host) -> None:
        """An apply that dies leaves the old options or the new ones."""

        def check(driver: Driver, finished: bool) -> None:  # noqa: FBT001
            uid = driver.get("mongo")["Status"]["options"]["uid"]
            assert uid == "185" or (uid == "184" and not finished)

        before = "driver.create('mongo', {'uid': '184'}, soon())"
        code = "driver.change('mongo', {'uid': '185'}, (), time.monotonic() + 9)"
        assert self.crash_at_every_step(host, code, before, check) > 2


def test_what_is_promised_is_synced(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create and Remove answer only after the record, and then the directories of the rename, are on disk."""
    steps: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append("sync " + os.readlink(f"/proc/self/fd/{fd}")), sync(fd))[1]
    )
    monkeypatch.setattr(os, "rename", lambda *a, **k: (steps.append("rename"), rename(*a, **k))[1])
    driver.create("mongo", {}, soon())
    assert steps.index("rename") > next(i for i, step in enumerate(steps) if step.endswith("volume.json"))
    assert any(step.endswith("/volumes") for step in steps[steps.index("rename") :])
    steps.clear()
    driver.remove("mongo", soon())
    after = steps[steps.index("rename") :]
    assert [any(step.endswith(f"/{part}") for step in after) for part in ("trash", "volumes")] == [True, True]


def test_locks_leave_nothing_behind(driver: Driver, host: Host) -> None:
    """However many volumes there were, locks/ has one file."""
    for number in range(5):
        driver.create(f"v{number}", {}, soon())
        driver.remove(f"v{number}", soon())
    assert os.listdir(host.root / "locks") == ["held"]


def test_temporary_names(driver: Driver) -> None:
    """No name that hostprep makes for itself can be a volume's."""
    with pytest.raises(Invalid):
        check_name(fds.temporary_name())
