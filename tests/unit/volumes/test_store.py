"""Volumes on disk: what interrupted steps leave, and what is synced."""

from __future__ import annotations

import json
import os

import pytest

from hostprep.errors import Invalid
from hostprep.host import fds
from hostprep.options import check_name
from hostprep.volumes.declaration import Declaration
from hostprep.volumes.driver import Driver
from hostprep.volumes.record import Record, rfc3339
from tests.support.fixtures import OpenDriver
from tests.support.host import Host, soon
from tests.support.trees import make_tree

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
        driver.store.remove_leftovers()
        assert host.left_in_volumes() == ["mongo"]

    def test_data_is_never_swept(self, driver: Driver, host: Host) -> None:
        """A `_data` that holds anything stays, whatever else does."""
        make_tree(
            host.root / "volumes",
            "dir .new-1/_data",
            "file .new-1/_data/precious 0:0 600 text",
            "file .new-1/volume.json",
        )
        driver.store.remove_leftovers()
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
        driver.store.remove_leftovers()
        assert sorted(os.listdir(host.srv)) == ["adopted", "filled"]
        assert host.left_in_volumes() == []

    def test_while_another_process_works(self, driver: Driver, open_driver: OpenDriver, host: Host) -> None:
        """While a step is under way, of another process too, nothing is swept."""
        name = check_name("mongo")
        record = Record(name, Declaration(), rfc3339())
        with driver.store.name_lock(name, soon()) as locked, locked.new(record, soon()) as new:
            new.write_record()
            open_driver().store.remove_leftovers()
            (temporary,) = host.left_in_volumes()
            assert os.listdir(host.volume(temporary)) == ["volume.json"]
        assert host.left_in_volumes() == []

    def test_while_a_record_is_replaced(
        self, driver: Driver, open_driver: OpenDriver, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that starts while another process replaces a record does not take its temporary file away."""
        driver.create("mongo", {}, soon())
        other, rename = open_driver(), os.rename

        def sweep_first(*names: str, src_dir_fd: int, dst_dir_fd: int) -> None:
            other.store.remove_leftovers()
            rename(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        monkeypatch.setattr(os, "rename", sweep_first)
        driver.apply("mongo", {"uid": "184"}, (), soon())
        assert driver.get("mongo")["Status"]["options"] == {"uid": "184"}

    def test_a_symlink_among_them(self, driver: Driver, host: Host) -> None:
        """A link is removed, and where it leads is not reached."""
        make_tree(host.srv, "dir a", "file a/volume.json")
        (host.root / "volumes" / ".new-1").symlink_to(host.srv / "a")
        driver.store.remove_leftovers()
        assert os.listdir(host.srv / "a") == ["volume.json"]
        assert host.left_in_volumes() == []


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
