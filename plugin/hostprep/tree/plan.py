"""Which owner, mode and label a directory gets, and in which order: a `Plan`, which `apply` carries out.

A dry run prints the plan.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..host import acl, linux
from ..host.acl import AccessList
from ..host.labels import UNSUPPORTED, Labels, read_label, write_label
from ..options import Mode, Options, Recurse
from .walk import Order


@dataclass(frozen=True, slots=True)
class Want:
    """What a directory is to be; None where nothing is declared, which is then neither drift nor repaired."""

    uid: int | None = None
    gid: int | None = None
    mode: Mode | None = None
    label: str | None = None
    type_only: bool = False  # only the label's type is kept: a `:Z` may have set categories
    recurse: Recurse = Recurse.MISMATCH
    narrowed: Mode | None = None
    """The mode from before a repair that closes the directory. Where none is declared it is given back."""

    @classmethod
    def of(cls, options: Options, labels: Labels, *, adopted: bool, narrowed: Mode | None = None) -> Want:
        """What *options* declare on this host. An *adopted* directory without a declared label keeps its own."""
        label, type_only = None, False
        if labels.applied:
            if options.label is not None:
                label = str(options.label) if options.label.type else None
            elif not adopted:
                label, type_only = labels.default, True
        return cls(options.uid, options.gid, options.mode, label, type_only, options.recurses, narrowed)

    def first(self, root: tuple[int, int] = (0, 0)) -> Want:
        """What a directory that hostprep creates gets: *root*'s and 0755 where nothing else is declared."""
        mode = Mode(0o755) if self.mode is None else self.mode
        uid, gid = root[0] if self.uid is None else self.uid, root[1] if self.gid is None else self.gid
        return Want(uid, gid, mode, self.label, self.type_only, self.recurse)

    def order(self, labels: Labels, *, guarded: bool, dry_run: bool = False) -> Order:
        """What every entry below the directory is to be."""
        label = None if self.label is None else labels.canonical(self.label)
        return Order(self.uid, self.gid, label, self.type_only, guarded=guarded, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class Found:
    """What a directory is now."""

    uid: int
    gid: int
    mode: Mode
    label: str | None
    device: int
    access: AccessList | None = None
    """The access list. The group bits of the mode are then its mask."""

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
        return cls(st.st_uid, st.st_gid, Mode(stat.S_IMODE(st.st_mode)), label, st.st_dev, acl.read(fd))

    @property
    def rights(self) -> str:
        """The mode; and what the owning group may do, where an access list makes that something else."""
        if self.access is None or self.access.group == self.access.mask:
            return str(self.mode)
        may = acl.words(self.access.group)
        return f"{self.mode} (by the access list, the group may {f'only {may}' if may else 'do nothing'})"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as declared."""

    what: str  # "owner", "mode" or "label"
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.what} {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What differs between an open directory and what it is to be, in the order in which it is changed."""

    fd: int
    found: Found
    want: Want
    labels: Labels
    mode: Mode | None = field(init=False)
    """The mode that the directory gets; None where it keeps its own. With an access list, stat(2) may show another."""
    access: AccessList | None = field(init=False)
    """The access list with which it has that mode."""
    narrowed: Mode | None = field(init=False)
    """`Want.narrowed`, unless somebody has set another mode since: that is as good as one that was there."""
    changes: tuple[Change, ...] = field(init=False)

    def __post_init__(self) -> None:
        declared, access = self.want.mode, self.found.access
        as_before = self.found.mode == self.want.narrowed
        narrowed = self.want.narrowed if as_before or not self.found.mode & 0o777 else None
        if access is not None and narrowed is not None:
            access = access.chmod(narrowed)
        if access is not None and declared is not None:
            access = access.declare(declared)
        object.__setattr__(self, "mode", narrowed if declared is None else declared)
        object.__setattr__(self, "access", access)
        object.__setattr__(self, "narrowed", narrowed)
        object.__setattr__(self, "changes", tuple(self._changes()))

    @classmethod
    def of(cls, fd: int, want: Want, labels: Labels) -> Plan:
        """The plan for the directory *fd* as it is now."""
        return cls(fd, Found.at(fd, labels), want, labels)

    @property
    def _owner(self) -> tuple[int, int]:
        uid = self.found.uid if self.want.uid is None else self.want.uid
        return uid, self.found.gid if self.want.gid is None else self.want.gid

    def _changes(self) -> Iterator[Change]:
        found, want = self.found, self.want
        uid, gid = self._owner
        if (uid, gid) != (found.uid, found.gid):
            yield Change("owner", f"{found.uid}:{found.gid}", f"{uid}:{gid}")
        label = None if found.device in self.labels.unlabelled else want.label
        if label is not None and not self.labels.same(found.label, label, type_only=want.type_only):
            yield Change("label", found.label or "none", label)
        if self.mode is not None and (self._bits != found.mode or self.access != found.access):
            yield Change("mode", found.rights, str(self.mode))

    @property
    def _bits(self) -> int | None:
        """The mode that stat(2) is to show."""
        if self.mode is None or self.access is None:
            return self.mode
        return self.mode & ~0o777 | self.access.bits

    def _change(self, what: str) -> Change | None:
        return next((change for change in self.changes if change.what == what), None)

    @property
    def contents_follow(self) -> bool:
        """Whether the contents of the directory have to get the same owner and label."""
        return self.want.recurse is not Recurse.NEVER and any(change.what != "mode" for change in self.changes)

    @property
    def closes(self) -> bool:
        """Whether `apply` has to close the directory meanwhile, so that the new owner never meets the old label.

        It does so only where a mode is wanted: a crash would lose a mode that is written down nowhere, and the mask of
        an access list. Whoever can write the present mode down hands it in as `Want.narrowed` first.
        """
        return {"owner", "label"} <= {change.what for change in self.changes}

    def usable(self, *, read_only: bool) -> bool:
        """Whether the declared owner can use the directory as it is, by its mode and label.

        A named entry of an access list does not count.
        """
        uid, gid = self._owner
        shift = 6 if uid == self.found.uid else 3 if gid == self.found.gid else 0
        rights = self.found.mode >> shift & 0o7
        if shift == 3 and self.found.access is not None:
            rights = self.found.access.group
        needed = 0o5 if read_only else 0o7
        allowed = uid == 0 or rights & needed == needed
        return allowed and self._change("label") is None

    def apply(self) -> list[Change]:
        """Make the changes, and return those that were really made.

        While it runs nobody may do more than both the old and the new state allow: the mode is narrowed first and
        widened last, each with the access list, whose mask it is. Where owner and label both change, nobody but root
        gets in meanwhile; see `closes`. Where no mode is wanted it stays as it is throughout, so that a crash cannot
        lose it. A change of owner alone leaves an access list as it is (chown(2)).

        A file system without labels (ENOTSUP) is not an error: the label is missing from the answer.

        Raises:
            OSError: EPERM, EROFS and the like; what had been narrowed stays narrow.
        """
        want, label = self.want, self._change("label")
        bits = self._bits if self.changes else None
        if bits is not None:
            narrow = 0 if self.closes else self.found.mode & bits
            if self.access is not None and not narrow & 0o070:
                narrow &= ~0o007  # with a mask of 0 the kernel heeds no list, and those it keeps out are others
            if narrow != self.found.mode:
                os.fchmod(self.fd, narrow)
        done = list(self.changes)
        if self._change("owner"):
            linux.fchown(self.fd, -1 if want.uid is None else want.uid, -1 if want.gid is None else want.gid)
        if label:
            try:
                write_label(self.fd, label.new)
            except OSError as exc:
                if exc.errno != UNSUPPORTED:
                    raise
                self.labels.found_unlabelled(self.found.device)
                done.remove(label)
        # Since chown(2) and fchmod(2) may both have touched it, the final mode is set whenever anything was.
        if bits is not None:
            if self.access is None:
                os.fchmod(self.fd, bits)
            else:  # setuid, setgid and sticky; then all else in one step
                os.fchmod(self.fd, bits & ~0o777 | narrow & 0o777)
                acl.write(self.fd, self.access)
        return done
