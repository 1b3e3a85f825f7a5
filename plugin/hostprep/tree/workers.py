"""The processes of one pass: a leader that begins alone, and workers that it forks where there is much to do.

They share four kernel objects, made before the first fork, and nothing else:

- `batches`, a pair of sockets: a process that has directories still to enter sends a batch of them, an idle one
  receives it.
- `idle`, a counter (eventfd(2)): how many processes wait for a batch. The others look at it now and then.
- `unfinished`, a counter: how many batches are not walked to their end. The process that finishes the last one shuts
  `batches`, which tells all of them that the pass is over.
- `reports`, a pair of sockets: each worker tells the leader what it has done so far.

The workers end when the leader does, however it ends. A worker that ends too early ends the pass.
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
from dataclasses import asdict
from typing import Any, Final

from ..host import linux
from .walk import Batch, Count, Outcome, Walk

_ALONE_SECONDS: Final = 0.02  # before workers are forked
_PER_PROCESSOR: Final = 2  # processes for each processor, since they wait where the disk is cold; and at most
_MOST_PROCESSES: Final = 16
_REPORT_SECONDS: Final = 0.25  # between two reports
_COUNT_AFTER_SECONDS: Final = 2.0  # before the tree is counted, for the time left
_MESSAGE_BYTES: Final = 131_072

Report = Callable[[int, int | None], None]
"""Called some times a second with how many entries were looked at, and how many there are, None while unknown."""
MakeWalk = Callable[[type[Walk], Callable[[], None]], Walk]
"""Makes a walk of a kind; it calls the second argument often."""


class TooManyEntries(Exception):
    """The pass met more entries than the file system had when it began: somebody makes them as fast."""


class Leader:
    """The first process of a pass over the directory *root*."""

    def __init__(self, root: int, make_walk: MakeWalk, report: Report) -> None:
        self._root = root
        self._make_walk = make_walk
        self._report = report
        self._walk = make_walk(Walk, self._tick)
        self._begun = time.monotonic()
        self._next_report = self._begun + _REPORT_SECONDS
        self._most_entries = _more_than_there_are(root)
        self._forked = False
        self._workers: set[int] = set()
        self._counter = 0
        self._done_by: dict[int, tuple[Outcome, float]] = {}
        """By each worker, as it reported last: what it did, and the `extra_links` in it."""
        self._estimate: int | None = None
        self._shared = _Shared()

    def run(self) -> Outcome:
        """Walk the whole tree. See process.run for what it raises."""
        walk, shared = self._walk, self._shared
        with contextlib.ExitStack() as stack:
            stack.callback(shared.close)
            stack.callback(self._end_workers)
            stack.callback(walk.close)
            walk.begin(os.dup(self._root))
            shared.finish(walk, self._tick)
            while self._workers and (batch := shared.take(self._tick)) is not None:
                walk.go_on(batch)
                shared.finish(walk, self._tick)
            while self._workers:
                self._listen(wait=True)
        for outcome, _ in self._done_by.values():
            walk.outcome.add(outcome)
        return walk.outcome

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._forked and now > self._begun + _ALONE_SECONDS:
            self._forked = True
            count = min(_PER_PROCESSOR * len(os.sched_getaffinity(0)), _MOST_PROCESSES)
            with contextlib.suppress(OSError):  # no more processes may be started: those there are do it
                for _ in range(count - 1):
                    self._workers.add(self._fork(self._work))
        if now < self._next_report:
            return
        self._next_report = now + _REPORT_SECONDS
        self._listen(wait=False)
        if not self._counter and now > self._begun + _COUNT_AFTER_SECONDS:
            with contextlib.suppress(OSError):
                self._counter = self._fork(self._count)
        done = self._walk.outcome.done + sum(outcome.done for outcome, _ in self._done_by.values())
        extra_links = self._walk.extra_links + sum(extra for _, extra in self._done_by.values())
        if done - extra_links > self._most_entries:
            raise TooManyEntries(
                f"the tree grows as fast as the pass goes through it, {done:,} entries so far: stop what writes to it"
            )
        self._report(done, None if self._estimate is None else max(self._estimate, done))

    def _listen(self, *, wait: bool) -> None:
        """Note what the workers report, and which of them have ended."""
        for message in self._shared.reports(_REPORT_SECONDS if wait else 0):
            if "counted" in message:
                self._estimate = message["counted"]
                continue
            self._done_by[message["pid"]] = Outcome(**message["outcome"]), message["extra_links"]
            if message["last"]:
                os.waitpid(message["pid"], 0)
                self._workers.discard(message["pid"])
        for pid in self._workers:
            if (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_status:
                raise ChildProcessError(f"a process of the pass ended too early, by {ended.si_status}")

    def _end_workers(self) -> None:
        for pid in (*self._workers, *([self._counter] if self._counter else [])):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._workers.clear()

    # -- in the other processes ----------------------------------------------------------------------------------------

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

    def _work(self) -> None:
        shared, next_report = self._shared, time.monotonic() + _REPORT_SECONDS

        def tick() -> None:
            nonlocal next_report
            if time.monotonic() > next_report:
                next_report = time.monotonic() + _REPORT_SECONDS
                report(last=False)

        def report(*, last: bool) -> None:
            done = {"outcome": asdict(walk.outcome), "extra_links": walk.extra_links}
            shared.report({"pid": os.getpid(), "last": last, **done}, wait=last)

        walk = self._make_walk(Walk, tick)
        while (batch := shared.take(tick)) is not None:
            walk.go_on(batch)
            shared.finish(walk, tick)
        report(last=True)

    def _count(self) -> None:
        os.nice(10)
        walk = self._make_walk(Count, lambda: None)
        walk.begin(os.dup(self._root))
        while walk.step():
            pass
        self._shared.report({"counted": walk.outcome.done}, wait=True)


def _more_than_there_are(root: int) -> int:
    """More entries than can be on the file system of *root* now; further hard links to a file are not counted."""
    disk = os.fstatvfs(root)
    used = disk.f_files - disk.f_ffree if disk.f_files else 1 << 28  # btrfs does not count them
    return 2 * used + 100_000


class _Shared:
    """The four kernel objects that the processes share."""

    def __init__(self) -> None:
        kind = socket.SOCK_SEQPACKET
        self._take_end, self._give_end = socket.socketpair(socket.AF_UNIX, kind)
        self._take_end.settimeout(0)  # never wait: recv_fds ignores its flags
        self._listen_end, self._report_end = socket.socketpair(socket.AF_UNIX, kind)
        flags = os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self._idle, self._unfinished = os.eventfd(0, flags), os.eventfd(1, flags)
        self._any_idle = select.poll()
        self._any_idle.register(self._idle, select.POLLIN)

    def close(self) -> None:
        for end in (self._take_end, self._give_end, self._listen_end, self._report_end):
            end.close()
        os.close(self._idle)
        os.close(self._unfinished)

    def finish(self, walk: Walk, tick: Callable[[], None]) -> None:
        """Take a walk that has begun to its end, and give batches of it to idle processes."""
        while walk.step():
            tick()
            self._give(walk)
        os.eventfd_read(self._unfinished)
        unfinished = select.poll()
        unfinished.register(self._unfinished, select.POLLIN)
        if not unfinished.poll(0):
            self._give_end.shutdown(socket.SHUT_RDWR)

    def _give(self, walk: Walk) -> None:
        """Give an idle process, where there is one, a batch of what *walk* has still to enter, where there is any."""
        if not self._any_idle.poll(0):
            return
        try:
            os.eventfd_read(self._idle)
        except BlockingIOError:  # another process was quicker
            return
        batch = walk.give()
        if batch is None:
            os.eventfd_write(self._idle, 1)
            return
        os.eventfd_write(self._unfinished, 1)
        message = b"\0".join([str(batch.level).encode(), batch.path, *batch.names])
        socket.send_fds(self._give_end, [message], [batch.fd])

    def take(self, tick: Callable[[], None]) -> Batch | None:
        """Wait for a batch, and call *tick* meanwhile; None when the pass is over."""
        os.eventfd_write(self._idle, 1)
        given = select.poll()
        given.register(self._take_end, select.POLLIN)
        while True:
            while not given.poll(int(_REPORT_SECONDS * 1000)):
                tick()
            # Another process may take it first. A leader that waited for the next one would not listen meanwhile, until
            # no worker could report.
            with contextlib.suppress(BlockingIOError):
                message, received, _, _ = socket.recv_fds(self._take_end, _MESSAGE_BYTES, 1)
                break
        if not message:
            return None
        if not received:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        level, path, *names = message.split(b"\0")
        return Batch(received[0], path, int(level), names)

    def report(self, message: dict[str, Any], *, wait: bool) -> None:
        """Tell the leader; without *wait* the message is lost where the leader does not keep up."""
        with contextlib.suppress(*(() if wait else (BlockingIOError,))):
            self._report_end.send(json.dumps(message).encode(), 0 if wait else socket.MSG_DONTWAIT)

    def reports(self, seconds: float) -> list[dict[str, Any]]:
        """What was reported since the last call; at most *seconds* are waited for the first report."""
        found = []
        waiting = select.poll()
        waiting.register(self._listen_end, select.POLLIN)
        wait = int(seconds * 1000)
        while waiting.poll(wait):
            found.append(json.loads(self._listen_end.recv(_MESSAGE_BYTES)))
            wait = 0
        return found
