"""Under load, with the plugin killed again and again, nothing is lost and nothing is left: `make soak` for longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.engine import Engine, Hostprep

from .client import Docker
from .soak import CLIENTS, Soak

pytestmark = pytest.mark.engine

SECONDS = float(os.environ.get("SOAK_SECONDS", "15"))
SEED = int(os.environ.get("SOAK_SEED", "20261124"))


def test_soak(docker: Docker, engine: Engine, hostprep: Hostprep, allowed: Path) -> None:
    """Four clients make, use and remove volumes, and no kill loses one, shadows one or leaves anything behind."""
    soak = Soak(engine, hostprep, docker, allowed, SEED)
    figures = soak.run(SECONDS)
    print(f"\nsoak, seed {SEED}, {CLIENTS} clients", *figures.lines(), sep="\n  ")
    assert soak.wrong == []
    assert (figures.lost, figures.shadowed) == (0, 0)
    assert figures.cycles >= CLIENTS
    assert figures.killed + figures.restarted >= 2
