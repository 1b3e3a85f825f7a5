"""Plan and repair of a directory, and that nobody gets more on the way than before or after."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from hostprep.doctor.permissions import Who, granted
from hostprep.host import acl, linux
from hostprep.host.acl import AccessList
from hostprep.host.fds import closing
from hostprep.host.labels import Labels, SELinux
from hostprep.options import Mode, Options
from hostprep.tree import plan as planning
from hostprep.tree.plan import Plan, Want
from tests.support.host import LABEL, label, mode, mounted, owner, set_label
from tests.support.users import listed, set_list

pytestmark = pytest.mark.root
OTHER = "system_u:object_r:etc_t:s0"


@pytest.fixture
def labels() -> Labels:
    """Labels kept as plain attributes."""
    return Labels.open(SELinux.FORCE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory to be prepared: root's, 0755, without a label."""
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def fd(data: Path) -> Iterator[int]:
    """Its descriptor."""
    with closing(os.open(data, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield fd


@dataclass(frozen=True)
class State:
    """What decides who gets in."""

    owner: tuple[int, int]
    mode: int
    label: str | None
    access: AccessList | None = None


def state_of(data: Path) -> State:
    return State(owner(data), stat.S_IMODE(os.stat(data).st_mode), label(data), acl.read(str(data)))


def states_while(fd: int, data: Path, labels: Labels, want: Want, monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """Repair, and note the state after each step."""
    seen: list[State] = []

    def noting(call: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: object) -> None:
            call(*args)
            seen.append(state_of(data))

        return noted

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", noting(os.fchmod))
        patch.setattr(linux, "fchown", noting(linux.fchown))
        patch.setattr(planning, "write_label", noting(planning.write_label))
        patch.setattr(acl, "write", noting(acl.write))
        Plan.of(fd, want, labels).apply()
    return seen


def test_a_directory_that_is_right(fd: int, data: Path, labels: Labels) -> None:
    """Where nothing differs nothing is planned, and nothing is called."""
    set_label(data, LABEL)
    before = os.stat(data).st_ctime_ns
    plan = Plan.of(fd, Want(0, 0, Mode(0o755), LABEL), labels)
    assert plan.changes == ()
    assert plan.apply() == []
    assert os.stat(data).st_ctime_ns == before


def test_the_plan_names_old_and_new(fd: int, data: Path, labels: Labels) -> None:
    """Each change reads as old -> new, and they come in the order in which they are made."""
    set_label(data, OTHER)
    changes = Plan.of(fd, Want(184, 998, Mode(0o2770), LABEL), labels).changes
    assert [str(change) for change in changes] == [
        "owner 0:0 -> 184:998",
        f"label {OTHER} -> {LABEL}",
        "mode 0755 -> 02770",
    ]


def test_what_is_not_declared_is_left_alone(fd: int, data: Path, labels: Labels) -> None:
    """Nothing declared, nothing planned, whatever is there."""
    os.chown(data, 55, 66)
    set_label(data, OTHER)
    assert Plan.of(fd, Want(), labels).changes == ()


@pytest.mark.parametrize("bits", [0o0, 0o750, 0o755, 0o1777, 0o2770, 0o4711, 0o7777])
@pytest.mark.parametrize("ids", [(184, None), (None, 998), (184, 998), (None, None)])
def test_every_bit_is_set(fd: int, data: Path, labels: Labels, ids: tuple[int | None, int | None], bits: int) -> None:
    """The declared mode is there in full afterwards, setuid, setgid and sticky too, whatever chown strips."""
    want = Want(*ids, Mode(bits))
    Plan.of(fd, want, labels).apply()
    assert mode(data) == f"{bits:04o}"
    assert owner(data) == (ids[0] or 0, ids[1] or 0)
    assert Plan.of(fd, want, labels).changes == ()


@pytest.mark.parametrize("bits", [0o755, 0o700, 0o2775, 0o1777, 0o6755])
def test_an_undeclared_mode_survives_a_change_of_owner(fd: int, data: Path, labels: Labels, bits: int) -> None:
    """A change of owner alone leaves every bit of the mode."""
    os.chmod(data, bits)
    Plan.of(fd, Want(184, 998), labels).apply()
    assert (mode(data), owner(data)) == (f"{bits:04o}", (184, 998))


def rights(state: State, uid: int, gid: int) -> int:
    """What a process of *uid* and *gid* may do, rwx."""
    if uid == state.owner[0]:
        return state.mode >> 6 & 7
    return state.mode >> 3 & 7 if gid == state.owner[1] else state.mode & 7


WHO = [(0, 5), (184, 184), (184, 998), (5, 998), (55, 66), (55, 998), (184, 66), (5, 66), (5, 5)]
MODES = [0o700, 0o070, 0o007, 0o750, 0o755, 0o777, 0o000, 0o2770]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [(b, a, w) for b, a in product(MODES, MODES) for w in ("owner", "label", "both")],
    ids=lambda value: f"{value:04o}" if isinstance(value, int) else value,
)
def test_nobody_ever_gets_more(
    fd: int, data: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch, before: int, after: int, wanted: str
) -> None:
    """At no moment may anybody do what neither the old nor the new state allows him."""
    os.chown(data, 55, 66)
    os.chmod(data, before)
    set_label(data, OTHER)
    old = State((55, 66), before, OTHER)
    uid, gid = (184, 998) if wanted != "label" else (None, None)
    want = Want(uid, gid, Mode(after), LABEL if wanted != "owner" else None)
    seen = states_while(fd, data, labels, want, monkeypatch)
    new = seen[-1] if seen else old
    assert new == State((184, 998) if wanted != "label" else (55, 66), after, LABEL if wanted != "owner" else OTHER)
    for state in seen:
        for uid, gid in WHO:
            allowed = rights(old, uid, gid) | rights(new, uid, gid)
            assert rights(state, uid, gid) & ~allowed == 0, f"{uid}:{gid} at {state}, from {old} to {new}"
        if state.label not in (old.label, new.label) or (state.owner, state.label) not in (
            (old.owner, old.label),
            (new.owner, new.label),
        ):
            assert state.mode & 0o777 == 0, f"owner and label mixed, and open: {state}"


LISTS = ["u:5:rwx,m::rwx", "u:5:rwx,m::r-x", "u:5:---,g:7:rwx,m::rwx", "u:5:r-x,g::---,m::rwx", "u:5:rwx,m::---"]


@pytest.mark.parametrize("access", LISTS)
@pytest.mark.parametrize("after", MODES)
@pytest.mark.parametrize("wanted", ["owner", "label", "both", "mode"])
def test_nobody_on_a_list_ever_gets_more(
    fd: int, data: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch, access: str, after: int, wanted: str
) -> None:
    """At no moment may anybody, by an access list or without, do what neither the old nor the new state allows him.

    Nor does the new state give anybody more by an entry that names him.
    """
    for others, undeclared in product((0o0, 0o5), (False, True)):
        os.chown(data, 55, 66)
        os.chmod(data, 0o770 | others)
        set_list(data, access)
        set_label(data, OTHER)
        old = state_of(data)
        uid, gid = (184, 998) if wanted in ("owner", "both") else (None, None)
        mode = None if undeclared else Mode(after)
        narrowed = Mode(old.mode) if undeclared else None
        want = Want(uid, gid, mode, LABEL if wanted in ("label", "both") else None, narrowed=narrowed)
        seen = states_while(fd, data, labels, want, monkeypatch)
        new = state_of(data)
        assert (new.access == old.access) or not undeclared
        assert Plan.of(fd, want, labels).changes == ()
        for state in seen:
            for who in map(Who, *zip(*WHO, (5, 55), (8, 7), strict=True)):
                allowed = listed_rights(old, who) | listed_rights(new, who)
                assert listed_rights(state, who) & ~allowed == 0, f"{who} at {state}, from {old} to {new}"
        for who in (Who(5, 9), *([Who(8, 7)] if "g:7" in access else [])):
            if old.mode & 0o070:
                assert listed_rights(new, who) & ~listed_rights(old, who) == 0, f"{who} from {old} to {new}"
        subprocess.run(["setfacl", "-b", data], check=True)


def listed_rights(state: State, who: Who) -> int:
    """What *who* may do, as the kernel decides."""
    file = os.stat_result((0o040000 | state.mode, 0, 0, 0, *state.owner, 0, 0, 0, 0))
    return granted(who, file, state.access).rights


def test_usable_by_the_group(fd: int, data: Path, labels: Labels) -> None:
    """Whether the declared owner can use a directory by its group, the group's entry decides, and not the mask."""
    os.chown(data, 55, 998)
    for group, usable in (("r-x", False), ("rwx", True)):
        set_list(data, f"g::{group}", "u:5:rwx", "m::rwx")
        assert Plan.of(fd, Want(184, 998), labels).usable(read_only=False) is usable


class TestNarrowed:
    """The mode from before a repair that closed the directory and was interrupted."""

    def test_given_back(self, fd: int, data: Path, labels: Labels) -> None:
        """A directory that is closed still gets it back, and its list the mask."""
        set_list(data, "u:5:rwx", "m::r-x")
        before = state_of(data)
        os.chmod(data, 0)
        Plan.of(fd, Want(narrowed=Mode(before.mode)), labels).apply()
        assert state_of(data) == before

    def test_another_since(self, fd: int, data: Path, labels: Labels) -> None:
        """A mode that somebody has set since stays: it is as good as one that was there, and opens no list."""
        set_list(data, "u:5:rwx", "m::r-x")
        assert Plan.of(fd, Want(narrowed=Mode(0o2775)), labels).changes == ()
        Plan.of(fd, Want(mode=Mode(0o775), narrowed=Mode(0o2775)), labels).apply()
        assert listed(data) == ["user::rwx", "user:5:r-x", "group::rwx", "mask::rwx", "other::r-x"]


def test_setuid_bits_are_not_set_for_another_owner(
    fd: int, data: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setgid bit of the new mode is not there before the new group is."""
    want = Want(184, 998, Mode(0o2775))
    for state in states_while(fd, data, labels, want, monkeypatch)[:-1]:
        assert not state.mode & 0o6000


def test_a_failure_leaves_it_narrow(fd: int, data: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the change of owner fails, what was narrowed stays so, and the error is told."""

    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(linux, "fchown", fail)
    os.chmod(data, 0o777)
    plan = Plan.of(fd, Want(184, 998, Mode(0o750)), labels)
    with pytest.raises(PermissionError):
        plan.apply()
    assert mode(data) == "0750"


class TestLabels:
    def test_off(self, fd: int, data: Path) -> None:
        """Without SELinux a label is neither set nor compared."""
        labels = Labels.open(SELinux.OFF)
        want = Want.of(Options.parse({"label": "container_file_t"}), labels, adopted=False)
        assert Plan.of(fd, want, labels).changes == ()

    def test_none(self, fd: int, data: Path, labels: Labels) -> None:
        """The word none sets and checks nothing."""
        set_label(data, OTHER)
        want = Want.of(Options.parse({"label": "none"}), labels, adopted=False)
        assert Plan.of(fd, want, labels).changes == ()

    def test_force_has_no_default(self, labels: Labels) -> None:
        """With HOSTPREP_SELINUX=force there is no default label."""
        assert Want.of(Options(), labels, adopted=False).label is None

    def test_only_the_type(self, fd: int, data: Path, labels: Labels) -> None:
        """Of the default label only the type is kept: a :Z may have set categories."""
        set_label(data, LABEL + ":c1,c2")
        assert Plan.of(fd, Want(label=LABEL, type_only=True), labels).changes == ()
        assert len(Plan.of(fd, Want(label=LABEL), labels).changes) == 1
        set_label(data, OTHER)
        assert len(Plan.of(fd, Want(label=LABEL, type_only=True), labels).changes) == 1

    def test_a_file_system_without_labels(self, tmp_path: Path, labels: Labels) -> None:
        """Where the file system keeps no labels that is no error, and is said in what was done."""
        (tmp_path / "proc").mkdir()
        with (
            mounted("-t", "ramfs", "none", str(tmp_path / "proc")),
            closing(os.open(tmp_path / "proc", os.O_RDONLY | os.O_DIRECTORY)) as fd,
        ):
            want = Want(184, 998, Mode(0o700), LABEL)
            done = Plan.of(fd, want, labels).apply()
            assert [change.what for change in done] == ["owner", "mode"]
            assert (owner(tmp_path / "proc"), mode(tmp_path / "proc")) == ((184, 998), "0700")
            assert Plan.of(fd, want, labels).changes == ()


def test_what_hostprep_makes() -> None:
    """A directory that hostprep makes is root's and 0755 where nothing else is declared."""
    assert Want().first() == Want(0, 0, Mode(0o755))
    assert Want(184, None, Mode(0o700)).first() == Want(184, 0, Mode(0o700))
