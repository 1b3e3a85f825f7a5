"""Making a volume right: its root at once, its contents by a pass first, and who waits for that how long."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from hostprep.errors import Busy
from hostprep.host import linux
from hostprep.serve.wire import create_app
from hostprep.tree import plan as planning
from hostprep.volumes.driver import Driver
from tests.support.fixtures import Gate, OpenDriver
from tests.support.host import (
    LABEL,
    PYTHON,
    REPOSITORY,
    Docker,
    Host,
    eventually,
    label,
    mode,
    owner,
    set_label,
    soon,
    wait_for_passes,
)
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}


_KILLED_AT = """
import os, sys, time
from hostprep.host import linux
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

for module, name in ((os, "fchmod"), (linux, "fchown"), (plan, "write_label"), (driver.store, "write")):
    dies(module, name)
driver.mount("mongo", time.monotonic() + 30)
print(left)
"""


class TestUndeclaredMode:
    """Where owner and label both change the directory is closed meanwhile, and no crash loses its mode."""

    OPTIONS: ClassVar = {**MONGO, "label": "container_file_t"}

    @pytest.fixture(params=["mismatch", "never"])
    def volume(self, request: pytest.FixtureRequest, driver: Driver, host: Host) -> Path:
        """The directory of a volume whose owner and label have become others."""
        driver.create("mongo", {**self.OPTIONS, "recurse": request.param}, soon())
        data = host.data("mongo")
        os.chown(data, 55, 66)
        os.chmod(data, 0o2771)
        set_label(data, "a_u:b_r:c_t:s0")
        return data

    def test_closed_meanwhile(self, driver: Driver, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the new owner is there and the old label still is, nobody but root gets in."""
        seen: list[tuple[tuple[int, int], str | None, str]] = []

        def noting(module: object, name: str) -> None:
            call = getattr(module, name)

            def noted(*args: object) -> None:
                call(*args)
                seen.append((owner(volume), label(volume), mode(volume)))

            monkeypatch.setattr(module, name, noted)

        noting(linux, "fchown")
        noting(planning, "write_label")
        driver.mount("mongo", soon())
        assert seen == [((184, 998), "a_u:b_r:c_t:s0", "0000"), ((184, 998), LABEL, "0000")]
        assert (owner(volume), label(volume), mode(volume)) == ((184, 998), LABEL, "2771")
        assert b"narrowed" not in (volume.parent / "volume.json").read_bytes()

    def test_killed_at_each_step(self, driver: Driver, host: Host, volume: Path) -> None:
        """SIGKILL before any step leaves a volume that the next Mount makes right, with the mode that it had."""
        environ = {**os.environ, **host.environ, "HOSTPREP_SELINUX": "force", "PYTHONPATH": str(REPOSITORY / "plugin")}
        for step in range(1, 20):
            argv = [PYTHON, "-c", _KILLED_AT, str(step)]
            done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            driver.mount("mongo", soon())
            assert (owner(volume), label(volume), mode(volume)) == ((184, 998), LABEL, "2771"), f"step {step}"
            assert driver.get("mongo")["Status"]["ready"]
            os.chown(volume, 55, 66)
            os.chmod(volume, 0o2771)
            set_label(volume, "a_u:b_r:c_t:s0")
        assert step > 6

    def test_status_meanwhile(self, driver: Driver, host: Host, volume: Path) -> None:
        """Until the mode is back the volume is not ready, and Status says what is missing."""
        environ = {**os.environ, **host.environ, "HOSTPREP_SELINUX": "force", "PYTHONPATH": str(REPOSITORY / "plugin")}
        for step in range(1, 20):
            subprocess.run([PYTHON, "-c", _KILLED_AT, str(step)], env=environ, timeout=60, check=False)
            if mode(volume) == "0000":
                break
        status = driver.get("mongo")["Status"]
        assert not status["ready"]
        assert "mode is 0000, declared 02771" in status["drift"]


