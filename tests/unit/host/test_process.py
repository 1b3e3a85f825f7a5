"""Processes as /proc shows them, and user namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostprep.host.process import Process, Remap, open_inside, read_inside


def test_remap() -> None:
    """Ids are translated both ways; an id outside the ranges has no counterpart."""
    remap = Remap(((0, 100000, 1000), (5000, 7, 1)), ((0, 200000, 1000),))
    assert (remap.uid(184), remap.uid(5000), remap.uid(1000), remap.gid(998)) == (100184, 7, None, 200998)
    assert remap.inside(100184, 200998) == (184, 998)
    assert remap.inside(184, 998) is None
    assert remap.covers(7, 200000)
    assert not remap.covers(8, 200000)


@pytest.mark.root
def test_process() -> None:
    """A process has the uid, gid, groups and capabilities by which the kernel checks it."""
    found = Process.read(os.getpid())
    assert (found.uid, found.gid, set(found.groups)) == (os.geteuid(), os.getegid(), set(os.getgroups()))
    assert found.overrides
    assert found.remap is None


@pytest.mark.root
def test_read_inside(tmp_path: Path) -> None:
    """Links lead no higher than a process's root; a FIFO is not opened; a file is read up to the limit."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("all of it")
    (tmp_path / "link").symlink_to("file")
    pid, where = os.getpid(), str(tmp_path)
    assert read_inside(pid, f"{where}/link", limit=3) == b"all"
    assert read_inside(pid, f"{where}/fifo", limit=3) is None
    assert read_inside(pid, f"{where}/none", limit=3) is None
    assert read_inside(pid, "/../../../etc/hostname/x", limit=3) is None
    os.close(open_inside(pid, "/../" + where))
