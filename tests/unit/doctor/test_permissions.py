"""Computed permissions, compared with what the kernel allows."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hostprep.doctor.permissions import Who, granted
from hostprep.host.acl import ALL, read
from tests.support.host import PYTHON

TRY = """
import os, sys
path, *ids = sys.argv[1:]
uid, gid, *groups = map(int, ids)
os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
print(sum(bit for bit in (4, 2, 1) if os.access(path, bit, effective_ids=True)))
"""
WHO = [Who(184, 998), Who(5, 998), Who(5, 6, (998,)), Who(5, 6, (7, 8)), Who(5, 6), Who(9, 8)]


def kernel(path: Path, who: Who) -> int:
    """What the kernel lets *who* do with *path*, all directories above being open."""
    argv = [PYTHON, "-c", TRY, str(path), *map(str, (who.uid, who.gid, *who.groups))]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory of 184:998 that every user reaches; not in tmp_path, whose parents each new session closes."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        path = Path(above, "data")
        path.mkdir()
        os.chown(path, 184, 998)
        yield path


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o755, 0o750, 0o070, 0o007, 0o605, 0o000, 0o2770])
def test_mode(directory: Path, mode: int) -> None:
    """By owner and mode the rights are the kernel's; an owner does not get what the others have."""
    directory.chmod(mode)
    for who in WHO:
        assert granted(who, directory.stat()).rights == kernel(directory, who), who


ENTRIES = (
    (1, 7, 0xFFFFFFFF),
    (2, 5, 5),
    (4, 0, 0xFFFFFFFF),
    (8, 6, 7),
    (8, 1, 8),
    (16, 5, 0xFFFFFFFF),
    (32, 4, 0xFFFFFFFF),
)


@pytest.mark.root
@pytest.mark.parametrize("left_out", [(), (2,), (8,), (2, 8)], ids=str)
@pytest.mark.parametrize("mask", [7, 5, 0])
def test_access_list(directory: Path, left_out: Sequence[int], mask: int) -> None:
    """By access control list the rights are the kernel's: named users, groups, and the mask over both."""
    entries = [(tag, mask if tag == 16 else rights, id_) for tag, rights, id_ in ENTRIES if tag not in left_out]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(directory, "system.posix_acl_access", value)
    for who in WHO:
        found = granted(who, directory.stat(), read(str(directory)))
        allowed = kernel(directory, who)
        assert found.rights & ~allowed == 0, who
        # Of two groups one counts, though the kernel adds up single requests: most accesses need several rights.
        assert found.rights == allowed or len(who.groups) == 2, who


def test_dac_override() -> None:
    """CAP_DAC_OVERRIDE counts before owner and mode."""
    st = os.stat_result((0o040000, 0, 0, 0, 5, 6, 0, 0, 0, 0))
    assert granted(Who(0, 0, overrides=True), st).rights == ALL
    assert granted(Who(0, 0), st).rights == 0
