"""Bind mounts that hold a verified directory fast, at <root>/mounts/<name>.

An engine opens what it was answered by name, later, and follows links. Below a directory that is not root's alone
somebody could put a link, or another directory, in the place of what was verified; a mount of the verified descriptor
leads to it whatever becomes of the name.

There is at most one mount a name, made at the first Mount and kept until Remove: a restarted hostprep finds it, a
reboot takes it, and the next Mount makes it anew. Callers hold the volume's lock. *mounts* is a descriptor of
<root>/mounts, which root alone can change; *name* is one component of it.
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
from ..host import fds, linux
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


def pin(mounts: int, name: str, data: int, *, place: str, engine: int) -> None:
    """Have the directory *data* mounted at *name*, and make sure that the engine sees it there.

    One of another directory, which had the volume's path before, is replaced: the containers that run on it keep it.

    Args:
        place: the path that is answered to the engine.
        engine: the process that will open it; 0 where that process is in another pid namespace.

    Raises:
        NotAllowed: this kernel, or hostprep's capabilities, do not allow it, or the engine would not see it.
        NotReady: something was written where the mount belongs.
    """
    wanted = os.fstat(data)
    made = not _leads_to(mounts, name, wanted)
    if made:
        with _in_words(), fds.held(_clone(data)) as tree:
            if _detach(mounts, name):
                log.info("%s led to a directory that is no longer the volume's", place)
            with fds.held(_mountpoint(mounts, name, place)) as mountpoint:
                linux.move_mount(tree, mountpoint)
    if not _is_seen(mounts, place, wanted, engine):
        if made:
            release(mounts, name)
        raise NotAllowed(
            f"the engine would not see the mount at {place}",
            hint="run hostprep in the engine's mount namespace, under systemd without PrivateTmp=, ProtectSystem= and "
            f"the like; or {_ELSEWHERE}",
        )


def check(data: int) -> None:
    """Check that *data* could be pinned, without doing it.

    Raises:
        NotAllowed: see `pin`.
    """
    with _in_words():
        os.close(_clone(data))


def release(mounts: int, name: str) -> None:
    """Take away the mount of *name* and the directory under it; what somebody wrote into that stays, and is reported.

    Containers that run keep what they have. Nothing that is mounted is gone into.
    """
    try:
        _detach(mounts, name)
        with fds.held(_open_bare(mounts, name)) as mountpoint:
            _set_immutable(mountpoint, immutable=False)
        # A mount of it that only other namespaces have is detached there by the kernel (rmdir(2) since Linux 3.18).
        os.rmdir(name, dir_fd=mounts)
    except FileNotFoundError:
        return
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
        log.warning("mounts/%s is left as it is: something was written into it while nothing was mounted there", name)


def _leads_to(mounts: int, name: str, wanted: os.stat_result) -> bool:
    """Whether *name* is a mount of the directory *wanted*: it is that directory, and only a mount can make it so."""
    try:
        found = os.stat(name, dir_fd=mounts, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return False
    return os.path.samestat(found, wanted)


def _clone(data: int) -> int:
    """A bind mount of *data* that is nowhere yet, with what is mounted in it, as `docker run -v` makes one.

    It is a slave of what it was taken from: a disk that is mounted or unmounted there later, is here too. The other
    way round nothing goes: else taking this mount away would unmount, with it, the disk there (mount_namespaces(7)).
    """
    with contextlib.ExitStack() as undo:
        tree = linux.open_tree(data, linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC | linux.AT_RECURSIVE)
        undo.callback(os.close, tree)
        linux.mount_setattr(tree, linux.AT_RECURSIVE, propagation=linux.MS_SLAVE)
        undo.pop_all()
    return tree


def _mountpoint(mounts: int, name: str, place: str) -> int:
    """Make the directory that is mounted over, and open it; one that an interrupted step left will do.

    Whoever sees it without the mount must not take it for the volume: nobody may enter it and, where the file system
    can have it so, nothing can be written into it, by root neither.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(fds.component(name), 0, dir_fd=mounts)
    fd = _open_bare(mounts, name)
    try:
        if os.listdir(fd):
            raise NotReady(
                f"something was written into {place} while the volume was not mounted there",
                hint="move it away, to the volume's path if it belongs there",
            )
        if stat.S_IMODE(os.fstat(fd).st_mode):
            os.fchmod(fd, 0)
        _set_immutable(fd, immutable=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_bare(mounts: int, name: str) -> int:
    """Open the directory *name* itself, on which nothing may be mounted: what is done to it would befall that instead.

    Raises:
        OSError: EBUSY where something is mounted there, again or still; ENOENT.
    """
    fd = fds.open_dir(mounts, name)
    if fds.mount_id(fd) != fds.mount_id(mounts):
        os.close(fd)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), f"mounts/{name}")
    return fd


def _set_immutable(fd: int, *, immutable: bool) -> None:
    try:
        linux.set_immutable(fd, immutable)
    except OSError as exc:
        if exc.errno not in _NO_ATTRIBUTES:
            raise


def _detach(mounts: int, name: str) -> bool:
    """Take away whatever is mounted at *name*, should somebody have mounted more on it, too; whether there was any."""
    found = False
    with contextlib.suppress(FileNotFoundError):
        while True:
            with fds.held(os.open(fds.component(name), _PLACE, dir_fd=mounts)) as top:
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
        # It cannot be looked at (another pid namespace, no CAP_SYS_PTRACE). What is mounted below a shared mount
        # reaches the mount's peers; those of a slave are only copies of it, not what it was copied from.
        under = fds.mount_id(mounts)
        return any(mount.shared and not mount.slave for mount in mount_table() if mount.id == under)
    with fds.held(root):
        try:
            found = os.stat(place.lstrip("/"), dir_fd=root, follow_symlinks=False)
        except OSError:
            return False
    return os.path.samestat(found, wanted)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Put into words what a mount was refused for."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _REASONS:
            raise
        raise NotAllowed(
            "somebody other than root could put another directory in the volume's place, and hostprep cannot hold it "
            f"with a mount: {exc.strerror}",
            hint=_REASONS[exc.errno],
        ) from None
