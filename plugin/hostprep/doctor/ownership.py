"""Whether owner, mode and access control list let a user use a volume and what is in it."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import printable
from ..host import acl
from ..host.acl import Tag
from ..host.idmap import UNMAPPED
from ..options import Mode, Recurse
from . import permissions
from .finding import Apply, Command, Finding, Remedy, Verdict
from .inspection import InspectedVolume
from .permissions import Who, read_acl
from .subject import Subject

_OTHERS = "other users have it, too, and could lose it: with --container or --user, doctor prints the command for one"
_UNDONE = "the next start of a container gives it to the declared owner again: this user needs a volume of its own"
_LEFT_ALONE = "another owner, set by hand: hostprep changes no files with several links and no devices here"


@dataclass(slots=True)
class _Contents:
    """The first entries of a directory, as one user finds them."""

    looked: int = 0
    closed: int = 0
    """Those that the user cannot read."""
    read_only: int = 0
    """Those that the user can only read."""
    left: int = 0
    """Those of both that a pass leaves alone."""
    example: str = ""


def check_access(volume: InspectedVolume, subject: Subject) -> Iterator[Finding]:
    """Whether *subject* may read, write and enter the directory; if so, also what is in it."""
    wanted = acl.READ | acl.ENTER if subject.reads else acl.ALL
    granted = subject.may(volume.found, volume.acl)
    contents = _contents(volume, subject, wanted)
    who = str(subject)
    if (subject.who.uid, subject.who.gid) != subject.inside:
        who += f", on this host {subject.who}"
    if not (missing := granted.missing(wanted)):
        what = f"{who} may {acl.words(wanted)}, as {granted.by}"
        yield Finding("userns" if subject.remap else "owner", Verdict.OK, what)
        yield from _check_contents(volume, subject, contents, wanted)
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
    remedy, takes = _owner_remedy(volume, subject, granted, wanted, closed=bool(contents.closed))
    for_whom = f"{acl.words(wanted)} for {subject.who}"
    finding = Finding(check, volume.severity(remedy, [subject]), what, for_whom, remedy)
    yield _given_to_one(volume, subject, finding) if takes else finding


def _given_to_one(volume: InspectedVolume, subject: Subject, finding: Finding) -> Finding:
    """*finding*, whose remedy makes *subject* the owner; without it where another user loses by it, or it is undone."""
    if volume.taken_from(subject.who):
        return replace(finding, wanted=f"{finding.wanted}; {_OTHERS}", remedy=None, contested=True)
    if volume.undone(subject.who):
        return replace(finding, wanted=f"{finding.wanted}; {_UNDONE}", remedy=None)
    return finding


def _owner_remedy(
    volume: InspectedVolume, subject: Subject, granted: permissions.Granted, wanted: int, *, closed: bool
) -> tuple[Remedy, bool]:
    """What gives *subject* the rights *wanted*, and whether it takes the directory from another user.

    Args:
        closed: there are contents that *subject* cannot read, so it has to own them.
    """
    who, declared = subject.who, volume.record.options
    if not volume.file_system.squashed and not closed:
        if granted.listed and not volume.subpath:
            return _list_remedy(volume, who, wanted), False
        same = volume.subpath or volume.record.declared.on_disk.gid == volume.found.st_gid
        if granted.group and same:  # it stays shared with that group
            return volume.own_remedy("group", {"mode": _with(volume, wanted << 3)}), False
    follow = who.uid != volume.found.st_uid and (volume.subpath or declared.recurses is not Recurse.NEVER)
    contents = closed and not follow
    options = _owner_options(volume, who, wanted, contents=contents)
    if volume.file_system.squashed:
        return _on_the_server(volume, who, options, wanted, contents=closed), True
    remedy = volume.own_remedy("owner", options, contents=contents)
    if volume.record.idmap and "uid" in options and not volume.subpath and subject.container and subject.container.pid:
        # Only the next start has a mount with the new ids.
        commands = remedy.command(volume.record.name), subject.container.command("restart")
        return Command("owner through a map", " && ".join(commands)), True
    return remedy, contents or "uid" in options


def _list_remedy(volume: InspectedVolume, who: Who, wanted: int) -> Command:
    """An entry for *who* in the access list, and a mask that lets it count. No other entry gives more by that mask."""
    assert volume.acl is not None  # noqa: S101  # it decided
    declared, mask = volume.record.options.mode, volume.acl.mask
    idmap = volume.record.idmap or UNMAPPED  # of the mount through which they are set
    entries = [f"u:{idmap.uid.seen_of(who.uid)}:{_letters(wanted)}"]
    for each in volume.acl.named if declared is None else ():
        if (each.tag, each.id) != (Tag.USER, who.uid) and each.rights & ~mask:
            number = (idmap.uid if each.tag is Tag.USER else idmap.gid).seen_of(each.id)
            entries.append(f"{each.tag.name[0].lower()}:{number}:{_letters(volume.acl.effective(each))}")
    if declared is None and any(each.tag is Tag.GROUP_OBJ and each.rights & ~mask for each in volume.acl.entries):
        entries.append(f"g::{_letters(volume.acl.group)}")
    entries.append(f"m::{_letters((mask if declared is None else declared >> 3) | wanted)}")
    # By the mount, where there is one: another user could replace a component of the path.
    command = shlex.join(["setfacl", "-m", ",".join(entries), volume.volume.mountpoint])
    if declared is None:
        return Command("access list", command)
    # A declared mode is the list's mask at each start. It cuts the other entries to what they give now.
    wider = {"mode": str(Mode(declared | wanted << 3))} if wanted & ~(declared >> 3) else {}
    return Command("access list and mode", f"{Apply('', wider).command(volume.record.name)} && {command}")


def _letters(rights: int) -> str:
    return "".join(letter if rights & bit else "-" for bit, letter in ((4, "r"), (2, "w"), (1, "x")))


def _on_the_server(
    volume: InspectedVolume, who: Who, options: Mapping[str, str], wanted: int, *, contents: bool
) -> Command:
    """What makes the directory as *options* say on its NFS server, and what is declared, if that says otherwise."""
    declared = {key: value for key, value in options.items() if getattr(volume.record.options, key) is not None}
    commands = [f"{Apply('', declared).command(volume.record.name)} --no-wait"] if declared else []
    if contents or who.uid != volume.found.st_uid:
        commands.append(volume.file_system.on_its_server("chown", *(["-R"] if contents else []), str(who)))
    if wanted << 6 & ~volume.mode:
        commands.append(volume.file_system.on_its_server("chmod", options.get("mode", str(_mode(volume)))))
    return Command("on the server", " && ".join(commands))


def _contents(volume: InspectedVolume, subject: Subject, wanted: int) -> _Contents:
    """What *subject* cannot use of the first entries."""
    found = _Contents()
    for name, st, file in volume.entries():
        found.looked += 1
        if st.st_uid == subject.who.uid:
            continue  # the owner may change the mode
        granted = subject.may(st, read_acl(file))
        directory = stat.S_ISDIR(st.st_mode)
        needed = wanted if directory else wanted & ~acl.ENTER
        if granted.missing(needed):
            closed = bool(granted.missing(needed & ~acl.WRITE))
            device = stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode)
            guarded = bool(volume.record.guarded or volume.subpath)
            found.left += guarded and not directory and (device or st.st_nlink > 1)
            found.closed += closed
            found.read_only += not closed
            mode = Mode(stat.S_IMODE(st.st_mode))
            found.example = found.example or f"{printable(name)} is {st.st_uid}:{st.st_gid} {mode}"
    return found


def _check_contents(volume: InspectedVolume, subject: Subject, found: _Contents, wanted: int) -> Iterator[Finding]:
    """A finding if *subject* cannot use some of the first entries."""
    if not found.closed and not found.read_only:
        return
    may_not = "read" if found.closed else "write"
    number = found.closed or found.read_only
    what = f"{subject} may not {may_not} {number} of the first {found.looked} entries: {found.example}"
    verdict = Verdict.BAD if found.closed else Verdict.WARNING
    owned = f"all contents owned by user {subject.who.uid}"
    if found.left == found.closed + found.read_only:
        yield Finding("contents", verdict, what, _LEFT_ALONE)
        return
    options = _owner_options(volume, subject.who, wanted, contents=True)
    remedy: Remedy | None = volume.own_remedy("contents", options, contents=True)
    if volume.file_system.squashed:
        remedy = _on_the_server(volume, subject.who, options, wanted, contents=True)
    elif not volume.file_system.keeps_owners:
        remedy = volume.given_at_mount(subject.who).remedy
    yield _given_to_one(volume, subject, Finding("contents", verdict, what, owned, remedy))


def _owner_options(volume: InspectedVolume, who: Who, wanted: int, *, contents: bool) -> dict[str, str]:
    """The options that make *who* the owner with the rights *wanted*, as far as they are not declared yet.

    An undeclared group stays so. Of a sub-directory nothing is declared.

    Args:
        contents: all contents, too.
    """
    declared, options = volume.record.declared.on_disk, dict[str, str]()
    uid = None if volume.subpath else declared.uid
    if uid != who.uid and (uid is not None or contents or who.uid != volume.found.st_uid):
        # A volume is declared with the container's numbers; a sub-directory is prepared with those on disk.
        seen = (who.uid, who.gid) if volume.subpath else (volume.record.idmap or UNMAPPED).seen(who.uid, who.gid)
        inside = seen if volume.subpath else volume.record.declared.userns.inside(*seen)
        options["uid"] = str((inside or seen)[0])
        if declared.gid is not None and (volume.subpath or inside is None or declared.gid != who.gid):
            options["gid"] = str((inside or seen)[1])
        options |= {} if inside else {"userns": "host"}
    mode = _with(volume, wanted << 6)
    return options | ({"mode": mode} if mode != str(_mode(volume)) else {})


def _mode(volume: InspectedVolume) -> Mode:
    """The declared mode, or else its own: with the group's rights, where an access list shows its mask instead."""
    declared = None if volume.subpath else volume.record.options.mode
    own = volume.mode if volume.acl is None else Mode(volume.mode & ~0o070 | volume.acl.group << 3)
    return own if declared is None else declared


def _with(volume: InspectedVolume, bits: int) -> str:
    return str(Mode(_mode(volume) | bits))
