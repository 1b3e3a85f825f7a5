"""What a volume's file system does not allow: it is read-only, noexec or full, or stores no owners or labels."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..engine.containers import Container
from ..host import linux
from ..host.filesystem import takes_writes
from ..host.mountinfo import Mount, place_in_file_system
from .finding import Command, Finding, Verdict
from .permissions import Who

_NO_OWNERS: Final = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "iso9660", "udf"})
_MIN_FREE: Final = 1 << 16  # bytes; with less the file system counts as full
_LOW: Final = 0.05  # the part that is free
_MASKS: Final = ("umask=", "fmask=", "dmask=")
_NO_QUOTA: Final = frozenset({errno.ESRCH, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EROFS})


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system that an open directory is on."""

    data: int
    path: str
    mount: Mount | None
    """None where this process cannot see the mount."""

    @property
    def kind(self) -> str:
        return self.mount.kind if self.mount else "unknown"

    @property
    def point(self) -> str:
        """The mount point, quoted for a shell."""
        return shlex.quote(self.mount.point) if self.mount else "/"

    @property
    def read_only(self) -> bool:
        return not takes_writes(self.data)

    @property
    def keeps_owners(self) -> bool:
        return self.kind not in _NO_OWNERS

    @property
    def keeps_labels(self) -> bool:
        """Whether labels can be set there. Only on a host with SELinux does the kernel say so (seclabel)."""
        return self.mount is None or "seclabel" in self.mount.options

    @property
    def squashed(self) -> bool:
        """Whether an NFS server denies root's rights (root_squash): nowhere else is root refused."""
        if not self.kind.startswith("nfs") or self.read_only:
            return False
        return not os.access(f"/proc/self/fd/{self.data}/.", os.R_OK | os.W_OK | os.X_OK)

    def on_its_server(self, *command: str) -> str:
        """*command*, to be run on the server with the server's own path of this directory."""
        assert self.mount is not None  # noqa: S101  # it is NFS
        server = self.mount.source.rpartition(":")[0]
        words = [*command, place_in_file_system(self.mount, self.path)]
        return shlex.join(["ssh", server.strip("[]"), *map(shlex.quote, words)])  # a shell there reads them once more

    def mounted_with(self, *options: str) -> str:
        """Commands that unmount it and mount it with *options*; a remount would not change them."""
        assert self.mount is not None  # noqa: S101  # its kind is known
        mount = ["mount", "-t", self.kind, "-o", ",".join(options), self.mount.source, self.mount.point]
        return f"umount {self.point} && {shlex.join(mount)}"


def check_file_system(
    where: FileSystem, whom: list[Who], *, keep: Mapping[str, Sequence[str]], trash: bool
) -> Iterator[Finding]:
    """What is wrong with a file system, or one finding that nothing is.

    Args:
        keep: by mount flag, the commands that restart the containers whose own mount has it, from their start.
        trash: whether emptying hostprep's trash would free space there.
    """
    found = [*_flags(where, keep), *_space(where, trash=trash), *_quotas(where, whom)]
    if where.squashed:
        name = where.mount.source if where.mount else where.kind
        what = f"{name} denies root's rights (NFS with root_squash): hostprep cannot change owners and modes there"
        wanted = "no_root_squash in its exports, or owners set on the server"
        found.append(Finding("root_squash", Verdict.NOTE, what, wanted))
    if not found:
        st = os.fstatvfs(where.data)
        free = f"{st.f_bavail * st.f_frsize / 2**30:,.1f} GiB free"
        found.append(Finding("filesystem", Verdict.OK, f"{where.kind} at {where.point}, {free}"))
    yield from found


