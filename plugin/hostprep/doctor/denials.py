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
_TAIL: Final = 4 << 20  # bytes of the log that are looked at
_JOURNAL: Final = ("journalctl", "-q", "-b", "--no-pager", "-o", "short-unix", "-n", "20000")
_FROM: Final = ("_TRANSPORT=audit", "+", "_TRANSPORT=kernel")
_KEPT: Final = 1000  # denials, the last ones
_SECONDS: Final = 10  # for the journal's answer
_LOOKED_AT: Final = 20_000  # entries of a volume among which the denied file is looked for
_DEPTH: Final = 32
_KINDS: Final = {"dir": "directory", "lnk_file": "symlink", "sock_file": "socket", "fifo_file": "FIFO"}
_AVC: Final = re.compile(r"avc: +denied +\{ ([^}]{1,500}) \} for +(.*)")
_TIMES: Final = (re.compile(r"audit\(([0-9]{1,12})\.", re.ASCII), re.compile(r"^([0-9]{1,12})\.", re.ASCII))
_FIELD: Final = re.compile(r'(\w+)=("[^"]*"|\S+)')


@dataclass(frozen=True, slots=True)
class Denial:
    """An access that was denied, once or several times."""

    permissions: tuple[str, ...]
    kind: str
    """The class of what it was denied on: file, dir, sock_file and so on."""
    source: str
    target: str
    command: str
    name: str
    """The last component of the file's name; empty where the kernel does not tell."""
    device: str
    inode: int
    """0 where the kernel does not tell."""
    last: int
    """When, in seconds since the epoch; the last time."""
    times: int = 1
    path: str = ""
    """Where in the volume the file was found; "." for the volume itself."""
    label: str | None = None
    """What that file's label is now."""


def parse(line: str) -> Denial | None:
    """Read one line of the audit log, the kernel's log or the journal; None for any other record.

    What was only noted and not denied (permissive) is none either.
    """
    found = _AVC.search(line)
    if found is None:
        return None
    fields = {key: _text(key, value) for key, value in _FIELD.findall(found[2])}
    when = next((match for match in (time_.search(line) for time_ in _TIMES) if match), None)
    if fields.get("permissive") == "1" or not {"scontext", "tcontext", "tclass"} <= fields.keys():
        return None
    inode = fields.get("ino", "")
    return Denial(
        tuple(found[1].split()),
        fields["tclass"],
        fields["scontext"],
        fields["tcontext"],
        fields.get("comm", ""),
        fields.get("name") or os.path.basename(fields.get("path", "")),
        fields.get("dev", ""),
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
    """Where denials are recorded on this host, and those of late there, the same ones counted."""
    try:
        with open(AUDIT_LOG, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL))
            lines = os.fsdecode(log.read(_TAIL)).splitlines()
        return AUDIT_LOG, _counted(lines)
    except OSError:
        pass
    try:
        done = subprocess.run(
            [*_JOURNAL, *_FROM], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", []
    return "the journal", _counted(os.fsdecode(done.stdout).splitlines())


def sentence(denial: Denial) -> str:
    """What happened, as a person says it."""
    who = f"{denial.command or 'a process'} ({_part(denial.source, 2)})"
    kind = _KINDS.get(denial.kind, denial.kind)
    what = "the volume's directory" if denial.path == "." else f"the {kind} {denial.path or denial.name}"
    times = f", {denial.times} times" if denial.times > 1 else ""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(denial.last))}{times}: {who} was denied "
        f"{' and '.join(denial.permissions)} on {what}, labelled {denial.target}"
    )


def _part(context: str, number: int) -> str:
    return [*context.split(":"), "", "", ""][number]


def _counted(lines: Iterable[str]) -> list[Denial]:
    found: dict[Denial, tuple[int, int]] = {}
    for line in lines:
        if (denial := parse(line)) is not None:
            same = replace(denial, last=0)
            times, last = found.pop(same, (0, 0))
            found[same] = times + 1, max(last, denial.last)
    return [replace(denial, times=times, last=last) for denial, (times, last) in found.items()][-_KEPT:]


def concerning(data: int, mount: Mount | None, denials: list[Denial]) -> list[Denial]:
    """Those of *denials* that are about a file of the volume whose open directory is *data*, the newest last.

    By device and inode where the record has them, by name and label otherwise. The first 20,000 entries are looked at.
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
    """What the kernel may call the file system in a record: its disk, else its kind (super_block.s_id)."""
    names = set() if mount is None else {mount.kind, os.path.basename(mount.source)}
    with contextlib.suppress(OSError):  # of no disk
        names.add(os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")))
    return names


def _entries(data: int, numbered: set[int], named: set[str]) -> Iterator[tuple[str, int, str | None]]:
    """Path, inode and label of each entry that is one of *numbered* or *named*, the directory itself first."""
    root = os.fstat(data)
    if root.st_ino in numbered:
        yield ".", root.st_ino, label_of(f"/proc/self/fd/{data}/.")
    left, end = [_LOOKED_AT], time.monotonic() + _SECONDS

    def below(directory: int, path: str, depth: int) -> Iterator[tuple[str, int, str | None]]:
        with os.scandir(directory) as entries:
            for entry in entries:
                left[0] -= 1
                if left[0] < 0 or time.monotonic() > end:
                    return
                if entry.inode() in numbered or entry.name in named:
                    yield path + entry.name, entry.inode(), label_of(f"/proc/self/fd/{directory}/{entry.name}")
                if depth < _DEPTH and entry.is_dir(follow_symlinks=False):
                    with (
                        contextlib.suppress(OSError),
                        fds.held(fds.open_below(directory, entry.name, directory=True)) as fd,
                    ):
                        yield from below(fd, f"{path}{entry.name}/", depth + 1)

    yield from below(data, "", 0)


def label_of(file: str) -> str | None:
    """The label of a path in /proc/self/fd, of a symlink its own; None where there is none."""
    try:
        return os.getxattr(file, ATTRIBUTE, follow_symlinks=False).rstrip(b"\0").decode("ascii", "backslashreplace")
    except OSError:
        return None
