"""Stop a child process before each system call with which it changes what outlives it, and decide what becomes of it.

seccomp's user notification (seccomp_unotify(2), Linux 5.5) hands such calls of the child, of its threads and of all
processes that it starts, to this process before the kernel does them. Between two of them nothing on disk changes: to
be killed before each one and after the last is to be killed at every moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from hostprep.host import linux

KILL: Final = -1
"""End the child and all that it has started, before the call is done."""
KILL_ONE: Final = -2
"""End the one process whose call it is; the others go on."""
GO: Final = 0
_SECONDS: Final = 300.0  # after which a run is taken to hang

# The calls of x86-64 that change something, by number, and what their arguments are: f a descriptor, d the descriptor
# of a directory, p a path, each p relative to the d or f before it.
_CALLS: Final = {
    1: ("write", "f"),
    18: ("pwrite64", "f"),
    20: ("writev", "f"),
    74: ("fsync", "f"),
    75: ("fdatasync", "f"),
    76: ("truncate", "p"),
    77: ("ftruncate", "f"),
    82: ("rename", "pp"),
    83: ("mkdir", "p"),
    84: ("rmdir", "p"),
    85: ("creat", "p"),
    86: ("link", "pp"),
    87: ("unlink", "p"),
    88: ("symlink", " p"),
    90: ("chmod", "p"),
    91: ("fchmod", "f"),
    92: ("chown", "p"),
    93: ("fchown", "f"),
    94: ("lchown", "p"),
    133: ("mknod", "p"),
    162: ("sync", ""),
    165: ("mount", "pp"),
    166: ("umount2", "p"),
    188: ("setxattr", "p"),
    189: ("lsetxattr", "p"),
    190: ("fsetxattr", "f"),
    197: ("removexattr", "p"),
    198: ("lremovexattr", "p"),
    199: ("fremovexattr", "f"),
    258: ("mkdirat", "dp"),
    259: ("mknodat", "dp"),
    260: ("fchownat", "dp"),
    263: ("unlinkat", "dp"),
    264: ("renameat", "dpdp"),
    265: ("linkat", "dpdp"),
    266: ("symlinkat", " dp"),
    268: ("fchmodat", "dp"),
    280: ("utimensat", "dp"),
    285: ("fallocate", "f"),
    306: ("syncfs", "f"),
    316: ("renameat2", "dpdp"),
    326: ("copy_file_range", " f"),
    429: ("move_mount", "dpdp"),
    452: ("fchmodat2", "dp"),
}
# Those that do so only with some flag: the number, the argument, and the bits of it or (ioctl) its value.
_CREATING: Final = os.O_CREAT | os.O_TRUNC
_IF: Final = {
    2: ("open", "p", 1, _CREATING),
    257: ("openat", "dp", 2, _CREATING),
    16: ("ioctl", "f", 1, linux.FS_IOC_SETFLAGS),
}
_SYNCS: Final = frozenset({"fsync", "fdatasync", "syncfs", "sync"})
_ELSEWHERE: Final = frozenset(
    {"write", "pwrite64", "writev", "open", "openat", "creat"}
)  # may be of pipes, caches, logs

_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_AUDIT_ARCH_X86_64: Final = 0xC000003E
_LOAD, _EQUAL, _ANY, _RETURN = (
    0x20,
    0x15,
    0x45,
    0x06,
)  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_J{EQ,SET}|BPF_K, BPF_RET|BPF_K
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_{RECV,SEND}
_NOTIFICATION, _RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE: Final = 1


@dataclass(frozen=True, slots=True)
class Step:
    """A call that is about to be done."""

    number: int
    """Counted from 0."""
    call: str
    paths: tuple[str, ...]
    """What it is about, as far as names tell."""
    pid: int
    told: tuple[Any, ...]
    """What the child has told by now."""

    @property
    def syncs(self) -> bool:
        return self.call in _SYNCS

    def __str__(self) -> str:
        return f"{self.number} {self.call} {' '.join(self.paths)}"


@dataclass(slots=True)
class Ended:
    """How a run ended."""

    steps: list[Step] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    code: int = 0
    """As subprocess has it: negative, the signal."""

    def at(self, number: int) -> str:
        """The step with that number, for a message. A busy machine may take one more, or one fewer, in a pass."""
        return str(self.steps[number]) if number < len(self.steps) else "no step"


def only(verdict: int, number: int) -> Callable[[Step], int]:
    """*verdict* for the step *number*; all others go on."""
    return lambda step: verdict if step.number == number else GO


def run(do: Callable[[Callable[[Any], None]], object], watched: Sequence[Path], at: Callable[[Step], int]) -> Ended:
    """Call *do* in a child process, and ask *at* before each step what becomes of it: GO, KILL, KILL_ONE, or an errno.

    Args:
        do: is given a function with which to tell something, JSON, to *at*, in order with the steps.
        watched: files that are written or made elsewhere (logs, caches) are no steps.
    """
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are known here for x86-64 only")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            pid = os.fork()
            if pid == 0:
                _child(do, theirs)
        ended = Ended()
        try:
            data, (listener,), _, _ = socket.recv_fds(ours, 16, 1)
            assert data == b"filtered"
            try:
                _supervise(listener, pid, ours, [f"{path}/" for path in watched], at, ended)
            except BaseException:
                _kill_group(pid)
                raise
            finally:
                os.close(listener)
        finally:
            _kill_group(pid)
            ended.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _listen(ours, ended)
    return ended


def _child(do: Callable[[Callable[[Any], None]], object], told: socket.socket) -> None:
    code = 111
    try:
        os.setpgid(0, 0)
        linux.die_with_parent()
        listener = _install()
        socket.send_fds(told, [b"filtered"], [listener])
        os.close(listener)
        do(lambda what: told.sendall(json.dumps(what).encode()))
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0
    except BaseException:  # whatever it is, nothing of the parent's may run here
        traceback.print_exc()
    finally:
        os._exit(code)


def _install() -> int:
    """Filter this process and all that it starts; the descriptor by which somebody else decides (seccomp(2))."""
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for number in _CALLS:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    for number, (call, _, argument, value) in _IF.items():
        test = _EQUAL if call == "ioctl" else _ANY
        program += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * argument), (test, 0, 1, value)]
        program += [(_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    listener = int(libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, filter_))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter")
    return listener


def _supervise(
    listener: int, child: int, told: socket.socket, watched: list[str], at: Callable[[Step], int], ended: Ended
) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    end = time.monotonic() + _SECONDS
    killed = False
    while True:
        assert time.monotonic() < end, f"it did not end, last step {ended.steps[-1:]}"
        events = dict(poll.poll(100))
        if not events:
            _reap(child)
            continue
        if not events[listener] & select.POLLIN:  # POLLHUP: all that were filtered are gone
            return
        received = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, received)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EINTR):
                raise
            continue  # it was killed meanwhile
        key, pid, _, number, _, _, *arguments = _NOTIFICATION.unpack(received)
        verdict = GO
        if not killed and (step := _step(number, pid, arguments, watched, ended)) is not None:
            _listen(told, ended)
            step = Step(len(ended.steps), step.call, step.paths, pid, tuple(ended.told))
            ended.steps.append(step)
            verdict = at(step)
        if verdict == KILL:
            killed = True
            _kill_group(child)
        elif verdict == KILL_ONE:
            os.kill(pid, signal.SIGKILL)
        else:
            answer = bytearray(_RESPONSE.pack(key, 0, -verdict, 0 if verdict else _CONTINUE))
            with contextlib.suppress(FileNotFoundError):  # it was killed meanwhile
                fcntl.ioctl(listener, _SEND, answer)


def _step(number: int, pid: int, arguments: list[int], watched: list[str], ended: Ended) -> Step | None:
    call, kinds = _CALLS.get(number) or _IF[number][:2]
    paths, base = [], ""
    for kind, argument in zip(kinds, arguments, strict=False):
        if kind in "fd":
            base = _link(pid, "cwd" if argument & 0xFFFFFFFF == 0xFFFFFF9C else f"fd/{argument & 0xFFFFFFFF}")
        if kind == "p":
            paths.append(os.path.join(base or _link(pid, "cwd"), _text(pid, argument)))
        elif kind == "f":
            paths.append(base)
    if call in _ELSEWHERE and not any(path.startswith(tuple(watched)) for path in paths):
        return None
    if call in ("open", "openat", "mkdir", "mkdirat") and os.path.exists(paths[0]):  # a lock file, say
        return None
    if paths and all("/__pycache__" in path for path in paths):
        return None
    return Step(0, call, tuple(paths), pid, ())


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return "?"


def _text(pid: int, address: int) -> str:
    """A string of another process's memory."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(min(4096, 4096 - address % 4096) or 4096).split(b"\0")[0])
    except (OSError, ValueError, OverflowError):
        return "?"


def _listen(told: socket.socket, ended: Ended) -> None:
    with contextlib.suppress(BlockingIOError):
        while what := told.recv(65536, socket.MSG_DONTWAIT):
            ended.told.append(json.loads(what))


def _kill_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def _reap(child: int) -> None:
    """Take note of orphans of the child's that became this process's (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_PGID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and found.si_pid != child:
            os.waitpid(found.si_pid, 0)
