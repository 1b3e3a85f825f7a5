"""repair: everything in a volume gets its owner and label now, whatever recurse says."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hostprep.errors import Conflict, HostprepError, NoSuchVolume, NotReady
from hostprep.tree.process import Progress
from hostprep.tree.walk import Outcome
from hostprep.volumes.driver import Driver
from hostprep.volumes.readiness import Readiness, Repaired
from hostprep.volumes.volume import MARK, LockedVolume
from tests.support.fixtures import Gate, OpenDriver
from tests.support.host import LABEL, Host, catch_pass, eventually, label, owner, set_label, soon
from tests.support.trees import make_tree, many, owners

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
RIGHT = (184, 998)
RECURSE = ["never", "mismatch", "always"]


def contents(data: Path) -> set[tuple[int, int]]:
    return set(owners(data).values())


def state(host: Host) -> dict[str, int]:
    """When everything below the root and in a path was last changed."""
    return {str(each): os.lstat(each).st_ctime_ns for top in (host.root, host.srv) for each in top.rglob("*")}


class InAThread:
    """A repair that this process waits for elsewhere."""

    def __init__(self, driver: Driver) -> None:
        self.done: Repaired | HostprepError | None = None
        self.seen: list[Progress] = []
        self._thread = threading.Thread(target=self._run, args=(driver,))
        self._thread.start()

    def _run(self, driver: Driver) -> None:
        try:
            self.done = driver.repair("mongo", report=self.seen.append)
        except HostprepError as exc:
            self.done = exc

    def ended(self) -> Repaired | HostprepError | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.done


@pytest.fixture
def data(driver: Driver, host: Host) -> Path:
    """The directory of a volume that is right, and then gets files of root's."""
    driver.create("mongo", MONGO, soon())
    driver.mount("mongo", soon())
    make_tree(host.data("mongo"), "file own 184:998", "dir conf", "file conf/main", "symlink link nowhere")
    return host.data("mongo")


@pytest.mark.parametrize("recurse", RECURSE)
@pytest.mark.parametrize("path", [False, True])
def test_below_a_right_root(driver: Driver, host: Host, recurse: str, path: bool) -> None:  # noqa: FBT001
    """What root has put below a right root is mended, whatever recurse says, and recurse stays what it was."""
    place = host.srv / "db" if path else host.data("mongo")
    driver.create("mongo", {**MONGO, "recurse": recurse, **({"path": str(place)} if path else {})}, soon())
    driver.mount("mongo", soon())
    make_tree(place, "dir conf", "file conf/main", "symlink link nowhere")
    assert driver.repair("mongo") == Repaired([], Outcome(done=3, changed=3))
    assert contents(place) == {RIGHT}
    status = driver.get("mongo")["Status"]
    assert (status["ready"], status["warnings"], status["options"]["recurse"]) == (True, [], recurse)
    assert not (host.volume("mongo") / MARK).exists()


def test_the_root_and_labels(driver: Driver, data: Path) -> None:
    """The root becomes right, too, and everything gets the declared label."""
    driver.apply("mongo", {"label": "container_file_t", "mode": "0750", "recurse": "never"}, (), soon())
    set_label(data, "a_u:b_r:c_t:s0")
    done = driver.repair("mongo")
    assert [str(change) for change in done.changes] == [f"label a_u:b_r:c_t:s0 -> {LABEL}", "mode 0755 -> 0750"]
    assert {label(data / name) for name in ("", "own", "conf/main", "link")} == {LABEL}


@pytest.mark.parametrize("recurse", RECURSE)
def test_a_dry_run(driver: Driver, data: Path, host: Host, recurse: str) -> None:
    """A dry run says how much would be changed, and the first of it, and writes nothing at all."""
    driver.apply("mongo", {"recurse": recurse}, (), soon())
    os.chown(data, 0, 0)
    before = state(host)
    done = driver.repair("mongo", dry_run=True)
    assert [str(change) for change in done.changes] == ["owner 0:0 -> 184:998"]
    assert (done.tree.done, done.tree.changed, done.tree.left) == (4, 3, 0)
    assert sorted(done.tree.planned) == ["conf/main: owner 0:0", "conf: owner 0:0", "link: owner 0:0"]
    assert state(host) == before


def test_a_dry_run_of_a_path_in_a_home(driver: Driver, host: Host) -> None:
    """A dry run of a path that others could redirect notes nothing either."""
    make_tree(host.srv, "dir home 1000:1000", "dir home/db 184:998", "file home/db/a", "link home/db/b home/db/a")
    driver.create("mongo", {**MONGO, "path": f"{host.srv}/home/db"}, soon())
    before = state(host)
    done = driver.repair("mongo", dry_run=True)
    assert (done.tree.changed, done.tree.left, done.tree.planned) == (0, 2, [])
    assert state(host) == before


