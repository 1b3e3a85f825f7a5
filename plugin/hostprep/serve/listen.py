"""The socket: made, or passed by systemd; and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final

from ..errors import BadSetting, printable
from ..host.fds import closing

_BACKLOG: Final = 1024
_UCRED: Final = struct.calcsize("iII")
_SYSTEMD: Final = 3  # the first descriptor that systemd passes (sd_listen_fds(3))


def listen(path: str) -> tuple[socket.socket, Callable[[], None]]:
    """A listening socket at *path*, 0600, and what removes it; or the one that systemd passed, which stays.

    Raises:
        BadSetting: a live server is there already, or something that is no socket.
    """
    if passed_by_systemd():
        return socket.socket(fileno=_SYSTEMD), lambda: None
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    before = os.umask(0o177)
    try:
        # Or of several that start at once one would remove another's. Not the directory: every user may lock that.
        with closing(os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)) as guard:
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
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), made):  # it may be another server's by now
                os.unlink(path)

    return listener, remove


def passed_by_systemd() -> bool:
    """Whether systemd passed a socket to this process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def _remove_stale(path: str) -> None:
    """Remove a socket at *path* whose server is gone."""
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BadSetting(f"{printable(path)} exists and is no socket", hint="remove it, or set HOSTPREP_SOCKET")
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            if not _is_dead(peer(probe)):
                raise BadSetting(f"a server already answers at {printable(path)}", hint="stop it first")
            os.unlink(path)


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
