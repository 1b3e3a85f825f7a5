"""The processes of one pass: a leader that begins alone, and others that it forks where there is much to do.

They share four kernel objects and nothing else:

- `parts`, a pair of sockets that all send to and receive from: directories for whoever has nothing to do.
- `hungry`, an eventfd(2): how many wait for a part. Whoever has directories still to enter looks at it now and then.
- `unfinished`, an eventfd: how many parts are not walked to their end. Who brings it to zero was the last, and shuts
  `parts`, by which everybody knows that it is over.
- `told`, a pair of sockets: what each has done so far, to the leader.

The others end when the leader does, however it ends; one of them that ends before its time ends the pass.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from ..host import linux
from .walk import Count, Outcome, Part, Walk

_ALONE: Final = 0.02  # seconds before others are forked
_PROCESSES: Final = 2  # for each processor, since on a cold disk they wait; and at most
_MOST_PROCESSES: Final = 16
_TICK: Final = 0.25  # seconds between two reports
_COUNTED_AFTER: Final = 2.0  # seconds before the tree is counted, for the time left
_MESSAGE: Final = 131_072  # bytes

Report = Callable[[int, int | None], None]
"""Called some times a second with how many entries were looked at, and how many there are, None while unknown."""
MakeWalk = Callable[[type[Walk], Callable[[], None]], Walk]
"""Makes a walk of a kind; it calls the second argument often."""


class Endless(Exception):
    """More entries were met than the file system had when the pass began: somebody makes them as fast."""


class Crew:
    """The leader's view of a pass over the directory *root*."""

    def __init__(self, root: int, make: MakeWalk, report: Report) -> None:
        self._root = root
        self._make = make
        self._report = report
        self._walk = make(Walk, self._tick)
        self._begun = time.monotonic()
        self._next = self._begun + _TICK
        self._most = _most(root)
        self._table: _Table | None = None
        self._forked = False
        self._others: set[int] = set()
        self._counter = 0
        self._told: dict[int, dict[str, Any]] = {}
        self._estimate: int | None = None

    def lead(self, *, alone: bool) -> Outcome:
        """Walk the whole tree, with others unless *alone*. See tree.run for what it raises."""
        walk, table = self._walk, None
        with contextlib.ExitStack() as stack:
            stack.callback(walk.close)
            walk.begin(os.dup(self._root))
            if not alone:
                table = self._table = stack.enter_context(contextlib.closing(_Table()))
                stack.callback(self._end_others)
            while walk.step():
                self._tick()
                if table is not None:
                    table.share(walk)
            if table is not None:
                table.finished()
                while self._others:
                    if (part := table.take(self._tick)) is None:
                        break
                    table.work(walk, part, self._tick)
                while self._others:
                    self._listen(wait=True)
        for other in self._told.values():
            walk.outcome.add(Outcome(other["done"], other["changed"], other["left"], other["examples"]))
        return walk.outcome

    def _tick(self) -> None:
        now = time.monotonic()
        if self._table is not None and not self._forked and now > self._begun + _ALONE:
            self._forked = True
            count = min(_PROCESSES * len(os.sched_getaffinity(0)), _MOST_PROCESSES)
            with contextlib.suppress(OSError):  # no more processes may be started: those there are do it
                for _ in range(count - 1):
                    self._others.add(self._fork(self._help))
        if now < self._next:
            return
        self._next = now + _TICK
        if self._table is not None:
            self._listen(wait=False)
            if not self._counter and now > self._begun + _COUNTED_AFTER:
                with contextlib.suppress(OSError):
                    self._counter = self._fork(self._count)
        done = self._walk.outcome.done + sum(other["done"] for other in self._told.values())
        again = self._walk.again + sum(other["again"] for other in self._told.values())
        if done - again > self._most:
            raise Endless(f"the tree grows as fast as it is gone over, {done:,} entries so far: stop what writes to it")
        self._report(done, None if self._estimate is None else max(self._estimate, done))

    def _listen(self, *, wait: bool) -> None:
        """Take note of what the others have done, and of those that have ended."""
        assert self._table is not None  # noqa: S101  # the table is there before anybody shares it
        for told in self._table.heard(_TICK if wait else 0):
            if "counted" in told:
                self._estimate = told["counted"]
                continue
            self._told[told["pid"]] = told
            if told["over"]:
                os.waitpid(told["pid"], 0)
                self._others.discard(told["pid"])
        for pid in self._others:
            if (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_status:
                raise ChildProcessError(f"a process of the pass ended before its time, by {ended.si_status}")

    def _end_others(self) -> None:
        for pid in (*self._others, *([self._counter] if self._counter else [])):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._others.clear()

    # -- the others --------------------------------------------------------------------------------------------------

    def _fork(self, do: Callable[[], None]) -> int:
        leader = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            linux.die_with_parent()
            if os.getppid() == leader:
                self._walk.close()
                do()
                code = 0
        except BaseException:  # whatever it is, nothing of the leader's may run here
            traceback.print_exc()
        finally:
            os._exit(code)

    def _help(self) -> None:
        table, next_told = self._table, time.monotonic() + _TICK
        assert table is not None  # noqa: S101  # as above

        def tick() -> None:
            nonlocal next_told
            if time.monotonic() > next_told:
                next_told = time.monotonic() + _TICK
                tell()

        def tell(*, over: bool = False) -> None:
            outcome = walk.outcome
            table.tell(
                last=over,
                pid=os.getpid(),
                done=outcome.done,
                changed=outcome.changed,
                left=outcome.left,
                examples=outcome.examples,
                again=walk.again,
                over=over,
            )

        walk = self._make(Walk, tick)
        while (part := table.take(tick)) is not None:
            table.work(walk, part, tick)
        tell(over=True)

    def _count(self) -> None:
        assert self._table is not None  # noqa: S101  # as above
        os.nice(10)
        walk = self._make(Count, lambda: None)
        walk.begin(os.dup(self._root))
        while walk.step():
            pass
        self._table.tell(counted=walk.outcome.done)


def _most(root: int) -> int:
    """More entries than can be on the file system of *root* now, other names of one file not counted."""
    disk = os.fstatvfs(root)
    used = disk.f_files - disk.f_ffree if disk.f_files else 1 << 28  # btrfs does not count them
    return 2 * used + 100_000


class _Table:
    """The four kernel objects, which forked processes share."""

    def __init__(self) -> None:
        kind = socket.SOCK_SEQPACKET
        self._out, self._in = socket.socketpair(socket.AF_UNIX, kind)
        self._out.settimeout(0)  # never wait: recv_fds does not heed flags
        self._ear, self._mouth = socket.socketpair(socket.AF_UNIX, kind)
        flags = os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self._hungry, self._unfinished = os.eventfd(0, flags), os.eventfd(1, flags)
        self._asked = select.poll()
        self._asked.register(self._hungry, select.POLLIN)

    def close(self) -> None:
        for end in (self._out, self._in, self._ear, self._mouth):
            end.close()
        os.close(self._hungry)
        os.close(self._unfinished)

    def work(self, walk: Walk, part: Part, tick: Callable[[], None]) -> None:
        """Walk *part* to its end, and give of it to whoever is hungry."""
        walk.go_on(part)
        while walk.step():
            tick()
            self.share(walk)
        self.finished()

    def share(self, walk: Walk) -> None:
        """Give a part of what *walk* has still to enter, where there is any, to one who is hungry."""
        if not self._asked.poll(0):
            return
        try:
            os.eventfd_read(self._hungry)
        except BlockingIOError:  # another was quicker to give
            return
        part = walk.give()
        if part is None:
            os.eventfd_write(self._hungry, 1)
            return
        os.eventfd_write(self._unfinished, 1)
        message = b"\0".join([str(part.depth).encode(), part.path, *part.names])
        socket.send_fds(self._in, [message], [part.fd])

    def finished(self) -> None:
        """One part is walked to its end."""
        os.eventfd_read(self._unfinished)
        left = select.poll()
        left.register(self._unfinished, select.POLLIN)
        if not left.poll(0):
            self._in.shutdown(socket.SHUT_RDWR)

    def take(self, tick: Callable[[], None]) -> Part | None:
        """Wait for a part; None when all is done."""
        os.eventfd_write(self._hungry, 1)
        given = select.poll()
        given.register(self._out, select.POLLIN)
        while True:
            while not given.poll(int(_TICK * 1000)):
                tick()
            # Another may be quicker to take it. A leader that waited here would hear nobody, until nobody could tell.
            with contextlib.suppress(BlockingIOError):
                message, received, _, _ = socket.recv_fds(self._out, _MESSAGE, 1)
                break
        if not message:
            return None
        if not received:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        depth, path, *names = message.split(b"\0")
        return Part(received[0], path, int(depth), names)

    def tell(self, *, last: bool = True, **what: object) -> None:
        """Tell the leader. What is not the *last* word may go unheard where the leader does not keep up."""
        with contextlib.suppress(*(() if last else (BlockingIOError,))):
            self._mouth.send(json.dumps(what).encode(), 0 if last else socket.MSG_DONTWAIT)

    def heard(self, seconds: float) -> list[dict[str, Any]]:
        """What was told since the last call, after waiting for something for so long."""
        told = []
        ear = select.poll()
        ear.register(self._ear, select.POLLIN)
        wait = int(seconds * 1000)
        while ear.poll(wait):
            told.append(json.loads(self._ear.recv(_MESSAGE)))
            wait = 0
        return told
