"""What holds of the project itself: its layers, its documents, its installation, its other tests.

A test here may assume a checkout with its virtual environment, and `make`.
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
