"""What cuts across the packages: attacks, crashes, power cuts, faults, histories, hostile clients, trust.

A test here may assume what the unit tests may. Most have a short form here and a long one in `make crash` or
`make soak`.
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
