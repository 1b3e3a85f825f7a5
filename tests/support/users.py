"""What other users of the host may do with a directory: asked of the kernel, as them; and their access lists."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.host import PYTHON

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"

# The directory is the working directory, which was entered as root: those above it may be closed.
_BECOME: Final = """
import os, sys
directory, uid, gid, *groups = sys.argv[1:]
os.chdir(directory)
os.setgroups(list(map(int, groups)))
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
"""
_MAY: Final = (
    _BECOME
    + """
print(sum(bit for bit in (4, 2, 1) if os.access(".", bit, effective_ids=True)))
"""
)
_TRY: Final = (
    _BECOME
    + """
rounds = made = 0
print("begun", flush=True)
os.set_blocking(0, False)
while True:
    rounds += 1
    try:
        os.close(os.open(f"by-{uid}", os.O_CREAT | os.O_WRONLY, 0o600))
        os.unlink(f"by-{uid}")
        made += 1
    except PermissionError:
        pass
    try:
        if not os.read(0, 1):
            break
    except BlockingIOError:
        pass
print(rounds, made)
"""
)


def may(directory: Path, uid: int, gid: int, *groups: int) -> str:
    """What a process of *uid*, *gid* and *groups* may do in *directory*: `rwx`, `r-x`."""
    argv = [PYTHON, "-c", _MAY, str(directory), *map(str, (uid, gid, *groups))]
    found = int(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout)
    return "".join(letter if found & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def set_list(path: Path, *entries: str, default: bool = False) -> None:
    """`setfacl`: give *path* these entries, the mask as they say it."""
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl is missing (testbed/packages setfacl=acl)")
    flags = ["-n", *(["-d"] if default else [])]
    subprocess.run(["setfacl", *flags, "-m", ",".join(entries), path], check=True, timeout=60)


def listed(path: Path, *, default: bool = False) -> list[str]:
    """The entries of a list of *path* as getfacl(1) writes them, numerically; of the default list where asked for."""
    argv = ["getfacl", "-n", "-c", "-p", "-E", "--default" if default else "--access", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def has_list(path: Path) -> bool:
    """Whether *path* has an access list, or one that it hands on."""
    return not {ACCESS, DEFAULT}.isdisjoint(os.listxattr(path))


class Attempts:
    """How often somebody tried to write, and succeeded."""

    tried = 0
    succeeded = 0


@contextlib.contextmanager
def writing(directory: Path, uid: int, gid: int) -> Iterator[Attempts]:
    """A process of *uid* and *gid* tries to write in *directory*, again and again until the end."""
    argv = [PYTHON, "-c", _TRY, str(directory), str(uid), str(gid)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    attempts = Attempts()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "begun\n"
        yield attempts
        process.stdin.close()
        attempts.tried, attempts.succeeded = map(int, process.stdout.readline().split())
    finally:
        process.kill()
        process.wait(timeout=60)
        process.stdin.close()
        process.stdout.close()
