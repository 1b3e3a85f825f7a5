"""Whether a user, in a container, can use a volume; and if not, what repairs it. It changes nothing.

The order is that in which access fails: the volume and its directory, the mount in the container, owner and mode, what
was declared, the label, what was denied, the file system.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from ..engine.containers import Container, ContainerMount
from ..errors import HostprepError, NoSuchVolume, NotAllowed, NotReady, OtherData, Unreadable, printable
from ..host import fds
from ..host.mountinfo import mount_table, unescaped
from ..host.process import open_inside
from ..options import Recurse, check_name
from ..volumes import trash
from ..volumes.driver import Driver
from ..volumes.foreign import foreign, owner
from .confinement import check_labels
from .filesystem import check_file_system
from .finding import Apply, Diagnosis, Finding, Verdict
from .inspection import MAX_ENTRIES, InspectedVolume
from .ownership import check_access
from .subject import Subject

_MAX_LEFT_ALONE: Final = 5  # entries that are shown
_NOT_LOCAL: Final = (
    "a hostprep volume: copy out what the local one holds, remove its containers and docker volume rm it; what "
    "hostprep has under that name is there again then"
)
_FSTAB: Final = "/etc/fstab"


def diagnose(driver: Driver, name: str, subjects: Sequence[Subject], local: Collection[str] = ()) -> Diagnosis:
    """Look at the volume *name* for *subjects*.

    Args:
        local: the names of the engine's own volumes.

    Raises:
        Invalid: *name* is malformed.
    """
    whom = tuple(map(str, subjects))
    if name in local and driver.store.find(check_name(name)) is not None:
        return Diagnosis(name, whom, (shadowed(name),))
    with contextlib.ExitStack() as stack:
        try:
            volume = stack.enter_context(driver.store.open(check_name(name)))
        except (NoSuchVolume, Unreadable) as exc:
            return Diagnosis(name, whom, (_unknown(driver, name, exc, subjects),))
        try:
            data = stack.enter_context(volume.open_data(as_mount=True))
        except (NotReady, NotAllowed) as exc:
            return Diagnosis(name, whom, (_missing(volume.place, exc),))
        return Diagnosis(name, whom, tuple(_check_volume(InspectedVolume(driver, volume, data, subjects))))


def shadowed(name: str) -> Finding:
    """The finding that the engine has a volume of its own of that name, which it made while hostprep was away."""
    what = f"the engine has a volume {name} of driver local: containers get that one, not hostprep's"
    return Finding("volume", Verdict.BAD, what, _NOT_LOCAL)


# -- the volume and its directory ----------------------------------------------------------------------------------


def _unknown(driver: Driver, name: str, exc: HostprepError, subjects: Sequence[Subject]) -> Finding:
    if isinstance(exc, Unreadable):
        return Finding("volume", Verdict.BAD, exc.message, exc.hint or "a record that can be read")
    removed = [each for each in trash.entries(driver.store) if each.record is not None and each.record.name == name]
    command, what = ["docker", "volume", "create", "-d", "hostprep", name], exc.message
    if any(each["name"] == name for each in driver.retained_volumes()):
        what += ": it was removed, but its data was retained; a new volume of that name uses the data again"
    elif removed:
        what += f": it was removed at {removed[0].removed_at} and is in the trash"
        command = ["hostprep", "restore", name]
    elif subjects:
        command[-1:] = ["-o", f"uid={subjects[0].inside[0]}", "-o", f"gid={subjects[0].inside[1]}", name]
        if subjects[0].container and subjects[0].container.host_users:
            command[-1:] = ["-o", "userns=host", name]
    for subject in subjects:
        if subject.container and (mounted := subject.container.mount_of(name)) and mounted.driver == "local":
            what += f"; container {subject.container.name} has a volume of that name, made by driver local"
            return Finding("volume", Verdict.BAD, what, _NOT_LOCAL)
    return Finding("volume", Verdict.BAD, what, "a hostprep volume", shlex.join(command))


def _missing(place: str, exc: NotReady | NotAllowed) -> Finding:
    """The finding that the directory of a volume cannot be opened."""
    remedy, wanted = "", exc.hint
    if isinstance(exc, NotReady):
        if not isinstance(exc, OtherData):
            wanted = "the data (is its disk mounted?); if the data is lost, this command makes an empty directory"
            remedy = shlex.join(["mkdir", place])
        if (point := _unmounted(place)) is not None:
            wanted, remedy = f"the file system that {_FSTAB} names for {point}", shlex.join(["mount", point])
    return Finding("directory", Verdict.BAD, exc.message, wanted, remedy)


def _unmounted(place: str) -> str | None:
    """The mount point at or above *place* that fstab names, and where nothing is mounted now."""
    mounted = {mount.point for mount in mount_table()}
    with contextlib.suppress(OSError), open(_FSTAB, encoding="utf-8", errors="replace") as table:
        fields = [line.split() for line in table if not line.lstrip().startswith("#")]
        points = [unescaped(each[1]) for each in fields if len(each) > 1 and each[1].startswith("/")]
        above = [point for point in points if place == point or place.startswith(point.rstrip("/") + "/")]
        return max((point for point in above if point not in mounted), key=len, default=None)
    return None


def _check_volume(volume: InspectedVolume) -> Iterator[Finding]:
    """All checks, in order."""
    options = " ".join(f"{key}={value}" for key, value in volume.record.given.items()) or "no options"
    yield Finding("volume", Verdict.OK, f"{volume.record.name}, with {options}")
    yield Finding("directory", Verdict.OK, _directory(volume))
    for subject in volume.subjects:
        if subject.container is not None:
            yield from _mount(volume, subject, subject.container)
    access = [finding for subject in volume.subjects for finding in check_access(volume, subject)]
    yield from access
    yield from (drift := [*_drift(volume)])
    if drift[0].verdict is Verdict.OK and not any(finding.check == "contents" for finding in access):
        yield from _foreign(volume)
    yield from check_labels(volume)
    whom = [subject.who for subject in volume.subjects]
    running = [subject.container.name for subject in volume.subjects if subject.container and subject.container.pid]
    yield from check_file_system(volume.file_system, whom, running=running, trash=_trash_is_there(volume))


def _directory(volume: InspectedVolume) -> str:
    label = f", {printable(volume.label)}" if volume.label else ""
    mounted = f", mounted at {volume.volume.mountpoint}" if volume.record.pinned else ""
    owner = volume.found.st_uid, volume.found.st_gid
    inside = volume.record.declared.userns.seen(*owner)
    seen = f" on this host, {inside[0]}:{inside[1]} in the container," if inside != owner else ""
    return f"{volume.shown}: {owner[0]}:{owner[1]}{seen} {volume.mode}{label}{mounted}"


# -- the mount in the container ------------------------------------------------------------------------------


def _mount(volume: InspectedVolume, subject: Subject, container: Container) -> Iterator[Finding]:
    mounted, who = container.mount_of(volume.record.name), f"container {container.name}"
    if mounted is None:
        wanted = f"a container made with -v {volume.record.name}:/…"
        yield Finding("mount", Verdict.BAD, f"{who} does not have the volume", wanted)
        return
    at = printable(mounted.at)
    if mounted.driver == "local":
        what = f"{who} has at {at} a volume of that name, made by driver local"
        yield Finding("mount", Verdict.BAD, what, _NOT_LOCAL)
        return
    if subject.seen:
        yield from _live_mount(volume, subject, container, mounted)
        return
    why = "its mounts cannot be seen from here" if container.pid else f"its next start mounts the volume at {at}"
    yield Finding("mount", Verdict.NOTE, f"{who}: {why}")
    if not mounted.writable:
        wanted = f"a container made with -v {volume.record.name}:{at}"
        verdict = Verdict.BAD if subject.asked else Verdict.NOTE
        yield Finding("mount", verdict, f"{who} has it read-only (:ro)", wanted)


def _live_mount(
    volume: InspectedVolume, subject: Subject, container: Container, mounted: ContainerMount
) -> Iterator[Finding]:
    who, at = f"container {container.name}", printable(mounted.at)
    restart = shlex.join(["docker", "restart", container.name])
    try:
        inside = open_inside(container.pid, mounted.at)
    except OSError as exc:
        what = f"{who} has nothing at {at}: {exc.strerror}"
        yield Finding("mount", Verdict.BAD, what, "the volume there", restart)
        return
    with fds.closing(inside):
        same = os.path.samestat(os.fstat(inside), volume.found)
        flags, on_host = (os.fstatvfs(fd).f_flag for fd in (inside, volume.data))
    if mounted.subpath:
        what = f"{who} has only its subdirectory {printable(mounted.subpath)}, at {at}, which doctor does not check"
        yield Finding("mount", Verdict.NOTE, what)
    elif not same:
        what = f"{who} has at {at} another directory, which was the volume's when the container started"
        yield Finding("mount", Verdict.BAD, what, f"{volume.shown}, which its next start mounts", restart)
    elif flags & os.ST_RDONLY and not mounted.writable:
        what = f"{who} has it read-only (:ro)"
        if not subject.asked:
            yield Finding("mount", Verdict.NOTE, what)
            return
        remount = shlex.join(["mount", "-N", str(container.pid), "-o", "remount,bind,rw", mounted.at])
        wanted = f"a container made with -v {volume.record.name}:{at}; the command helps until this one is restarted"
        yield Finding("mount", Verdict.BAD, what, wanted, remount)
    elif flags & ~on_host & os.ST_RDONLY:
        what = f"{who} has it at {at} read-only, as the host had it when the container started"
        yield Finding("mount", Verdict.BAD, what, "read and write, which its next start mounts", restart)
    elif flags & ~on_host & os.ST_NOEXEC:
        what = f"{who} has it at {at} noexec, as the host had it when the container started"
        yield Finding("mount", Verdict.WARNING, what, "exec, which its next start mounts", restart)
    else:
        yield Finding("mount", Verdict.OK, f"mounted at {at} in {who}")


# -- what was declared ---------------------------------------------------------------------------------------


def _drift(volume: InspectedVolume) -> Iterator[Finding]:
    status = volume.driver.get(volume.record.name)["Status"]
    wanted = "as declared; the next start of a container repairs it, too"
    if status["drift"]:
        yield Finding("drift", Verdict.WARNING, "; ".join(status["drift"]), wanted, Apply())
    elif progress := status.get("progress"):
        yield Finding("drift", Verdict.WARNING, f"a pass over the contents runs: {progress['done']} entries done")
    elif volume.volume.pending() is not None:
        never = volume.record.options.recurses is Recurse.NEVER
        what = f"a pass over the contents is not finished; {'no' if never else 'the next'} start of a container does it"
        yield Finding("drift", Verdict.WARNING, what, "the contents as declared", Apply(contents=never))
    else:
        yield Finding("drift", Verdict.OK, "as declared")
    for left in volume.record.entries_left_alone[:_MAX_LEFT_ALONE]:
        yield Finding("drift", Verdict.NOTE, printable(left))


def _foreign(volume: InspectedVolume) -> Iterator[Finding]:
    """A finding if some of the first entries belong to others than the declared owner, whoever may use them."""
    want = volume.volume.want(volume.labels)
    if not volume.file_system.keeps_owners or volume.file_system.squashed:
        return
    if what := foreign(volume.volume, volume.data, want, MAX_ENTRIES):
        wanted = f"if that is not meant: all contents owned by {owner(want)}"
        yield Finding("contents", Verdict.WARNING, what, wanted, Apply(contents=True))


def _trash_is_there(volume: InspectedVolume) -> bool:
    """Whether emptying the trash would free space on the volume's file system."""
    with volume.driver.store.part("trash") as directory:
        same = os.fstat(directory).st_dev == volume.found.st_dev
    return same and bool(trash.entries(volume.driver.store))
