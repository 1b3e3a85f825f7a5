"""What SELinux denied, from the audit log or, where there is none, from the journal."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from ..host import fds
from ..host.labels import ATTRIBUTE
from ..host.mountinfo import Mount

AUDIT_LOG: Final = "/var/log/audit/audit.log"
_MAX_LOG: Final = 4 << 20  # bytes that are read, from the end of the log
_JOURNAL: Final = ("journalctl", "-q", "-b", "--no-pager", "-o", "short-unix", "-n", "20000")
_SOURCES: Final = ("_TRANSPORT=audit", "+", "_TRANSPORT=kernel")
_MAX_DENIALS: Final = 1000  # the newest
_SECONDS: Final = 10  # for the journal's answer; as many for the search in the volume
_MAX_ENTRIES: Final = 20_000  # of a volume, among which a denied file is searched
_MAX_DEPTH: Final = 32
_KINDS: Final = {"dir": "directory", "lnk_file": "symlink", "sock_file": "socket", "fifo_file": "FIFO"}
_AVC: Final = re.compile(r"avc: +denied +\{ ([^}]{1,500}) \} for +(.*)")
_TIMES: Final = (re.compile(r"audit\(([0-9]{1,12})\.", re.ASCII), re.compile(r"^([0-9]{1,12})\.", re.ASCII))
_FIELD: Final = re.compile(r'(\w+)=("[^"]*"|\S+)')


@dataclass(frozen=True, slots=True)
class Denial:
    """An access that SELinux denied, once or several times."""

    permissions: tuple[str, ...]
    kind: str
    """The class of the file: file, dir, sock_file and so on."""
    source: str
    target: str
    command: str
    name: str
    """The last component of the file's path; empty where the kernel does not tell it."""
    device: str
    inode: int
    """0 where the kernel does not tell it."""
    last: int
    """The last time, in seconds since the epoch."""
    times: int = 1
    path: str = ""
    """Where in the volume the file is; "." for the volume itself."""
    label: str | None = None
    """The file's label now."""


def parse(line: str) -> Denial | None:
    """Read a line of the audit log, the kernel's log or the journal; None where it records no denial.

    In permissive mode the kernel records an access, but does not deny it.
    """
    found = _AVC.search(line)
    if found is None:
        return None
    said = {key: _text(key, value) for key, value in _FIELD.findall(found[2])}
    when = next((match for match in (time_.search(line) for time_ in _TIMES) if match), None)
    if said.get("permissive") == "1" or not {"scontext", "tcontext", "tclass"} <= said.keys():
        return None
    inode = said.get("ino", "")
    return Denial(
        tuple(found[1].split()),
        said["tclass"],
        said["scontext"],
        said["tcontext"],
        said.get("comm", ""),
        said.get("name") or os.path.basename(said.get("path", "")),
        said.get("dev", ""),
        int(inode) if inode.isascii() and inode.isdecimal() else 0,
        int(when[1]) if when else 0,
    )


def _text(key: str, value: str) -> str:
    if value.startswith('"'):
        return value.strip('"')
    # The kernel writes a name that holds a space, a quote or a control character as hexadecimal digits.
    if key in ("name", "comm", "path"):
        try:
            return os.fsdecode(bytes.fromhex(value))
        except ValueError:
            return value
    return value


def recorded() -> tuple[str, list[Denial]]:
    """Where this host records denials, and the newest ones there, each with how often it occurred."""
    with contextlib.suppress(OSError), open(AUDIT_LOG, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _MAX_LOG))
        return AUDIT_LOG, _counted(os.fsdecode(log.read(_MAX_LOG)).splitlines())
    try:
        done = subprocess.run(
            [*_JOURNAL, *_SOURCES], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", []
    return "the journal", _counted(os.fsdecode(done.stdout).splitlines())


def sentence(denial: Denial) -> str:
    """What was denied, as a sentence."""
    who = f"{denial.command or 'a process'} ({fields(denial.source)[2]})"
    kind = _KINDS.get(denial.kind, denial.kind)
    what = "the volume's directory" if denial.path == "." else f"the {kind} {denial.path or denial.name}"
    times = f", {denial.times} times" if denial.times > 1 else ""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(denial.last))}{times}: {who} was denied "
        f"{' and '.join(denial.permissions)} on {what}, labelled {denial.target}"
    )


def fields(context: str) -> list[str]:
    """User, role, type and level of a context; empty for what it does not have."""
    return [*context.split(":", 3), "", "", ""][:4]


def _counted(lines: Iterable[str]) -> list[Denial]:
    found: dict[Denial, tuple[int, int]] = {}
    for line in lines:
        if (denial := parse(line)) is not None:
            same = replace(denial, last=0)
            times, last = found.pop(same, (0, 0))
            found[same] = times + 1, max(last, denial.last)
    return [replace(denial, times=times, last=last) for denial, (times, last) in found.items()][-_MAX_DENIALS:]


def concerning(data: int, mount: Mount | None, denials: list[Denial]) -> list[Denial]:
    """The *denials* that concern a file of the volume whose open directory is *data*, the newest last.

    A file is recognized by device and inode where the record has them, otherwise by name and label. Only the first
    20,000 entries are searched.
    """
    devices = _devices(os.fstat(data).st_dev, mount)
    numbered = {denial.inode for denial in denials if denial.inode and denial.device in devices}
    named = {denial.name for denial in denials if not denial.inode and denial.name}
    if not numbered and not named:
        return []
    found: list[Denial] = []
    for path, inode, label in _entries(data, numbered, named):
        name = os.path.basename(path)
        for denial in denials:
            if denial.inode:
                same = denial.inode == inode and denial.device in devices
            else:
                same = denial.name == name and denial.target == label
            if same:
                found.append(replace(denial, path=path, label=label))
    return sorted(found, key=lambda denial: denial.last)


def _devices(device: int, mount: Mount | None) -> set[str]:
    """The names that the kernel may record for the file system: its disk, else its type (super_block.s_id)."""
    names = set() if mount is None else {mount.kind, os.path.basename(mount.source)}
    with contextlib.suppress(OSError):  # not on a disk
        names.add(os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")))
    return names


def _entries(data: int, numbered: set[int], named: set[str]) -> Iterator[tuple[str, int, str | None]]:
    """Path, inode and label of each entry with an inode in *numbered* or a name in *named*, the directory first."""
    root = os.fstat(data)
    if root.st_ino in numbered:
        yield ".", root.st_ino, label_of(f"/proc/self/fd/{data}/.")
    left, end = [_MAX_ENTRIES], time.monotonic() + _SECONDS

    def below(directory: int, path: str, depth: int) -> Iterator[tuple[str, int, str | None]]:
        with os.scandir(directory) as entries:
            for entry in entries:
                left[0] -= 1
                if left[0] < 0 or time.monotonic() > end:
                    return
                if entry.inode() in numbered or entry.name in named:
                    yield path + entry.name, entry.inode(), label_of(f"/proc/self/fd/{directory}/{entry.name}")
                if depth < _MAX_DEPTH and entry.is_dir(follow_symlinks=False):
                    with (
                        contextlib.suppress(OSError),
                        fds.closing(fds.open_below(directory, entry.name, directory=True)) as fd,
                    ):
                        yield from below(fd, f"{path}{entry.name}/", depth + 1)

    yield from below(data, "", 0)


def label_of(file: str) -> str | None:
    """The label of a path in /proc/self/fd, not followed; None where there is none."""
    try:
        return os.getxattr(file, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode("ascii", "backslashreplace")
    except OSError:
        return None
