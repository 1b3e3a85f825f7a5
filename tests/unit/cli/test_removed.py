"""restore and purge."""

from __future__ import annotations

import pytest

from tests.support.commands import succeeds
from tests.support.fixtures import Command
from tests.support.host import Host
from tests.support.trees import make_tree

pytestmark = pytest.mark.root


def test_restore(hostprep: Command, host: Host) -> None:
    """restore brings back the newest, one by its id, and under another name."""
    for text in ("old", "new"):
        succeeds(hostprep("create", "mongo"))
        make_tree(host.data("mongo"), f"file a 0:0 600 {text}")
        succeeds(hostprep("rm", "mongo"))
    first, second = host.trash()
    if (host.root / "trash" / first / "_data" / "a").read_text() != "old":
        first, second = second, first
    assert succeeds(hostprep("restore", "mongo", "--id", first, "--as", "older")) == "older\n"
    assert succeeds(hostprep("restore", "mongo")) == "mongo\n"
    assert [(host.data(name) / "a").read_text() for name in ("older", "mongo")] == ["old", "new"]


def test_purge(hostprep: Command, host: Host) -> None:
    """purge takes what has expired, ids, or all."""
    for name in ("a", "b", "c"):
        succeeds(hostprep("create", name))
        succeeds(hostprep("rm", name))
    assert succeeds(hostprep("purge")) == "0 purged\n"
    assert succeeds(hostprep("purge", host.trash()[0])) == "1 purged\n"
    assert succeeds(hostprep("purge", "--all")) == "2 purged\n"
    assert host.trash() == []
    succeeds(hostprep("create", "a"))
    succeeds(hostprep("rm", "a"))
    assert succeeds(hostprep("--trash-keep", "0", "purge")) == "1 purged\n"
