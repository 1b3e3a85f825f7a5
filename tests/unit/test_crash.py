"""Killed before and after every step of every verb: each volume is as it was or as it was to be, and all goes on.

All of it: `make crash`. In `make test`, of what begins a pass, which takes its time, every fifth step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import steps
from .host import Host, mounted
from .verbs import CASES, Case, engine, goes_on, is_sound, look, opened, ready, run

pytestmark = pytest.mark.root
FULL = os.environ.get("HOSTPREP_TEST_CRASH") == "full"


class Ground:
    """Hosts on a tmpfs each, one after the other at the same place, on which a case is tried."""

    def __init__(self, case: Case, place: Path, run_dir: Path) -> None:
        self.case = case
        self._place = place
        self._run_dir = run_dir
        with self.host() as host:
            self.before, self.before_finely = look(host, fine=False), look(host, fine=True)
            ended, said = run(case, host)
            assert ended.code == 0, said
            self.steps = ended.steps
            self.after = look(host, fine=False)
            goes_on(host, engine(opened(host)))
            self.after_finely = look(host, fine=True)

    @contextlib.contextmanager
    def host(self) -> Iterator[Host]:
        """A host as it is before."""
        with mounted("-t", "tmpfs", "-o", "mode=0755", "none", str(self._place)):
            host = Host(self._place, self._run_dir)
            host.environ["HOSTPREP_SELINUX"] = "force"
            self.case.arrange(host)
            yield host

    def is_sound(self, host: Host, *, told: bool) -> None:
        """After whatever became of the case: old or new, and nothing in between; again, it comes to its end.

        Args:
            told: it has ended with an error, and what it left half changed is not hidden.
        """
        driver = opened(host)
        driver.store.sweep()
        docker = engine(driver)
        is_sound(host, docker, self.case, self.before, self.after)
        now = look(host, fine=True)
        if self.case.name.startswith("prepare"):  # which keeps no record: a right root means that all is
            assert now.srv.get("db") != self.after_finely.srv["db"] or now == self.after_finely
        elif ready(docker) and not told and not self.case.name.startswith(("purge", "import")):
            assert now in (self.before_finely, self.after_finely)
        done = look(host, fine=False) == self.after
        ended, said = run(self.case, host)
        assert ended.code == 0 or (done and self.case.refused and self.case.refused in said), said
        goes_on(host, docker)
        self.is_done(host)

    def is_done(self, host: Host) -> None:
        """What is there in the end is what is there after a run that nobody interrupts."""
        if not self.case.kept:
            opened(host).purge([])
        assert look(host, fine=True) == self.after_finely
        assert [entry for entry in host.trash() if entry.startswith(".")] == []


Grounds = Callable[[Case], Ground]


@pytest.fixture
def ground(nothing_left: None, tmp_path: Path, run_dir: Path) -> Grounds:
    place = tmp_path / "disk"
    place.mkdir()
    return lambda case: Ground(case, place, run_dir)


def killed(verdict: int, number: int) -> Callable[[steps.Step], int]:
    return lambda step: verdict if step.number == number else steps.GO


def try_every_step(tried: Ground, verdict: int) -> None:
    """Try the case with *verdict* at each of its steps, in a short run only at some, and once at none."""
    apart = 1 if FULL or not tried.case.walks else 5
    for number in [*range(len(tried.case.name) % apart, len(tried.steps), apart), 1000]:
        with tried.host() as host:
            ended, said = run(tried.case, host, killed(verdict, number))
            try:
                assert ended.code == 0 if number == 1000 else len(ended.steps) > number
                tried.is_sound(host, told=ended.code == 1)
            except BaseException as exc:
                at = ended.steps[number] if number < len(ended.steps) else "no step"
                exc.add_note(f"at {at}, with which it ended as {ended.code} and said {said!r}")
                raise


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_every_step(case: Case, ground: Grounds) -> None:
    """Whatever is killed at any step, with all it has started: the old state or the new, and the same again ends it."""
    try_every_step(ground(case), steps.KILL)


@pytest.mark.parametrize("case", [case for case in CASES if case.walks], ids=str)
def test_one_process_killed_at_every_step(case: Case, ground: Grounds) -> None:
    """As well if it is only one process of several, of which the others go on."""
    try_every_step(ground(case), steps.KILL_ONE)
