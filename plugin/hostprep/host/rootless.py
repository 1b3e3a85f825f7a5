"""hostprep of a user who is not root: root in a user namespace of its own, with the ids of that user's engines.

`enter` makes the namespace as rootless Docker and Podman make theirs: 0 in it is the user, and 1 and up are the ranges
in /etc/subuid and /etc/subgid. No mount namespace is made: what the host mounts is seen, and hostprep mounts nothing.

In there every user who has no number shows as 65534, the real root too, so nobody can tell whose a directory is. A
process of the user's stays outside (`_stay_outside`) and is asked: it sees the owner as it is. It is asked as well what
processes see and have mounted, since only from outside may one look into the namespaces of the user's engines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Final

from ..errors import BadSetting, Invalid
from . import linux

_PAGE: Final = "see docs/rootless.md"
_KEPT: Final = "_HOSTPREP_OUTSIDE"  # names the socket's descriptor to a child that inherits it
_READY: Final = b"mapped"
_OWNER, _ROOT, _TABLES = "owner", "root", "tables"

_outside: socket.socket | None = None
"""Leads to the process outside; None where hostprep is the host's, or the managed plugin."""


def settings_file() -> str:
    """Where a user's own hostprep has its settings; "" where this user has none, or is root."""
    file = f"{_home('XDG_CONFIG_HOME', '.config')}/hostprep/hostprep.env"
    return file if os.geteuid() != 0 and os.path.exists(file) else ""


def defaults() -> dict[str, str]:
    """The environment variables that have other defaults than the host's hostprep has. Asked before `enter`."""
    run = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return {
        "HOSTPREP_ROOT": f"{_home('XDG_DATA_HOME', '.local/share')}/hostprep",
        "HOSTPREP_SOCKET": f"{run}/hostprep.sock",
        "HOSTPREP_KNOWN_ROOTS": f"{_home('XDG_CONFIG_HOME', '.config')}/hostprep/roots",
        "DOCKER_HOST": f"unix://{run}/docker.sock",
    }


def engines() -> tuple[str, ...]:
    """Where the user's engines keep their data by default; nothing where hostprep is the host's."""
    data = _home("XDG_DATA_HOME", ".local/share")
    return (f"{data}/docker", f"{data}/containers", f"{data}/containers/storage") if inside() else ()


def _home(variable: str, default: str) -> str:
    given = os.environ.get(variable, "")
    return given if given.startswith("/") else os.path.join(os.path.expanduser("~"), default)


def inside() -> bool:
    """Whether this process is in a namespace that `enter` made."""
    return _outside is not None


def enter() -> None:
    """Make this process, which has no threads yet, root in a user namespace of its own.

    Raises:
        BadSetting: the user has no ranges of ids, or the machine does not allow it.
    """
    global _outside
    name = pwd.getpwuid(os.geteuid()).pw_name
    ids = {"uid": os.geteuid(), "gid": os.getegid()}
    maps = {which: ["0", str(number), "1", *_ranges(which, name)] for which, number in ids.items()}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.getpid()
    if os.fork() == 0:
        _stay_outside(theirs, process, maps)
    theirs.close()
    try:
        linux.unshare(linux.CLONE_NEWUSER)
    except OSError as exc:
        raise BadSetting(f"this user can make no user namespace: {exc.strerror}", hint=_PAGE) from None
    ours.send(b"made")
    if (said := ours.recv(4096)) != _READY:
        raise BadSetting(said.decode() or "the process that maps this user's ids has ended", hint=_PAGE)
    _outside = ours


def inherit() -> None:
    """Take over from the parent, which is in such a namespace, if it is hostprep."""
    global _outside
    if (kept := os.environ.pop(_KEPT, "")) and _map_of("uid") != [(0, 0, 4294967295)]:
        _outside = socket.socket(fileno=int(kept))


def heritage() -> tuple[dict[str, str], tuple[int, ...]]:
    """The environment variable and the descriptor with which a child of hostprep's can `inherit`."""
    if _outside is None:
        return {}, ()
    return {_KEPT: str(_outside.fileno())}, (_outside.fileno(),)


