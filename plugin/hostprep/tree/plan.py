"""Who gets which owner, mode and label, and in which order. Plan first, then apply; a dry run is the plan printed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ..host import linux
from ..host.labels import UNSUPPORTED, Labels, read_label, write_label
from ..options import Mode, Options, Recurse


@dataclass(frozen=True, slots=True)
class Want:
    """What a directory is to be; None where nothing is declared, which is then neither drift nor repaired."""

    uid: int | None = None
    gid: int | None = None
    mode: Mode | None = None
    label: str | None = None
    type_only: bool = False  # only the label's type is kept: a `:Z` may have set categories
    recurse: Recurse = Recurse.MISMATCH

    @classmethod
    def of(cls, options: Options, labels: Labels, *, adopted: bool, narrowed: Mode | None = None) -> Want:
        """What *options* declare on this host. An *adopted* directory without a declared label keeps its own.

        *narrowed*: the mode from before a repair that was interrupted, which no option declares.
        """
        label, type_only = None, False
        if labels.applied:
            if options.label is not None:
                label = str(options.label) if options.label.type else None
            elif not adopted:
                label, type_only = labels.default, True
        mode = narrowed if options.mode is None else options.mode
        return cls(options.uid, options.gid, mode, label, type_only, options.recurses)

    def first(self) -> Want:
        """What a directory that hostprep creates gets: root's and 0755 where nothing else is declared."""
        mode = Mode(0o755) if self.mode is None else self.mode
        return Want(self.uid or 0, self.gid or 0, mode, self.label, self.type_only, self.recurse)


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory is now."""

    uid: int
    gid: int
    mode: Mode
    label: str | None
    device: int

    @classmethod
    def at(cls, fd: int, labels: Labels) -> Found:
        st = os.fstat(fd)
        label = None
        try:
            label = read_label(fd)
        except OSError as exc:
            if exc.errno != UNSUPPORTED:
                raise
            labels.found_unlabelled(st.st_dev)
        return cls(st.st_uid, st.st_gid, Mode(stat.S_IMODE(st.st_mode)), label, st.st_dev)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as declared."""

    what: str  # "owner", "mode" or "label"
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.what} {self.old} -> {self.new}"


def plan(found: Found, want: Want, labels: Labels) -> list[Change]:
    """What differs, in the order in which it is mended."""
    changes = []
    uid = found.uid if want.uid is None else want.uid
    gid = found.gid if want.gid is None else want.gid
    if (uid, gid) != (found.uid, found.gid):
        changes.append(Change("owner", f"{found.uid}:{found.gid}", f"{uid}:{gid}"))
    wanted = None if found.device in labels.unlabelled else want.label
    if wanted is not None and not labels.same(found.label, wanted, type_only=want.type_only):
        changes.append(Change("label", found.label or "none", wanted))
    if want.mode is not None and want.mode != found.mode:
        changes.append(Change("mode", str(found.mode), str(want.mode)))
    return changes


def usable(found: Found, want: Want, labels: Labels, *, read_only: bool) -> bool:
    """Whether the declared owner can use a directory as it is, though it is not as declared, by its mode and label.

    An access control list is not looked at beyond what it leaves in the mode.
    """
    uid = found.uid if want.uid is None else want.uid
    gid = found.gid if want.gid is None else want.gid
    shift = 6 if uid == found.uid else 3 if gid == found.gid else 0
    needed = 0o5 if read_only else 0o7
    allowed = uid == 0 or found.mode >> shift & needed == needed
    return allowed and all(change.what != "label" for change in plan(found, want, labels))


def closes(changes: list[Change]) -> bool:
    """Whether `apply` has to close the directory meanwhile, lest the new owner meet the old label.

    It does so only where a mode is wanted, since a crash would lose one that is written down nowhere: who can write it
    down puts the present one into what is wanted.
    """
    return {"owner", "label"} <= {change.what for change in changes}


def apply(fd: int, changes: list[Change], found: Found, want: Want, labels: Labels) -> list[Change]:
    """Make the directory *fd* as planned, and return what was really changed.

    While it runs nobody may do more than both the old and the new state allow: the mode is narrowed first and widened
    last. Where owner and label both change, nobody but root gets in meanwhile; see `closes`. Where no mode is wanted
    it stays as it is throughout, so that a crash cannot lose it.

    A file system without labels (ENOTSUP) is not an error: the label is missing from the answer.

    Raises:
        OSError: EPERM, EROFS and the like; what had been narrowed stays narrow.
    """
    owner = next((c for c in changes if c.what == "owner"), None)
    label = next((c for c in changes if c.what == "label"), None)
    mode = found.mode if want.mode is None else want.mode
    if want.mode is not None:
        narrow = 0 if closes(changes) else found.mode & mode
        if narrow != found.mode:
            os.fchmod(fd, narrow)
    done = list(changes)
    if owner:
        linux.fchown(fd, -1 if want.uid is None else want.uid, -1 if want.gid is None else want.gid)
    if label:
        try:
            write_label(fd, label.new)
        except OSError as exc:
            if exc.errno != UNSUPPORTED:
                raise
            labels.found_unlabelled(found.device)
            done.remove(label)
    # Since chown(2) and fchmod(2) may both have touched it, the final mode is set whenever anything was.
    if want.mode is not None and changes:
        os.fchmod(fd, mode)
    return done
