"""Whether a user may use a volume by owner, mode and access control list, and what is in it."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator

from ..errors import printable
from ..options import Mode
from . import permissions
from .case import Case, acl_of
from .finding import Apply, Finding, Verdict
from .permissions import Who
from .subject import Patient


def look(case: Case, patient: Patient) -> Iterator[Finding]:
    """Whether *patient* may do with the directory what a volume is for, and if so, with what is in it."""
    mounted = patient.container.has(case.record.name) if patient.container else None
    reads = mounted is not None and not mounted.writable and not patient.asked
    wanted = permissions.READ | permissions.ENTER if reads else permissions.ALL
    granted = patient.may(case.found, case.acl)
    who = str(patient)
    if patient.remap is not None:
        who += f", on this host {patient.who}"
    if not (missing := granted.missing(wanted)):
        mapped = patient.remap is not None
        yield Finding("userns" if mapped else "owner", Verdict.OK, f"{who} may do all, as {granted.by}")
        yield from _contents(case, patient, wanted)
        return
    is_ = f"{case.found.st_uid}:{case.found.st_gid} {case.mode}"
    what = f"{who} may not {missing}, as {granted.by}: the directory is {is_}"
    # Right but for the user namespace: that is then what to say.
    inside = permissions.granted(Who(*patient.inside), case.found, case.acl)
    check = "acl" if granted.listed else "mode" if patient.who.uid == case.found.st_uid else "owner"
    if patient.remap is not None and not inside.missing(wanted):
        check = "userns"
        what = f"{patient} is {patient.who} on this host (userns-remap), and the directory is {is_}"
    if not case.where.keeps_owners:
        yield case.given_at_mount(patient.who)
        return
    if case.where.squashed:
        check = "root_squash"
        what += ", on a server that does not let hostprep change that"
    remedy = _owner_remedy(case, patient, granted, wanted)
    yield Finding(check, case.bad(remedy, [patient]), what, f"{permissions.words(wanted)} for {patient.who}", remedy)


def _owner_remedy(case: Case, patient: Patient, granted: permissions.Granted, wanted: int) -> Apply | str:
    """What lets a patient do what is *wanted*."""
    who, options = patient.who, dict[str, str]()
    if case.where.squashed:
        return case.where.on_its_server("chown", str(who))
    if granted.listed:
        rights = "".join(letter if wanted & bit else "-" for bit, letter in ((4, "r"), (2, "w"), (1, "x")))
        # By the mount, where somebody could put something else in the place of the path.
        where = case.volume.mountpoint
        return shlex.join(["setfacl", "-m", f"u:{who.uid}:{rights}", where])
    mode = case.mode if case.record.options.mode is None else case.record.options.mode
    if granted.group and case.record.options.gid == case.found.st_gid:  # shared with that group, so it stays
        return Apply({"mode": str(Mode(mode | wanted << 3))})
    if who.uid != case.found.st_uid:
        declared = case.record.options
        options |= {"uid": str(who.uid)} if declared.uid != who.uid else {}
        options |= {"gid": str(who.gid)} if declared.gid != who.gid else {}
    if mode & wanted << 6 != wanted << 6:
        options["mode"] = str(Mode(mode | wanted << 6))
    return Apply(options)


def _contents(case: Case, patient: Patient, wanted: int) -> Iterator[Finding]:
    """A finding where among the first entries are some that *patient* cannot use."""
    closed = read_only = looked = 0
    example = ""
    for name, st, file in case.entries():
        looked += 1
        if st.st_uid == patient.who.uid:
            continue  # whose it is may change its mode, and then all of it
        granted = patient.may(st, acl_of(file))
        needed = wanted if stat.S_ISDIR(st.st_mode) else wanted & ~permissions.ENTER
        if granted.missing(needed):
            closed += bool(granted.missing(needed & ~permissions.WRITE))
            read_only += not granted.missing(needed & ~permissions.WRITE)
            example = example or f"{printable(name)} is {st.st_uid}:{st.st_gid} {Mode(stat.S_IMODE(st.st_mode))}"
    if not closed and not read_only:
        return
    may_not = "read" if closed else "write"
    what = f"{closed or read_only} of the first {looked} entries {patient} may not {may_not}: {example}"
    verdict = Verdict.BAD if closed else Verdict.WARNING
    remedy: Apply | str = Apply(
        _missing_owner(case, patient.who), contents=True, recurse=case.record.given.get("recurse")
    )
    if case.where.squashed:
        remedy = case.where.on_its_server("chown", "-R", str(patient.who))
    elif not case.where.keeps_owners:
        remedy = case.given_at_mount(patient.who).fix(case.record.name)
    yield Finding("contents", verdict, what, f"all of it {patient.who}'s", remedy)


def _missing_owner(case: Case, who: Who) -> dict[str, str]:
    declared = case.record.options
    options = {"uid": str(who.uid)} if declared.uid != who.uid else {}
    return options | ({"gid": str(who.gid)} if declared.gid != who.gid else {})