def test_nothing_declared(driver: Driver, host: Host) -> None:
    """Where nothing is declared that contents follow, it is refused, and leaves nothing."""
    driver.create("mongo", {"mode": "0750", "label": "none"}, soon())
    before = state(host)
    for dry_run in (False, True):
        with pytest.raises(Conflict, match="declares no owner and no label"):
            driver.repair("mongo", dry_run=dry_run)
    assert state(host) == before


def test_retained(driver: Driver, host: Host) -> None:
    """Of a name whose data is retained it says so."""
    driver.create("mongo", {**MONGO, "on_remove": "retain"}, soon())
    driver.remove("mongo", soon())
    with pytest.raises(NoSuchVolume, match="retained .* hostprep create mongo takes it up again"):
        driver.repair("mongo")


def _puts_files_behind(readiness: Readiness, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the next pass that *readiness* begins ends, somebody gives *file* away, which the pass has been at."""
    finish = readiness._finish
    given: list[Path] = []

    def then(volume: LockedVolume, data: int, outcome: Outcome, below: str, *, early: bool) -> object:
        if not given:
            os.chown(file, 0, 0)
            given.append(file)
        return finish(volume, data, outcome, below, early=early)

    monkeypatch.setattr(readiness, "_finish", then)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_pass_that_runs_already(
    driver: Driver,
    data: Path,
    open_driver: OpenDriver,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool,  # noqa: FBT001
) -> None:
    """A pass that runs already, in this process or another, is waited for: it may have been past what is wrong."""
    os.chown(data, 0, 0)
    _puts_files_behind(driver.readiness, data / "own", monkeypatch)
    with suppress(HostprepError):
        driver.mount("mongo", soon(0.1))
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    repair = InAThread(open_driver(HOSTPREP_SELINUX="force") if elsewhere else driver)
    gate.open()
    assert isinstance(repair.ended(), Repaired)
    assert contents(data) == {RIGHT}


def test_other_options_meanwhile(driver: Driver, data: Path, open_driver: OpenDriver, gate: Gate) -> None:
    """Where another process changes the options meanwhile, everything gets what is declared at the end."""
    repair = InAThread(driver)
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    open_driver(HOSTPREP_SELINUX="force").apply("mongo", {"uid": "185"}, (), soon())
    gate.open()
    assert isinstance(repair.ended(), Repaired)
    assert contents(data) == {owner(data)} == {(185, 998)}


def test_removed_meanwhile(driver: Driver, data: Path, open_driver: OpenDriver, gate: Gate) -> None:
    """Where another process removes the volume meanwhile, it ends, and says that there is none."""
    repair = InAThread(driver)
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    open_driver(HOSTPREP_SELINUX="force").remove("mongo", soon())
    gate.open()
    assert isinstance(repair.ended(), NoSuchVolume)


def test_during_a_copy_up(driver: Driver, host: Host) -> None:
    """While an engine may still be copying, the mark stays until that is over."""
    driver.create("mongo", MONGO, soon())
    driver.mount("mongo", soon(), mount="a" * 64)
    make_tree(host.data("mongo"), "file a 55:66")
    driver.repair("mongo")
    assert contents(host.data("mongo")) == {RIGHT}
    assert driver.get("mongo")["Status"]["ready"] is False
    make_tree(host.data("mongo"), "file b 55:66")
    driver.unmount("mongo", soon(), mount="a" * 64)
    assert contents(host.data("mongo")) == {RIGHT}
    assert driver.get("mongo")["Status"]["ready"] is True


def test_never_while_a_container_runs(driver: Driver, host: Host) -> None:
    """With recurse=never a repair is over when it has ended, though the Mount of a container is not."""
    driver.create("mongo", {**MONGO, "recurse": "never"}, soon())
    driver.mount("mongo", soon(), mount="a" * 64)
    make_tree(host.data("mongo"), "file a 55:66")
    driver.repair("mongo")
    assert contents(host.data("mongo")) == {RIGHT}
    assert driver.get("mongo")["Status"]["warnings"] == []
    assert not (host.volume("mongo") / MARK).exists()


def test_one_that_fails(driver: Driver, data: Path, host: Host, gate: Gate) -> None:
    """A pass that is killed is told, and its mark stays."""
    repair = InAThread(driver)
    eventually(lambda: len(gate.waiting()) == 1, "it runs")
    os.kill(gate.waiting()[0], signal.SIGKILL)
    assert isinstance(repair.ended(), NotReady)
    assert (host.volume("mongo") / MARK).exists()


class TestKilled:
    """The command and its pass are killed in the middle."""

    @pytest.fixture
    def killed(self, driver: Driver, host: Host) -> Callable[[str], Path]:
        def kill(recurse: str) -> Path:
            """The directory of a volume with that *recurse*, of whose contents a repair has mended some."""
            driver.create("mongo", {**MONGO, "recurse": recurse}, soon())
            data = host.data("mongo")
            many(data, 20_000)
            some = [next(directory.iterdir()) for directory in data.iterdir()]
            command = host.begin("repair", "mongo")
            child = catch_pass(command.pid)
            os.kill(child, signal.SIGCONT)
            eventually(lambda: any(owner(each) == RIGHT for each in some), "the first entries are changed", pause=0)
            for pid in (command.pid, child):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            command.wait(60)
            eventually(lambda: not driver.passes.runs_elsewhere("mongo"), "what it had started is gone")
            assert contents(data) == {RIGHT, (0, 0)}, "it was killed in the middle"
            return data

        return kill

    @pytest.mark.parametrize("recurse", ["mismatch", "always"])
    def test_taken_up_again(self, driver: Driver, host: Host, killed: Callable[[str], Path], recurse: str) -> None:
        """The volume is not ready, and the next Mount completes the repair."""
        data = killed(recurse)
        status = driver.get("mongo")["Status"]
        assert (status["ready"], status["drift"]) == (False, [])
        driver.mount("mongo", soon())
        assert contents(data) == {RIGHT}
        assert driver.get("mongo")["Status"]["ready"] is True

    def test_never(self, driver: Driver, host: Host, killed: Callable[[str], Path]) -> None:
        """With recurse=never no Mount goes over the contents: Status says that the repair has not ended, until one has.

        The root is all that a Mount looks at, so the volume is ready.
        """
        data = killed("never")
        unended = (
            "a pass over its contents has not ended, so some may have another owner or label still; "
            "to complete it: hostprep repair mongo"
        )
        for _ in range(2):
            status = driver.get("mongo")["Status"]
            assert (status["ready"], status["drift"], status["warnings"]) == (True, [], [unended])
            os.chown(data, 0, 0)
            driver.mount("mongo", soon())
            driver.unmount("mongo", soon())
            assert (owner(data), contents(data)) == (RIGHT, {RIGHT, (0, 0)})
        driver.repair("mongo")
        assert contents(data) == {RIGHT}
        assert driver.get("mongo")["Status"]["warnings"] == []
        assert not (host.volume("mongo") / MARK).exists()

    def test_never_and_then_otherwise(self, driver: Driver, killed: Callable[[str], Path]) -> None:
        """When recurse allows it again, the next Mount completes the repair."""
        data = killed("never")
        driver.apply("mongo", {}, ("recurse",), soon())
        assert driver.get("mongo")["Status"]["ready"] is False
        driver.mount("mongo", soon())
        assert contents(data) == {RIGHT}


@pytest.mark.parametrize("recurse", ["never", "mismatch"])
def test_beside_a_server(host: Host, recurse: str) -> None:
    """A command repairs a volume that a server serves: that shows how far it is, and a Mount waits where it has to."""
    server = host.serve(HOSTPREP_PATIENCE="1s")
    assert server("Create", Name="mongo", Opts={**MONGO, "recurse": recurse}).status == 200
    many(host.data("mongo"), 100)

    def status() -> dict[str, object]:
        found = server("Get", Name="mongo").body["Volume"]["Status"]
        assert isinstance(found, dict)
        return found

    assert status()["warnings"] == [
        "1 of the first 1 entries belong to others than 184:998; if that is not meant: hostprep repair mongo"
    ]
    command = host.begin("repair", "mongo")
    child = catch_pass(command.pid)
    try:
        found = status()
        assert (found["ready"], "progress" in found, found["warnings"]) == (recurse == "never", True, [])
        assert server("Mount", Name="mongo").status == (200 if recurse == "never" else 503)
    finally:
        os.kill(child, signal.SIGCONT)
    out, _ = command.communicate(timeout=60)
    assert (command.returncode, out) == (0, "mongo: changed 101 of 101 entries below it\n")
    assert server("Mount", Name="mongo").status == 200
    eventually(lambda: "progress" not in status(), "the server's own pass has seen that there is nothing left to do")
    found = status()
    assert (found["ready"], found["warnings"]) == (True, [])
    assert contents(host.data("mongo")) == {RIGHT}
