"""Processes as /proc shows them."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hostprep.host.process import Process, open_inside, raise_open_files, read_inside
from tests.support.disks import unanswered


@pytest.mark.root
def test_process() -> None:
    """A process is who it is for files, by this host's numbers."""
    found = Process.read(os.getpid())
    assert (found.uid, found.gid, set(found.groups)) == (os.geteuid(), os.getegid(), set(os.getgroups()))
    assert found.overrides
    assert found.remap is None


@pytest.mark.root
def test_inside(tmp_path: Path) -> None:
    """Below a process's root links lead no higher than that root; a file is read whole, and none is no error."""
    (tmp_path / "file").write_text("all of it")
    (tmp_path / "link").symlink_to("file")
    pid, where = os.getpid(), str(tmp_path)
    assert read_inside(pid, f"{where}/link", limit=9) == b"all of it"
    assert read_inside(pid, f"{where}/none", limit=3) is None
    assert read_inside(pid, "/../../../etc/hostname/x", limit=3) is None
    os.close(open_inside(pid, "/../" + where))


@pytest.mark.root
@pytest.mark.parametrize(
    ("put", "why"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)), "not a regular file"),  # as /dev/zero
        (lambda path: os.symlink("/dev/zero", path), "not a regular file"),
        (lambda path: os.symlink("/proc/version", path), "does not store files"),
        (lambda path: os.symlink("/sys/kernel/fscaps", path), "does not store files"),
        (lambda path: os.symlink("/proc/self/exe", path), "symbolic links"),
        (lambda path: os.symlink(path, path), "symbolic links"),
        (lambda path: subprocess.run(["truncate", "-s", "1G", path], check=True), "more than 1000 bytes"),
        (lambda path: Path(path).write_bytes(bytes(1001)), "more than 1000 bytes"),
    ],
    ids="fifo directory device link-to-device procfs sysfs magic-link loop sparse long".split(),
)
def test_what_is_no_ordinary_file(tmp_path: Path, put: Callable[[str], object], why: str) -> None:
    """Of anything else that a container has there nothing is read, and the reason is said."""
    put(str(tmp_path / "passwd"))
    with pytest.raises(OSError, match=why):
        read_inside(os.getpid(), str(tmp_path / "passwd"), limit=1000)


@pytest.mark.root
def test_of_a_process_that_has_ended() -> None:
    """What a process has that is no more cannot be told; it is not that there is nothing."""
    with subprocess.Popen(["true"]) as ended:
        pass
    with pytest.raises(OSError, match="No such file"):
        read_inside(ended.pid, "/etc/passwd", limit=1000)


@pytest.mark.root
def test_a_file_system_that_does_not_answer(tmp_path: Path) -> None:
    """Whoever has a file system that gives no answer is waited for until the deadline only."""
    with unanswered(tmp_path), pytest.raises(TimeoutError):
        read_inside(os.getpid(), f"{tmp_path}/passwd", limit=1000, seconds=0.5)


def test_open_files() -> None:
    """As many files may be open as the hard limit allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
