"""What a file system keeps a volume from: read-only, noexec, full, quotas, owners and labels that it does not keep."""

from __future__ import annotations

import errno
import os
import posixpath
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..host import linux
from ..host.mountinfo import Mount, mount_of, place_in_file_system
from .finding import Finding, Verdict
from .permissions import Who

_NO_OWNERS: Final = frozenset({"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "iso9660", "udf"})
_ENOUGH: Final = 1 << 16  # bytes; with less it counts as full
_LOW: Final = 0.05  # of it free
_MASKS: Final = ("umask=", "fmask=", "dmask=")
_NO_QUOTA: Final = frozenset({errno.ESRCH, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EROFS})


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system that an open directory is on."""

    data: int
    path: str
    mount: Mount | None
    """None where this process cannot see it."""

    @classmethod
    def of(cls, data: int, path: str) -> FileSystem:
        return cls(data, path, mount_of(data))

    @property
    def kind(self) -> str:
        return self.mount.kind if self.mount else "unknown"

    @property
    def point(self) -> str:
        """The mount point, as a shell reads it."""
        return shlex.quote(self.mount.point) if self.mount else "/"

    @property
    def read_only(self) -> bool:
        return bool(os.fstatvfs(self.data).f_flag & os.ST_RDONLY)

    @property
    def keeps_owners(self) -> bool:
        return self.kind not in _NO_OWNERS

    @property
    def keeps_labels(self) -> bool:
        """Whether the kernel lets labels be set there, which it tells on hosts with SELinux only (seclabel)."""
        return self.mount is None or "seclabel" in self.mount.options

    @property
    def squashed(self) -> bool:
        """Whether it is on a server that does not heed root: there alone root itself may be kept from writing."""
        if not self.kind.startswith("nfs") or self.read_only:
            return False
        return not os.access(f"/proc/self/fd/{self.data}/.", os.R_OK | os.W_OK | os.X_OK)

    def on_its_server(self, *command: str) -> str:
        """*command* for what the server calls this directory, as it is run there."""
        assert self.mount is not None  # noqa: S101  # it is NFS
        server, _, export = self.mount.source.rpartition(":")
        below = place_in_file_system(self.mount, self.path).lstrip("/")
        return shlex.join(["ssh", server.strip("[]"), *command, posixpath.join(export, below).rstrip("/")])

    def mounted_with(self, *options: str) -> str:
        """Commands that mount it anew with *options*, which it takes only then."""
        assert self.mount is not None  # noqa: S101  # its kind is known
        mount = ["mount", "-t", self.kind, "-o", ",".join(options), self.mount.source, self.mount.point]
        return f"umount {self.point} && {shlex.join(mount)}"


def look(where: FileSystem, whom: list[Who], *, running: list[str], purges: bool) -> Iterator[Finding]:
    """What is wrong with a file system, or one finding that nothing is.

    Args:
        running: the containers that have it mounted now, with the flags that it had when they started.
        purges: whether the trash, on the same file system, holds anything.
    """
    found = [*_flags(where, running), *_room(where, purges=purges), *_quotas(where, whom)]
    if where.squashed:
        name = where.mount.source if where.mount else where.kind
        found.append(
            Finding(
                "root_squash",
                Verdict.NOTE,
                f"{name} does not heed root (NFS with root_squash): hostprep cannot change owners and modes there",
                "no_root_squash in its exports, or owners that are set on the server",
            )
        )
    if not found:
        st = os.fstatvfs(where.data)
        free = f"{st.f_bavail * st.f_frsize / 2**30:,.1f} GiB free"
        found.append(Finding("filesystem", Verdict.OK, f"{where.kind} at {where.point}, {free}"))
    yield from found


def _flags(where: FileSystem, running: list[str]) -> Iterator[Finding]:
    flags = os.fstatvfs(where.data).f_flag
    if flags & os.ST_RDONLY:
        yield Finding(
            "read-only",
            Verdict.BAD,
            f"the file system at {where.point} is mounted read-only",
            "read and write",
            f"mount -o remount,rw {where.point}",
        )
    if flags & os.ST_NOEXEC:
        yield Finding(
            "noexec",
            Verdict.WARNING,
            f"the file system at {where.point} is mounted noexec: no program in the volume can be run",
            "exec, if the container keeps programs there",
            " && ".join([f"mount -o remount,exec {where.point}", *(f"docker restart {name}" for name in running)]),
        )


def _room(where: FileSystem, *, purges: bool) -> Iterator[Finding]:
    st = os.fstatvfs(where.data)
    for check, size, left, enough, said in (
        ("space", st.f_blocks, st.f_bavail, -(-_ENOUGH // (st.f_frsize or 1)), "space"),
        ("inodes", st.f_files, st.f_favail, 1, "inodes (files)"),
    ):
        if not size or left >= max(enough, size * _LOW):
            continue
        full = left < enough
        what = (
            f"the file system at {where.point} has {'no' if full else f'only {100 * left / size:.1f} % of its'} {said}"
        )
        remedy = "hostprep purge --all" if purges else _larger(where, st, check)
        wanted = "room: what is in the trash is deleted for good" if purges else "room: remove files, or make it larger"
        yield Finding(check, Verdict.BAD if full else Verdict.WARNING, f"{what} left", wanted, remedy)


def _larger(where: FileSystem, st: os.statvfs_result, check: str) -> str:
    if where.kind != "tmpfs":
        return ""
    option = f"size={st.f_blocks * st.f_frsize * 2}" if check == "space" else f"nr_inodes={st.f_files * 2}"
    return f"mount -o remount,{option} {where.point}"


def _quotas(where: FileSystem, whom: list[Who]) -> Iterator[Finding]:
    asked = {(kind, number) for who in whom for kind, number in ((linux.USRQUOTA, who.uid), (linux.GRPQUOTA, who.gid))}
    for kind, number in sorted(asked):
        try:
            used, most, files, files_most = linux.get_quota(where.data, kind, number)
        except OSError as exc:
            if exc.errno not in _NO_QUOTA:
                raise
            continue
        if not ((most and used + _ENOUGH > most) or (files_most and files >= files_most)):
            continue
        who, flag = ("user", "-u") if kind == linux.USRQUOTA else ("group", "-g")
        yield Finding(
            "quota",
            Verdict.BAD,
            f"{who} {number} has used up its quota at {where.point}: {used:,} of {most:,} bytes, "
            f"{files} of {files_most} files (0: no limit)",
            "more, or fewer files",
            f"setquota {flag} {number} 0 {most // 512} 0 {files_most * 2} {where.point}",
        )


def given_at_mount(where: FileSystem, who: Who, label: str | None) -> Finding:
    """The finding of a file system that keeps no owners, or no labels, where *who* and *label* are wanted.

    Args:
        label: None where labels are not applied.
    """
    kept = [option for option in (where.mount.options if where.mount else ()) if option.startswith(_MASKS)]
    owner = [] if where.keeps_owners else [f"uid={who.uid}", f"gid={who.gid}"]
    context = [] if label is None or where.keeps_labels else [f'context="{label}"']
    lacks = " and ".join([*(["owners"] if owner else []), *(["labels"] if context else [])])
    return Finding(
        f"no {'labels' if context else 'owners'}",
        Verdict.BAD,
        f"{where.kind} at {where.point} keeps no {lacks}: all that is there has those of the mount",
        "them given when it is mounted, and in /etc/fstab; its containers do not run meanwhile",
        where.mounted_with(*owner, *context, *kept),
    )
