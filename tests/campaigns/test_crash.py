"""Killed before and after every step of every verb: each volume is as it was or as it was to be, and all goes on.

All of it: `make crash`. In `make test`, of what begins a pass, which takes its time, every seventh step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import steps
from tests.support.trial import Trial, on_tmpfs
from tests.support.verbs import CASES, Case, run

pytestmark = pytest.mark.root


Trials = Callable[[Case], Trial]


@pytest.fixture
def trial(nothing_left: None, tmp_path: Path, run_dir: Path) -> Trials:
    place = tmp_path / "disk"
    place.mkdir()
    return lambda case: Trial(case, place, run_dir, on_tmpfs(place))


def try_every_step(tried: Trial, verdict: int) -> None:
    """Try the case with *verdict* at each of its steps, in a short run only at some, and once at none."""
    for number in [*tried.some(7 if tried.case.walks else 1), len(tried.steps) + 100]:
        with tried.host() as host:
            ended, said = run(tried.case, host, steps.only(verdict, number))
            try:
                assert ended.code == 0 or len(ended.steps) > number
                tried.is_sound(host, told=ended.code == 1)
            except BaseException as exc:
                exc.add_note(f"at {ended.at(number)}, with which it ended as {ended.code} and said {said!r}")
                raise


@pytest.mark.parametrize("case", CASES, ids=str)
def test_killed_at_every_step(case: Case, trial: Trials) -> None:
    """Whatever is killed at any step, with all it has started: the old state or the new, and the same again ends it."""
    try_every_step(trial(case), steps.KILL)


@pytest.mark.parametrize("case", [case for case in CASES if case.walks], ids=str)
def test_one_process_killed_at_every_step(case: Case, trial: Trials) -> None:
    """As well if it is only one process of several, of which the others go on."""
    try_every_step(trial(case), steps.KILL_ONE)
