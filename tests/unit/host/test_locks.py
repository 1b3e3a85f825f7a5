"""Locks between threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.errors import Busy
from hostprep.host import locks
from hostprep.host.fds import closing
from tests.support.host import REPOSITORY, mounted, soon

pytestmark = pytest.mark.root


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the test's own directory."""
    with closing(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as fd:
        yield fd


def test_on_a_read_only_file_system(tmp_path: Path) -> None:
    """There a lock can only be shared: whoever waited for one would wait for ever, and nothing changes there."""
    with mounted("-t", "tmpfs", "none", str(tmp_path)):
        (tmp_path / "held").touch()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with closing(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as here:
            with locks.locked(here, "it", deadline=0), locks.locked(here, "it", deadline=0):
                pass


def test_another_thread_waits(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is held against the threads of the same process."""
    order: list[str] = []
    refused, try_lock = threading.Event(), locks.try_lock

    def trying(*args: Any, **how: Any) -> bool:
        taken = try_lock(*args, **how)
        if not taken:
            refused.set()
        return taken

    monkeypatch.setattr(locks, "try_lock", trying)

    def other() -> None:
        with locks.locked(here, "mongo", deadline=soon()):
            order.append("other")

    thread = threading.Thread(target=other)
    with locks.locked(here, "mongo", deadline=soon()):
        thread.start()
        assert refused.wait(60)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_another_process_waits(here: int, tmp_path: Path) -> None:
    """A lock is held against other processes, and a killed one lets go of it."""
    script = (
        "import os, sys, time; from hostprep.host import fds, locks\n"
        "with locks.locked(os.open(sys.argv[1], os.O_RDONLY), 'mongo', deadline=time.monotonic() + 60):\n"
        "    print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(Busy), locks.locked(here, "mongo", deadline=soon(0.1)):
            pass
        process.kill()
    with locks.locked(here, "mongo", deadline=soon()):
        pass


def test_other_names_are_free(here: int) -> None:
    """A lock of one name keeps no other waiting."""
    with locks.locked(here, "a", deadline=soon()), locks.locked(here, "b", deadline=0):
        pass


def test_shared_locks(here: int) -> None:
    """Shared holders keep out an exclusive one, not each other."""
    with locks.locked(here, "steps", deadline=0, shared=True), locks.locked(here, "steps", deadline=0, shared=True):
        with pytest.raises(Busy), locks.locked(here, "steps", deadline=0):
            pass
    with locks.locked(here, "steps", deadline=0):
        pass


def test_one_attempt_is_always_made(here: int) -> None:
    """A deadline that is over still lets a free lock be taken."""
    with locks.locked(here, "a", deadline=0):
        pass


def test_nothing_is_left_behind(here: int, tmp_path: Path) -> None:
    """However many names are locked, there is one file."""
    for number in range(20):
        with locks.locked(here, f"volume{number}", deadline=0):
            pass
    assert os.listdir(tmp_path) == ["held"]
