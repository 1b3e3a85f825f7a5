"""Who has a directory mounted, in whatever mount namespace; and whether that can be told at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from . import rootless
from .fds import DIRECTORY, closing
from .mountinfo import Mount, mount_of, mount_table, parsed, place_in_file_system, unescaped
from .paths import is_below

_ROUNDS: Final = 20
_ENDED: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.EINVAL})  # EINVAL: a zombie has no mounts
_INITIAL: Final = 0xEFFFFFFC  # the inode of the initial pid namespace: PROC_PID_INIT_INO, include/linux/proc_ns.h
_WHOLE_SYSTEMS: Final = frozenset({"lxc", "lxc-libvirt", "systemd-nspawn"})
"""Containers in which engines run, as systemd names them: what runs in a volume runs inside of them, too."""
_ENTERED: Final = 100  # namespaces at most, at about 20 ms each
# Once it is in the namespace, whose owner may be anybody, it opens nothing by a path from there, and loads nothing.
_LOOK: Final = """
import ctypes, os, sys
namespace, proc = map(int, sys.argv[1:])
if ctypes.CDLL(None).setns(namespace, 0x20000):  # CLONE_NEWNS
    os._exit(1)
table = os.open("self/mountinfo", os.O_RDONLY, dir_fd=proc)
while some := os.read(table, 65536):
    os.write(1, some)
os._exit(0)
"""
_LAYERS: Final = frozenset({"lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"})


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a directory."""

    who: str
    """A phrase: who has it mounted, and where."""
    within: str
    """What is used, as a path from the directory; empty for all of it."""
    point: str
    """The mount point, as its user sees it."""
    same_root: bool
    """Its user has the root directory that hostprep has, so the mount point means the same to both."""


@dataclass(frozen=True, slots=True)
class Uses:
    """The uses that were found. *doubt* says why there may be others; it is empty where there are none."""

    found: tuple[Use, ...]
    doubt: str = ""


def uses(directory: int, path: str, formerly: Iterable[tuple[str, str]] = ()) -> Uses:
    """Who has the open *directory* at *path*, or something in it, mounted, or as an overlay's layer; mounts on it, too.

    It looks at the mounts of all processes, so it finds each container that runs, whatever engine started it. It does
    not find containers that do not run, processes that only have files open, mounts that are in no namespace any more
    or in one without a process, or users on another or a virtual machine.

    Args:
        formerly: earlier paths of what is in *directory* now, each with its place there. An overlay names its layers by
            the paths that they had when it was mounted (overlayfs.rst).
    """
    mount = mount_of(directory)
    if mount is None:
        return Uses((), "hostprep runs in a chroot and does not see the mount that the directory is on")
    here, known = place_in_file_system(mount, path), [(path, ""), *formerly]
    tables, doubt = _asked_outside() if rootless.inside() else _tables()
    ours, found = mount_table(), []
    our_ids, our_root = {each.id for each in ours}, _root(ours)
    for process, table in tables:
        by_id, same_root = {each.id: each for each in table}, _root(table) == our_root
        who = f"process {process} has it" if our_ids.isdisjoint(by_id) else "it is"
        for each in table:
            under = by_id.get(each.parent)
            if each.device == mount.device and _contains(here, each.root):
                within = os.path.relpath(each.root, here)
                found.append(Use(f"{who} mounted at {each.point}", within, each.point, same_root))
            if under and under.device == mount.device:
                place = place_in_file_system(under, each.point)
                if _contains(here, place):
                    within = os.path.relpath(place, here)
                    found.append(Use(f"{each.point} is a mount point", within, each.point, same_root))
            for layer in _layers(each):
                for former, place in known:
                    if _contains(former, layer):
                        within = os.path.normpath(os.path.join(place, os.path.relpath(layer, former)))
                        found.append(Use(f"{who} in the overlay at {each.point}", within, each.point, same_root))
    return Uses(tuple(dict.fromkeys(found)), doubt)  # a namespace that cannot be named is looked at twice


def _root(table: list[Mount]) -> tuple[str, str] | None:
    """Which directory, of which device, is the root directory of who sees *table*."""
    return next(((mount.device, mount.root) for mount in reversed(table) if mount.point == "/"), None)


def _contains(above: str, path: str) -> bool:
    return path == above or is_below(path, above)


def _layers(mount: Mount) -> Iterator[str]:
    """The directories that an overlay is made of."""
    if mount.kind != "overlay":
        return
    for option in mount.options:
        key, _, value = option.partition("=")
        if key in _LAYERS:
            for layer in re.split(r"(?<!\\):", unescaped(value)):
                if layer:
                    yield os.path.normpath(re.sub(r"\\(.)", r"\1", layer))


