"""Whole trees: hostprep's pass against `chown -R -h` followed by `chcon -R -h`, and what a large tree costs the verbs.

`python -m bench tree [ENTRIES...]`. All in one run, in turns, on one tree: a pass as over a directory of hostprep's
own, one as over one under `path`, and the two commands. The label is a plain attribute where there is no SELinux.
`python -m bench disks` does that on images of ext4, XFS and btrfs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .client import HOSTPREP, TOP, Client, scratch, served

_ROUNDS = 5
_ON_DISKS = 100_000
_DISKS = ("ext4", "xfs", "btrfs")
_PER_DIRECTORY = 32
_LABEL = "system_u:object_r:container_file_t:s0"
_PROCESS = ("-m", "hostprep.tree.process")

Times = dict[str, list[float]]


def build(root: Path, entries: int) -> None:
    """A tree of so many files, 32 a directory, 100 directories in one above."""
    for number in range((entries + _PER_DIRECTORY - 1) // _PER_DIRECTORY):
        directory = root / f"{number // 100:05d}" / f"{number % 100:02d}"
        directory.mkdir(parents=True)
        for file in range(min(_PER_DIRECTORY, entries - number * _PER_DIRECTORY)):
            os.close(os.open(directory / f"file-{file:02d}.dat", os.O_CREAT | os.O_WRONLY, 0o644))


def run_pass(
    root: Path, uid: int, label: str | None, *before: str, guarded: bool = False, code: Sequence[str] = _PROCESS
) -> str:
    """Run a pass as the server begins one, with a command *before* it; what it prints.

    *guarded*: as over a directory under `path`, where hard links and devices are left alone.
    """
    fd = os.open(root, os.O_RDONLY)
    try:
        order = json.dumps({"uid": uid, "gid": uid, "label": label, "guarded": guarded})
        argv = [*before, sys.executable, "-P", "-S", *code, str(fd), order]
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TOP / "plugin")}
        return subprocess.run(argv, env=environ, pass_fds=[fd], capture_output=True, text=True, check=True).stdout
    finally:
        os.close(fd)


def label_of(uid: int) -> str:
    return f"{_LABEL}:c{uid % 1000}"


def hostprep(root: Path, uid: int, *, guarded: bool) -> float:
    """A pass; seconds."""
    begun = time.perf_counter()
    printed = run_pass(root, uid, label_of(uid), guarded=guarded)
    taken = time.perf_counter() - begun
    assert json.loads(printed.splitlines()[-1])["left"] == 0
    return taken


def coreutils(root: Path, uid: int) -> float:
    """The two commands; seconds."""
    begun = time.perf_counter()
    subprocess.run(["chown", "-R", "-h", f"{uid}:{uid}", root], check=True)
    subprocess.run(["chcon", "-R", "-h", label_of(uid), root], check=True)
    return time.perf_counter() - begun


OURS: dict[str, Callable[[Path, int], float]] = {
    "own": functools.partial(hostprep, guarded=False),
    "path": functools.partial(hostprep, guarded=True),
}
TOOLS = OURS | {"commands": coreutils}


def passes(root: Path, *, cold: bool) -> dict[str, Times]:
    """Seconds by state and tool: each has the tree wrong for it first, and right then."""
    found: dict[str, Times] = {state: {tool: [] for tool in TOOLS} for state in ("wrong", "right")}
    uid = 1000
    for _ in range(_ROUNDS):
        for tool, run in TOOLS.items():
            uid += 1
            for state in ("wrong", "right"):
                if cold:
                    forget()
                found[state][tool].append(run(root, uid))
    return found


def forget() -> None:
    """Have the kernel drop what it has cached of the disk."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def writes(root: Path, uid: int, *, guarded: bool) -> int:
    """How many system calls that change anything a pass over a right tree makes, as strace counts them."""
    hostprep(root, uid, guarded=guarded)
    log = root.parent / "strace"
    calls = "chown,lchown,fchown,fchownat,chmod,fchmod,fchmodat,setxattr,lsetxattr,fsetxattr,rename,unlink,mkdir"
    strace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={calls}")
    run_pass(root, uid, label_of(uid), "env", "PYTHONDONTWRITEBYTECODE=1", *strace, guarded=guarded)
    return sum("+++" not in line and "---" not in line for line in log.read_text().splitlines())


_PEAK = """
import re, sys
from hostprep.tree import process
process.main(sys.argv[1:])
print(re.search("VmHWM:[^0-9]*([0-9]+) kB", open("/proc/self/status").read()).group(1))
"""


def memory(entries: int, make: Callable[[str], None]) -> float:
    """MB that the leader of a pass holds at its peak, over one directory in which *make* has made so many entries."""
    with scratch() as directory:
        for number in range(entries):
            make(f"{directory}/{number:07d}")
        return int(run_pass(directory, 1, None, code=("-c", _PEAK)).splitlines()[-1]) / 1e3


