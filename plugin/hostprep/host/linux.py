"""System calls that Python does not have, under the kernel's names; errors are plain OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

SYS_OPEN_TREE = 428  # Linux 5.2; the same on every architecture, as all that are newer
SYS_MOVE_MOUNT = 429  # Linux 5.2
SYS_OPENAT2 = 437  # Linux 5.6
SYS_MOUNT_SETATTR = 442  # Linux 5.12
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
EXT4_SUPER_MAGIC = 0xEF53  # of ext2 and ext3, too
XFS_SUPER_MAGIC = 0x58465342
BTRFS_SUPER_MAGIC = 0x9123683E
BTRFS_FIRST_FREE_OBJECTID = 256  # the inode number of each sub-volume's root directory, and of nothing else
BTRFS_SUBVOL_RDONLY = 2
BTRFS_IOC_SNAP_DESTROY = 0x5000940F  # elsewhere than on mips, powerpc and sparc, as below
BTRFS_IOC_SUBVOL_GETFLAGS = 0x80089419
BTRFS_IOC_SUBVOL_SETFLAGS = 0x4008941A
TMPFS_MAGIC = 0x01021994
NFS_SUPER_MAGIC = 0x6969
ZFS_SUPER_MAGIC = 0x2FC12FC1  # OpenZFS, include/sys/zfs_vfsops.h
XFS_IOC_FSGEOMETRY_V1 = 0x80705864
BTRFS_IOC_FS_INFO = 0x8400941F
STORING = frozenset(
    (
        *(EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, 0x9123683E, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E),  # btrfs f2fs zfs bcachefs
        *(0x794C7630, 0x61756673, 0x01021994, 0x858458F6, 0xF15F, 0x4D44),  # overlay aufs tmpfs ramfs ecryptfs vfat
        *(0xE0F5E1E2, 0x73717368, 0x65735546),  # erofs squashfs fuse, which rootless Podman has
        *(0x6969, 0xFF534D42, 0xFE534D42, 0x00C36400, 0x01021997),  # nfs cifs smb2 ceph 9p
    )
)
"""File systems whose files are stored, not made when they are read: of procfs or tracefs a read may take something."""
FS_IOC_GETFLAGS = 0x80000000 | struct.calcsize("l") << 16 | 0x6601  # elsewhere than on mips, powerpc and sparc
FS_IOC_SETFLAGS = 0x40000000 | struct.calcsize("l") << 16 | 0x6602
FS_IMMUTABLE_FL = 0x10
RESOLVE_NO_XDEV = 0x01  # refuses mount points, bind mounts of the same file system included
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
SYS_QUOTACTL_FD = 443  # Linux 5.14
Q_GETQUOTA = 0x800007
Q_XGETQSTAT = 0x5805
USRQUOTA, GRPQUOTA = 0, 1
CAP_DAC_OVERRIDE = 1
XATTR_NAME_SELINUX = "security.selinux"


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))


def _checked(result: int, name: str | None = None) -> int:
    """Return what a system call returned. Raises OSError if that is a failure."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2) without O_CREAT. Adds O_CLOEXEC.

    Raises:
        OSError: EXDEV for a mount point or a way out that *resolve* forbids, ELOOP for a link, ENOSYS before
            Linux 5.6, and whatever open(2) raises.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    name = os.fsencode(path)
    number = ctypes.c_long(SYS_OPENAT2)
    return _checked(_syscall(number, ctypes.c_int(dirfd), name, ctypes.byref(how), _HOW_SIZE), path)