def tables_as_json() -> bytes:
    """What `_tables` finds, for `_asked_outside`."""
    found, doubt = _tables()
    return json.dumps([[(who, [astuple(each) for each in table]) for who, table in found], doubt]).encode()


def _asked_outside() -> tuple[list[tuple[str, list[Mount]]], str]:
    """`_tables`, as the user's process outside of the namespace sees it."""
    try:
        found, doubt = json.loads(rootless.tables())
    except ValueError:
        return [], "hostprep's process that looks into other namespaces gives no answer"
    return [(who, [Mount(*each) for each in table]) for who, table in found], doubt


def _tables() -> tuple[list[tuple[str, list[Mount]]], str]:
    """Of each mount namespace a process and the mounts that it sees; and why these may not be all, or "".

    mountinfo shows what is mounted below the root directory of a thread. So each namespace needs one whose root
    directory is the namespace's.
    """
    whole: dict[str, tuple[str, list[Mount]]] = {}
    chrooted: dict[str, tuple[str, list[Mount]]] = {}
    looked_at: set[str] = set()
    doubt = _hidden()
    for _ in range(_ROUNDS):
        missed = False
        # In hostprep's own chroot, if it is in one, all seems whole: the first process of the system sees more.
        for process in ["1", "self", *filter(str.isdecimal, os.listdir("/proc"))]:
            try:
                # Each thread: where the first one of a process has ended, only the others have mounts.
                for thread in os.listdir(f"/proc/{process}/task"):
                    task = f"{process}/task/{thread}"
                    if task in looked_at:
                        continue
                    looked_at.add(task)
                    namespace, is_whole = _view(task)
                    known = whole if is_whole else chrooted
                    if namespace not in known:
                        table = mount_table(task)
                        # A root directory whose mount was detached seems to be the namespace's, and shows no mount.
                        (known if table else chrooted)[namespace] = process, table
            except PermissionError as exc:
                doubt = doubt or f"the mounts of process {process} cannot be seen: {exc.strerror}"
            except OSError as exc:
                if exc.errno not in _ENDED:
                    raise
                missed = True
        if not missed:
            break
        # One that has ended may have left a child, of the same namespace, that was not there when /proc was listed.
    else:
        doubt = doubt or "processes start and end too fast to be looked at"
    seen = {mount.id for _, table in whole.values() for mount in table}
    found = list(whole.values())
    unseen = [each for each in chrooted if each not in whole and seen.isdisjoint(m.id for m in chrooted[each][1])]
    for number, namespace in enumerate(unseen):
        process, table = chrooted[namespace]
        all_of_it = _enter(process) if number < _ENTERED else None
        if all_of_it is None:
            why = "so hostprep cannot see all that its namespace has mounted"
            remedy = "" if os.geteuid() else "; root can, with hostprep purge"
            doubt = doubt or f"process {process} is in a chroot, or may be, {why}{remedy}"
        found.append((process, all_of_it or table))
    return found, doubt


def _enter(process: str) -> list[Mount] | None:
    """All mounts of the namespace of *process*, as a process of our own sees them there (setns(2)).

    None where that is not allowed, as in the sandbox of the systemd service: it takes CAP_SYS_CHROOT.
    """
    try:
        with (
            closing(os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace,
            closing(os.open("/proc", DIRECTORY)) as proc,
        ):
            command = [sys.executable, "-I", "-S", "-c", _LOOK, str(namespace), str(proc)]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(namespace, proc), check=False
            )
    except OSError:
        return None
    return parsed(done.stdout) if done.returncode == 0 else None


def _view(task: str) -> tuple[str, bool]:
    """What the mount namespace of a thread is known by, and whether it sees all that is mounted there."""
    try:
        return os.readlink(f"/proc/{task}/ns/mnt"), os.readlink(f"/proc/{task}/root") == "/"
    except PermissionError:  # without CAP_SYS_PTRACE only mountinfo may be read, and it does not tell what is above
        # Of a user's own hostprep that namespace is root's, or another user's (user_namespaces(7)): no engine of this
        # user's mounts there, and nobody but root can mount a volume of this user's.
        return f"that of process {task.partition('/')[0]}", os.geteuid() != 0


def _hidden() -> str:
    """Why there may be processes that /proc does not show; "" where it shows all of them."""
    if not os.path.exists("/proc/1"):
        return "/proc hides processes (hidepid, proc(5))"
    if os.stat("/proc/self/ns/pid").st_ino == _INITIAL:
        return ""
    try:
        if Path("/run/systemd/container").read_text(encoding="utf-8").strip() in _WHOLE_SYSTEMS:
            return ""
    except OSError:
        pass
    return "hostprep runs in a pid namespace of its own, and sees no process outside of it"
