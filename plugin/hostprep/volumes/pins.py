"""Bind mounts at <root>/mounts/<name>, which lead to a verified directory whatever becomes of its path.

An engine opens what it was answered by name, later, and follows links. Where a directory on the way is not root's
alone, somebody else could put a link, or another directory, in the place of what was verified. A mount of the verified
descriptor cannot be redirected.

Each name has at most one mount. The first Mount makes it, and it stays until Remove: a restarted hostprep finds it;
after a reboot the next Mount makes it anew. A volume with host_uid or host_gid is answered as a mount, too, an idmapped
one. Callers hold the volume's lock. *mounts* is a descriptor of <root>/mounts,
which only root can change; *name* is one component of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from typing import Final

from ..errors import NotAllowed, NotReady
from ..host import fds, linux, rootless
from ..host.idmap import UNMAPPED, IdMap, refused
from ..host.mountinfo import mount_table

log = logging.getLogger("hostprep")

_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ATTRIBUTES: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM})
_ELSEWHERE: Final = "choose a path below directories that are root's, and writable by root alone"
_REASONS: Final = {
    errno.ENOSYS: f"use Linux 5.12 or newer, or {_ELSEWHERE}",
    errno.EPERM: f"give it CAP_SYS_ADMIN, or {_ELSEWHERE}",
    errno.EINVAL: f"is it on an unbindable mount? {_ELSEWHERE}",
    errno.ENOSPC: "the limit of mounts is reached: sysctl fs.mount-max",
}


def pin(mounts: int, name: str, data: int, *, place: str, engine: int, idmap: IdMap | None = None) -> None:
    """Mount the directory *data* at *name*, unless it is, and check that the engine sees it there.

    A mount of another directory, which had the volume's path before, is replaced. Running containers keep what they
    have.

    Args:
        idmap: through which the directory is seen there.
        place: the path that is answered to the engine.
        engine: the process that will open it; 0 where that process is in another pid namespace.

    Raises:
        NotAllowed: the kernel or hostprep's capabilities do not allow it, or the engine would not see it.
        NotReady: something was written where the mount belongs.
    """
    wanted = os.fstat(data)
    made = not leads_to(mounts, name, data, idmap)
    if made:
        with _refused_in_words(idmap), clone(data, idmap) as tree:
            if _detach(mounts, name):
                log.info("%s is mounted anew: it led elsewhere, had other ids, or was read-only or is now", place)
            with _mountpoint(mounts, name, place) as mountpoint:
                linux.move_mount(tree, mountpoint)
    if not _is_seen(mounts, place, wanted, engine):
        if made:
            release(mounts, name)
        raise NotAllowed(
            f"the engine would not see the mount at {place}",
            hint="run hostprep in the engine's mount namespace, under systemd without PrivateTmp=, ProtectSystem= and "
            f"the like; or {_ELSEWHERE}",
        )


def check(data: int, idmap: IdMap | None = None) -> None:
    """Check that *data* could be pinned, and seen through *idmap*, without doing it.

    Raises:
        NotAllowed: see `pin`.
    """
    with _refused_in_words(idmap), clone(data, idmap):
        pass


def release(mounts: int, name: str) -> None:
    """Take away the mount of *name* and the directory under it. Running containers keep what they have.

    Where somebody wrote into that directory it stays, and that is logged. Nothing that is mounted is touched.
    """
    try:
        _detach(mounts, name)
        with _bare(mounts, name) as mountpoint:
            _set_immutable(mountpoint, immutable=False)
        # A mount of it that only other namespaces have is detached there by the kernel (rmdir(2) since Linux 3.18).
        os.rmdir(name, dir_fd=mounts)
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        log.warning("mounts/%s stays: something was written into it while nothing was mounted there", name)


def leads_to(mounts: int, name: str, data: int, idmap: IdMap | None = None) -> bool:
    """Whether *name* is a mount of the directory *data*: it is that directory, and only a mount can make it so.

    Its owner is seen through *idmap* there.

    It has been made read-only or noexec if the mount of the path was, and a remount of that does not reach it.
    """
    try:
        place = os.open(fds.component(name), _PLACE, dir_fd=mounts)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise
        return False
    with fds.closing(place):
        found, wanted = os.fstat(place), os.fstat(data)
        same = os.path.samestat(found, wanted) and (idmap or UNMAPPED).shows(wanted, found)
        return same and not (os.fstatvfs(place).f_flag ^ os.fstatvfs(data).f_flag) & (os.ST_RDONLY | os.ST_NOEXEC)


@contextlib.contextmanager
def clone(data: int, idmap: IdMap | None = None) -> Iterator[int]:
    """Lend a detached bind mount of *data*, with what is mounted in it, as `docker run -v` makes one.

    It is a slave of the original (mount_namespaces(7)): a disk that is mounted or unmounted there later, is here too.
    Nothing propagates the other way, or taking this mount away would unmount the disk there.
    """
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE
    with fds.closing(linux.open_tree(data, flags)) as tree:
        linux.mount_setattr(tree, linux.AT_RECURSIVE, propagation=linux.MS_SLAVE)
        if idmap is not None:
            idmap.put_on(tree)
        yield tree


@contextlib.contextmanager
def _mountpoint(mounts: int, name: str, place: str) -> Iterator[int]:
    """Make the directory that is mounted over, and lend it; one that an interrupted step left will do.

    Nobody may take it for the volume while nothing is mounted there: nobody but root may enter it and, where the file
    system has immutable directories, not even root can write into it.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(fds.component(name), 0, dir_fd=mounts)
    with _bare(mounts, name) as fd:
        if os.listdir(fd):
            raise NotReady(
                f"something was written into {place} while the volume was not mounted there",
                hint="move it away, to the volume's path if it belongs there",
            )
        if stat.S_IMODE(os.fstat(fd).st_mode):
            os.fchmod(fd, 0)
        _set_immutable(fd, immutable=True)
        yield fd


