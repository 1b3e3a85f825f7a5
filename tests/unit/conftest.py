"""A test here may assume root, or is marked so; a host of its own (`host`); and nothing of an engine.

What it leaves behind fails it.
"""

from __future__ import annotations

from tests.support.fixtures import (
    docker,
    driver,
    gate,
    host,
    hostprep,
    nothing_left,
    open_driver,
    read_only_machine,
    run_dir,
)

__all__ = [
    "docker",
    "driver",
    "gate",
    "host",
    "hostprep",
    "nothing_left",
    "open_driver",
    "read_only_machine",
    "run_dir",
]