class TestRepair:
    def test_it_is_logged(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """Each repair is logged with old and new values."""
        driver.create("mongo", {**MONGO, "mode": "0750", "label": "container_file_t"}, soon())
        os.chown(host.data("mongo"), 55, 66)
        os.chmod(host.data("mongo"), 0o777)
        set_label(host.data("mongo"), "a_u:b_r:c_t:s0")
        with caplog.at_level(logging.INFO, "hostprep"):
            driver.mount("mongo", soon())
        wait_for_passes(driver, "mongo")
        lines = [record.getMessage() for record in caplog.records]
        for text in ("owner 55:66 -> 184:998", f"label a_u:b_r:c_t:s0 -> {LABEL}", "mode 0777 -> 0750"):
            assert any("mongo" in line and text in line for line in lines), lines

    def test_a_mount_with_nothing_to_do(self, driver: Driver, host: Host, caplog: pytest.LogCaptureFixture) -> None:
        """A Mount of a volume that is right looks, and changes and logs nothing."""
        driver.create("mongo", {**MONGO, "mode": "0750", "label": "container_file_t"}, soon())
        make_tree(host.data("mongo"), "file foreign 1:1")
        before = os.stat(host.data("mongo")).st_ctime_ns
        with caplog.at_level(logging.INFO, "hostprep"):
            for _ in range(3):
                driver.mount("mongo", soon())
                driver.unmount("mongo", soon())
        assert os.stat(host.data("mongo")).st_ctime_ns == before
        assert [record for record in caplog.records if "repaired" in record.getMessage()] == []
        assert owner(host.data("mongo") / "foreign") == (1, 1)

    def test_copy_up(self, driver: Driver, host: Host) -> None:
        """What copy-up does to root and contents is right again at Unmount and Mount."""
        driver.create("mongo", MONGO, soon())
        driver.mount("mongo", soon())
        make_tree(host.data("mongo"), "dir conf 55:66 755", "file conf/main 55:66 644", "symlink link /etc")
        os.chown(host.data("mongo"), 0, 0)
        driver.unmount("mongo", soon())
        assert owner(host.data("mongo")) == (184, 998)
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}

    def test_a_volume_of_its_own_takes_no_other_down(self, driver: Driver, host: Host) -> None:
        """A directory that cannot be repaired fails its own Mount, in words."""
        driver.create("mongo", MONGO, soon())
        os.chown(host.data("mongo"), 0, 0)
        subprocess.run(["chattr", "+i", host.data("mongo")], check=True)
        try:
            answer = Docker(create_app(driver).test_client()).mount("mongo")
        finally:
            subprocess.run(["chattr", "-i", host.data("mongo")], check=True)
        assert answer.status == 500
        assert "Operation not permitted" in answer.error
        assert driver.mount("mongo", soon()) == str(host.data("mongo"))
        assert owner(host.data("mongo")) == (184, 998)