@contextlib.contextmanager
def _bare(mounts: int, name: str) -> Iterator[int]:
    """Lend the directory *name* itself. Were something mounted on it, that would be opened, and changed, instead.

    Raises:
        OSError: EBUSY where something is mounted there, again or still; ENOENT.
    """
    with fds.closing(fds.open_dir(mounts, name)) as fd:
        if fds.mount_id(fd) != fds.mount_id(mounts):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), f"mounts/{name}")
        yield fd


def _set_immutable(fd: int, *, immutable: bool) -> None:
    try:
        linux.set_immutable(fd, immutable)
    except OSError as exc:
        if exc.errno not in _NO_ATTRIBUTES:
            raise


def _detach(mounts: int, name: str) -> bool:
    """Take away whatever is mounted at *name*, in several layers too; return whether anything was."""
    found = False
    with contextlib.suppress(FileNotFoundError):
        while True:
            with fds.closing(os.open(fds.component(name), _PLACE, dir_fd=mounts)) as top:
                if fds.mount_id(top) == fds.mount_id(mounts):
                    break
                linux.umount2(top, linux.MNT_DETACH)
                found = True
    return found


def _is_seen(mounts: int, place: str, wanted: os.stat_result, engine: int) -> bool:
    """Whether the process *engine* finds the directory *wanted* at *place*."""
    try:
        root = os.open(f"/proc/{engine}/root", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # That process cannot be looked at (another pid namespace, no CAP_SYS_PTRACE). What is mounted below a shared
        # mount reaches its peers, the engine's among them. From a slave it reaches only copies, never the original.
        under = fds.mount_id(mounts)
        return any(mount.shared and not mount.slave for mount in mount_table() if mount.id == under)
    with fds.closing(root):
        try:
            found = os.stat(place.lstrip("/"), dir_fd=root, follow_symlinks=False)
        except OSError:
            return False
    return os.path.samestat(found, wanted)


@contextlib.contextmanager
def _refused_in_words(idmap: IdMap | None) -> Iterator[None]:
    """Turn the error of a refused mount into one that says what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _REASONS:
            raise
        if idmap is not None:
            raise refused(exc) from None
        raise NotAllowed(
            "somebody other than root could put another directory in the volume's place, and hostprep cannot hold it "
            f"with a mount: {exc.strerror}",
            hint=f"a user's hostprep mounts nothing: {_ELSEWHERE}" if rootless.inside() else _REASONS[exc.errno],
        ) from None
