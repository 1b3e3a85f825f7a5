"""Whether a user, in a container, can use a volume; and if not, what mends it. It only looks.

The order is that in which access fails: the volume and its directory, the mount in the container, owner and mode, what
was declared, the label, what was denied, the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from . import access, denials, fds, trash
from .access import Who
from .container import Container, Mounted, open_inside
from .driver import Driver
from .errors import HostprepError, NoSuchVolume, NotAllowed, NotReady, Redirectable, Unreadable, printable
from .filesystem import FileSystem, given_at_mount
from .filesystem import look as look_at_file_system
from .finding import Apply, Diagnosis, Finding, Verdict
from .labels import UNSUPPORTED, read_label
from .mounts import mount_table, unescaped
from .options import Mode, Recurse, check_name
from .patient import Patient
from .record import Record

_LOOKED_AT: Final = 1000  # entries of the volume's directory itself
_SHOWN: Final = 5  # denials
_NOT_LET: Final = "a label with which the policy does not let it do that"
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
            volume = stack.enter_context(driver.store.volume(check_name(name)))
            record = driver.store.record(volume, name)
        except (NoSuchVolume, Unreadable) as exc:
            return Diagnosis(name, whom, (_unknown(driver, name, exc, patients),))
        try:
            try:
                data = driver.store.open_data(volume, record)
            except Redirectable:  # as the next Mount has it: a mount of it is answered, from then on
                record = replace(record, pinned=True)
                data = driver.store.open_data(volume, record)
            stack.enter_context(fds.held(data))
        except (NotReady, NotAllowed) as exc:
            return Diagnosis(name, whom, (_missing(driver.store.place(record), exc),))
        return Diagnosis(name, whom, tuple(_Examination(driver, record, data, patients).findings()))


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


class _Examination:
    """The look at one volume whose directory is open."""

    def __init__(self, driver: Driver, record: Record, data: int, patients: Sequence[Patient]) -> None:
        self.driver = driver
        self.labels = driver.labels
        self.record = record
        self.data = data
        self.patients = patients
        self.place = driver.store.place(record)
        self.shown = printable(self.place)
        self.found = os.fstat(data)
        self.mode = Mode(stat.S_IMODE(self.found.st_mode))
        self.acl = _acl(f"/proc/self/fd/{data}/.")
        self.where = FileSystem.of(data, self.place)
        try:
            self.label = read_label(data)
        except OSError as exc:
            if exc.errno != UNSUPPORTED:
                raise
            self.label = None

    def findings(self) -> Iterator[Finding]:
        options = " ".join(f"{key}={value}" for key, value in self.record.given.items()) or "no options"
        yield Finding("volume", Verdict.OK, f"{self.record.name}, with {options}")
        yield Finding("directory", Verdict.OK, self._directory())
        for patient in self.patients:
            if patient.container is not None:
                yield from self._mount(patient, patient.container)
        for patient in self.patients:
            yield from self._access(patient)
        yield from self._drift()
        yield from self._label()
        yield from self._denials()
        whom = [patient.who for patient in self.patients]
        running = [patient.container.name for patient in self.patients if patient.container and patient.container.pid]
        yield from look_at_file_system(self.where, whom, running=running, purges=self._purges())

    def _directory(self) -> str:
        label = f", {printable(self.label)}" if self.label else ""
        mounted = f", mounted at {self.driver.store.mountpoint(self.record)}" if self.record.pinned else ""
        return f"{self.shown}: {self.found.st_uid}:{self.found.st_gid} {self.mode}{label}{mounted}"

    # -- the mount in the container ------------------------------------------------------------------------------

    def _mount(self, patient: Patient, container: Container) -> Iterator[Finding]:
        mounted, who = container.has(self.record.name), f"container {container.name}"
        if mounted is None:
            wanted = f"-v {self.record.name}:/…, when the container is made"
            yield Finding("mount", Verdict.BAD, f"{who} does not have the volume", wanted)
            return
        at = printable(mounted.at)
        if mounted.driver == "local":
            what = f"{who} has at {at} a volume of that name of the driver local"
            yield Finding("mount", Verdict.BAD, what, _INSTEAD)
            return
        if container.pid and patient.seen:
            yield from self._live_mount(patient, container, mounted)
            return
        why = "cannot be looked into from here" if container.pid else f"does not run: its start mounts it at {at}"
        yield Finding("mount", Verdict.NOTE, f"{who} {why}")
        if not mounted.writable:
            verdict = Verdict.BAD if patient.asked else Verdict.NOTE
            wanted = f"-v {self.record.name}:{at}, when the container is made"
            yield Finding("mount", verdict, f"{who} has it read-only (:ro)", wanted)

    def _live_mount(self, patient: Patient, container: Container, mounted: Mounted) -> Iterator[Finding]:
        who, at = f"container {container.name}", printable(mounted.at)
        restart = shlex.join(["docker", "restart", container.name])
        try:
            inside = open_inside(container.pid, mounted.at)
        except OSError as exc:
            what = f"{who} has nothing at {at}: {exc.strerror}"
            yield Finding("mount", Verdict.BAD, what, "the volume", restart)
            return
        with fds.held(inside):
            same = os.path.samestat(os.fstat(inside), self.found)
            flags, on_host = (os.fstatvfs(fd).f_flag for fd in (inside, self.data))
        if mounted.subpath:
            what = f"{who} has only {printable(mounted.subpath)} of it, at {at}: that is not looked into"
            yield Finding("mount", Verdict.NOTE, what)
        elif not same:
            what = f"{who} has at {at} what the volume was when it started, not what it is"
            yield Finding("mount", Verdict.BAD, what, f"{self.shown}, which its next start mounts", restart)
        elif flags & os.ST_RDONLY and not mounted.writable:
            what = f"{who} has it read-only (:ro)"
            if not patient.asked:
                yield Finding("mount", Verdict.NOTE, what)
                return
            remount = shlex.join(["mount", "-N", str(container.pid), "-o", "remount,bind,rw", mounted.at])
            wanted = f"-v {self.record.name}:{at}, when the container is made; until it is made anew, while it runs"
            yield Finding("mount", Verdict.BAD, what, wanted, remount)
        elif flags & ~on_host & os.ST_RDONLY:
            what = f"the mount at {at} in {who} is read-only, as the host's was at its start"
            yield Finding("mount", Verdict.BAD, what, "read and write, as of its next start", restart)
        elif flags & ~on_host & os.ST_NOEXEC:
            what = f"the mount at {at} in {who} is noexec, as the host's was at its start"
            yield Finding("mount", Verdict.WARNING, what, "exec, as of its next start", restart)
        else:
            yield Finding("mount", Verdict.OK, f"at {at} in {who}")

    # -- owner and mode ------------------------------------------------------------------------------------------

    def _access(self, patient: Patient) -> Iterator[Finding]:
        mounted = patient.container.has(self.record.name) if patient.container else None
        reads = mounted is not None and not mounted.writable and not patient.asked
        wanted = access.READ | access.ENTER if reads else access.ALL
        granted = patient.may(self.found, self.acl)
        who = str(patient)
        if patient.remap is not None:
            who += f", on this host {patient.who}"
        if not (missing := granted.missing(wanted)):
            mapped = patient.remap is not None
            yield Finding("userns" if mapped else "owner", Verdict.OK, f"{who} may do all, as {granted.by}")
            yield from self._contents(patient, wanted)
            return
        is_ = f"{self.found.st_uid}:{self.found.st_gid} {self.mode}"
        what = f"{who} may not {missing}, as {granted.by}: the directory is {is_}"
        # Right but for the user namespace: that is then what to say.
        inside = access.granted(Who(*patient.inside), self.found, self.acl)
        check = "acl" if granted.listed else "mode" if patient.who.uid == self.found.st_uid else "owner"
        if patient.remap is not None and not inside.missing(wanted):
            check = "userns"
            what = f"{patient} is {patient.who} on this host (userns-remap), and the directory is {is_}"
        if not self.where.keeps_owners:
            yield self._given_at_mount(patient.who)
            return
        if self.where.squashed:
            check = "root_squash"
            what += ", on a server that does not let hostprep change that"
        remedy = self._owner_remedy(patient, granted, wanted)
        yield Finding(check, self._bad(remedy, [patient]), what, f"{access.words(wanted)} for {patient.who}", remedy)

    def _owner_remedy(self, patient: Patient, granted: access.Granted, wanted: int) -> Apply | str:
        """What lets a patient do what is *wanted*."""
        who, options = patient.who, dict[str, str]()
        if self.where.squashed:
            return self.where.on_its_server("chown", str(who))
        if granted.listed:
            rights = "".join(letter if wanted & bit else "-" for bit, letter in ((4, "r"), (2, "w"), (1, "x")))
            # By the mount, where somebody could put something else in the place of the path.
            where = self.driver.store.mountpoint(self.record)
            return shlex.join(["setfacl", "-m", f"u:{who.uid}:{rights}", where])
        mode = self.mode if self.record.options.mode is None else self.record.options.mode
        if granted.group and self.record.options.gid == self.found.st_gid:  # shared with that group, so it stays
            return Apply({"mode": str(Mode(mode | wanted << 3))})
        if who.uid != self.found.st_uid:
            declared = self.record.options
            options |= {"uid": str(who.uid)} if declared.uid != who.uid else {}
            options |= {"gid": str(who.gid)} if declared.gid != who.gid else {}
        if mode & wanted << 6 != wanted << 6:
            options["mode"] = str(Mode(mode | wanted << 6))
        return Apply(options)

    def _bad(self, remedy: Apply | str, patients: Sequence[Patient]) -> Verdict:
        """How bad it is, what *remedy* mends: what is as declared again at a start does not keep from starting."""
        runs = any(patient.container and patient.container.pid for patient in patients)
        return Verdict.BAD if runs or remedy != Apply() else Verdict.WARNING

    def _given_at_mount(self, who: Who) -> Finding:
        label = (self.labels.default or None) if self.labels.applied else None
        return given_at_mount(self.where, who, label)

    def _contents(self, patient: Patient, wanted: int) -> Iterator[Finding]:
        """A finding where among the first entries are some that *patient* cannot use."""
        closed = read_only = looked = 0
        example = ""
        for name, st, file in self._entries():
            looked += 1
            granted = patient.may(st, _acl(file))
            needed = wanted if stat.S_ISDIR(st.st_mode) else wanted & ~access.ENTER
            if granted.missing(needed):
                closed += bool(granted.missing(needed & ~access.WRITE))
                read_only += not granted.missing(needed & ~access.WRITE)
                example = example or f"{printable(name)} is {st.st_uid}:{st.st_gid} {Mode(stat.S_IMODE(st.st_mode))}"
        if not closed and not read_only:
            return
        may_not = "read" if closed else "write"
        what = f"{closed or read_only} of the first {looked} entries {patient} may not {may_not}: {example}"
        verdict = Verdict.BAD if closed else Verdict.WARNING
        remedy: Apply | str = Apply(
            self._missing_owner(patient.who), contents=True, recurse=self.record.given.get("recurse")
        )
        if self.where.squashed:
            remedy = self.where.on_its_server("chown", "-R", str(patient.who))
        elif not self.where.keeps_owners:
            remedy = self._given_at_mount(patient.who).fix(self.record.name)
        yield Finding("contents", verdict, what, f"all of it {patient.who}'s", remedy)

    def _missing_owner(self, who: Who) -> dict[str, str]:
        declared = self.record.options
        options = {"uid": str(who.uid)} if declared.uid != who.uid else {}
        return options | ({"gid": str(who.gid)} if declared.gid != who.gid else {})

    def _entries(self) -> Iterator[tuple[str, os.stat_result, str]]:
        """Name and state of the first entries, symlinks and what a new file system has left out."""
        with os.scandir(self.data) as entries:
            for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
                with contextlib.suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    if not stat.S_ISLNK(st.st_mode) and entry.name != "lost+found":
                        yield entry.name, st, f"/proc/self/fd/{self.data}/{entry.name}"

    # -- what was declared ---------------------------------------------------------------------------------------

    def _drift(self) -> Iterator[Finding]:
        status = self.driver.get(self.record.name)["Status"]
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
        for left in self.record.left_alone[:_SHOWN]:
            yield Finding("drift", Verdict.NOTE, printable(left))

    # -- labels --------------------------------------------------------------------------------------------------

    def _label(self) -> Iterator[Finding]:
        if not self.labels.can_tell:
            why = "SELinux is off on this host" if not self.labels.applied else "no policy can be asked on this host"
            yield Finding("label", Verdict.OK, f"{why}: no label keeps anybody out")
            return
        if self.label is None:
            remedy = Apply(self._label_options())
            yield Finding("label", self._bad(remedy, self.patients), "the directory has no label", "one", remedy)
            return
        processes = dict.fromkeys(patient.label for patient in self.patients) or {None: None}
        for process in processes:
            yield from self._label_for(process)

    def _label_for(self, process: str | None) -> Iterator[Finding]:
        label = self.label or ""
        if process == "":
            yield Finding("label", Verdict.OK, "the container is not confined by SELinux")
            return
        context = self.labels.process(label) if process is None else process
        if missing := self.labels.missing(label, context):
            who, may_not = _domain(context), " or ".join(missing)
            level = [*label.split(":", 3), "", "", ""][3]
            # Alike but for the level: the categories keep it out.
            if not self.labels.missing(label, self.labels.at_level_of(label, context)):
                what = (
                    f"{printable(label)}: the container runs with {_categories(context)}, not with {_categories(label)}"
                )
                wanted = f"a label for all containers; or this one made with --security-opt label=level:{level}"
                yield Finding("categories", Verdict.BAD, what, wanted, self._label_remedy(shared=True))
                return
            what = f"{printable(label)}: the policy lets {who} not {may_not} it"
            remedy = self._label_remedy(shared=False)
            yield Finding("label", self._bad(remedy, self.patients), what, self.labels.usable(label), remedy)
            return
        yield Finding("label", Verdict.OK, f"{printable(label)}: the policy lets {_domain(context)} read and write it")
        yield from self._labels_inside(context)

    def _label_remedy(self, *, shared: bool) -> Apply | str:
        """What gives the directory a label that containers can use; *shared*: one that all can."""
        if not self.where.keeps_labels:
            who = self.patients[0].who if self.patients else Who(self.found.st_uid, self.found.st_gid)
            return self._given_at_mount(who).fix(self.record.name)
        return Apply(self._label_options(shared=shared))

    def _label_options(self, *, shared: bool = False) -> dict[str, str]:
        """What makes the label one that containers can use, besides what is declared."""
        default, declared = self.labels.default or "", self.record.options.label
        if declared is None and not self.record.adopted and not shared:
            return {}  # it is the default that is kept
        if declared is not None and declared.type and not shared:
            # As declared it may be right, and only is not so now.
            if not self.labels.missing(str(declared), self.labels.process(str(declared))):
                return {}
            default = self.labels.usable(str(declared))
        _, _, kind, level = default.split(":", 3)
        options = {"label": kind if level == "s0" else f"{kind}:{level}"}
        if self.record.options.recurses is Recurse.NEVER and any(self._entries()):
            options["recurse"] = Recurse.MISMATCH.value
        return options

    def _labels_inside(self, context: str) -> Iterator[Finding]:
        """A finding where among the first entries are some with labels that keep *context* out."""
        wrong = looked = 0
        example, refused = "", dict[str, bool]()
        for name, _, file in self._entries():
            looked += 1
            label = denials.label_of(file)
            if label is None:
                continue
            if label not in refused:
                refused[label] = bool(self.labels.missing(label, context))
            wrong += refused[label]
            example = example or (f"{printable(name)} is {printable(label)}" if refused[label] else "")
        if wrong:
            what = f"{wrong} of the first {looked} entries the policy lets {_domain(context)} not use: {example}"
            yield Finding(
                "contents", Verdict.BAD, what, f"all of it {printable(self.label or '')}", self._relabelling()
            )

    # -- what was denied -----------------------------------------------------------------------------------------

    def _denials(self) -> Iterator[Finding]:
        if not self.labels.can_tell:
            return
        where, recorded = denials.recorded()
        if not where:
            yield Finding("denials", Verdict.NOTE, "neither audit log nor journal can be read")
            return
        found = denials.concerning(self.data, self.where.mount, recorded)
        for denial in found[-_SHOWN:]:
            yield self._denial(denial)
        if not found:
            yield Finding("denials", Verdict.OK, f"none of this volume's files in {where}")

    def _denial(self, denial: denials.Denial) -> Finding:
        what = printable(denials.sentence(denial))
        needed = [(denial.kind, permission) for permission in denial.permissions]
        if denial.label is not None and self.labels.allows(denial.source, denial.label, needed):
            now = f"by now its label is {printable(denial.label)}, which allows it"
            return Finding("denials", Verdict.NOTE, f"{what}; {now}")
        alike = self.labels.at_level_of(denial.target, denial.source)
        why = "whose categories it does not have" if self.labels.allows(alike, denial.target, needed) else _NOT_LET
        what += f", {why}"
        # What lies in the directory itself has been looked at; deeper down, where that is right, only this tells.
        root = self.labels.missing(self.label or "", denial.source)
        if "/" not in denial.path or root or not self.where.keeps_labels:
            return Finding("denials", Verdict.NOTE, what)
        return Finding(
            "denials", Verdict.BAD, what, f"{printable(self.label or '')}, the volume's own", self._relabelling()
        )

    def _relabelling(self) -> Apply:
        """What gives all that is in the volume the label that its directory has."""
        options = {} if self.record.options.label else {"label": _type_and_level(self.label or "")}
        return Apply(options, contents=True, recurse=self.record.given.get("recurse"))

    def _purges(self) -> bool:
        """Whether emptying the trash would make room where the volume is."""
        with self.driver.store.part("trash") as directory:
            same = os.fstat(directory).st_dev == self.found.st_dev
        return same and bool(trash.entries(self.driver.store))


def _acl(file: str) -> tuple[access.Entry, ...]:
    """The access control list of a path in /proc/self/fd; empty where there is none."""
    try:
        return access.parse_acl(os.getxattr(file, access.ATTRIBUTE, follow_symlinks=False))
    except ValueError:
        return ()
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT):
            raise
        return ()


def _domain(context: str) -> str:
    return printable([*context.split(":", 3), "", ""][2] or context)


def _categories(context: str) -> str:
    level = [*context.split(":", 3), "", "", ""][3].partition("-")[0]
    return printable(level.partition(":")[2]) or "no categories"


def _type_and_level(label: str) -> str:
    _, _, kind, level = [*label.split(":", 3), "", "", ""][:4]
    return f"{kind}:{level}" if level and level != "s0" else kind