class TestRecurse:
    @pytest.fixture
    def data(self, driver: Driver, host: Host) -> Iterator[Path]:
        """A volume with contents of 55:66, whose root differs too."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "dir a 55:66", "file a/b 55:66", "file c 55:66")
        os.chown(host.data("mongo"), 55, 66)
        yield host.data("mongo")

    def test_never(self, driver: Driver, data: Path) -> None:
        """never: the root only."""
        driver.apply("mongo", {"recurse": "never"}, (), soon())
        driver.mount("mongo", soon())
        assert owner(data) == (184, 998)
        assert set(owners(data).values()) == {(55, 66)}

    def test_mismatch(self, driver: Driver, data: Path) -> None:
        """mismatch: the whole tree when the root differs, nothing when it does not."""
        driver.mount("mongo", soon())
        assert set(owners(data).values()) == {(184, 998)}
        os.chown(data / "c", 1, 1)
        driver.mount("mongo", soon())
        assert owner(data / "c") == (1, 1)

    @pytest.mark.parametrize("what", ["uid", "gid", "label", "mode"])
    def test_what_is_a_mismatch(self, driver: Driver, data: Path, what: str) -> None:
        """A uid, gid or label of the root that differs makes the tree follow; a mode does not."""
        driver.apply("mongo", {"label": "container_file_t", "mode": "0755"}, (), soon())
        driver.mount("mongo", soon())
        os.chown(data / "c", 1, 1)
        if what == "label":
            set_label(data, "a_u:b_r:c_t:s0")
        elif what == "mode":
            os.chmod(data, 0o700)
        else:
            os.chown(data, *((1, 998) if what == "uid" else (184, 1)))
        driver.mount("mongo", soon())
        assert owner(data / "c") == ((1, 1) if what == "mode" else (184, 998))
        assert (owner(data), mode(data), label(data)) == ((184, 998), "0755", LABEL)

    def test_always(self, driver: Driver, data: Path) -> None:
        """always: every entry at each Mount."""
        driver.apply("mongo", {"recurse": "always"}, (), soon())
        for _ in range(3):
            os.chown(data / "c", 1, 1)
            driver.mount("mongo", soon())
            assert set(owners(data).values()) == {(184, 998)}

    def test_labels_follow(self, driver: Driver, data: Path) -> None:
        """The label of the contents follows the root's, without an owner too."""
        driver.apply("mongo", {"label": "container_file_t"}, ("uid", "gid"), soon())
        driver.mount("mongo", soon())
        assert {label(data / name) for name in ("a", "a/b", "c")} == {LABEL}
        assert set(owners(data).values()) == {(55, 66)}

    def test_the_mark_comes_first_and_the_root_last(
        self, driver: Driver, data: Path, host: Host, monkeypatch: pytest.MonkeyPatch, gate: Gate
    ) -> None:
        """First the mark is on disk; the root is right only when its contents are; then the mark goes."""
        mark, seen, chown = host.volume("mongo") / "pass.json", [], linux.fchown
        monkeypatch.setattr(
            linux, "fchown", lambda *ids: (seen.append((mark.exists(), set(owners(data).values()))), chown(*ids))[1]
        )
        with pytest.raises(Busy):
            driver.mount("mongo", soon(0.3))
        assert mark.exists()
        assert (owner(data), set(owners(data).values())) == ((55, 66), {(55, 66)})
        gate.open()
        driver.mount("mongo", soon())
        assert seen == [(True, {(184, 998)})]
        assert owner(data) == (184, 998)
        assert not mark.exists()

    def test_a_pass_that_was_killed(self, driver: Driver, data: Path, host: Host) -> None:
        """Killed in the middle, a pass leaves its mark, and the next Mount completes it though the root is right."""
        (host.volume("mongo") / "pass.json").write_text("{}")
        os.chown(data, 184, 998)
        status = driver.get("mongo")["Status"]
        assert (status["ready"], status["drift"]) == (False, [])
        driver.mount("mongo", soon())
        assert set(owners(data).values()) == {(184, 998)}
        assert driver.get("mongo")["Status"]["ready"] is True

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "null",
            "[]",
            '{"done": "many"}',
            '{"done": -1, "rate": null}',
            '{"colour": 1}',
            "\0",
            "9" * 5000,
            '{"done": 1e999}',
        ],
    )
    def test_a_damaged_mark(self, driver: Driver, data: Path, host: Host, text: str) -> None:
        """A mark that cannot be read is a mark: the volume is not ready, and the next Mount completes the pass."""
        (host.volume("mongo") / "pass.json").write_text(text)
        progress = driver.get("mongo")["Status"].get("progress", {"done": 0})
        assert isinstance(progress["done"], int)
        assert driver.get("mongo")["Status"]["ready"] is False
        driver.mount("mongo", soon())
        assert set(owners(data).values()) == {(184, 998)}

    def test_progress_only_while_a_pass_runs(self, driver: Driver, data: Path, host: Host, gate: Gate) -> None:
        """Status has progress only while a pass runs, and then its four numbers."""
        assert "progress" not in driver.get("mongo")["Status"]
        with pytest.raises(Busy):
            driver.mount("mongo", soon(0.3))
        progress = driver.get("mongo")["Status"]["progress"]
        assert set(progress) == {"done", "estimate", "rate", "seconds_left"}
        assert isinstance(progress["done"], int)
        gate.open()
        driver.mount("mongo", soon())
        assert "progress" not in driver.get("mongo")["Status"]
        (host.volume("mongo") / "pass.json").write_text("{}")  # as after a crash
        assert "progress" not in driver.get("mongo")["Status"]

    def test_never_forgets_a_pending_pass(self, driver: Driver, data: Path, host: Host) -> None:
        """With recurse=never an unfinished pass is not gone on with."""
        (host.volume("mongo") / "pass.json").write_text("{}")
        driver.apply("mongo", {"recurse": "never"}, (), soon())
        driver.mount("mongo", soon())
        assert driver.get("mongo")["Status"]["ready"] is True
        assert set(owners(data).values()) == {(55, 66)}

    def test_what_was_left_alone_is_reported(self, driver: Driver, host: Host) -> None:
        """Files with several hard links and device nodes under path are left alone, and are in Status as warnings."""
        make_tree(host.srv, "dir db", "file db/a", "link db/b db/a", "device db/c", "file db/d")
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}, soon())
        warnings = driver.get("mongo")["Status"]["warnings"]
        assert sorted(warnings) == ["a: has 2 hard links", "b: has 2 hard links", "c: is a device node"]
        assert {name for name, ids in owners(host.srv / "db").items() if ids == (184, 998)} == {"d"}

    def test_hard_links_in_its_own_directories_follow(self, driver: Driver, data: Path) -> None:
        """In hostprep's own directories hard links and device nodes follow too."""
        make_tree(data, "link d c", "device e")
        driver.mount("mongo", soon())
        assert set(owners(data).values()) == {(184, 998)}

    def test_deep_names_cannot_damage_the_record(self, driver: Driver, host: Host) -> None:
        """However long the paths of what was left alone, the volume's record stays readable."""
        here = os.open(host.srv, os.O_RDONLY)
        for name in ["db", *["\x01" * 250] * 60]:
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        for number in range(5):
            os.mknod(f"device{number}", 0o20600, os.makedev(1, 3), dir_fd=here)
        os.close(here)
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db", "recurse": "mismatch"}, soon())
        assert driver.get("mongo")["Status"]["ready"] is True
        shutil.rmtree(host.srv / "db")


