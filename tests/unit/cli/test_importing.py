"""What import says of a volume that it imported and could not make ready; the rest: unit/volumes/test_importing.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.fixtures import Command
from tests.support.host import Host
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


def test_not_ready(hostprep: Command, host: Host, tmp_path: Path) -> None:
    """A volume that cannot be made right after its Create is imported, named as not ready, and counted in the error."""
    make_tree(host.srv, "dir mongo", "file mongo/a", "dir redis")
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"state": {name: f"{host.srv}/{name}" for name in ("mongo", "redis")}}))
    subprocess.run(["chattr", "+i", host.srv / "mongo"], check=True)
    try:
        arguments = ("import", "--local-persist", str(state), "-o", "uid=5", "-o", "recurse=mismatch")
        done = hostprep(*arguments, HOSTPREP_PATIENCE="0")
    finally:
        subprocess.run(["chattr", "-i", host.srv / "mongo"], check=True)
    imported, why, other = done.out.splitlines()
    assert imported == f"mongo: imported {host.srv}/mongo"
    assert why.startswith("mongo: not ready: ")
    assert "not permitted" in why
    assert other == f"redis: imported {host.srv}/redis"
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last == "hostprep: 1 of 2 volumes were not imported, or are not ready (the lines above say why)"
