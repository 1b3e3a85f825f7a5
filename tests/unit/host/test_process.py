"""Processes as /proc shows them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hostprep.host.process import Process, Remap, open_inside, raise_open_files, read_inside


def test_remap() -> None:
    """Numbers go both ways, and those without another have none."""
    remap = Remap(((0, 100000, 1000), (5000, 7, 1)), ((0, 200000, 1000),))
    assert (remap.uid(184), remap.uid(5000), remap.uid(1000), remap.gid(998)) == (100184, 7, None, 200998)
    assert remap.inside(100184, 200998) == (184, 998)
    assert remap.inside(184, 998) is None
    assert remap.covers(7, 200000)
    assert not remap.covers(8, 200000)


@pytest.mark.root
def test_process() -> None:
    """A process is who it is for files, by this host's numbers."""
    found = Process.read(os.getpid())
    assert (found.uid, found.gid, set(found.groups)) == (os.geteuid(), os.getegid(), set(os.getgroups()))
    assert found.overrides
    assert found.remap is None


@pytest.mark.root
def test_inside(tmp_path: Path) -> None:
    """Below a process's root links lead no higher than that root; a FIFO is not opened, of a file a part is read."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("all of it")
    (tmp_path / "link").symlink_to("file")
    pid, where = os.getpid(), str(tmp_path)
    assert read_inside(pid, f"{where}/link", limit=3) == b"all"
    assert read_inside(pid, f"{where}/fifo", limit=3) is None
    assert read_inside(pid, f"{where}/none", limit=3) is None
    assert read_inside(pid, "/../../../etc/hostname/x", limit=3) is None
    os.close(open_inside(pid, "/../" + where))


def test_open_files() -> None:
    """As many files may be open as the hard limit allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
