"""Processes as /proc shows them: who they are on this host, and what is at a path as they see it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import rootless
from .fds import closing
from .linux import CAP_DAC_OVERRIDE, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, STORING, file_system, openat2
from .userns import Remap

_PACKAGE: Final = str(Path(__file__).resolve().parents[2])
_NONE: Final = 3  # the exit status where there is no file


@dataclass(frozen=True, slots=True)
class Process:
    """Who a process is now, by the host's ids."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    overrides: bool
    label: str
    remap: Remap | None
    """The user namespace that it is in; None where the ids are the host's."""

    @classmethod
    def read(cls, pid: int) -> Process:
        """Look at a process.

        Raises:
            OSError: it has ended.
        """
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            fields = dict(line.rstrip("\n").split(":", 1) for line in lines if ":" in line)
        # The last of the four is the one for files (credentials(7)).
        uid, gid = (int(fields[which].split()[3]) for which in ("Uid", "Gid"))
        try:
            with open(f"/proc/{pid}/attr/current", encoding="ascii", errors="replace") as label:
                context = label.read().rstrip("\0\n")
        except OSError:  # no security module has labels for processes
            context = ""
        groups = tuple(map(int, fields["Groups"].split()))
        overrides = bool(int(fields["CapEff"], 16) >> CAP_DAC_OVERRIDE & 1)
        remap = Remap.read(pid)
        return cls(uid, gid, groups, overrides, context, None if remap.identical else remap)


def open_inside(pid: int, path: str, flags: int = os.O_PATH) -> int:
    """Open what a process finds at *path*: links and `..` lead no higher than its own root directory.

    Raises:
        OSError: ENOSYS before Linux 5.6, and whatever open(2) raises.
    """
    with closing(rootless.open_root_of(pid)) as root:
        return openat2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def read_inside(pid: int, path: str, *, limit: int, seconds: float = 5.0) -> bytes | None:
    """Read the file that a process finds at *path*; None where there is none.

    That process may be an attacker's, and have there whatever it likes. So another process looks, which is killed after
    *seconds*: a file system that does not answer would hold this one for good.

    Raises:
        OSError: it cannot be read, is no regular file of a file system that stores files, has more than *limit* bytes,
            or gave no answer in time.
    """
    also, kept = rootless.heritage()
    child = subprocess.Popen(
        [sys.executable, "-P", "-S", "-m", "hostprep.host.process", str(pid), path, str(limit)],
        env={"PYTHONPATH": _PACKAGE, **also},
        pass_fds=kept,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    try:
        data, said = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} seconds", path) from None
    finally:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)  # no longer: while its file system does not answer, not even SIGKILL may end it
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if child.returncode == 0:
        return data
    if child.returncode == _NONE:
        return None
    lines = said.decode(errors="replace").splitlines() or [f"exit status {child.returncode}"]
    raise OSError(errno.EINVAL, lines[-1], path)


def main(arguments: list[str]) -> int:
    """Print the file at *arguments[1]*, as the process *arguments[0]* finds it, of at most *arguments[2]* bytes."""
    pid, path, limit = int(arguments[0]), arguments[1], int(arguments[2])
    rootless.inherit()
    try:
        os.close(rootless.open_root_of(pid))  # it has not ended
        try:
            pinned = open_inside(pid, path)
        except (FileNotFoundError, NotADirectoryError):
            return _NONE
        sys.stdout.buffer.write(_contents(pinned, limit))
    except OSError as exc:
        print(exc.strerror, file=sys.stderr)
        return 1
    return 0


def _contents(pinned: int, limit: int) -> bytes:
    """The contents of what is *pinned* by O_PATH. Anything but an ordinary file is refused before it is opened."""
    if not stat.S_ISREG(os.fstat(pinned).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if (kind := file_system(pinned)) not in STORING:
        raise OSError(errno.EINVAL, f"its file system (type {kind:#x}) does not store files")
    # O_NONBLOCK: somebody may hold a lease on it.
    with closing(os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        size, data = os.fstat(fd).st_size, b""
        while size <= limit and len(data) <= limit and (more := os.read(fd, limit + 1 - len(data))):
            data += more
    if max(size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return data


def raise_open_files() -> None:
    """Raise the limit of open files of this process to its hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
