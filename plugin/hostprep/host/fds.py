"""Opening, reading and replacing files by descriptor, one component at a time.

Paths are for messages; hostprep acts on descriptors. `dir_fd` alone does not confine a name: `..` and `/etc` lead out.
So each name that is given here is checked to be one component.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator

from ..errors import NotAllowed, Unreadable, printable
from . import acl, linux, rootless

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PINNED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Opens a regular file and nothing else, whatever is there: the kernel refuses a symlink (ELOOP), a directory (EISDIR),
# a FIFO (EINVAL), a socket (ENXIO) and, only on a mount with nodev, a device (EACCES). Such a descriptor can change
# owner and attributes, and neither read nor write (access mode 3, open(2)). A lease is broken, but not waited for.
HELD = os.O_ACCMODE | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The entry is gone, or has become something else: no error, since its owner may do that at any time.
CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
TEMPORARY = "."  # begins the names that an interrupted step leaves; no volume or trash entry begins with it
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_LINKS = 40  # as many as the kernel follows (path_resolution(7))
_TEMPORARY_NAME = re.compile(r"\.new-[0-9a-f]{16}", re.ASCII)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close *fd* at the end of the `with` block."""
    try:
        yield fd
    finally:
        os.close(fd)


def component(name: str) -> str:
    """Return *name* if it is one component of a path.

    Raises:
        ValueError: it is empty, `.` or `..`, or has a slash or NUL in it.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not one path component: {name!r}")
    return name


def open_dir(dirfd: int, name: str) -> int:
    """Open the directory *name* under *dirfd*, never through a symlink.

    A user who can write *dirfd* may put another real directory there before it is opened, so callers act on the
    returned descriptor only.

    Raises:
        OSError: ENOTDIR for a symlink too (open(2) with O_DIRECTORY and O_NOFOLLOW), ENOENT.
    """
    return os.open(component(name), DIRECTORY, dir_fd=dirfd)


def open_below(dirfd: int, name: str, *, directory: bool) -> int:
    """Open *name* under *dirfd*, where others may change it: never a symlink or a mount point, bind mounts included.

    A directory is opened for reading. Anything else is only pinned (O_PATH): a FIFO or device is never really opened.

    Raises:
        OSError: EXDEV where *name* is a mount point, ELOOP or ENOTDIR for what is no directory, ENOENT.
    """
    flags = DIRECTORY if directory else PINNED
    try:
        # Not RESOLVE_NO_SYMLINKS, which refuses to pin a symlink; for one component O_NOFOLLOW is enough. Not
        # RESOLVE_BENEATH, which answers EXDEV where an entry is moved away at this moment (complete_walk, fs/namei.c).
        return linux.openat2(dirfd, component(name), flags, linux.RESOLVE_NO_XDEV)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
    with contextlib.ExitStack() as undo:
        fd = os.open(name, flags, dir_fd=dirfd)
        undo.callback(os.close, fd)
        if mount_id(fd) != mount_id(dirfd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
        undo.pop_all()
    return fd


def mount_id(fd: int) -> int:
    """The mount that *fd* was opened on, as in mountinfo (proc(5), fdinfo; Linux 3.15)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENOSYS, "no mnt_id in fdinfo")


