"""The workers that run the tests side by side (pytest-xdist): how many, what each runs in one go."""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadScopeScheduling

ONE_GO = ("tests/managed/", "tests/engine/podman/", "tests/engine/rootless/")
"""Folders whose tests share an engine that takes long to prepare: one worker runs all of them."""
APART = ("test_attacks.py", "test_crash.py", "test_faults.py", "test_power_loss.py")
"""Modules that take long, and whose tests share nothing: any worker may run any of their tests."""
FIRST = (
    "tests/managed/",
    "tests/engine/test_swarm.py",
    "tests/engine/test_remedies.py",
    "tests/engine/test_doctor.py",
    "tests/engine/test_damage.py",
    "tests/engine/podman/",
    "tests/engine/rootless/",
    "tests/campaigns/",
    "tests/project/test_install.py",
    "tests/project/test_wheel.py",
    "tests/unit/serve/",
    "tests/unit/volumes/",
    "tests/unit/tree/",
)
"""What takes longest begins first, or the others would wait for it at the end."""
ENGINES = ("tests/engine/", "tests/managed/")
"""Tests that mostly wait, for engines."""


def number() -> int:
    """Two workers a processor, since tests of engines mostly wait; at most eight, since each may start engines."""
    return min(2 * len(os.sched_getaffinity(0)), 8)


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests of engines among those that compute, so that no processor idles; of either kind, FIRST first."""

    def module(item: pytest.Item) -> str:
        return item.nodeid.partition("::")[0]

    def place(item: pytest.Item) -> int:
        return next((at for at, prefix in enumerate(FIRST) if item.nodeid.startswith(prefix)), len(FIRST))

    modules = list(dict.fromkeys(map(module, sorted(items, key=place))))
    waiting = [name for name in modules if name.startswith(ENGINES)]
    computing = [name for name in modules if not name.startswith(ENGINES)]
    order = {name: at / len(computing) for at, name in enumerate(computing)}
    order |= {name: at / len(waiting) * 0.7 for at, name in enumerate(waiting)}  # each takes longer: none begins last
    return sorted(items, key=lambda item: order[module(item)])


class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Hands out modules, or what ONE_GO and APART say, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        if module.endswith(APART):
            return nodeid
        return next((folder for folder in ONE_GO if module.startswith(folder)), module)