def verbs(entries: int) -> dict[str, float]:
    """Median microseconds of verbs: Mount of a large and an empty volume, Mount of another during a pass, Remove."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch())
        path, _, _ = stack.enter_context(served(HOSTPREP, directory))
        with Client(path) as client:
            for name in ("large", "empty", "other"):
                client.call("VolumeDriver.Create", {"Name": name, "Opts": {"uid": "184", "gid": "998"}})
            data = Path(json.loads(client.call("VolumeDriver.Path", {"Name": "large"})[1])["Mountpoint"])
        build(data, entries)  # which may take longer than a connection is kept
        client = stack.enter_context(Client(path))
        client.call("VolumeDriver.Mount", {"Name": "large", "ID": "x"})

        def mounts(name: str, count: int = 2000) -> list[float]:
            return [client.call("VolumeDriver.Mount", {"Name": name, "ID": "x"})[0] * 1e6 for _ in range(count)]

        mounts("empty"), mounts("large")
        pairs = [(each, mounts(each, 200)) for _ in range(10) for each in ("large", "empty")]
        found = {f"Mount, {name}": _median(pairs, name) for name in ("large", "empty")}
        found["Mount, other"] = statistics.median(mounts("other"))
        os.chown(data, 55, 66)
        with Client(path) as waiting:
            pass_ = threading.Thread(target=waiting.call, args=("VolumeDriver.Mount", {"Name": "large", "ID": "x"}))
            pass_.start()
            time.sleep(0.15)
            during = []
            while pass_.is_alive():
                during += mounts("other", 20)
            pass_.join()
        found["Mount, other, during a pass"] = statistics.median(during)
        removals: dict[str, list[float]] = {"large": [], "empty": []}
        for _ in range(_ROUNDS):
            for name, taken in removals.items():
                taken.append(client.call("VolumeDriver.Remove", {"Name": name})[0] * 1e6)
                restore(directory, name)
        found |= {f"Remove, {name}": statistics.median(taken) for name, taken in removals.items()}
        return found


def restore(directory: Path, name: str) -> None:
    argv = [sys.executable, "-m", "hostprep", "--root", str(directory / "r"), "restore", name]
    subprocess.run(argv, cwd=TOP, check=True, capture_output=True)


def _median(pairs: list[tuple[str, list[float]]], name: str) -> float:
    return statistics.median([each for which, times in pairs if which == name for each in times])


def lines(measured: dict[str, Times], where: str) -> Iterator[str]:
    """A row for a tree that was wrong, and one for the same tree when it was right."""
    for state, times in measured.items():
        theirs = statistics.median(times["commands"])
        ratios = [f"{theirs / statistics.median(times[tool]):.2f}" for tool in OURS]
        what = "wrong → right" if state == "wrong" else "already right"
        yield f"| {' | '.join([f'{what}, {where}', *map(_seconds, times.values()), *ratios])} |"


def head(tree: str) -> tuple[str, str]:
    shown = "own | `path` | `chown -R -h`; `chcon -R -h` | own, times as fast | `path`, times as fast"
    return f"| {tree} | {shown} |", "|---|---:|---:|---:|---:|---:|"


def disks() -> Iterator[str]:
    """The same tree on an image of each file system."""
    yield from head(f"a tree of {_ON_DISKS:,} files, warm")
    for kind in _DISKS:
        with scratch() as directory:
            image, place = directory / "image", directory / "disk"
            place.mkdir()
            with image.open("wb") as file:
                file.truncate(4 << 30)
            subprocess.run([f"/usr/sbin/mkfs.{kind}", "-q", image], check=True, capture_output=True)
            subprocess.run(["mount", "-o", "loop", image, place], check=True)
            try:
                build(place, _ON_DISKS)
                yield from lines(passes(place, cold=False), f"an image of {kind}")
            finally:
                subprocess.run(["umount", place], check=True)


def table(entries: int) -> Iterator[str]:
    """Measure, and say each line as soon as it is known."""
    with scratch() as directory:
        root = directory / "tree"
        root.mkdir()
        build(root, entries)
        findmnt = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", str(root)]
        kind = subprocess.run(findmnt, capture_output=True, text=True, check=True).stdout.strip()
        yield from head(f"a tree of {entries:,} files, {kind}")
        for where, cold, around in (
            ("warm", False, contextlib.nullcontext()),
            ("warm, on one core", False, one_core()),
            ("cold", True, contextlib.nullcontext()),
        ):
            with around:
                measured = passes(root, cold=cold)
            yield from lines(measured, where)
        changed = [writes(root, 4000, guarded=guarded) for guarded in (False, True)] if shutil.which("strace") else None
        shutil.rmtree(root)
    yield from ("", "| verbs, µs, median | | | ratio |", "|---|---:|---:|---:|")
    found = verbs(entries)
    for one, other in (
        ("Mount, large", "Mount, empty"),
        ("Mount, other, during a pass", "Mount, other"),
        ("Remove, large", "Remove, empty"),
    ):
        ratio = found[one] / found[other]
        yield f"| {one}; {other} | {found[one]:.0f} | {found[other]:.0f} | {ratio:.2f} |"
    files = memory(entries, lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)))
    directories = memory(entries, os.mkdir)
    written = "not counted, strace is missing" if changed is None else f"{changed[0]}, under `path` {changed[1]}"
    yield from ("", f"System calls that change anything, in a pass over a right tree: {written}.")
    yield f"Memory of a pass: {files:.0f} MB over so many files in one directory, {directories:.0f} MB directories."


def _seconds(times: list[float]) -> str:
    return f"{min(times):.2f} / {statistics.median(times):.2f} s"
