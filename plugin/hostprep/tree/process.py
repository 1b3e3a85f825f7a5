"""A pass: every entry below a directory gets its owner and label, in a process of its own.

So it takes no time from the server's threads. `run` and `main` are that process; `begin` and `follow` are its parent's.
Between them go lines of JSON: reports, and at the end the outcome or the error. workers.py has the other processes of
one pass, walk.py what each of them does.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ..errors import Unreadable, printable
from ..host import fds, linux
from ..host.mountinfo import mount_table
from .walk import Order, Outcome, Walk
from .workers import Leader, Report, TooManyEntries

_NICE: Final = 5  # a pass can wait a little; the starts of other containers should not
_PACKAGE: Final = str(Path(__file__).resolve().parents[2])
_ONE_JOURNAL: Final = frozenset({linux.EXT4_SUPER_MAGIC, linux.XFS_SUPER_MAGIC})
_LOCAL: Final = _ONE_JOURNAL | {linux.BTRFS_SUPER_MAGIC, linux.TMPFS_MAGIC}
"""Where to open a file asks no server and fetches nothing from an archive."""


def run(root: int, order: Order, report: Report = lambda done, estimate: None) -> Outcome:
    """Give every entry below *root*, but not *root* itself, the owner and label that *order* names.

    Only what differs is written. chown(2) strips setuid, setgid and file capabilities from what is no directory. This
    process forks, so it may have no other thread; its working directory is somewhere in the tree afterwards.

    Raises:
        TooManyEntries: entries are made faster than the pass goes through them.
        ChildProcessError: another process of the pass ended too early.
    """
    with _clone(root) as (fd, cloned):
        local, mount_points = linux.file_system(root) in _LOCAL, _mount_points(root)

        def make_walk(kind: type[Walk], tick: Callable[[], None]) -> Walk:
            return kind(order, cloned=cloned, local=local, mount_points=mount_points, tick=tick)

        return Leader(fd, make_walk, report).run()


@contextlib.contextmanager
def _clone(root: int) -> Iterator[tuple[int, bool]]:
    """A detached clone of the mount that *root* is on, rooted there, and True; where there is none, *root* and False.

    The clone is private: what is mounted on the original is not propagated to it.
    """
    with contextlib.ExitStack() as stack:
        try:
            clone = linux.open_tree(root, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC)
            stack.enter_context(fds.closing(clone))
            attributes = linux.MOUNT_ATTR_NOSYMFOLLOW | linux.MOUNT_ATTR_NODEV
            linux.mount_setattr(clone, 0, attributes=attributes, propagation=linux.MS_PRIVATE)
            readable = stack.enter_context(fds.closing(os.open(".", fds.DIRECTORY, dir_fd=clone)))
        except OSError:  # ENOSYS of an old kernel, EPERM without CAP_SYS_ADMIN
            yield root, False
        else:
            yield readable, True


def _mount_points(root: int) -> frozenset[bytes]:
    """The paths below *root* at which something is mounted now, going by the name that *root* has now (proc(5))."""
    above = os.readlink(f"/proc/self/fd/{root}") + "/"
    points = [mount.point for mount in mount_table()]
    return frozenset(os.fsencode(point.removeprefix(above)) for point in points if point.startswith(above))


def main(arguments: list[str]) -> None:
    """Run a pass over the directory that is open as descriptor *arguments[0]*, by the order *arguments[1]*."""
    root, order = int(arguments[0]), Order(**json.loads(arguments[1]))
    os.nice(_NICE)

    def report(done: int, estimate: int | None) -> None:
        print(json.dumps({"done": done, "estimate": estimate}), flush=True)

    try:
        outcome = run(root, order, report)
    except (TooManyEntries, OSError) as exc:
        print(json.dumps({"error": str(exc)}), flush=True)
        sys.exit(1)
    # The parent changes the root next, takes the mark away, and syncs both. On ext4 and XFS one journal keeps the order
    # of all changes. Elsewhere (btrfs), and where the mark is on another file system than a root that is right already,
    # a power cut could then leave a right root above wrong contents, without a mark.
    if not order.dry_run and (order.synced or linux.file_system(root) not in _ONE_JOURNAL):
        linux.syncfs(root)
    print(json.dumps(asdict(outcome)), flush=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass is, in entries and seconds, as Status shows it."""

    done: int = 0
    estimate: int | None = None
    rate: float = 0.0
    seconds_left: float | None = None

    @classmethod
    def now(cls, done: int, estimate: int | None, seconds: float) -> Progress:
        """The progress *seconds* after the pass began."""
        rate = done / max(seconds, 0.001)
        left = None if estimate is None or rate == 0 else round(max(0, estimate - done) / rate, 1)
        return cls(done, estimate, round(rate, 1), left)

    def __str__(self) -> str:
        return f"{self.done:,} of about {self.estimate:,} entries" if self.estimate else f"{self.done:,} entries"

    @property
    def left(self) -> str:
        """The time left, in words; empty where it is not known."""
        if self.seconds_left is None:
            return ""
        if self.seconds_left < 90:
            return f"{max(1, round(self.seconds_left))} s"
        return f"{round(self.seconds_left / 60)} minutes"


def begin(data: int, order: Order, *, keep_open: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start the process of a pass over the directory *data*. It also inherits the descriptors *keep_open*."""
    return subprocess.Popen(
        # -P and -S: it imports this package and the standard library only, whatever the working directory holds.
        [sys.executable, "-P", "-S", "-m", "hostprep.tree.process", str(data), json.dumps(asdict(order))],
        env={"PYTHONPATH": _PACKAGE, "PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        pass_fds=(data, *keep_open),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def follow(begun: subprocess.Popen[str], report: Callable[[Progress], None]) -> Outcome:
    """Pass on the reports of a pass until it ends, and return its outcome. An exception here ends the pass, too.

    Raises:
        Unreadable: it failed, or was killed.
    """
    started, found = time.monotonic(), {}
    with begun as child, contextlib.ExitStack() as undo:
        undo.callback(child.wait)  # which a KeyboardInterrupt would keep `with begun` from
        undo.callback(child.kill)
        stdout, stderr = child.stdout, child.stderr
        for line in stdout or ():
            found = json.loads(line)
            if "error" in found:
                break
            report(Progress.now(found["done"], found.get("estimate"), time.monotonic() - started))
        said = stderr.read() if stderr else ""
        undo.pop_all()
    if child.returncode != 0 or "changed" not in found:
        last = said.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        raise Unreadable(printable(found.get("error") or last[0]))
    return Outcome(**found)


if __name__ == "__main__":
    main(sys.argv[1:])
