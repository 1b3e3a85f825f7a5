"""Whether a user, in a container, can use a volume; and if not, what mends it. It only looks.

The order is that in which access fails: the volume and its directory, the mount in the container, owner and mode, what
was declared, the label, what was denied, the file system.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from ..engine.containers import Container, Mounted
from ..errors import HostprepError, NoSuchVolume, NotAllowed, NotReady, Unreadable, printable
from ..host import fds
from ..host.mountinfo import mount_table, unescaped
from ..host.process import open_inside
from ..options import check_name
from ..volumes import trash
from ..volumes.driver import Driver
from . import confinement, filesystem, ownership
from .case import Case
from .finding import Apply, Diagnosis, Finding, Verdict
from .subject import Patient

_SHOWN: Final = 5  # entries that a pass left alone
_INSTEAD: Final = "hostprep's: take out what is in it, remove container and local volume, and make both anew"
_FSTAB: Final = "/etc/fstab"


def diagnose(driver: Driver, name: str, patients: Sequence[Patient]) -> Diagnosis:
    """Look at the volume *name* for *patients*.

    Raises:
        Invalid: *name* is none that a volume can have.
    """
    whom = tuple(map(str, patients))
    with contextlib.ExitStack() as stack:
        try:
            volume = stack.enter_context(driver.store.open(check_name(name)))
        except (NoSuchVolume, Unreadable) as exc:
            return Diagnosis(name, whom, (_unknown(driver, name, exc, patients),))
        try:
            data = stack.enter_context(volume.open_data(as_mount=True))
        except (NotReady, NotAllowed) as exc:
            return Diagnosis(name, whom, (_missing(volume.place, exc),))
        return Diagnosis(name, whom, tuple(_look(Case(driver, volume, data, patients))))


# -- what there is -------------------------------------------------------------------------------------------------


def _unknown(driver: Driver, name: str, exc: HostprepError, patients: Sequence[Patient]) -> Finding:
    if isinstance(exc, Unreadable):
        return Finding("volume", Verdict.BAD, exc.message, exc.hint or "a record that can be read")
    removed = [each for each in trash.entries(driver.store) if each.record is not None and each.record.name == name]
    command, what = ["docker", "volume", "create", "-d", "hostprep", name], exc.message
    if any(each["name"] == name for each in driver.retained_volumes()):
        what += ": it was removed, and its data retained; a volume of that name takes it up again"
    elif removed:
        what += f": it was removed at {removed[0].removed_at}, and is in the trash"
        command = ["hostprep", "restore", name]
    elif patients:
        command[-1:] = ["-o", f"uid={patients[0].who.uid}", "-o", f"gid={patients[0].who.gid}", name]
    for patient in patients:
        if patient.container and (mounted := patient.container.has(name)) and mounted.driver == "local":
            what += f"; container {patient.container.name} has one of that name of the driver local"
            return Finding("volume", Verdict.BAD, what, _INSTEAD)
    return Finding("volume", Verdict.BAD, what, "a volume of hostprep's", shlex.join(command))


def _missing(place: str, exc: NotReady | NotAllowed) -> Finding:
    """The finding of a volume whose directory cannot be opened."""
    remedy, wanted = "", exc.hint
    if isinstance(exc, NotReady):
        wanted = "the data in its place (is its disk mounted?); should it be lost, this makes an empty directory"
        remedy = shlex.join(["mkdir", place])
        if (point := _unmounted(place)) is not None:
            wanted, remedy = f"what {_FSTAB} has for {point}", shlex.join(["mount", point])
    return Finding("directory", Verdict.BAD, exc.message, wanted, remedy)


def _unmounted(place: str) -> str | None:
    """The mount point at or above *place* that is to be one, and is none now."""
    mounted = {mount.point for mount in mount_table()}
    with contextlib.suppress(OSError), open(_FSTAB, encoding="utf-8", errors="replace") as table:
        fields = [line.split() for line in table if not line.lstrip().startswith("#")]
        points = [unescaped(each[1]) for each in fields if len(each) > 1 and each[1].startswith("/")]
        above = [point for point in points if place == point or place.startswith(point.rstrip("/") + "/")]
        return max((point for point in above if point not in mounted), key=len, default=None)
    return None


def _look(case: Case) -> Iterator[Finding]:
    """All looks, in order."""
    options = " ".join(f"{key}={value}" for key, value in case.record.given.items()) or "no options"
    yield Finding("volume", Verdict.OK, f"{case.record.name}, with {options}")
    yield Finding("directory", Verdict.OK, _directory(case))
    for patient in case.patients:
        if patient.container is not None:
            yield from _mount(case, patient, patient.container)
    for patient in case.patients:
        yield from ownership.look(case, patient)
    yield from _drift(case)
    yield from confinement.look(case)
    whom = [patient.who for patient in case.patients]
    running = [patient.container.name for patient in case.patients if patient.container and patient.container.pid]
    yield from filesystem.look(case.where, whom, running=running, purges=_purges(case))


def _directory(case: Case) -> str:
    label = f", {printable(case.label)}" if case.label else ""
    mounted = f", mounted at {case.volume.mountpoint}" if case.record.pinned else ""
    return f"{case.shown}: {case.found.st_uid}:{case.found.st_gid} {case.mode}{label}{mounted}"


# -- the mount in the container ------------------------------------------------------------------------------


def _mount(case: Case, patient: Patient, container: Container) -> Iterator[Finding]:
    mounted, who = container.has(case.record.name), f"container {container.name}"
    if mounted is None:
        wanted = f"-v {case.record.name}:/…, when the container is made"
        yield Finding("mount", Verdict.BAD, f"{who} does not have the volume", wanted)
        return
    at = printable(mounted.at)
    if mounted.driver == "local":
        what = f"{who} has at {at} a volume of that name of the driver local"
        yield Finding("mount", Verdict.BAD, what, _INSTEAD)
        return
    if container.pid and patient.seen:
        yield from _live_mount(case, patient, container, mounted)
        return
    why = "cannot be looked into from here" if container.pid else f"does not run: its start mounts it at {at}"
    yield Finding("mount", Verdict.NOTE, f"{who} {why}")
    if not mounted.writable:
        verdict = Verdict.BAD if patient.asked else Verdict.NOTE
        wanted = f"-v {case.record.name}:{at}, when the container is made"
        yield Finding("mount", verdict, f"{who} has it read-only (:ro)", wanted)


def _live_mount(case: Case, patient: Patient, container: Container, mounted: Mounted) -> Iterator[Finding]:
    who, at = f"container {container.name}", printable(mounted.at)
    restart = shlex.join(["docker", "restart", container.name])
    try:
        inside = open_inside(container.pid, mounted.at)
    except OSError as exc:
        what = f"{who} has nothing at {at}: {exc.strerror}"
        yield Finding("mount", Verdict.BAD, what, "the volume", restart)
        return
    with fds.held(inside):
        same = os.path.samestat(os.fstat(inside), case.found)
        flags, on_host = (os.fstatvfs(fd).f_flag for fd in (inside, case.data))
    if mounted.subpath:
        what = f"{who} has only {printable(mounted.subpath)} of it, at {at}: that is not looked into"
        yield Finding("mount", Verdict.NOTE, what)
    elif not same:
        what = f"{who} has at {at} what the volume was when it started, not what it is"
        yield Finding("mount", Verdict.BAD, what, f"{case.shown}, which its next start mounts", restart)
    elif flags & os.ST_RDONLY and not mounted.writable:
        what = f"{who} has it read-only (:ro)"
        if not patient.asked:
            yield Finding("mount", Verdict.NOTE, what)
            return
        remount = shlex.join(["mount", "-N", str(container.pid), "-o", "remount,bind,rw", mounted.at])
        wanted = f"-v {case.record.name}:{at}, when the container is made; until it is made anew, while it runs"
        yield Finding("mount", Verdict.BAD, what, wanted, remount)
    elif flags & ~on_host & os.ST_RDONLY:
        what = f"the mount at {at} in {who} is read-only, as the host's was at its start"
        yield Finding("mount", Verdict.BAD, what, "read and write, as of its next start", restart)
    elif flags & ~on_host & os.ST_NOEXEC:
        what = f"the mount at {at} in {who} is noexec, as the host's was at its start"
        yield Finding("mount", Verdict.WARNING, what, "exec, as of its next start", restart)
    else:
        yield Finding("mount", Verdict.OK, f"at {at} in {who}")


# -- what was declared ---------------------------------------------------------------------------------------


def _drift(case: Case) -> Iterator[Finding]:
    status = case.driver.get(case.record.name)["Status"]
    wanted = "as declared: the next start of a container mends it, too"
    if status["drift"]:
        yield Finding("drift", Verdict.WARNING, "; ".join(status["drift"]), wanted, Apply())
    elif progress := status.get("progress"):
        yield Finding("drift", Verdict.WARNING, f"a pass over the contents is under way: {progress['done']} done")
    elif not status["ready"]:
        what = "a pass over the contents was interrupted; the next start of a container ends it first"
        yield Finding("drift", Verdict.WARNING, what, "the contents as declared", Apply())
    else:
        yield Finding("drift", Verdict.OK, "as declared")
    for left in case.record.entries_left_alone[:_SHOWN]:
        yield Finding("drift", Verdict.NOTE, printable(left))


def _purges(case: Case) -> bool:
    """Whether emptying the trash would make room where the volume is."""
    with case.driver.store.part("trash") as directory:
        same = os.fstat(directory).st_dev == case.found.st_dev
    return same and bool(trash.entries(case.driver.store))