def _flags(where: FileSystem, keep: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    flags = os.fstatvfs(where.data).f_flag
    if flags & os.ST_RDONLY:
        what = f"the file system at {where.point} is mounted read-only"
        remedy = " && ".join([f"mount -o remount,rw {where.point}", *keep.get("ro", ())])
        yield Finding("read-only", Verdict.BAD, what, "read and write", Command("remount rw", remedy))
    elif where.read_only:
        what = f"the file system at {where.point} takes no writes: it has stopped after an error, which dmesg shows"
        yield Finding("read-only", Verdict.BAD, what, "to be unmounted, checked (fsck) and mounted again")
    if flags & os.ST_NOEXEC:
        what = f"the file system at {where.point} is mounted noexec: no program in the volume can run"
        remedy = " && ".join([f"mount -o remount,exec {where.point}", *keep.get("noexec", ())])
        wanted = "exec, if the volume contains programs"
        yield Finding("noexec", Verdict.WARNING, what, wanted, Command("remount exec", remedy))


def _space(where: FileSystem, *, trash: bool) -> Iterator[Finding]:
    st = os.fstatvfs(where.data)
    for check, size, left, needed, unit in (
        ("space", st.f_blocks, st.f_bavail, -(-_MIN_FREE // (st.f_frsize or 1)), "space"),
        ("inodes", st.f_files, st.f_favail, 1, "inodes (files)"),
    ):
        if not size or left >= max(needed, size * _LOW):
            continue
        full = left < needed
        how_much = "no" if full else f"only {100 * left / size:.1f} % of its"
        remedy = Command("purge", "hostprep purge --all") if trash else _larger(where, st, check)
        how = "this deletes for good what is in the trash" if trash else "delete files or enlarge the file system"
        verdict = Verdict.BAD if full else Verdict.WARNING
        what = f"the file system at {where.point} has {how_much} {unit} left"
        yield Finding(check, verdict, what, f"more {unit}: {how}", remedy)


def _larger(where: FileSystem, st: os.statvfs_result, check: str) -> Command | None:
    if where.kind != "tmpfs":
        return None
    if check == "space":
        return Command("larger tmpfs", f"mount -o remount,size={st.f_blocks * st.f_frsize * 2} {where.point}")
    return Command("more inodes", f"mount -o remount,nr_inodes={st.f_files * 2} {where.point}")


def _quotas(where: FileSystem, whom: list[Who]) -> Iterator[Finding]:
    asked = {(kind, number) for who in whom for kind, number in ((linux.USRQUOTA, who.uid), (linux.GRPQUOTA, who.gid))}
    for kind, number in sorted(asked):
        try:
            used, most, files, files_most = linux.get_quota(where.data, kind, number)
        except OSError as exc:
            if exc.errno not in _NO_QUOTA:
                raise
            continue
        if not ((most and used + _MIN_FREE > most) or (files_most and files >= files_most)):
            continue
        who, flag = ("user", "-u") if kind == linux.USRQUOTA else ("group", "-g")
        counts = f"{used:,} of {most:,} bytes, {files} of {files_most} files (0: no limit)"
        what = f"{who} {number} has used up its quota at {where.point}: {counts}"
        # What was used before the quota was set may be more than it.
        larger = [max(used, most) // 512 if most else 0, max(files, files_most) * 2 if files_most else 0]
        remedy = Command("quota", f"setquota {flag} {number} 0 {larger[0]} 0 {larger[1]} {where.point}")
        yield Finding("quota", Verdict.BAD, what, "a larger quota, or fewer files", remedy)


def given_at_mount(where: FileSystem, who: Who, label: str | None, running: Sequence[Container]) -> Finding:
    """The finding that a file system stores no owners, or no labels: *who* and any *label* are set by mounting it.

    It is not mounted anew as long as a container of *running* has it.
    """
    kept = [option for option in (where.mount.options if where.mount else ()) if option.startswith(_MASKS)]
    owner = [] if where.keeps_owners else [f"uid={who.uid}", f"gid={who.gid}"]
    context = [] if label is None or where.keeps_labels else [f'context="{label}"']
    lacks = " and ".join([*(["owners"] if owner else []), *(["labels"] if context else [])])
    what = f"{where.kind} at {where.point} stores no {lacks}: the mount options set them for all files"
    wanted = "mount options that set them, in /etc/fstab too; stop all containers that use it before"
    stop, start = ([each.command(verb) for each in running] for verb in ("stop", "start"))
    remedy = Command("mount options", " && ".join([*stop, where.mounted_with(*owner, *context, *kept), *start]))
    return Finding(f"no {'labels' if context else 'owners'}", Verdict.BAD, what, wanted, remedy)
