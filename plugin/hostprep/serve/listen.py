"""The socket: made, or passed by systemd; and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import Final

from ..errors import BadSetting, NotAllowed, printable
from ..host import fds

_BACKLOG: Final = 1024
_TRIES, _PAUSE = 100, 0.02  # how often, and with which pause in seconds, a socket that is bound is asked again
_UCRED: Final = struct.calcsize("iII")
_SYSTEMD: Final = 3  # the first descriptor that systemd passes (sd_listen_fds(3))


def listen(path: str) -> tuple[socket.socket, Callable[[], None]]:
    """A listening socket at *path*, 0600, and what removes it; or the one that systemd passed, which stays.

    Raises:
        BadSetting: a live server is there already, or something that is no socket; or others than root could put a
            socket there.
    """
    if passed_by_systemd():
        return socket.socket(fileno=_SYSTEMD), lambda: None
    before = os.umask(0o177)
    try:
        path = _own_directory(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        # Or of several that start at once one would remove another's. Not the directory: every user may lock that.
        with fds.closing(os.open(f"{path}.lock", flags, 0o600)) as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen(_BACKLOG)
            made = os.lstat(path)
    except OSError as exc:
        raise BadSetting(f"HOSTPREP_SOCKET: {printable(path)}: {exc.strerror or exc}") from None
    finally:
        os.umask(before)

    def remove() -> None:
        # It may be another server's by now, but not while this one listens: until then no file gets its inode either.
        with contextlib.suppress(FileNotFoundError):
            if listener.fileno() >= 0 and os.path.samestat(os.lstat(path), made):
                os.unlink(path)

    return listener, remove


def _own_directory(path: str) -> str:
    """Make the directory of the socket where it is missing, and return *path* without symlinks.

    Raises:
        BadSetting: somebody other than root could put a socket there.
    """
    try:
        directory = fds.resolve(os.path.dirname(path))
        # dockerd makes /run/docker with 0700, and systemd does so for hostprep.socket.
        fds.make_way(os.path.dirname(directory), mode=0o700)
        fds.make_way(directory, mode=0o755)
    except NotAllowed as exc:
        raise BadSetting(f"HOSTPREP_SOCKET: {exc.message}", hint=exc.hint) from None
    if not fds.only_root_writes(directory):
        why = f"somebody other than root could put a socket of their own into {printable(directory)}"
        raise BadSetting(f"HOSTPREP_SOCKET: {why}", hint="the directory must be root's, and writable by root alone")
    return f"{directory.rstrip('/')}/{os.path.basename(path)}"


def passed_by_systemd() -> bool:
    """Whether systemd passed a socket to this process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def _remove_stale(path: str) -> None:
    """Remove a socket at *path* whose server is gone."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BadSetting(f"{printable(path)} exists and is no socket", hint="remove it, or set HOSTPREP_SOCKET")
        for _ in range(_TRIES):
            if _answers(path):
                raise BadSetting(f"a server already answers at {printable(path)}", hint="stop it first")
            if not _is_bound(path):
                break
            time.sleep(_PAUSE)
        os.unlink(path)


def _answers(path: str) -> bool:
    """Whether a process listens at *path*, be it that it has not accepted anybody for a while."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its backlog is full
            pass
        return not _is_dead(peer(probe))


def _is_bound(path: str) -> bool:
    """Whether a process has bound a socket to *path*, as systemd has for a moment before it listens.

    It may have done so in a mount namespace of its own, as any user can. So this is only a reason to wait a while.
    """
    with open("/proc/net/unix", "rb") as sockets:
        return any(line.split(maxsplit=7)[7:] == [os.fsencode(path)] for line in sockets.read().splitlines())


def peer(connection: socket.socket) -> int:
    """The process at the other end, or that listened there; 0 if it is in another pid namespace (unix(7))."""
    (pid,) = struct.unpack_from("i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED))
    return int(pid)


def _is_dead(pid: int) -> bool:
    """Whether the process was killed, and only a thread that a disk keeps in the kernel still holds its socket open."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat_file:
            return stat_file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False
