"""How a case of `verbs` is tried: on a host with a file system of its own, made anew for each run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.support.host import Docker, Host, mounted
from tests.support.verbs import Case, engine, goes_on, is_sound, look, opened, ready, run

FULL: Final = os.environ.get("HOSTPREP_TEST_CRASH") == "full"
"""Whether each step of each case is tried (`make crash`), or a part of them."""
Fresh = Callable[[], contextlib.AbstractContextManager[None]]
"""Mounts an empty file system."""


def on_tmpfs(place: Path) -> Fresh:
    return lambda: mounted("-t", "tmpfs", "-o", "mode=0755", "none", str(place))


class Trial:
    """A case, and the hosts that it is done to: one after the other, at the same place, a file system each."""

    def __init__(self, case: Case, place: Path, run_dir: Path, fresh: Fresh) -> None:
        self.case = case
        self._fresh = fresh
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

    def some(self, apart: int) -> range:
        """Numbers of steps, so far apart; of a full run, all."""
        count = len(self.steps)
        return range(count) if FULL else range(len(self.case.name) % min(apart, count), count, apart)

    @contextlib.contextmanager
    def host(self) -> Iterator[Host]:
        """A host as it is before."""
        with self._fresh():
            self._place.chmod(0o755)
            host = Host(self._place, self._run_dir)
            host.environ["HOSTPREP_SELINUX"] = "force"
            self.case.arrange(host)
            yield host

    def is_sound(self, host: Host, docker: Docker | None = None, *, told: bool) -> None:
        """After whatever became of the case: old or new, and nothing in between; again, it comes to its end.

        Args:
            docker: to ask the one server that there is all the time; None for one that starts now.
            told: it has ended with an error, and what it left half changed is not hidden.
        """
        if docker is None:
            driver = opened(host)
            driver.store.remove_leftovers()
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