def _ranges(which: str, name: str) -> list[str]:
    """The arguments of newuidmap(1), or of newgidmap, for the user's ranges in the order in which they stand."""
    file, inside, arguments = f"/etc/sub{which}", 1, list[str]()
    with contextlib.suppress(FileNotFoundError):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            owner, *numbers = line.strip().split(":")
            if owner in (name, str(os.geteuid())) and len(numbers) == 2 and all(map(str.isdecimal, numbers)):
                arguments += [str(inside), *numbers]
                inside += int(numbers[1])
    if not arguments:
        why = f"{file} has no range of ids for {name}"
        raise BadSetting(why, hint=f"the engine needs one, too: usermod --add-sub{which}s 100000-165535 {name}")
    return arguments


# -- the process outside -------------------------------------------------------------------------------------------


def _stay_outside(asked: socket.socket, process: int, maps: dict[str, list[str]]) -> None:
    """Give *process* its ids, then answer until nobody is left who could ask. Never returns."""
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it comes to both; this one ends after the other
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        keep = asked.fileno()
        os.closerange(3, keep)  # systemd's socket among them: with it this process would seem to listen
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        if asked.recv(16):
            asked.send((_map(process, maps) or _READY.decode()).encode())
            while (received := socket.recv_fds(asked, 64, 2))[0]:
                # A thread for each: a directory may be on a disk that hangs, and looking at all processes takes time.
                threading.Thread(target=_answer, args=(received[0].decode(), received[1]), daemon=True).start()
    os._exit(0)


def _map(process: int, maps: dict[str, list[str]]) -> str:
    """Have the ids of *process* mapped; returns what is wrong, or ""."""
    for which, arguments in maps.items():
        command = [f"new{which}map", str(process), *arguments]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as exc:
            return f"{command[0]}: {exc.strerror} (install the package uidmap, or shadow-utils)"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()}"
    return ""


def _answer(question: str, fds: list[int]) -> None:
    """Answer a question. With it come the socket for the answer, and what it is about."""
    what, _, which = question.partition(" ")
    with contextlib.suppress(OSError), socket.socket(fileno=fds[0]) as reply:
        if what == _OWNER:
            reply.send(os.fstat(fds[1]).st_uid.to_bytes(4, "big"))
        elif what == _ROOT:
            fds.append(os.open(f"/proc/{which}/root", os.O_PATH | os.O_CLOEXEC))
            socket.send_fds(reply, [b"opened"], fds[1:])
        elif what == _TABLES:
            from .uses import tables_as_json

            reply.sendall(tables_as_json())
    for fd in fds[1:]:
        os.close(fd)


# -- asking it -----------------------------------------------------------------------------------------------------


def _ask(question: str, *about: int) -> tuple[bytes, list[int]]:
    """What the process outside answers, and the descriptors that it opened; nothing if it has ended, or may not."""
    mine, theirs = socket.socketpair()
    with mine, contextlib.suppress(OSError):
        with theirs:
            if _outside is not None:
                socket.send_fds(_outside, [question.encode()], [theirs.fileno(), *about])
        first, fds, _, _ = socket.recv_fds(mine, 65536, 1)
        return first + b"".join(iter(lambda: mine.recv(65536), b"")), fds
    return b"", []


def is_real_root(fd: int) -> bool:
    """Whether the directory *fd*, whose owner has no number here, belongs to the root of the host."""
    return inside() and _ask(_OWNER, fd)[0] == bytes(4)


def tables() -> bytes:
    """What `uses.tables_as_json` says outside of the namespace; nothing if nobody is there to say so."""
    return _ask(_TABLES)[0]


def open_root_of(pid: int) -> int:
    """Pin the root directory of a process, of a container's too.

    Raises:
        OSError: it has ended, or may not be looked at.
    """
    try:
        return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        if not (opened := _ask(f"{_ROOT} {pid}")[1]):
            raise
        fcntl.fcntl(opened[0], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        return opened[0]


def check_ids(uid: int | None, gid: int | None) -> None:
    """Refuse a number that the namespace does not have.

    Raises:
        Invalid: no container of this user's can have it.
    """
    for which, number in {"uid": uid, "gid": gid}.items() if inside() else ():
        end = sum(count for _, _, count in _map_of(which))
        if number is not None and number >= end:
            why = f"option {which}: {number} is no number of this user's containers, which have 0 to {end - 1}"
            raise Invalid(why, hint=f"give a longer range in /etc/sub{which}, and start hostprep and the engine again")


def _map_of(which: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, line.split())) for line in Path(f"/proc/self/{which}_map").read_text("ascii").splitlines()]
