"""Whether a user, in a container, can use a volume; and if not, what repairs it. It changes nothing.

The order is that in which access fails: the volume and its directory, the mount in the container, owner and mode, what
was declared, the label, what was denied, the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from ..engine.containers import Container, ContainerMount
from ..errors import HostprepError, NoSuchVolume, NotAllowed, NotReady, OtherData, Unreadable, printable
from ..host import fds, linux
from ..host.idmap import UNMAPPED
from ..host.mountinfo import mount_table, unescaped
from ..host.process import open_inside
from ..options import Recurse, check_name
from ..volumes import copying, trash
from ..volumes.driver import Driver
from ..volumes.foreign import foreign, owner
from ..volumes.volume import Volume
from .confinement import check_labels
from .filesystem import check_file_system
from .finding import Apply, Command, Diagnosis, Finding, Prepare, Verdict
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
    whom = tuple(dict.fromkeys(map(str, subjects)))
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
            return Diagnosis(name, whom, (_missing(volume, exc, subjects),))
        if (idmap := volume.record.idmap) is not None:
            subjects = [each.through(idmap) for each in subjects]
        return Diagnosis(name, whom, tuple(_check_volume(driver, volume, data, subjects, stack)))


def shadowed(name: str) -> Finding:
    """The finding that the engine has a volume of its own of that name, which it made while hostprep was away."""
    what = f"the engine has a volume {name} of driver local: containers get that one, not hostprep's"
    return Finding("volume", Verdict.BAD, what, _NOT_LOCAL)


# -- the volume and its directory ----------------------------------------------------------------------------------


def _unknown(driver: Driver, name: str, exc: HostprepError, subjects: Sequence[Subject]) -> Finding:
    if isinstance(exc, Unreadable):
        return Finding("volume", Verdict.BAD, exc.message, exc.hint or "a record that can be read")
    removed = [each for each in trash.entries(driver.store) if each.record is not None and each.record.name == name]
    what, containers = exc.message, _containers(subjects)
    program = containers[0].program if containers else "docker"
    create = [program, "volume", "create", "-d" if program == "docker" else "--driver", "hostprep"]
    if any(each["name"] == name for each in driver.retained_volumes()):
        what += ": it was removed, but its data was retained; a new volume of that name uses the data again"
        remedy = Command("retained", shlex.join([*create, name]))
    elif removed:
        what += f": it was removed at {removed[0].removed_at} and is in the trash"
        remedy = Command("removed", shlex.join(["hostprep", "restore", name]))
    else:
        options = [word for each in subjects[:1] for word in _options_for(each)]
        remedy = Command("unknown", shlex.join([*create, *options, name]))
    for subject in subjects:
        if subject.container and subject.mounted and subject.mounted.driver == "local":
            what += f"; container {subject.container.name} has a volume of that name, made by driver local"
            return Finding("volume", Verdict.BAD, what, _NOT_LOCAL)
    return Finding("volume", Verdict.BAD, what, "a hostprep volume", remedy)


def _options_for(subject: Subject) -> list[str]:
    uid, gid = subject.inside
    whose = ["-o", "userns=host"] if subject.container and subject.container.host_users else []
    return ["-o", f"uid={uid}", "-o", f"gid={gid}", *whose]


def _missing(volume: Volume, exc: NotReady | NotAllowed, subjects: Sequence[Subject]) -> Finding:
    """The finding that the directory of a volume cannot be opened."""
    remedy, wanted = None, exc.hint
    if isinstance(exc, NotReady):
        if not isinstance(exc, OtherData):
            wanted = (
                "the data (is its disk mounted?); if the data is lost, these commands begin with an empty directory"
            )
            accept = shlex.join(["hostprep", "apply", volume.name, "--accept-data"])
            restart = [each.command("restart") for each in _containers(subjects) if each.pid]
            remedy = Command("lost", " && ".join([shlex.join(["mkdir", volume.place]), accept, *restart]))
        if (point := _unmounted(volume.place)) is not None:
            wanted = f"the file system that {_FSTAB} names for {point}"
            remedy = Command("unmounted", shlex.join(["mount", point]))
    return Finding("directory", Verdict.BAD, exc.message, wanted, remedy)


def _containers(subjects: Sequence[Subject]) -> list[Container]:
    return list({each.container.id: each.container for each in subjects if each.container}.values())


def _unmounted(place: str) -> str | None:
    """The mount point at or above *place* that fstab names, and where nothing is mounted now."""
    mounted = {mount.point for mount in mount_table()}
    with contextlib.suppress(OSError), open(_FSTAB, encoding="utf-8", errors="replace") as table:
        fields = [line.split() for line in table if not line.lstrip().startswith("#")]
        points = [unescaped(each[1]) for each in fields if len(each) > 1 and each[1].startswith("/")]
        above = [point for point in points if place == point or place.startswith(point.rstrip("/") + "/")]
        return max((point for point in above if point not in mounted), key=len, default=None)
    return None


def _check_volume(
    driver: Driver, volume: Volume, root: int, subjects: Sequence[Subject], stack: contextlib.ExitStack
) -> Iterator[Finding]:
    """All checks, in order; those of a directory for each that the *subjects* have: the root, and sub-directories."""
    options = " ".join(f"{key}={value}" for key, value in volume.record.given.items()) or "no options"
    yield Finding("volume", Verdict.OK, f"{volume.name}, with {options}")
    opened, everyone = {"": root}, dict[str, list[Subject]]()
    lost: list[Finding] = []
    for subject in subjects:
        try:
            subpath = _open_subpath(root, subject.mounted.subpath if subject.mounted else "", opened, stack)
        except OSError as exc:
            lost.append(_lost_subpath(volume, root, subject, exc))
        else:
            everyone.setdefault(subpath, []).append(subject)
    if not subjects:
        everyone[""] = []
    looked_at = [
        InspectedVolume(driver, volume, opened[subpath], whom, subpath=subpath, everyone=everyone)
        for subpath, whom in everyone.items()
    ]
    for each in looked_at:
        yield Finding("directory", Verdict.OK, _directory(each))
    yield from lost
    for each in looked_at:
        for subject in each.subjects:
            if subject.container is not None:
                yield from _mount(each, subject, subject.container)
    access: list[Finding] = []
    for each in looked_at:
        # A container that has it twice needs most what it writes, which comes first.
        for subject in {(one.who, one.container and one.container.id): one for one in each.subjects[::-1]}.values():
            access += check_access(each, subject)
    yield from access
    yield from (drift := [*_drift(driver, volume, whole="" in everyone)])
    if drift[0].verdict is Verdict.OK and not any(finding.check == "contents" for finding in access):
        for each in looked_at:
            yield from _foreign(each)
    for each in looked_at:
        yield from check_labels(each)
    on_mount: dict[int, list[InspectedVolume]] = {}
    for each in looked_at:
        on_mount.setdefault(fds.mount_id(each.data), []).append(each)
    for first, *others in on_mount.values():
        users = [subject.who for each in (first, *others) for subject in each.subjects]
        trash_there = _trash_is_there(driver, first.data)
        yield from check_file_system(first.file_system, users, keep=_own_flags(subjects), trash=trash_there)


# -- a sub-directory -----------------------------------------------------------------------------------------------


def _open_subpath(root: int, subpath: str, opened: dict[str, int], stack: contextlib.ExitStack) -> str:
    """Open the sub-directory of the directory *root* that engines mount for *subpath*, and return where it is.

    As Docker does, it follows symlinks that do not lead out of the volume. What is opened in the end has none above it.

    Raises:
        OSError: ENOENT; EXDEV where a symlink leads out; ENOTDIR; ELOOP where somebody exchanges what is there.
    """
    if subpath in opened:
        return subpath
    try:
        fd = _open_below(root, subpath)
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENOTDIR):  # ENOTDIR where the last component is a symlink
            raise
        within = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_MAGICLINKS
        with fds.closing(linux.openat2(root, subpath, os.O_PATH | os.O_DIRECTORY, within)) as found:
            there, above = (os.readlink(f"/proc/self/fd/{each}") for each in (found, root))
        subpath = "" if there == above else os.path.relpath(there, above)
        if subpath in opened:
            return subpath
        fd = _open_below(root, subpath)
    stack.callback(os.close, fd)
    opened[subpath] = fd
    return subpath


def _open_below(root: int, subpath: str) -> int:
    """Open a directory below *root* through no symlink.

    Raises:
        OSError: ELOOP or ENOTDIR for one, and what else open(2) raises.
    """
    try:
        return linux.openat2(root, subpath, fds.DIRECTORY, linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
    fd = os.dup(root)
    for name in subpath.split("/"):
        with fds.closing(fd):
            fd = fds.open_dir(fd, name)
    return fd


def _lost_subpath(volume: Volume, root: int, subject: Subject, exc: OSError) -> Finding:
    """The finding that the sub-directory cannot be opened that a container is to have."""
    assert subject.container is not None  # noqa: S101  # only a container has one
    assert subject.mounted is not None  # noqa: S101  # so it has the volume mounted
    subpath, container = subject.mounted.subpath, subject.container
    what = f"container {container.name} has the subpath {printable(subpath)} of the volume, which"
    if exc.errno == errno.EXDEV:
        return Finding("directory", Verdict.BAD, f"{what} leads out of the volume", "a subpath within it")
    if exc.errno != errno.ENOENT:
        return Finding("directory", Verdict.NOTE, f"{what} doctor does not look at: {exc.strerror}")
    declared = volume.record.options
    owner = {"uid": str(subject.who.uid)} | ({} if declared.gid is None else {"gid": str(subject.who.gid)})
    commands, path = list[str](), ""
    for name in subpath.split("/"):
        path = os.path.join(path, name)
        try:
            os.close(_open_below(root, path))
        except FileNotFoundError:
            given = owner if path == subpath else {}
            commands.append(Prepare("", os.path.join(volume.place, path), given).command(volume.name))
        except OSError:  # a symlink that leads nowhere
            return Finding("directory", Verdict.BAD, f"{what} leads to what is not there", "a subpath that is there")
    remedy = " && ".join([*commands, *([container.command("restart")] if container.pid else [])])
    wanted = "the data; if it is lost, these commands begin with an empty directory"
    return Finding("directory", Verdict.BAD, f"{what} is not there", wanted, Command("no subpath", remedy))


def _directory(volume: InspectedVolume) -> str:
    label = f", {printable(volume.label)}" if volume.label else ""
    mounted = f", mounted at {volume.volume.mountpoint}" if volume.record.mounted else ""
    owner = volume.found.st_uid, volume.found.st_gid
    inside = volume.record.seen(*owner)
    seen = f" on this host, {inside[0]}:{inside[1]} in the container," if inside != owner else ""
    return f"{volume.shown}: {owner[0]}:{owner[1]}{seen} {volume.mode}{label}{mounted}"


# -- the mount in the container ------------------------------------------------------------------------------


def _mount(volume: InspectedVolume, subject: Subject, container: Container) -> Iterator[Finding]:
    mounted, who = subject.mounted, f"container {container.name}"
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
        yield _made_read_only(volume, subject, who)


def _made_read_only(volume: InspectedVolume, subject: Subject, who: str) -> Finding:
    # No remount: the next start of the container would undo it.
    verdict = Verdict.NOTE if subject.reads else Verdict.BAD
    return Finding("mount", verdict, f"{who} has {volume.shown} read-only (:ro)", "a container made without :ro")


def _live_mount(
    volume: InspectedVolume, subject: Subject, container: Container, mounted: ContainerMount
) -> Iterator[Finding]:
    who, at, restart = f"container {container.name}", printable(mounted.at), container.command("restart")
    try:
        inside = open_inside(container.pid, mounted.at)
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            yield Finding("mount", Verdict.NOTE, f"{who}: its mounts cannot be seen without Linux 5.6")
            return
        what = f"{who} has nothing at {at}: {exc.strerror}"
        yield Finding("mount", Verdict.BAD, what, "the volume there", Command("restart: nothing there", restart))
        return
    with fds.closing(inside):
        found = os.fstat(inside)
        same = os.path.samestat(found, volume.found)
        seen = (volume.record.idmap or UNMAPPED).shows(volume.found, found)
        flags, on_host = (os.fstatvfs(fd).f_flag for fd in (inside, volume.data))
    if not same:
        what = f"{who} has at {at} another directory, which was the volume's when the container started"
        wanted = f"{volume.shown}, which its next start mounts"
        yield Finding("mount", Verdict.BAD, what, wanted, Command("restart: another directory", restart))
    elif not seen:
        what = f"{who} has it at {at} with the ids of host_uid and host_gid as they were when the container started"
        wanted = "the volume as it is declared now, which its next start mounts"
        yield Finding("mount", Verdict.BAD, what, wanted, Command("restart: other ids", restart))
    elif flags & os.ST_RDONLY and not mounted.writable:
        yield _made_read_only(volume, subject, who)
    elif flags & ~on_host & os.ST_RDONLY:
        what = f"{who} has it at {at} read-only, as the host had it when the container started"
        wanted = "read and write, which its next start mounts"
        yield Finding("mount", Verdict.BAD, what, wanted, Command("restart: read-only", restart))
    elif flags & ~on_host & os.ST_NOEXEC:
        what = f"{who} has it at {at} noexec, as the host had it when the container started"
        wanted = "exec, which its next start mounts"
        yield Finding("mount", Verdict.WARNING, what, wanted, Command("restart: noexec", restart))
    else:
        part = f"its {printable(volume.subpath)} is " if volume.subpath else ""
        yield Finding("mount", Verdict.OK, f"{part}mounted at {at} in {who}")


def _own_flags(subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """By mount flag, the commands that restart the containers whose own mount of the volume has it, unasked."""
    found: dict[str, list[str]] = {}
    for subject in subjects:
        container, mounted = subject.container, subject.mounted
        if container is None or mounted is None or not subject.seen:
            continue
        with contextlib.suppress(OSError), fds.closing(open_inside(container.pid, mounted.at)) as inside:
            here = fds.mount_id(inside)
            flags = next((each.flags for each in mount_table(str(container.pid)) if each.id == here), ())
            for flag in flags if mounted.writable else ():
                if (restart := container.command("restart")) not in found.setdefault(flag, []):
                    found[flag].append(restart)
    return found


# -- what was declared ---------------------------------------------------------------------------------------


def _drift(driver: Driver, volume: Volume, *, whole: bool) -> Iterator[Finding]:
    """What is not as declared.

    Args:
        whole: somebody uses the whole volume. Otherwise there is no remedy: it would change what nobody asked about.
    """
    status = driver.get(volume.name)["Status"]
    wanted = "as declared; the next start of a container repairs it, too"
    if status["drift"]:
        remedy = Apply("drift") if whole else None
        yield Finding("drift", Verdict.WARNING, "; ".join(status["drift"]), wanted, remedy)
    elif progress := status.get("progress"):
        yield Finding("drift", Verdict.WARNING, f"a pass over the contents runs: {progress['done']} entries done")
    elif volume.pending() is not None and volume.record.options.recurses is Recurse.NEVER:
        what = "a pass over the contents is not finished; no start of a container does it"
        remedy = Apply("unfinished repair", contents=True) if whole else None
        yield Finding("drift", Verdict.WARNING, what, "the contents as declared", remedy)
    elif volume.pending() is not None and copying.under_way(volume):
        # Until that is over, no command ends it.
        what = "an engine may still be copying an image's files into it: the next start of a container looks again"
        yield Finding("drift", Verdict.NOTE, what)
    elif volume.pending() is not None:
        what = "a pass over the contents is not finished; the next start of a container finishes it"
        remedy = Apply("unfinished") if whole else None
        yield Finding("drift", Verdict.WARNING, what, "the contents as declared", remedy)
    else:
        yield Finding("drift", Verdict.OK, "as declared")
    for left in volume.record.entries_left_alone[:_MAX_LEFT_ALONE]:
        yield Finding("drift", Verdict.NOTE, printable(left))


def _foreign(volume: InspectedVolume) -> Iterator[Finding]:
    """A finding if some of the first entries belong to others than the declared owner, whoever may use them.

    Where another user has the volume, too, as by an access list, they are that one's: no command may take them.
    """
    want = volume.volume.want(volume.labels)
    shared = any(want.uid not in (None, each.who.uid) and not each.who.overrides for each in volume.subjects)
    if shared or volume.subpath or not volume.file_system.keeps_owners or volume.file_system.squashed:
        return
    if what := foreign(volume.volume, volume.data, want, MAX_ENTRIES):
        wanted = f"if that is not meant: all contents owned by {owner(want)}"
        yield Finding("contents", Verdict.WARNING, what, wanted, Apply("foreign", contents=True))


def _trash_is_there(driver: Driver, data: int) -> bool:
    """Whether emptying the trash would free space on the file system of the directory *data*."""
    with driver.store.part("trash") as directory:
        same = os.fstat(directory).st_dev == os.fstat(data).st_dev
    return same and bool(trash.entries(driver.store))
