"""Whether owner, mode and access control list let a user use a volume and what is in it."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator

from ..errors import printable
from ..host import acl
from ..options import Mode
from . import permissions
from .finding import Apply, Finding, Verdict
from .inspection import InspectedVolume
from .permissions import Who, read_acl
from .subject import Subject


def check_access(volume: InspectedVolume, subject: Subject) -> Iterator[Finding]:
    """Whether *subject* may read, write and enter the directory; if so, also what is in it.

    Reading is enough for a container that was made with :ro and that nobody asked about.
    """
    mounted = subject.container.mount_of(volume.record.name) if subject.container else None
    reads = mounted is not None and not mounted.writable and not subject.asked
    wanted = acl.READ | acl.ENTER if reads else acl.ALL
    granted = subject.may(volume.found, volume.acl)
    who = str(subject)
    if subject.remap is not None:
        who += f", on this host {subject.who}"
    if not (missing := granted.missing(wanted)):
        what = f"{who} may {acl.words(wanted)}, as {granted.by}"
        yield Finding("userns" if subject.remap else "owner", Verdict.OK, what)
        yield from _contents(volume, subject, wanted)
        return
    state = f"{volume.found.st_uid}:{volume.found.st_gid} {volume.mode}"
    what = f"{who} may not {missing}, as {granted.by}: the directory is {state}"
    inside = permissions.granted(Who(*subject.inside), volume.found, volume.acl)
    check = "acl" if granted.listed else "mode" if subject.who.uid == volume.found.st_uid else "owner"
    if subject.remap is not None and not inside.missing(wanted):  # only the user namespace is in the way
        check = "userns"
        what = f"{subject} is {subject.who} on this host (userns-remap), and the directory is {state}"
    if not volume.file_system.keeps_owners:
        yield volume.given_at_mount(subject.who)
        return
    if volume.file_system.squashed:
        check = "root_squash"
        what += ", and its server does not let hostprep change that"
    remedy = _owner_remedy(volume, subject, granted, wanted)
    for_whom = f"{acl.words(wanted)} for {subject.who}"
    yield Finding(check, volume.severity(remedy, [subject]), what, for_whom, remedy)


def _owner_remedy(volume: InspectedVolume, subject: Subject, granted: permissions.Granted, wanted: int) -> Apply | str:
    """What gives *subject* the rights *wanted*."""
    who = subject.who
    if volume.file_system.squashed:
        return volume.file_system.on_its_server("chown", str(who))
    if granted.listed:
        rights = "".join(letter if wanted & bit else "-" for bit, letter in ((4, "r"), (2, "w"), (1, "x")))
        # By the mount, where there is one: another user could replace a component of the path.
        where = volume.volume.mountpoint
        command = shlex.join(["setfacl", "-m", f"u:{who.uid}:{rights}", where])
        declared = volume.record.options.mode
        if declared is None or not wanted & ~(declared >> 3):
            return command
        # A declared mode is the list's mask at each start.
        wider = Apply({"mode": str(Mode(declared | wanted << 3))}).command(volume.record.name)
        return f"{wider} && {command}"
    mode = volume.mode if volume.record.options.mode is None else volume.record.options.mode
    if (
        granted.group and volume.record.declared.in_containers.gid == volume.found.st_gid
    ):  # it stays shared with that group
        return Apply({"mode": str(Mode(mode | wanted << 3))})
    options = _owner_options(volume, who) if who.uid != volume.found.st_uid else {}
    if mode & wanted << 6 != wanted << 6:
        options["mode"] = str(Mode(mode | wanted << 6))
    return Apply(options)


def _contents(volume: InspectedVolume, subject: Subject, wanted: int) -> Iterator[Finding]:
    """A finding if *subject* cannot use some of the first entries."""
    closed = read_only = looked = 0
    example = ""
    for name, st, file in volume.entries():
        looked += 1
        if st.st_uid == subject.who.uid:
            continue  # the owner may change the mode
        granted = subject.may(st, read_acl(file))
        needed = wanted if stat.S_ISDIR(st.st_mode) else wanted & ~acl.ENTER
        if granted.missing(needed):
            closed += bool(granted.missing(needed & ~acl.WRITE))
            read_only += not granted.missing(needed & ~acl.WRITE)
            example = example or f"{printable(name)} is {st.st_uid}:{st.st_gid} {Mode(stat.S_IMODE(st.st_mode))}"
    if not closed and not read_only:
        return
    may_not = "read" if closed else "write"
    what = f"{subject} may not {may_not} {closed or read_only} of the first {looked} entries: {example}"
    verdict = Verdict.BAD if closed else Verdict.WARNING
    remedy: Apply | str = Apply(_owner_options(volume, subject.who), contents=True)
    if volume.file_system.squashed:
        remedy = volume.file_system.on_its_server("chown", "-R", str(subject.who))
    elif not volume.file_system.keeps_owners:
        remedy = volume.given_at_mount(subject.who).fix(volume.record.name)
    yield Finding("contents", verdict, what, f"all contents owned by user {subject.who.uid}", remedy)


def _owner_options(volume: InspectedVolume, who: Who) -> dict[str, str]:
    """The options that declare *who* the owner, as far as they are not declared yet. An undeclared group stays so."""
    declared = volume.record.declared
    inside = declared.userns.inside(who.uid, who.gid)
    (uid, gid), known = inside or (who.uid, who.gid), declared.in_containers
    options = {"uid": str(uid)} if inside is None or known.uid != who.uid else {}
    options |= {"gid": str(gid)} if known.gid is not None and (inside is None or known.gid != who.gid) else {}
    return options | ({} if inside else {"userns": "host"})