def make_dir(dirfd: int, name: str) -> int:
    """Make the directory *name*, closed to everybody but root, and open it. The caller sets its mode.

    It has no access list, whatever the one above it hands on (acl(5)). While it has, the list's mask is the mode's 0.

    A user who can write *dirfd* may put another directory there before it is opened. One that is not root's, or not
    empty, is refused; an empty one of root's serves as well.

    Raises:
        NotAllowed: another directory was put there.
        OSError: EEXIST if anything has the name.
    """
    os.mkdir(component(name), 0o700, dir_fd=dirfd)
    try:
        fd = open_dir(dirfd, name)
    except (FileNotFoundError, NotADirectoryError):
        raise _exchanged(name) from None
    try:
        if os.fstat(fd).st_uid != os.geteuid() or os.listdir(fd):
            raise _exchanged(name)
        acl.disinherit(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _exchanged(name: str) -> NotAllowed:
    return NotAllowed(
        f"{printable(name)} had just been made, and is no empty directory of root's",
        hint="somebody put another one there, or the file system gives it another owner (NFS with root_squash)",
    )


def walk(path: str, *, trusted: bool) -> int:
    """Open the absolute, normalized directory *path* from `/` down, following no symlink.

    With *trusted*, nobody but root may be able to redirect it; see `walk_and_tell`.

    Raises:
        NotAllowed: a component is a symlink or no directory; or (trusted) somebody other than root could redirect it.
        OSError: ENOENT and what else open(2) raises, with the path so far.
    """
    fd, replaceable = walk_and_tell(path)
    if trusted and replaceable:
        os.close(fd)
        raise redirectable(replaceable)
    return fd


def walk_and_tell(path: str) -> tuple[int, str]:
    """`walk`, and the first directory on the way that somebody other than root could replace by another; "" for none.

    Only root can replace an entry of a directory that is root's and either not writable by others, or sticky with an
    entry that is root's. Where there is no other on the way, only root can change what the path leads to.
    """
    fd = os.open("/", DIRECTORY)
    shown = replaceable = ""
    try:
        for name in filter(None, path.split("/")):
            shown += "/" + name
            above, fd = fd, open_step(fd, name, shown)
            with closing(above):
                if not replaceable and not _roots_alone(above, fd):
                    replaceable = shown
    except BaseException:
        os.close(fd)
        raise
    return fd, replaceable


def steps(path: str) -> Iterator[tuple[int, str]]:
    """Lend each directory on the way from `/` to the absolute, normalized *path*, and itself, with its path.

    Raises what `walk` raises.
    """
    fd, shown = os.open("/", DIRECTORY), ""
    try:
        for name in filter(None, path.split("/")):
            shown += "/" + name
            below = open_step(fd, name, shown)
            os.close(fd)
            fd = below
            yield fd, shown
    finally:
        os.close(fd)


def make_way(path: str, *, mode: int) -> None:
    """Make the directory *path*, if it is missing, with *mode*, and those above it that are missing with 0755.

    The umask does not count. Nothing is made where somebody other than root could redirect it.

    Raises:
        NotAllowed, OSError: as for `walk` with *trusted*; and what mkdir(2) raises.
    """
    above, name = os.path.split(path)
    try:
        os.close(walk(path, trusted=True))
    except FileNotFoundError:
        make_way(above, mode=0o755)
        with closing(walk(above, trusted=True)) as fd:
            if not _roots_alone(fd, fd):  # as what is made there will be root's, too
                raise redirectable(path) from None
            with contextlib.suppress(FileExistsError):  # another process has made it meanwhile
                os.mkdir(component(name), 0o700, dir_fd=fd)
                with closing(open_dir(fd, name)) as made:
                    acl.disinherit(made)
                    os.fchmod(made, mode)
        os.close(walk(path, trusted=True))


def resolve(path: str) -> str:
    """The absolute *path*, which has no `..`, without symlinks, as the kernel resolves it at this moment.

    Only links that nobody but root can change are followed. What is missing, or cannot be looked at, stays as it is
    written: it may be mounted or made later, and whoever opens it says what is wrong.

    Raises:
        NotAllowed: there is a link that somebody other than root could replace by another.
        OSError: ELOOP for a link that leads to itself.
    """
    # By name: as long as only root can change a directory on the way, nobody redirects a look. Afterwards no link is
    # followed, so that what is answered are the names that were given.
    done, left, safe, links = "", path.split("/")[::-1], True, 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":  # of a link's; where it leads is known, as there is no link in what is done
            done = os.path.dirname(done)
            continue
        here = f"{done.rstrip('/')}/{name}"
        try:
            entry = os.lstat(here)
            safe = safe and _roots_alone(done or "/", here)
        except OSError:  # of any kind: a user who spoils his home, by a broken mount, must not keep root from starting
            return os.path.normpath("/".join([here, *reversed(left)]))
        if not stat.S_ISLNK(entry.st_mode):
            done = here
            continue
        if not safe:
            raise NotAllowed(
                f"{printable(here)} is a symlink, and somebody other than root could change where it leads",
                hint="name the directory that is meant, without a link",
            )
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), here)
        target = os.readlink(here)
        done = "" if target.startswith("/") else done
        left += reversed(target.split("/"))
    return done or "/"


def open_step(dirfd: int, name: str, shown: str) -> int:
    """`open_dir` of the last component of the path *shown*, which is for messages only.

    Raises:
        NotAllowed: it is a symlink, or no directory.
        OSError: ENOENT and what else open(2) raises, with the path.
    """
    try:
        return open_dir(dirfd, name)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            why = f"{printable(shown)} is {kind(dirfd, name)}, not a directory"
            raise NotAllowed(why, hint="give the real directory; symlinks are never followed") from None
        raise OSError(exc.errno, exc.strerror, shown) from None