def die_with_parent() -> None:
    """prctl(2), PR_SET_PDEATHSIG: SIGKILL for this process when the one that forked it ends; not if it has already."""
    _checked(_libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL)))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def fchown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: fchown(2) that also takes an O_PATH descriptor, of a symlink too.

    -1 leaves an id alone.
    """
    ids = ctypes.c_uint32(uid & 0xFFFFFFFF), ctypes.c_uint32(gid & 0xFFFFFFFF)
    _checked(_libc.fchownat(fd, b"", *ids, AT_EMPTY_PATH))


def syncfs(fd: int) -> None:
    """syncfs(2): everything on the file system that *fd* is on is on disk on return."""
    _checked(_libc.syncfs(ctypes.c_int(fd)))


def file_system(fd: int) -> int:
    """The kind of file system that *fd* is on, a number of statfs(2)."""
    found = (ctypes.c_long * 32)()  # a struct statfs, of which this is the first field, has 15
    _checked(_libc.fstatfs(ctypes.c_int(fd), found))
    return int(found[0]) & 0xFFFFFFFF


def xfs_uuid(fd: int) -> bytes:
    """The UUID of the XFS that *fd* is on (ioctl_xfs_fsgeometry(2))."""
    geometry = bytearray(112)  # struct xfs_fsop_geom_v1
    fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY_V1, geometry)
    return bytes(geometry[64:80])


def btrfs_uuid(fd: int) -> bytes:
    """The UUID of the btrfs that *fd* is on, the same in all of its sub-volumes (linux/btrfs.h)."""
    info = bytearray(1024)  # struct btrfs_ioctl_fs_info_args
    fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, info)
    return bytes(info[16:32])


def open_tree(fd: int, flags: int) -> int:
    """open_tree(2) of what *fd* itself is open on; with OPEN_TREE_CLONE a bind mount that is nowhere yet.

    Raises:
        OSError: ENOSYS before Linux 5.2, EPERM without CAP_SYS_ADMIN, EINVAL for an unbindable mount.
    """
    number, how = ctypes.c_long(SYS_OPEN_TREE), ctypes.c_uint(flags | AT_EMPTY_PATH)
    return _checked(_syscall(number, ctypes.c_int(fd), b"", how))


def mount_setattr(fd: int, flags: int, *, attributes: int = 0, propagation: int, userns: int = 0) -> None:
    """mount_setattr(2): add *attributes* to the mount whose root *fd* is open on, and set its propagation; 0 keeps it.

    Raises:
        OSError: ENOSYS before Linux 5.12, EPERM without CAP_SYS_ADMIN; for MOUNT_ATTR_IDMAP, with the user namespace
            *userns*, EINVAL where a file system has none, EPERM where there is one already.
    """
    attr = _MountAttr(attributes, 0, propagation, userns)
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    number, at = ctypes.c_long(SYS_MOUNT_SETATTR), ctypes.c_uint(flags | AT_EMPTY_PATH)
    _checked(_syscall(number, ctypes.c_int(fd), b"", at, ctypes.byref(attr), size))


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2) of the mount *from_fd* onto the directory that *to_fd* itself is open on.

    Raises:
        OSError: ENOSYS before Linux 5.2, EPERM without CAP_SYS_ADMIN, ENOENT where *to_fd* was removed.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    number = ctypes.c_long(SYS_MOVE_MOUNT)
    _checked(_syscall(number, ctypes.c_int(from_fd), b"", ctypes.c_int(to_fd), b"", ctypes.c_uint(flags)))


def umount2(fd: int, flags: int) -> None:
    """umount2(2) of the mount whose root *fd* is open on, by its link in /proc: no path that could lead elsewhere.

    Raises:
        OSError: EINVAL where *fd* is not the root of a mount, EPERM without CAP_SYS_ADMIN.
    """
    _checked(_libc.umount2(f"/proc/self/fd/{fd}".encode(), ctypes.c_int(flags)))


def get_quota(fd: int, kind: int, number: int) -> tuple[int, int, int, int]:
    """quotactl_fd(2), Q_GETQUOTA: what a user (USRQUOTA) or group has used up and may use of *fd*'s file system.

    Bytes used and at most, files used and at most; 0 at most is no limit.

    Raises:
        OSError: ESRCH where quotas are off, ENOSYS without them in the kernel or before Linux 5.14.
    """
    state = _quotactl_fd(fd, Q_XGETQSTAT, kind, 0, 80)  # struct fs_quota_stat: a version, then flags of 16 bits
    (flags,) = struct.unpack_from("=xxH", state)
    if not flags & (2 << 2 * kind):  # FS_QUOTA_UDQ_ENFD, FS_QUOTA_GDQ_ENFD: limits are kept, not only counted
        return 0, 0, 0, 0
    block = _quotactl_fd(fd, Q_GETQUOTA, kind, number, 72)  # struct if_dqblk
    hard, _, used, files_hard, _, files = struct.unpack_from("=6Q", block)
    return used, hard * 1024, files, files_hard


def _quotactl_fd(fd: int, command: int, kind: int, number: int, size: int) -> bytes:
    block = ctypes.create_string_buffer(size)
    command_ = ctypes.c_uint(command << 8 | kind)
    arguments = ctypes.c_uint(fd), command_, ctypes.c_uint(number), ctypes.byref(block)
    _checked(_syscall(ctypes.c_long(SYS_QUOTACTL_FD), *arguments))
    return block.raw


def set_immutable(fd: int, immutable: bool) -> None:  # noqa: FBT001  # one attribute, on or off
    """Set or clear FS_IMMUTABLE_FL (ioctl_iflags(2)): not even root can then change a directory or what is in it.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP or EINVAL where the file system has none, EPERM without CAP_LINUX_IMMUTABLE.
    """
    flags = bytearray(struct.pack("l", 0))
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
    (found,) = struct.unpack("l", flags)
    wanted = found | FS_IMMUTABLE_FL if immutable else found & ~FS_IMMUTABLE_FL
    if wanted != found:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", wanted))


def destroy_subvolume(dirfd: int, name: str) -> None:
    """BTRFS_IOC_SNAP_DESTROY: remove the btrfs sub-volume *name*, and all in it, from the directory *dirfd* itself.

    It follows no link. A read-only one goes, too; so does what is immutable in it. What is mounted on it or in it is
    unmounted, in every namespace.

    Raises:
        OSError: ENOTEMPTY where another sub-volume is in it; EPERM without CAP_SYS_ADMIN, or where it is the default
            one, is being sent or has a swap file in use; EROFS where *dirfd* is in a read-only one; EINVAL or
            ENOTDIR for what is no sub-volume; ENOENT.
    """
    fcntl.ioctl(dirfd, BTRFS_IOC_SNAP_DESTROY, bytearray(struct.pack("=q4088s", 0, os.fsencode(name))))


def make_subvolume_writable(fd: int) -> None:
    """BTRFS_IOC_SUBVOL_SETFLAGS: clear BTRFS_SUBVOL_RDONLY of the sub-volume whose root directory *fd* is open on.

    Raises:
        OSError: EPERM where it is being sent, or is not one's own, without CAP_FOWNER; EINVAL where it is no root.
    """
    flags = bytearray(8)
    fcntl.ioctl(fd, BTRFS_IOC_SUBVOL_GETFLAGS, flags)
    (found,) = struct.unpack("=Q", flags)
    if found & BTRFS_SUBVOL_RDONLY:
        fcntl.ioctl(fd, BTRFS_IOC_SUBVOL_SETFLAGS, struct.pack("=Q", found & ~BTRFS_SUBVOL_RDONLY))