class TestPatience:
    @pytest.fixture
    def slow(self, open_driver: OpenDriver, host: Host, gate: Gate) -> Docker:
        """A volume whose next Mount begins a pass, which waits at the gate; and a patience of a second."""
        return self.with_patience("1s", open_driver, host)

    @pytest.fixture
    def patient(self, open_driver: OpenDriver, host: Host, gate: Gate) -> Docker:
        """The same with a patience of ten minutes: who is answered earlier has not waited for the pass."""
        return self.with_patience("10m", open_driver, host)

    def with_patience(self, patience: str, open_driver: OpenDriver, host: Host) -> Docker:
        driver = open_driver(HOSTPREP_PATIENCE=patience)
        driver.create("mongo", MONGO, soon())
        driver.create("redis", MONGO, soon())
        make_tree(host.data("mongo"), "file a 55:66", "file b 55:66")
        os.chown(host.data("mongo"), 55, 66)
        return Docker(create_app(driver).test_client())

    def comes_to_an_end(self, docker: Docker, name: str) -> None:
        """The pass behind the gate ends, and then a Mount is answered, however long that takes."""
        eventually(lambda: docker.mount(name).status == 200, "the pass ends")

    def test_a_mount_that_takes_too_long(self, slow: Docker, host: Host, gate: Gate) -> None:
        """Mount answers 503 saying how far the pass is; it goes on, and the next Mount joins it."""
        answer = slow.mount("mongo")
        assert answer.status == 503
        assert "mongo" in answer.error
        assert "entries" in answer.error
        assert "Mountpoint" not in answer.body
        (first,) = gate.waiting()
        assert slow.mount("mongo").status == 503
        assert gate.waiting() == [first]
        gate.open()
        self.comes_to_an_end(slow, "mongo")
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}

    def test_other_volumes_meanwhile(self, patient: Docker, host: Host, gate: Gate) -> None:
        """While a pass runs, other volumes and what only looks are served, and the volume's own Get too."""
        waiting = threading.Thread(target=patient.mount, args=("mongo",))
        waiting.start()
        eventually(lambda: bool(gate.waiting()), "the pass runs")
        patient.mounted("redis")
        patient.created("new", **MONGO)
        assert patient.names() == ["mongo", "new", "redis"]
        assert patient.status("mongo")["ready"] is False
        assert patient("Path", Name="mongo").status == 200
        assert patient.remove("new").status == 200
        assert waiting.is_alive()
        gate.open()
        waiting.join()

    def test_many_waiting_leave_room(self, patient: Docker, gate: Gate) -> None:
        """Sixty Mounts of one slow volume keep no other volume waiting."""
        threads = [threading.Thread(target=patient.mount, args=("mongo",)) for _ in range(60)]
        for thread in threads:
            thread.start()
        patient.mounted("redis")
        assert any(thread.is_alive() for thread in threads)  # those who may wait; the others are told to come back
        gate.open()
        for thread in threads:
            thread.join()

    def test_one_more_than_may_wait(self, driver: Driver, host: Host, gate: Gate) -> None:
        """Where as many wait as may, the next is told at once to come back, and those who wait go on waiting."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        driver.readiness._waiting = threading.BoundedSemaphore(1)
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(driver.mount("mongo", soon(60))))
        waiting.start()
        eventually(lambda: driver.readiness._waiting._value == 0, "the first waits")
        with pytest.raises(Busy, match="preparing mongo"):
            driver.mount("mongo", soon(60))
        assert (answers, waiting.is_alive()) == ([], True)
        gate.open()
        waiting.join()
        assert answers == [str(host.data("mongo"))]

    def test_create_and_unmount_succeed(self, slow: Docker, host: Host, gate: Gate) -> None:
        """Create and Unmount wait for the lesser of the patience and 20 s, and then succeed."""
        assert slow.unmount("mongo").status == 200
        assert gate.waiting()
        make_tree(host.srv, "dir db", "file db/a")
        assert slow.create("path", **MONGO, path=f"{host.srv}/db", recurse="mismatch").status == 200
        assert slow.status("path")["ready"] is False
        assert slow.create("path").status == 200
        gate.open()
        self.comes_to_an_end(slow, "path")
        assert owner(host.srv / "db" / "a") == (184, 998)

    def test_remove_cancels(self, patient: Docker, host: Host, gate: Gate) -> None:
        """Remove ends the pass of its volume, which it does not wait for; the waiting Mount is told that it is gone."""
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(patient.mount("mongo")))
        waiting.start()
        eventually(lambda: bool(gate.waiting()), "the pass runs")
        assert patient.remove("mongo").status == 200
        waiting.join()
        assert answers[0].status in (404, 503)
        eventually(lambda: not gate.waiting(), "the pass has ended, though its gate is closed")
        assert patient.create("mongo").status == 200
        assert patient.mount("mongo").status == 200

    def test_always_comes_to_an_end(self, slow: Docker, host: Host, gate: Gate) -> None:
        """With recurse=always a Mount after a 503 finds the pass done, and does not begin another for ever."""
        slow.created("always", **MONGO, recurse="always")
        assert slow.mount("always").status == 503
        gate.open()
        eventually(lambda: not (host.volume("always") / "pass.json").exists(), "the pass is over")
        gate.close()
        assert slow.mount("always").status == 200
        assert slow.mount("always").status == 503
        gate.open()

    @pytest.mark.parametrize("by", ["this", "another"])
    def test_a_new_volume_of_its_name(
        self, driver: Driver, open_driver: OpenDriver, host: Host, gate: Gate, by: str
    ) -> None:
        """A pass that a Mount gave up waiting for counts for its volume, and not for a new one of the same name."""
        options = {**MONGO, "recurse": "always"}
        driver.create("mongo", options, soon())
        with pytest.raises(Busy):
            driver.mount("mongo", soon(0.3))
        remover = driver if by == "this" else open_driver(HOSTPREP_SELINUX="force")
        remover.remove("mongo", soon())
        remover.create("mongo", options, soon())
        make_tree(host.data("mongo"), "file a 55:66")
        gate.open()
        driver.mount("mongo", soon())
        assert owner(host.data("mongo") / "a") == (184, 998)

    def test_a_new_volume_while_a_mount_waits(
        self, driver: Driver, open_driver: OpenDriver, host: Host, gate: Gate
    ) -> None:
        """A Mount that waited for a pass over a volume which is gone sees the pass over the new one through, too."""
        options, answers = {**MONGO, "recurse": "always"}, []
        driver.create("mongo", options, soon())
        waiting = threading.Thread(target=lambda: answers.append(driver.mount("mongo", soon(60))))
        waiting.start()
        eventually(lambda: bool(gate.waiting()), "the pass is begun")
        other = open_driver(HOSTPREP_SELINUX="force")
        other.remove("mongo", soon())
        other.create("mongo", options, soon())
        make_tree(host.data("mongo"), "file a 55:66")
        gate.open()
        waiting.join()
        assert answers == [str(host.data("mongo"))]
        assert owner(host.data("mongo") / "a") == (184, 998)

    def test_a_failing_pass(self, patient: Docker, host: Host, gate: Gate) -> None:
        """A pass that dies fails the Mount that waits for it, and the next Mount tries again."""
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(patient.mount("mongo")))
        waiting.start()
        eventually(lambda: bool(gate.waiting()), "the pass runs")
        for pid in gate.waiting():
            os.kill(pid, 9)
        waiting.join()
        assert answers[0].status == 500
        assert "could not be prepared" in answers[0].error
        assert (host.volume("mongo") / "pass.json").exists()
        gate.open()
        assert patient.mount("mongo").status == 200
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}

    def test_another_process_has_the_pass(self, slow: Docker, open_driver: OpenDriver, host: Host, gate: Gate) -> None:
        """A pass that another process runs is waited for, not begun a second time."""
        assert slow.mount("mongo").status == 503
        (first,) = gate.waiting()
        other = Docker(create_app(open_driver(HOSTPREP_PATIENCE="1s")).test_client())
        assert other.mount("mongo").status == 503
        assert gate.waiting() == [first]
        gate.open()
        self.comes_to_an_end(other, "mongo")
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}
