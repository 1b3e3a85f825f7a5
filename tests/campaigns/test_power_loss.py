"""The power is cut before and after every step of every verb: what was answered is there, and all goes on.

On real file systems in images of their own, of which at each step a copy is made: what is on the disk at that moment,
and nothing of what only memory has. In a run that is called quiet nothing is written but what hostprep syncs. In one
that is busy somebody else syncs a file before each step, with which a journal writes every change of names until then,
but not the contents of files. `make crash` has all of it on ext4, XFS and btrfs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.volumes.driver import Driver
from hostprep.volumes.volume import MARK
from tests.support import steps
from tests.support.disks import KINDS, Disk, sync
from tests.support.host import Host, eventually, mounted, soon
from tests.support.trees import make_tree, owners
from tests.support.trial import FULL
from tests.support.verbs import CASES, Case, engine, goes_on, is_sound, look, opened, run

pytestmark = pytest.mark.root
MODES = ("quiet", "busy")
# In a short run: ext4 for all, and btrfs, which takes its time, where something was found on it once.
_BTRFS = ("create", "create in no root", "apply")
_SHORT = {case: [("quiet", "ext4"), *([("busy", "btrfs")] if case.name in _BTRFS else [])] for case in CASES}


@pytest.fixture
def images(nothing_left: None, tmp_path: Path) -> Iterator[Path]:
    images = tmp_path / "images"
    images.mkdir()
    with mounted("-t", "tmpfs", "none", str(images)):
        yield images


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    return place


def host_at(place: Path, run_dir: Path) -> Host:
    place.chmod(0o755)
    host = Host(place, run_dir)
    host.environ["HOSTPREP_SELINUX"] = "force"
    return host


@pytest.mark.parametrize(
    ("case", "mode", "kind"),
    [(case, mode, kind) for case in CASES for mode in MODES for kind in KINDS if FULL or (mode, kind) in _SHORT[case]],
    ids=str,
)
def test_at_every_step(case: Case, mode: str, kind: str, images: Path, place: Path, run_dir: Path) -> None:
    """Whenever the power is cut: the old state or the new, and the same again ends it; what was answered is there."""
    disk = Disk(images, kind)
    copies: dict[Path, str] = {}
    with disk.mounted(place):
        host = host_at(place, run_dir)
        case.arrange(host)
        sync(place)
        before = look(host, fine=False)
        with (place / "bystander").open("wb", buffering=0) as bystander:

            def at(step: steps.Step) -> int:
                if mode == "busy":
                    bystander.write(b"x")
                    os.fsync(bystander.fileno())
                copies.setdefault(disk.copy(), f"before {step}")
                return steps.GO

            ended, said = run(case, host, at)
        assert ended.code == 0, said
        last = disk.copy()
        after, answered = look(host, fine=False), look(host, fine=True)
        goes_on(host, engine(opened(host)))
        finely = look(host, fine=True)
    for copy, moment in {**copies, last: "after it was answered"}.items():
        with disk.mounted(place, copy):
            try:
                if copy == last:
                    assert look(host, fine=False) == after
                    if not case.repairs:
                        assert look(host, fine=True) == answered
                driver = opened(host)
                driver.store.remove_leftovers()
                docker = engine(driver)
                is_sound(host, docker, case, before, after)
                done = look(host, fine=False) == after
                ended, said = run(case, host)
                assert ended.code == 0 or (done and case.refused and case.refused in said), said
                goes_on(host, docker)
                if not case.kept:
                    opened(host).purge([])
                assert look(host, fine=True) == finely
            except BaseException as exc:
                exc.add_note(f"the power was cut {moment}")
                raise


@pytest.mark.thorough
@pytest.mark.parametrize("case", [case for case in CASES if not case.walks and not case.repairs], ids=str)
def test_answered_when_asked_again(case: Case, images: Path, place: Path, run_dir: Path) -> None:
    """What was killed and is then asked for again, is on disk when it is answered, though there was nothing to do."""
    disk = Disk(images)
    with disk.mounted(place):
        host = host_at(place, run_dir)
        case.arrange(host)
    base = disk.copy()
    with disk.mounted(place):
        ended, said = run(case, host)
        assert ended.code == 0, said
        after = look(host, fine=False)
    for number in [step.number for step in ended.steps if step.syncs or FULL]:
        disk.put_back(base)
        with disk.mounted(place):
            died, _ = run(case, host, steps.only(steps.KILL, number))
            again, said = run(case, host)
            if again.code:
                assert case.refused
                assert case.refused in said
                continue
            copy = disk.copy()
        with disk.mounted(place, copy):
            if not case.kept:
                opened(host).purge([])
            assert look(host, fine=False) == after, f"killed before {died.steps[-1]}"


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_repair_on_another_disk(kind: str, images: Path, driver: Driver, host: Host) -> None:
    """Where the data is on another disk than the mark, the owners of a repair are on it when the mark is gone.

    The volume's root is right from the beginning, and was read lately, so that it does not change with them.
    """
    disk, place = Disk(images, kind), host.srv / "disk"
    place.mkdir()

    def was_read() -> bool:
        os.listdir(place / "db")
        st = os.stat(place / "db")
        return st.st_atime_ns > st.st_ctime_ns

    with disk.mounted(place):
        make_tree(place, "dir db", "dir db/conf", "file db/conf/a", "file db/b")
        os.chown(place / "db", 184, 998)
        driver.create("mongo", {"uid": "184", "gid": "998", "path": f"{place}/db"}, soon())
        driver.mount("mongo", soon())
        eventually(was_read, "its time of access is later")
        sync(place)
        driver.repair("mongo")
        assert not (host.volume("mongo") / MARK).exists()
        cut = disk.copy()
        driver.remove("mongo", soon())
    with disk.mounted(place, cut):
        assert set(owners(place / "db").values()) == {(184, 998)}
