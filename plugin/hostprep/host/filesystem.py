"""What tells the file system of a directory from others after a reboot, too, and whether it takes writes.

Device numbers do not outlive a reboot, and statfs(2) makes `f_fsid` of them on XFS and others. So each kind is asked
for the number in its superblock where it tells that to everybody.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from . import linux

# Their inode numbers are on the disk. Elsewhere (FUSE, CIFS, vfat, overlay) a mount may number its inodes anew.
_LASTING: Final = {
    linux.EXT4_SUPER_MAGIC: "ext4",  # ext2 and ext3, too
    linux.XFS_SUPER_MAGIC: "xfs",
    linux.BTRFS_SUPER_MAGIC: "btrfs",
    linux.ZFS_SUPER_MAGIC: "zfs",
    linux.NFS_SUPER_MAGIC: "nfs",
}
_REFUSING: Final = frozenset({b"emergency_ro", b"shutdown"})


def fingerprint(directory: int) -> str:
    """`KIND:ID:INODE`: what the open *directory* still has after a reboot, under another device name, in a copied disk.

    ID, the file system's own, is empty but for ext2 to ext4, XFS and btrfs (there it is that of all sub-volumes: a
    rollback keeps it). INODE is empty where a mount numbers its inodes anew. Of a tmpfs only the kind is left.
    """
    magic = linux.file_system(directory)
    if magic not in _LASTING:
        return f"{magic & 0xFFFFFFFF:x}::"
    return f"{_LASTING[magic]}:{_identity(directory, magic)}:{os.fstat(directory).st_ino}"


def _identity(directory: int, magic: int) -> str:
    try:
        if magic == linux.EXT4_SUPER_MAGIC:
            return f"{os.fstatvfs(directory).f_fsid:016x}"  # made of the UUID (ext4_statfs, fs/ext4/super.c)
        if magic == linux.XFS_SUPER_MAGIC:
            return linux.xfs_uuid(directory).hex()
        if magic == linux.BTRFS_SUPER_MAGIC:
            return linux.btrfs_uuid(directory).hex()
    except OSError as exc:
        if exc.errno != errno.ENOTTY:
            raise
    return ""


def takes_writes(directory: int) -> bool:
    """Whether the mount that *directory* was opened on and its file system take writes.

    ext4 that stops after an error (errors=remount-ro) does not say so in statfs(2) since Linux 6.12. It says so in its
    options since 6.15; between these it cannot be told.
    """
    if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
        return False
    if linux.file_system(directory) != linux.EXT4_SUPER_MAGIC:
        return True
    device = os.fstat(directory).st_dev
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        with open(f"/proc/fs/ext4/{name}/options", "rb") as options:
            return _REFUSING.isdisjoint(options.read().split())
    except OSError:  # there is no /sys, or no such driver
        return True