def only_root_writes(path: str) -> bool:
    """Whether nobody but root can change what the directory *path* leads to, or what is in it."""
    with contextlib.suppress(NotAllowed), closing(walk(path, trusted=True)) as fd:
        return only_root_writes_in(fd)
    return False


def only_root_writes_in(directory: int) -> bool:
    """Whether nobody but root can change what is in the open *directory*."""
    return _is_roots(directory) and not os.fstat(directory).st_mode & _OTHERS_WRITE


def redirectable(path: str) -> NotAllowed:
    """The refusal of a path that the engine could be made to open elsewhere."""
    parent = printable(os.path.dirname(path))
    whose = (
        "root's or yours, and writable by nobody else" if rootless.inside() else "root's, and writable by root alone"
    )
    hint = f"the directories above it must be {whose}: see ls -ld {parent}"
    if os.stat("/").st_uid != 0 and not rootless.inside():
        hint = "who owns what cannot be told in this user namespace: start hostprep outside of it (docs/rootless.md)"
    return NotAllowed(
        f"somebody other than root could put another directory in the place of {printable(path)}", hint=hint
    )


def _roots_alone(directory: int | str, entry: int | str) -> bool:
    """Whether nobody but root can put something else in the place of *entry*. Both are descriptors, or paths."""
    # An ACL that lets others write shows in the group bits, which then are its mask (acl(5)).
    mode = os.stat(directory).st_mode
    return _is_roots(directory) and (not mode & _OTHERS_WRITE or (bool(mode & stat.S_ISVTX) and _is_roots(entry)))


def _is_roots(what: int | str) -> bool:
    """Whether *what*, a descriptor or a path whose last component is not followed, belongs to root."""
    if (os.fstat(what) if isinstance(what, int) else os.lstat(what)).st_uid == 0:
        return True
    if not rootless.inside():
        return False
    with closing(os.dup(what) if isinstance(what, int) else os.open(what, PINNED)) as fd:
        return rootless.is_real_root(fd)


def kind(dirfd: int, name: str) -> str:
    """What *name* is, for a message."""
    mode = os.stat(name, dir_fd=dirfd, follow_symlinks=False).st_mode
    return "a directory" if stat.S_ISDIR(mode) else "a symlink" if stat.S_ISLNK(mode) else "a file"


def exists(dirfd: int, name: str) -> bool:
    """Whether anything has the *name*, be it a dangling symlink."""
    try:
        os.stat(component(name), dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def read_file(dirfd: int, name: str, *, limit: int) -> bytes:
    """Read one of hostprep's own files, trusting nothing about it.

    Raises:
        Unreadable: it is not a regular file of root's, 0600 and with one link, or is over *limit* bytes.
        OSError: ENOENT and what else open(2) raises.
    """
    # O_NONBLOCK: to open a FIFO must not wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(component(name), flags, dir_fd=dirfd)
    except OSError as exc:
        if exc.errno != errno.ELOOP:
            raise
        raise Unreadable(f"{name} is a symlink") from None
    with closing(fd):
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise Unreadable(f"{name} is not a regular file")
        if st.st_uid != 0 or st.st_mode & 0o077 or st.st_nlink != 1:
            raise Unreadable(f"{name} is not root's alone", hint="expected owner 0, mode 0600 and one link")
        data = os.read(fd, limit + 1)
    if len(data) > limit:
        raise Unreadable(f"{name} is longer than {limit} bytes")
    return data


def write_file(dirfd: int, name: str, data: bytes, *, durable: bool) -> None:
    """Make the file *name*, which must not exist. When *durable*, its content is on disk on return, its name not."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing(os.open(component(name), flags, 0o600, dir_fd=dirfd)) as fd:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        if durable:
            os.fsync(fd)


def replace_file(dirfd: int, name: str, data: bytes, *, scratch: int, durable: bool) -> None:
    """Replace the file *name* by one rename: after a crash there is the old file or the new one.

    The temporary file is made in *scratch*, a directory of the same file system, which its caller clears at times.
    Without *durable*, a power cut may bring back the old content, or on some file systems leave an empty file.
    """
    temporary = temporary_name()
    try:
        write_file(scratch, temporary, data, durable=durable)
        os.rename(temporary, name, src_dir_fd=scratch, dst_dir_fd=dirfd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=scratch)
        raise
    if durable:
        os.fsync(dirfd)


def temporary_name() -> str:
    """A name that no volume and no trash entry can have."""
    return f"{TEMPORARY}new-{secrets.token_hex(8)}"


def is_temporary(name: str) -> bool:
    """Whether *name* is one that `temporary_name` gives."""
    return _TEMPORARY_NAME.fullmatch(name) is not None
